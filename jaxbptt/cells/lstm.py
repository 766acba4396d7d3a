"""The long short-term memory cell, state (C, h)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import checks
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation, FactoredPullback, JacobianParts, Outer
from jaxbptt.cells.schemes import Scheme, draw_weights, gaussian


class LSTMParams(NamedTuple):
    w_hx: jax.Array  # [4H, M], gate order i, f, g, o
    w_hh: jax.Array  # [4H, H]
    b_h: jax.Array  # [4H]


class LSTMState(NamedTuple):
    cell: jax.Array  # C [H], first when flattened
    hidden: jax.Array  # h [H]


class LSTMFactors(NamedTuple):
    """What multiplies a cotangent at one step, each [H]; a' is the derivative of a gate in its pre-activation."""

    forget: jax.Array  # f            = ∂⁺C/∂⁺C_{t-1}
    output: jax.Array  # o (1 − tanh²C) = ∂⁺h/∂⁺C
    gates: tuple[jax.Array, ...]  # g i', C_{t-1} f', i g' (these act on dC) and tanh(C) o' (acts on dh)


def lstm(num_inputs: int, num_hidden: int, *, forget_bias: float = 1.0, recurrent: Scheme = gaussian(1.0)) -> Cell:
    """C_t = f ⊙ C_{t−1} + i ⊙ g,  h_t = o ⊙ tanh(C_t),  (i, f, g, o) = (σ, σ, tanh, σ)(W_hx x_t + W_hh h_{t−1} + b_h).

    By hand, with dC = λ_C + o(1−tanh²C) ⊙ λ_h:  δ = (g i' dC, C_{t−1} f' dC, i g' dC, tanh(C) o' λ_h);  the pullbacks
    are δ x_tᵀ, δ h_{t−1}ᵀ, δ, (f ⊙ dC, W_hhᵀ δ) and W_hxᵀ δ. State Jacobian, 2H × 2H:
    [[diag f, B], [diag(τ f), diag(tanh(C) o') W_o + diag(τ) B]] with τ = o(1−tanh²C), B = Σ_{i,f,g} diag(·') W.

    Args:
      num_inputs: M ≥ 0.
      num_hidden: H ≥ 1; the flattened state has N = 2H entries.
      forget_bias: initial value of b_h's f part, nothing else.
      recurrent: scheme of each gate's [H, H] block of w_hh.

    Returns:
      Cell on `LSTMState(cell, hidden)` with `LSTMParams(w_hx [4H, M], w_hh [4H, H], b_h [4H])`, gate order i, f, g, o.

    Raises:
      TypeError, ValueError: a size that is no int or too small.

    Reference: Hochreiter & Schmidhuber (1997); Gers, Schmidhuber & Cummins (2000) for the forget gate; S4.31.
    """
    checks.require_size("num_inputs", num_inputs, least=0)
    checks.require_size("num_hidden", num_hidden)

    def init(key):
        checks.require_key(key)
        w_hx, w_hh = draw_weights(key, recurrent, num_inputs, num_hidden, num_gates=4)
        bias = jnp.zeros_like(w_hh[:, 0]).at[num_hidden : 2 * num_hidden].set(forget_bias)
        return LSTMParams(w_hx, w_hh, bias)

    def initial_state(params):
        zeros = jnp.zeros_like(params.b_h[:num_hidden])
        return LSTMState(zeros, zeros)

    return Cell(
        init=init,
        initial_state=initial_state,
        step=_step,
        derivation=Derivation(_state_jacobian, _PULLBACK, _PARTS),
        num_inputs=num_inputs,
    )


def gates(params: LSTMParams, state: LSTMState, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(i, f, g, o) of one step: input, forget, candidate, output.

    Args:
      params: LSTMParams.
      state: (C_{t−1}, h_{t−1}).
      x: x_t [M].

    Returns:
      Four arrays [H]; i, f, o in (0, 1), g in (−1, 1).
    """
    return _bend(params.w_hx @ x + params.w_hh @ state.hidden + params.b_h)


def _bend(preactivations):
    i, f, g, o = jnp.split(preactivations, 4)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def _step(params, state, x):
    i, f, g, o = gates(params, state, x)
    cell = f * state.cell + i * g
    return LSTMState(cell, o * jnp.tanh(cell))


def _drive(params, x):
    return x @ params.w_hx.T + params.b_h


def _advance(params, state, drive):
    i, f, g, o = _bend(drive + params.w_hh @ state.hidden)
    cell = f * state.cell + i * g
    return LSTMState(cell, o * jnp.tanh(cell)), (i, f, g, o)


def _expand(state, new, gates):
    i, f, g, o = gates
    tanh_cell = jnp.tanh(new.cell)
    scales = (g * i * (1 - i), state.cell * f * (1 - f), i * (1 - g) * (1 + g), tanh_cell * o * (1 - o))
    return LSTMFactors(f, o * (1 - tanh_cell) * (1 + tanh_cell), scales)


def _cotangent_of_cell(factors, cotangent):
    return cotangent.cell + factors.output * cotangent.hidden


def _delta(factors, cotangent):
    cell = _cotangent_of_cell(factors, cotangent)
    i, f, g, o = factors.gates
    return jnp.concatenate((i * cell, f * cell, g * cell, o * cotangent.hidden))


def _pull_state(params, factors, cotangent, delta):
    return LSTMState(factors.forget * _cotangent_of_cell(factors, cotangent), delta @ params.w_hh)


def _pull_params(params, state, x, delta):
    return LSTMParams(Outer(delta, x), Outer(delta, state.hidden), delta)


def _pull_input(params, delta):
    return delta @ params.w_hx


_PULLBACK = FactoredPullback(_drive, _advance, _expand, _delta, _pull_state, _pull_params, _pull_input)


class LSTMJacobian(NamedTuple):
    """J = [[diag forget, B], [diag(τ ⊙ forget), D]], B = Σ_{i,f,g} diag(·') W, D = diag(tanh(C) o') W_o + diag(τ) B."""

    forget: jax.Array  # [H]
    through: jax.Array  # [H] τ = o (1 − tanh²C)
    of_hidden: jax.Array  # [2H, H] (B, D)


def _form_parts(params, factors):
    # Of the two rows of blocks, one sum over all four gates: concatenating them costs more than the zeros do.
    i, f, g, o = (w[None] for w in jnp.split(params.w_hh, 4))
    ones, zeros = jnp.ones_like(factors.output), jnp.zeros_like(factors.output)
    cell, hidden = jnp.stack((ones, factors.output)), jnp.stack((zeros, ones))
    scales = *(cell * gate[None] for gate in factors.gates[:3]), hidden * factors.gates[3][None]
    rows = sum(scale[:, :, None] * w for scale, w in zip(scales, (i, f, g, o), strict=True))
    return LSTMJacobian(factors.forget, factors.output, rows.reshape(2 * len(ones), -1))


def _dense(parts):
    diagonal = jnp.concatenate((parts.forget, parts.through * parts.forget))
    size = len(parts.forget)
    of_cell = diagonal[:, None] * jnp.tile(jnp.eye(size, dtype=diagonal.dtype), (2, 1))
    return jnp.concatenate((of_cell, parts.of_hidden), axis=1)


def _left(parts, matrix):
    of_cell, of_hidden = jnp.split(matrix, 2)
    carried = parts.forget[:, None] * of_cell
    return jnp.concatenate((carried, parts.through[:, None] * carried)) + parts.of_hidden @ of_hidden


def _right(parts, matrix):
    cell, hidden = jnp.split(matrix, 2, axis=1)
    of_cell = parts.forget[None] * (cell + parts.through[None] * hidden)
    return jnp.concatenate((of_cell, matrix @ parts.of_hidden), axis=1)


_PARTS = JacobianParts(_form_parts, _dense, _left, _right)


def _state_jacobian(params, state, x):
    # One sum of row scales times the four gates' weights, each with its zeros: two to three times faster than blocks.
    factors = _PULLBACK.factors(params, state, x)
    ones, zeros = jnp.ones_like(factors.output), jnp.zeros_like(factors.output)
    cell, hidden = jnp.concatenate((ones, factors.output)), jnp.concatenate((zeros, ones))
    scales = *(cell * jnp.tile(gate, 2) for gate in factors.gates[:3]), hidden * jnp.tile(factors.gates[3], 2)
    carried = cell * jnp.tile(factors.forget, 2)
    of_cell = jnp.eye(len(ones), dtype=ones.dtype)
    padded = lambda block, other: jnp.tile(jnp.concatenate((block, other), axis=1), (2, 1))  # noqa: E731
    terms = [carried[:, None] * padded(of_cell, jnp.zeros_like(of_cell))]
    for scale, w in zip(scales, jnp.split(params.w_hh, 4), strict=True):
        terms.append(scale[:, None] * padded(jnp.zeros_like(w), w))
    return sum(terms[1:], terms[0])
