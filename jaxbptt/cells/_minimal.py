"""Minimal gated units, whose gates read the input alone: minGRU and minLSTM."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.cells._diagonal import derive_diagonal
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.initializers import GateBias, draw_gate_bias, draw_input_weights, require_gate_bias


class MinGRUParams(NamedTuple):
    """θ of `min_gru`: floats of one dtype, named as in the equations.

    Attributes:
      w_z, b_z: [N, M] and [N], of the update gate z.
      w_h, b_h: [N, M] and [N], of the candidate h̃.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.min_gru(num_inputs=2, num_hidden=3).init(jax.random.key(0))
      >>> jax.tree.map(jnp.shape, params)
      MinGRUParams(w_z=(3, 2), b_z=(3,), w_h=(3, 2), b_h=(3,))
    """

    w_z: jax.Array
    b_z: jax.Array
    w_h: jax.Array
    b_h: jax.Array


class MinLSTMParams(NamedTuple):
    """θ of `min_lstm`: floats of one dtype, named as in the equations.

    Attributes:
      w_f, b_f: [N, M] and [N], of the forget gate f.
      w_i, b_i: [N, M] and [N], of the input gate i.
      w_h, b_h: [N, M] and [N], of the candidate h̃.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.min_lstm(num_inputs=2, num_hidden=3).init(jax.random.key(0))
      >>> jax.tree.map(jnp.shape, params)
      MinLSTMParams(w_f=(3, 2), b_f=(3,), w_i=(3, 2), b_i=(3,), w_h=(3, 2), b_h=(3,))
    """

    w_f: jax.Array
    b_f: jax.Array
    w_i: jax.Array
    b_i: jax.Array
    w_h: jax.Array
    b_h: jax.Array


class MinimalGates(NamedTuple):
    """h_t = carry ⊙ h_{t−1} + write ⊙ candidate, carry + write = 1, each [N]."""

    carry: jax.Array
    write: jax.Array
    candidate: jax.Array
    slopes: tuple[jax.Array, ...]  # ∂⁺write/∂⁺ of each gate's pre-activation

    def update(self, state: jax.Array) -> jax.Array:
        """h_t."""
        return self.carry * state + self.write * self.candidate


class MinimalFactors(NamedTuple):
    """The factors that multiply a cotangent at one step, each [N]."""

    carry: jax.Array
    write: jax.Array  # ∂⁺h_t/∂⁺candidate
    gates: tuple[jax.Array, ...]  # ∂⁺h_t/∂⁺ of each gate's pre-activation


class MinimalDelta(NamedTuple):
    """δ of the candidate and of each gate's pre-activation, each [N]."""

    candidate: jax.Array
    gates: tuple[jax.Array, ...]


def min_gru(num_inputs: int, num_hidden: int) -> Cell:
    """h_t = (1−z) ⊙ h_{t−1} + z ⊙ h̃,  z = σ(W_z x_t + b_z),  h̃ = W_h x_t + b_h.

    This is the paper's minGRU with a linear candidate, not the variant in log space, which bends h̃ to be positive.
    The hand derivation: J_t = diag(1−z). With δ_z = z (1−z) ⊙ (h̃ − h_{t−1}) ⊙ λ and δ_h = z ⊙ λ the cotangents are
    δ x_tᵀ (w_z, w_h), δ (b_z, b_h), (1−z) ⊙ λ (previous state) and W_zᵀ δ_z + W_hᵀ δ_h (input). 1−z is computed as
    σ(−W_z x_t − b_z), with all its digits where z is near 1. Exact at every T: ln σ_i of dh_T/dh_0 is Σ_t ln(1−z_ti).

    Args:
      num_inputs: M ≥ 0.
      num_hidden: N ≥ 1.

    Returns:
      Cell on a state [N] with `MinGRUParams(w_z [N, M], b_z [N], w_h [N, M], b_h [N])`; weights N(0, 1/M), biases 0.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians, trajectories
      >>> cell = cells.min_gru(num_inputs=1, num_hidden=2)
      >>> params = cell.init(jax.random.key(0))
      >>> trajectory = trajectories.unroll(cell, params, jnp.zeros((3, 1)))  # x = 0: z = ½ at every step
      >>> jacobians.product(jacobians.structured_jacobians(cell, params, trajectory), 0, 3).tolist()
      [[0.125, 0.0], [0.0, 0.125]]

    Reference: Feng et al. (2024), arXiv:2410.01201.
    """

    def draw(key):
        w_z, w_h = jnp.split(draw_input_weights(key, 2 * num_hidden, num_inputs), 2)
        return MinGRUParams(w_z, jnp.zeros_like(w_z[:, 0]), w_h, jnp.zeros_like(w_h[:, 0]))

    def drive(params, x):
        return x @ params.w_z.T + params.b_z, x @ params.w_h.T + params.b_h

    def gates_of(pre):
        z, candidate = pre
        carry, write = jax.nn.sigmoid(-z), jax.nn.sigmoid(z)
        return MinimalGates(carry, write, candidate, (carry * write,))

    def pull_params(params, state, x, delta):
        (z,) = delta.gates
        return MinGRUParams(outer(z, x), z, outer(delta.candidate, x), delta.candidate)

    def pull_input(params, delta):
        return delta.gates[0] @ params.w_z + delta.candidate @ params.w_h

    return _make_cell(num_inputs, num_hidden, draw, drive, gates_of, pull_params, pull_input)


def min_lstm(num_inputs: int, num_hidden: int, *, forget_bias: float | GateBias = 0.0) -> Cell:
    """h_t = f/(f+i) ⊙ h_{t−1} + i/(f+i) ⊙ h̃,  (f, i) = σ(W_f x_t + b_f), σ(W_i x_t + b_i),  h̃ = W_h x_t + b_h.

    This is the paper's minLSTM with a linear candidate, not the variant in log space, which bends h̃ to be positive.
    The hand derivation, with f' = f/(f+i) and i' = i/(f+i): J_t = diag(f'). With
    δ_f = f' i' (1−f) ⊙ (h_{t−1} − h̃) ⊙ λ, δ_i = −f' i' (1−i) ⊙ (h_{t−1} − h̃) ⊙ λ and δ_h = i' ⊙ λ the cotangents are
    δ x_tᵀ (w_f, w_i, w_h), δ (b_f, b_i, b_h), f' ⊙ λ (previous state) and W_fᵀ δ_f + W_iᵀ δ_i + W_hᵀ δ_h (input). f' is
    computed as σ(ln f − ln i): it keeps its digits where f, i or both are near 0. Exact at every T: ln σ_i of dh_T/dh_0
    is Σ_t ln f'_ti.

    Args:
      num_inputs: M ≥ 0.
      num_hidden: N ≥ 1.
      forget_bias: initial value of b_f, or a scheme for b_i and b_f such as `chrono`.

    Returns:
      Cell on a state [N] with `MinLSTMParams(w_f [N, M], b_f [N], w_i, b_i, w_h, b_h)`; weights N(0, 1/M), the other
      biases 0.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small; a forget_bias that is neither.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.min_lstm(num_inputs=1, num_hidden=2)  # forget_bias=cells.chrono(T_max) for long memories
      >>> params = cell.init(jax.random.key(0))
      >>> cell.step(params, jnp.array([4.0, 6.0]), jnp.zeros(1)).tolist()  # x = 0: f = i and h̃ = 0
      [2.0, 3.0]

    Reference: Feng et al. (2024), arXiv:2410.01201.
    """

    require_gate_bias(forget_bias)

    def draw(key):
        weights_key, bias_key = jax.random.split(key)
        w_f, w_i, w_h = jnp.split(draw_input_weights(weights_key, 3 * num_hidden, num_inputs), 3)
        b_i, b_f = draw_gate_bias(bias_key, forget_bias, num_hidden, w_f.dtype)
        return MinLSTMParams(w_f, b_f, w_i, b_i, w_h, jnp.zeros_like(b_f))

    def drive(params, x):
        f, i = x @ params.w_f.T + params.b_f, x @ params.w_i.T + params.b_i
        log_ratio = jax.nn.softplus(-i) - jax.nn.softplus(-f)  # ln f − ln i
        return log_ratio, jax.nn.sigmoid(-f), jax.nn.sigmoid(-i), x @ params.w_h.T + params.b_h

    def gates_of(pre):
        log_ratio, not_f, not_i, candidate = pre
        carry, write = jax.nn.sigmoid(log_ratio), jax.nn.sigmoid(-log_ratio)
        slope = carry * write
        return MinimalGates(carry, write, candidate, (-slope * not_f, slope * not_i))

    def pull_params(params, state, x, delta):
        (f, i), h = delta.gates, delta.candidate
        return MinLSTMParams(outer(f, x), f, outer(i, x), i, outer(h, x), h)

    def pull_input(params, delta):
        f, i = delta.gates
        return f @ params.w_f + i @ params.w_i + delta.candidate @ params.w_h

    return _make_cell(num_inputs, num_hidden, draw, drive, gates_of, pull_params, pull_input)


def _make_cell(num_inputs, num_hidden, draw, drive, gates_of, pull_params, pull_input):
    _validation.require_size("num_inputs", num_inputs, least=0)
    _validation.require_size("num_hidden", num_hidden)

    def init(key):
        _validation.require_key(key)
        return draw(key)

    def expand(state, new, pre):
        gates = gates_of(pre)
        through = gates.candidate - state
        return MinimalFactors(gates.carry, gates.write, tuple(slope * through for slope in gates.slopes))

    def delta(factors, cotangent):
        return MinimalDelta(factors.write * cotangent, tuple(gate * cotangent for gate in factors.gates))

    pullback = FactoredPullback(
        drive=drive,
        advance=lambda params, state, pre: (gates_of(pre).update(state), pre),
        expand=expand,
        delta=delta,
        state=lambda params, factors, cotangent, delta: factors.carry * cotangent,
        params=pull_params,
        input=pull_input,
    )
    return Cell(
        init=init,
        initial_state=lambda params: jnp.zeros_like(params.b_h),
        step=lambda params, state, x: gates_of(drive(params, x)).update(state),
        derivation=derive_diagonal(pullback, num_hidden),
        num_inputs=num_inputs,
    )
