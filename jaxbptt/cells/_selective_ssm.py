"""The selective state-space model (S6) of Mamba: a diagonal recurrence whose time step and input weights are gated."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.cells._diagonal import derive_diagonal
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.initializers import draw_input_weights

LEAST_STEP, MOST_STEP = 1e-3, 0.1  # of Δ at initialisation


class SelectiveSSMParams(NamedTuple):
    """θ of `selective_ssm`: floats of one dtype, named as in the equations.

    Attributes:
      a_log: [D, n]: A = −e^a_log.
      w_delta, b_delta: [D, D] and [D], of the time step Δ.
      w_b: [n, D], of B_t, which writes the input.
      w_c: [n, D], of C_t, read by the output alone.
      d: [D], of the input's direct way to the output, read by the output alone.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.selective_ssm(channels=2, states=3).init(jax.random.key(0))
      >>> bool(jnp.allclose(-jnp.exp(params.a_log[0]), jnp.array([-1.0, -2.0, -3.0])))  # A of the first channel
      True
    """

    a_log: jax.Array
    w_delta: jax.Array
    b_delta: jax.Array
    w_b: jax.Array
    w_c: jax.Array
    d: jax.Array


class SelectiveDrive(NamedTuple):
    """What the input alone decides."""

    pre: jax.Array  # W_Δ x + b_Δ [D]
    b: jax.Array  # B_t [n]
    x: jax.Array  # [D]


class SelectiveFactors(NamedTuple):
    """The factors that multiply a cotangent at one step."""

    carry: jax.Array  # [D, n] a = e^{ΔA}
    a_log: jax.Array  # [D, n] ∂⁺h_t/∂⁺a_log
    pre: jax.Array  # [D, n] ∂⁺h_t/∂⁺(W_Δ x + b_Δ)
    write: jax.Array  # [D, n] β = (e^{ΔA} − 1)/A = ∂⁺h_t/∂⁺(x_t B_tᵀ)
    b: jax.Array  # B_t [n]
    x: jax.Array  # [D]


class SelectiveDelta(NamedTuple):
    """δ of a_log, of the two products with x_t, and of x_t where it is written."""

    a_log: jax.Array  # [D, n]
    pre: jax.Array  # [D]
    b: jax.Array  # [n]
    x: jax.Array  # [D]


def selective_ssm(channels: int, states: int) -> Cell:
    """h_t = e^{ΔA} ⊙ h_{t−1} + ((e^{ΔA} − 1)/A) ⊙ x_t B_tᵀ [D, n],  y_t = h_t C_t + d ⊙ x_t [D].

    Here Δ = softplus(u), u = W_Δ x_t + b_Δ [D], B_t = W_B x_t [n], C_t = W_C x_t [n] and A = −e^a_log [D, n]; Δ
    multiplies the rows of A. The input is held over the step (zero-order hold), as in the paper's equations; Mamba's
    code has Δ in place of (e^{ΔA} − 1)/A. W_Δ is a full matrix; Mamba's has rank D/16.
    The hand derivation, with a = e^{ΔA} and β = (a − 1)/A: J_t = diag(a). Entry by entry, h_t has the partials
    σ(u) a (A h_{t−1} + x_t B_tᵀ) by u, ΔA a h_{t−1} + (Δ a − β) x_t B_tᵀ by a_log and β by x_t B_tᵀ. Summed over states
    or channels they give δ_u = Σ_n ∂h/∂u ⊙ λ, δ_B = (β ⊙ λ)ᵀ x_t and δ_x = (β ⊙ λ) B_t. The cotangents are
    ∂h/∂a_log ⊙ λ (a_log), δ_u x_tᵀ (w_delta), δ_u (b_delta), δ_B x_tᵀ (w_b), 0 (w_c and d, which the step does not
    read), a ⊙ λ (previous state) and δ_x + W_Δᵀ δ_u + W_Bᵀ δ_B (input).
    Exact at every T: ln σ of dh_T/dh_0 is A_dn Σ_t Δ_td.

    Args:
      channels: D ≥ 1, the number of inputs and of outputs.
      states: n ≥ 1 per channel; the flattened state has N = D n entries, those of one channel side by side.

    Returns:
      Cell on a state [D, n] with `SelectiveSSMParams(a_log [D, n], w_delta [D, D], b_delta [D], w_b [n, D], w_c
      [n, D], d [D])` and the output y_t [D]. At initialisation A's rows are −1 … −n, Δ at x = 0 is log-uniform in
      [0.001, 0.1], d = 1 and the weights are N(0, 1/D).

    Raises:
      TypeError, ValueError: a size that is not an int or is too small.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.selective_ssm(channels=2, states=3)
      >>> params, x = cell.init(jax.random.key(0)), jnp.ones(2)
      >>> state = cell.step(params, cell.initial_state(params), x)
      >>> state.shape, cell.output(params, state, x).shape  # h_t [D, n], y_t [D]
      ((2, 3), (2,))

    Reference: Gu & Dao (2023), arXiv:2312.00752.
    """
    _validation.require_size("channels", channels)
    _validation.require_size("states", states)

    def init(key):
        _validation.require_key(key)
        step_key, *weight_keys = jax.random.split(key, 4)
        w_delta, w_b, w_c = (
            draw_input_weights(key, rows, channels)
            for key, rows in zip(weight_keys, (channels, states, states), strict=True)
        )
        dtype = w_b.dtype
        a_log = jnp.broadcast_to(jnp.log(jnp.arange(1, states + 1, dtype=dtype)), (channels, states))
        least, most = math.log(LEAST_STEP), math.log(MOST_STEP)
        delta = jnp.exp(jax.random.uniform(step_key, (channels,), dtype, minval=least, maxval=most))
        b_delta = delta + jnp.log(-jnp.expm1(-delta))  # the inverse of softplus
        return SelectiveSSMParams(a_log, w_delta, b_delta, w_b, w_c, jnp.ones_like(delta))

    return Cell(
        init=init,
        initial_state=lambda params: jnp.zeros_like(params.a_log),
        step=lambda params, state, x: _advance(params, state, _drive(params, x))[0],
        derivation=derive_diagonal(_PULLBACK, channels * states),
        num_inputs=channels,
        output=_output,
    )


def _output(params, state, x):
    return state @ (params.w_c @ x) + params.d * x


def _drive(params, x):
    return SelectiveDrive(x @ params.w_delta.T + params.b_delta, x @ params.w_b.T, x)


def _hold(a, drive):
    """(Δ [D, 1], ΔA, β, x_t B_tᵀ [D, n])."""
    delta = jax.nn.softplus(drive.pre)[:, None]
    return delta, delta * a, jnp.expm1(delta * a) / a, drive.x[:, None] * drive.b[None]


def _advance(params, state, drive):
    a = -jnp.exp(params.a_log)
    _, exponent, write, written = _hold(a, drive)
    return jnp.exp(exponent) * state + write * written, (a, drive)


def _expand(state, new, kept):
    a, drive = kept
    delta, exponent, write, written = _hold(a, drive)
    carry = jnp.exp(exponent)
    return SelectiveFactors(
        carry=carry,
        a_log=exponent * carry * state + (delta * carry - write) * written,
        pre=jax.nn.sigmoid(drive.pre)[:, None] * carry * (a * state + written),
        write=write,
        b=drive.b,
        x=drive.x,
    )


def _delta(factors, cotangent):
    written = factors.write * cotangent
    return SelectiveDelta(
        a_log=factors.a_log * cotangent,
        pre=jnp.sum(factors.pre * cotangent, axis=1),
        b=factors.x @ written,
        x=written @ factors.b,
    )


def _pull_params(params, state, x, delta):
    return SelectiveSSMParams(
        a_log=delta.a_log,
        w_delta=outer(delta.pre, x),
        b_delta=delta.pre,
        w_b=outer(delta.b, x),
        w_c=jnp.zeros_like(params.w_c),
        d=jnp.zeros_like(params.d),
    )


_PULLBACK = FactoredPullback(
    drive=_drive,
    advance=_advance,
    expand=_expand,
    delta=_delta,
    state=lambda params, factors, cotangent, delta: factors.carry * cotangent,
    params=_pull_params,
    input=lambda params, delta: delta.x + delta.pre @ params.w_delta + delta.b @ params.w_b,
)
