"""The long short-term memory cell, state (C, h)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import checks
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation, FactoredPullback, Outer
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
    gates: jax.Array  # [4H]: g i', C_{t-1} f', i g' (these act on dC) and tanh(C) o' (acts on dh)


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
        derivation=Derivation(_state_jacobian, FactoredPullback(_factors, _pull_state, _pull_params, _pull_input)),
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
    i, f, g, o = jnp.split(params.w_hx @ x + params.w_hh @ state.hidden + params.b_h, 4)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def _step(params, state, x):
    i, f, g, o = gates(params, state, x)
    cell = f * state.cell + i * g
    return LSTMState(cell, o * jnp.tanh(cell))


def _factors(params, state, x):
    i, f, g, o = gates(params, state, x)
    tanh_cell = jnp.tanh(f * state.cell + i * g)
    scales = (g * i * (1 - i), state.cell * f * (1 - f), i * (1 - g) * (1 + g), tanh_cell * o * (1 - o))
    return LSTMFactors(f, o * (1 - tanh_cell) * (1 + tanh_cell), jnp.concatenate(scales))


def _cotangent_of_cell(factors, cotangent):
    return cotangent.cell + factors.output * cotangent.hidden


def _cotangent_of_gates(factors, cotangent):
    cell = _cotangent_of_cell(factors, cotangent)
    return factors.gates * jnp.concatenate((cell, cell, cell, cotangent.hidden))


def _pull_state(params, factors, cotangent):
    hidden = _cotangent_of_gates(factors, cotangent) @ params.w_hh
    return LSTMState(factors.forget * _cotangent_of_cell(factors, cotangent), hidden)


def _pull_params(params, state, x, factors, cotangent):
    delta = _cotangent_of_gates(factors, cotangent)
    return LSTMParams(Outer(delta, x), Outer(delta, state.hidden), delta)


def _pull_input(params, factors, cotangent):
    return _cotangent_of_gates(factors, cotangent) @ params.w_hx


def _state_jacobian(params, state, x):
    factors = _factors(params, state, x)
    i, f, g, o = jnp.split(factors.gates[:, None] * params.w_hh, 4)
    cell_rows = jnp.concatenate((jnp.diag(factors.forget), i + f + g), axis=1)
    output_path = jnp.concatenate((jnp.zeros_like(o), o), axis=1)
    return jnp.concatenate((cell_rows, factors.output[:, None] * cell_rows + output_path))
