"""The simple recurrent cell h_t = φ(W_hx x_t + W_hh h_{t−1} + b_h), and its linear case."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import checks
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation, FactoredPullback, Outer
from jaxbptt.cells.schemes import Scheme, draw_weights, gaussian


class ElmanParams(NamedTuple):
    w_hx: jax.Array  # [N, M]
    w_hh: jax.Array  # [N, N]
    b_h: jax.Array  # [N]


def linear(num_inputs: int, num_hidden: int, *, recurrent: Scheme = gaussian(1.0)) -> Cell:
    """h_t = W_hx x_t + W_hh h_{t−1} + b_h.

    Args:
      num_inputs: M ≥ 0.
      num_hidden: N ≥ 1.
      recurrent: scheme of W_hh.

    Returns:
      Cell on a state [N] with `ElmanParams`; J_t = W_hh at every step.

    Raises:
      TypeError, ValueError: a size that is no int or too small.
    """
    return elman(num_inputs, num_hidden, activation=lambda a: a, recurrent=recurrent)


def elman(
    num_inputs: int,
    num_hidden: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
    recurrent: Scheme = gaussian(1.0),
) -> Cell:
    """h_t = φ(a_t), a_t = W_hx x_t + W_hh h_{t−1} + b_h.

    By hand, with δ_t = φ'(a_t) ⊙ λ_t:  J_t = diag(φ'(a_t)) W_hh;  the pullbacks are δ_t x_tᵀ (w_hx),
    δ_t h_{t−1}ᵀ (w_hh), δ_t (b_h), W_hhᵀ δ_t (previous state), W_hxᵀ δ_t (input). φ' is JAX's derivative of φ, entry by
    entry.

    Args:
      num_inputs: M ≥ 0.
      num_hidden: N ≥ 1.
      activation: φ, elementwise.
      recurrent: scheme of W_hh.

    Returns:
      Cell on a state [N] with `ElmanParams(w_hx [N, M], w_hh [N, N], b_h [N])`.

    Raises:
      TypeError, ValueError: a size that is no int or too small; an activation that mixes entries.

    Reference: Elman (1990), Cognitive Science 14.
    """
    checks.require_size("num_inputs", num_inputs, least=0)
    checks.require_size("num_hidden", num_hidden)
    _require_elementwise(activation, num_hidden)

    def init(key):
        checks.require_key(key)
        w_hx, w_hh = draw_weights(key, recurrent, num_inputs, num_hidden, num_gates=1)
        return ElmanParams(w_hx, w_hh, jnp.zeros_like(w_hh[:, 0]))

    def preactivation(params, state, x):
        return params.w_hx @ x + params.w_hh @ state + params.b_h

    def slope(params, state, x):
        a = preactivation(params, state, x)
        return jax.jvp(activation, (a,), (jnp.ones_like(a),))[1]

    def pull_params(params, state, x, slope, cotangent):
        delta = slope * cotangent
        return ElmanParams(Outer(delta, x), Outer(delta, state), delta)

    return Cell(
        init=init,
        initial_state=lambda params: jnp.zeros_like(params.b_h),
        step=lambda params, state, x: activation(preactivation(params, state, x)),
        derivation=Derivation(
            state_jacobian=lambda params, state, x: slope(params, state, x)[:, None] * params.w_hh,
            pullback=FactoredPullback(
                factors=slope,
                state=lambda params, slope, cotangent: (slope * cotangent) @ params.w_hh,
                params=pull_params,
                input=lambda params, slope, cotangent: (slope * cotangent) @ params.w_hx,
            ),
        ),
        num_inputs=num_inputs,
    )


def _require_elementwise(activation, num_hidden):
    """Raise if a change of the last entry of a reaches another entry of φ(a), or φ changes shape or dtype."""
    with jax.ensure_compile_time_eval():
        a = jnp.linspace(-0.7, 0.9, num_hidden)
        before, after = activation(a), activation(a.at[-1].add(jnp.asarray(0.5, a.dtype)))
    if (jnp.shape(before), jnp.result_type(before)) != (a.shape, a.dtype):
        got = f"{jnp.result_type(before)}{list(jnp.shape(before))} from {a.dtype}{list(a.shape)}"
        raise ValueError(f"activation: got {got}, expected the same shape and dtype")
    if not np.array_equal(before[:-1], after[:-1]):
        raise ValueError("activation: got a function that mixes entries, expected an elementwise one")
