"""The simple recurrent cell h_t = φ(W_hx x_t + W_hh h_{t−1} + b_h), and its linear case."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.initializers import Scheme, draw_weights, gaussian, require_scheme
from jaxbptt.cells.structure import JacobianParts


class ElmanParams(NamedTuple):
    """θ of `linear` and `elman`: floats of one dtype, named as in the equations.

    Attributes:
      w_hx: [N, M], of the input x_t.
      w_hh: [N, N], of the previous state.
      b_h: [N], the bias.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.ElmanParams(w_hx=jnp.ones((2, 1)), w_hh=jnp.eye(2), b_h=jnp.zeros(2))  # weights of your own
      >>> cells.linear(num_inputs=1, num_hidden=2).step(params, jnp.array([3.0, 4.0]), jnp.ones(1)).tolist()
      [4.0, 5.0]
    """

    w_hx: jax.Array
    w_hh: jax.Array
    b_h: jax.Array


def linear(num_inputs: int, num_hidden: int, *, recurrent: Scheme = gaussian(1.0)) -> Cell:
    """h_t = W_hx x_t + W_hh h_{t−1} + b_h.

    Args:
      num_inputs: M ≥ 0.
      num_hidden: N ≥ 1.
      recurrent: the scheme that draws W_hh.

    Returns:
      Cell on a state [N] with `ElmanParams`; J_t = W_hh at every step.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small; a recurrent that is no scheme.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians, trajectories
      >>> cell = cells.linear(num_inputs=1, num_hidden=2, recurrent=cells.identity(0.5))
      >>> params = cell.init(jax.random.key(0))
      >>> chain = jacobians.step_jacobians(cell, params, trajectories.unroll(cell, params, jnp.ones((3, 1))))
      >>> jacobians.product(chain, 0, 3).tolist()  # dh_3/dh_0 = W_hh³
      [[0.125, 0.0], [0.0, 0.125]]
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

    The hand derivation: J_t = diag(φ'(a_t)) W_hh. With δ_t = φ'(a_t) ⊙ λ_t the cotangents are δ_t x_tᵀ (w_hx),
    δ_t h_{t−1}ᵀ (w_hh), δ_t (b_h), W_hhᵀ δ_t (previous state) and W_hxᵀ δ_t (input). φ' is JAX's derivative of φ, entry
    by entry.

    Args:
      num_inputs: M ≥ 0.
      num_hidden: N ≥ 1.
      activation: φ, an elementwise function.
      recurrent: the scheme that draws W_hh.

    Returns:
      Cell on a state [N] with `ElmanParams(w_hx [N, M], w_hh [N, N], b_h [N])`.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small; a recurrent that is no scheme; an
        activation that mixes entries.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, trajectories
      >>> cell = cells.elman(num_inputs=2, num_hidden=3, activation=jax.nn.relu, recurrent=cells.orthogonal(1.0))
      >>> params = cell.init(jax.random.key(0))
      >>> trajectories.unroll(cell, params, jnp.ones((5, 2))).states.shape
      (5, 3)

    Reference: Elman (1990), Cognitive Science 14.
    """
    _validation.require_size("num_inputs", num_inputs, least=0)
    _validation.require_size("num_hidden", num_hidden)
    require_scheme(recurrent)
    require_elementwise(activation, num_hidden)

    def init(key):
        _validation.require_key(key)
        w_hx, w_hh = draw_weights(key, recurrent, num_inputs, num_hidden, num_gates=1)
        return ElmanParams(w_hx, w_hh, jnp.zeros_like(w_hh[:, 0]))

    def drive(params, x):
        return x @ params.w_hx.T + params.b_h

    def advance(params, state, drive):
        a = drive + params.w_hh @ state
        return jax.jvp(activation, (a,), (jnp.ones_like(a),))

    def state_jacobian(params, state, x):
        slope = advance(params, state, drive(params, x))[1]
        return slope[:, None] * params.w_hh

    return Cell(
        init=init,
        initial_state=lambda params: jnp.zeros_like(params.b_h),
        step=lambda params, state, x: activation(params.w_hx @ x + params.w_hh @ state + params.b_h),
        derivation=Derivation(
            state_jacobian=state_jacobian,
            pullback=FactoredPullback(
                drive=drive,
                advance=advance,
                expand=lambda state, new, slope: slope,
                delta=lambda slope, cotangent: slope * cotangent,
                state=lambda params, slope, cotangent, delta: delta @ params.w_hh,
                params=lambda params, state, x, delta: ElmanParams(outer(delta, x), outer(delta, state), delta),
                input=lambda params, delta: delta @ params.w_hx,
            ),
            parts=JacobianParts(
                form=lambda params, slope: (slope, params.w_hh),
                dense=lambda parts: parts[0][:, None] * parts[1],
                left=lambda parts, matrix: parts[0][:, None] * (parts[1] @ matrix),
                right=lambda parts, matrix: (matrix * parts[0][None]) @ parts[1],
            ),
        ),
        num_inputs=num_inputs,
    )


def require_elementwise(activation, num_hidden):
    """Raise if a change of the last entry of a reaches another entry of φ(a), or φ changes shape or dtype."""
    if not callable(activation):
        raise TypeError(f"activation: got {type(activation).__name__}, expected an elementwise function")
    with jax.ensure_compile_time_eval():
        a = jnp.linspace(-0.7, 0.9, num_hidden)
        before, after = activation(a), activation(a.at[-1].add(jnp.asarray(0.5, a.dtype)))
    if (jnp.shape(before), jnp.result_type(before)) != (a.shape, a.dtype):
        got = f"{jnp.result_type(before)}{list(jnp.shape(before))} from {a.dtype}{list(a.shape)}"
        raise ValueError(f"activation: got {got}, expected the same shape and dtype")
    if not np.array_equal(np.asarray(before)[:-1], np.asarray(after)[:-1]):
        raise ValueError("activation: got a function that mixes entries, expected an elementwise one")
