"""The leaky integrator, or continuous-time recurrent network (CTRNN), in discrete time."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.cells._elman import require_elementwise
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.initializers import Scheme, draw_weights, gaussian, require_scheme
from jaxbptt.cells.structure import JacobianParts
from jaxbptt.types import ArrayLike


class LeakyParams(NamedTuple):
    """θ of `leaky`: floats of one dtype, named as in the equations.

    Attributes:
      w_hx: [N, M], of the input x_t.
      w_hh: [N, N], of the previous state.
      b_h: [N], the bias.
      leak: α, [] or [N], the fraction of the state that is replaced at a step.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.leaky(num_inputs=1, num_hidden=2, leak=jnp.array([0.5, 0.25]))  # one α per unit
      >>> cell.init(jax.random.key(0)).leak.tolist()
      [0.5, 0.25]
    """

    w_hx: jax.Array
    w_hh: jax.Array
    b_h: jax.Array
    leak: jax.Array


class LeakyFactors(NamedTuple):
    """The factors that multiply a cotangent at one step, each [N]; 1 − α is read from the params."""

    slope: jax.Array  # α φ'(a) = ∂⁺h_t/∂⁺a_t
    leak: jax.Array  # φ(a) − h_{t-1} = ∂⁺h_t/∂⁺α


class LeakyDelta(NamedTuple):
    """δ of the pre-activations and of α, each [N]."""

    a: jax.Array
    leak: jax.Array


def leaky(
    num_inputs: int,
    num_hidden: int,
    *,
    leak: float | ArrayLike = 0.2,
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
    recurrent: Scheme = gaussian(1.0),
) -> Cell:
    """h_t = (1−α) ⊙ h_{t−1} + α ⊙ φ(a_t),  a_t = W_hx x_t + W_hh h_{t−1} + b_h.

    One Euler step of τ dh/dt = −h + φ(a) over a time dt, α = dt/τ. α is a leaf of the params, `leak`, and has its
    gradient like the others; nothing keeps a trained α in (0, 1].
    The hand derivation: J_t = diag(1−α) + diag(α φ'(a_t)) W_hh. With δ_t = α ⊙ φ'(a_t) ⊙ λ_t the cotangents are
    δ_t x_tᵀ (w_hx), δ_t h_{t−1}ᵀ (w_hh), δ_t (b_h), (φ(a_t) − h_{t−1}) ⊙ λ_t, summed if α is a scalar (leak),
    (1−α) ⊙ λ_t + W_hhᵀ δ_t (previous state) and W_hxᵀ δ_t (input).

    Args:
      num_inputs: M ≥ 0.
      num_hidden: N ≥ 1.
      leak: initial value of α, in (0, 1]: a float, or an array [N] for one α per unit.
      activation: φ, an elementwise function.
      recurrent: the scheme that draws W_hh.

    Returns:
      Cell on a state [N] with `LeakyParams(w_hx [N, M], w_hh [N, N], b_h [N], leak)`, leak [] or [N] as given.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small; a recurrent that is no scheme; a leak outside
        (0, 1] or of another shape; an activation that mixes entries.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.leaky(num_inputs=1, num_hidden=2, leak=0.25, recurrent=cells.identity(0.0))
      >>> params = cell.init(jax.random.key(0))
      >>> cell.step(params, jnp.array([4.0, 8.0]), jnp.zeros(1)).tolist()  # nothing comes in: h decays by 1 − α
      [3.0, 6.0]

    Reference: Jaeger et al. (2007), Neural Networks 20 (leaky integrators); Song, Yang & Wang (2016), PLOS
    Computational Biology 12 (α = dt/τ = 0.2).
    """
    _validation.require_size("num_inputs", num_inputs, least=0)
    _validation.require_size("num_hidden", num_hidden)
    require_scheme(recurrent)
    _validation.require_probability("leak", leak, num_hidden)
    require_elementwise(activation, num_hidden)

    def init(key):
        _validation.require_key(key)
        w_hx, w_hh = draw_weights(key, recurrent, num_inputs, num_hidden, num_gates=1)
        return LeakyParams(w_hx, w_hh, jnp.zeros_like(w_hh[:, 0]), jnp.asarray(leak, w_hh.dtype))

    def step(params, state, x):
        a = params.w_hx @ x + params.w_hh @ state + params.b_h
        return (1 - params.leak) * state + params.leak * activation(a)

    def advance(params, state, drive):
        a = drive + params.w_hh @ state
        value, slope = jax.jvp(activation, (a,), (jnp.ones_like(a),))
        new = (1 - params.leak) * state + params.leak * value
        return new, LeakyFactors(params.leak * slope, value - state)

    pullback = FactoredPullback(
        drive=lambda params, x: x @ params.w_hx.T + params.b_h,
        advance=advance,
        expand=lambda state, new, factors: factors,
        delta=lambda factors, cotangent: LeakyDelta(factors.slope * cotangent, factors.leak * cotangent),
        state=lambda params, factors, cotangent, delta: (1 - params.leak) * cotangent + delta.a @ params.w_hh,
        params=_pull_params,
        input=lambda params, delta: delta.a @ params.w_hx,
    )

    def state_jacobian(params, state, x):
        return _PARTS.dense(_form_parts(params, pullback.factors(params, state, x)))

    return Cell(
        init=init,
        initial_state=lambda params: jnp.zeros_like(params.b_h),
        step=step,
        derivation=Derivation(state_jacobian, pullback, _PARTS),
        num_inputs=num_inputs,
    )


def _pull_params(params, state, x, delta):
    leak = delta.leak if params.leak.ndim else jnp.sum(delta.leak)
    return LeakyParams(outer(delta.a, x), outer(delta.a, state), delta.a, leak)


def _form_parts(params, factors):
    """(diagonal [N], row scales [N], W_hh)."""
    return jnp.broadcast_to(1 - params.leak, factors.slope.shape), factors.slope, params.w_hh


_PARTS = JacobianParts(
    form=_form_parts,
    dense=lambda parts: jnp.diag(parts[0]) + parts[1][:, None] * parts[2],
    left=lambda parts, matrix: parts[0][:, None] * matrix + parts[1][:, None] * (parts[2] @ matrix),
    right=lambda parts, matrix: matrix * parts[0][None] + (matrix * parts[1][None]) @ parts[2],
)
