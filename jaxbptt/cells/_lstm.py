"""The long short-term memory cell (LSTM), with state (C, h)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.initializers import (
    GateBias,
    Scheme,
    draw_gate_bias,
    draw_weights,
    gaussian,
    require_gate_bias,
    require_scheme,
)
from jaxbptt.cells.structure import JacobianParts


class LSTMParams(NamedTuple):
    """θ of `lstm`: floats of one dtype, named as in the equations.

    Attributes:
      w_hx: [4H, M], of the input; rows in the order i, f, g, o (input gate, forget gate, candidate, output gate), as in
        all leaves.
      w_hh: [4H, H], of the previous hidden part.
      b_h: [4H], the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.lstm(num_inputs=2, num_hidden=3).init(jax.random.key(0))
      >>> biases = dict(zip(params.gates, jnp.split(params.b_h, 4)))
      >>> biases["f"].tolist()  # forget_bias
      [1.0, 1.0, 1.0]
    """

    w_hx: jax.Array
    w_hh: jax.Array
    b_h: jax.Array

    @property
    def gates(self) -> tuple[str, ...]:
        """The letters of the blocks of rows, in order."""
        return "i", "f", "g", "o"


class LSTMState(NamedTuple):
    """(C_t, h_t) of `lstm`.

    Attributes:
      cell: C_t [H], the memory, first when flattened.
      hidden: h_t [H], what a readout or the layer above sees.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, trajectories
      >>> start = cells.LSTMState(cell=jnp.zeros(2), hidden=jnp.ones(2))  # an h_0 of your own, for `initial=`
      >>> trajectories.flatten_steps(cells.LSTMState(*[leaf[None] for leaf in start])).tolist()  # C first
      [[0.0, 0.0, 1.0, 1.0]]
    """

    cell: jax.Array
    hidden: jax.Array

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the fields, in order."""
        return "C", "h"


class LSTMFactors(NamedTuple):
    """The factors that multiply a cotangent at one step, each [H]; a prime is a gate's derivative, such as i(1−i)."""

    forget: jax.Array  # f            = ∂⁺C/∂⁺C_{t-1}
    output: jax.Array  # o (1 − tanh²C) = ∂⁺h/∂⁺C
    gates: tuple[jax.Array, ...]  # g i', C_{t-1} f', i g' (these act on dC) and tanh(C) o' (acts on dh)


def lstm(
    num_inputs: int, num_hidden: int, *, forget_bias: float | GateBias = 1.0, recurrent: Scheme = gaussian(1.0)
) -> Cell:
    """C_t = f ⊙ C_{t−1} + i ⊙ g,  h_t = o ⊙ tanh(C_t),  (i, f, g, o) = (σ, σ, tanh, σ)(W_hx x_t + W_hh h_{t−1} + b_h).

    The hand derivation, with primes for the gates' derivatives, τ = o(1−tanh²C) and dC = λ_C + τ ⊙ λ_h:
    δ = (g i' dC, C_{t−1} f' dC, i g' dC, tanh(C) o' λ_h). The cotangents are δ x_tᵀ (w_hx), δ h_{t−1}ᵀ (w_hh), δ (b_h),
    (f ⊙ dC, W_hhᵀ δ) (previous state) and W_hxᵀ δ (input). J_t, 2H × 2H, is
    [[diag f, B], [diag(τ f), diag(tanh(C) o') W_o + diag(τ) B]], with
    B = ∂⁺C_t/∂⁺h_{t−1} = diag(g i') W_i + diag(C_{t−1} f') W_f + diag(i g') W_g.

    ∂C_t/∂C_{t-1} (dC_t/dC_{t-1}) has several meanings. With h_{t-1} fixed it is diag(f_t): the direct partial, and
    exactly the (C, C) block of J_t. If h_{t-1} = o_{t-1} tanh(C_{t-1}) moves along with C_{t-1} (o_{t-1} fixed), it is
    the total derivative diag(f_t) + B_t diag(τ_{t-1}), which adds the paths through the gates. Over several steps, the
    (C, C) block of J_t ... J_{k+1} is dC_t/dC_k with h_k fixed as an independent state entry; it includes the paths
    through h_{k+1} ... h_{t-1}. The product of the forget gates f alone leaves these paths out.

    Args:
      num_inputs: M ≥ 0.
      num_hidden: H ≥ 1; the flattened state has N = 2H entries.
      forget_bias: initial value of b_h's f part, nothing else; or a scheme that draws its f and i parts, `chrono`.
      recurrent: the scheme that draws each gate's [H, H] block of w_hh.

    Returns:
      Cell on `LSTMState(cell, hidden)` with `LSTMParams(w_hx [4H, M], w_hh [4H, H], b_h [4H])`, gate order i, f, g, o.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small; a recurrent that is no scheme; a
        forget_bias that is neither.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, trajectories
      >>> cell = cells.lstm(num_inputs=2, num_hidden=3, forget_bias=cells.chrono(100.0))
      >>> params = cell.init(jax.random.key(0))
      >>> states = trajectories.unroll(cell, params, jnp.ones((5, 2))).states
      >>> states.cell.shape, states.hidden.shape
      ((5, 3), (5, 3))

    Reference: Hochreiter & Schmidhuber (1997), Neural Computation 9; Gers, Schmidhuber & Cummins (2000), Neural
    Computation 12 (forget gate); S4.31 (J_t).
    """
    _validation.require_size("num_inputs", num_inputs, least=0)
    _validation.require_size("num_hidden", num_hidden)
    require_scheme(recurrent)
    require_gate_bias(forget_bias)

    def init(key):
        _validation.require_key(key)
        w_hx, w_hh = draw_weights(key, recurrent, num_inputs, num_hidden, num_gates=4)
        bias_key = jax.random.fold_in(key, 5)  # the weights take the first five
        b_i, b_f = draw_gate_bias(bias_key, forget_bias, num_hidden, w_hh.dtype)
        return LSTMParams(w_hx, w_hh, jnp.concatenate((b_i, b_f, jnp.zeros_like(w_hh[: 2 * num_hidden, 0]))))

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
    """The gates (i, f, g, o) of one step: input, forget, candidate, output.

    Args:
      params: LSTMParams.
      state: (C_{t−1}, h_{t−1}).
      x: x_t [M].

    Returns:
      Four arrays [H]; i, f, o in (0, 1), g in (−1, 1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.lstm(num_inputs=1, num_hidden=2, forget_bias=100.0)
      >>> params = cell.init(jax.random.key(0))
      >>> i, f, g, o = cells.gates(params, cell.initial_state(params), jnp.zeros(1))  # at zero: σ(b_i), σ(b_f), …
      >>> i.tolist(), f.tolist()
      ([0.5, 0.5], [1.0, 1.0])
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
    return LSTMParams(outer(delta, x), outer(delta, state.hidden), delta)


def _pull_input(params, delta):
    return delta @ params.w_hx


_PULLBACK = FactoredPullback(_drive, _advance, _expand, _delta, _pull_state, _pull_params, _pull_input)


class LSTMJacobian(NamedTuple):
    """J = [[diag forget, B], [diag(τ ⊙ forget), D]], B = Σ_{i,f,g} diag(·') W, D = diag(tanh(C) o') W_o + diag(τ) B."""

    forget: jax.Array  # [H]
    through: jax.Array  # [H] τ = o (1 − tanh²C)
    of_hidden: jax.Array  # [2H, H] (B, D)


def _form_parts(params, factors):
    # One sum over all four gates for both rows of blocks: concatenating blocks costs more than adding zeros.
    i, f, g, o = (w[None] for w in jnp.split(params.w_hh, 4))
    ones, zeros = jnp.ones_like(factors.output), jnp.zeros_like(factors.output)
    cell, hidden = jnp.stack((ones, factors.output)), jnp.stack((zeros, ones))
    scales = *(cell * gate[None] for gate in factors.gates[:3]), hidden * factors.gates[3][None]
    terms = [scale[:, :, None] * w for scale, w in zip(scales, (i, f, g, o), strict=True)]
    rows = sum(terms[1:], terms[0])
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
    # One sum of row scales times the gates' weights, padded with zeros: two to three times faster than joining blocks.
    factors = _PULLBACK.factors(params, state, x)
    ones, zeros = jnp.ones_like(factors.output), jnp.zeros_like(factors.output)
    cell, hidden = jnp.concatenate((ones, factors.output)), jnp.concatenate((zeros, ones))
    scales = *(cell * jnp.tile(gate, 2) for gate in factors.gates[:3]), hidden * jnp.tile(factors.gates[3], 2)
    carried = cell * jnp.tile(factors.forget, 2)
    of_cell = jnp.eye(len(ones), dtype=ones.dtype)
    padded = lambda block, other: jnp.tile(jnp.concatenate((block, other), axis=1), (2, 1))
    terms = [carried[:, None] * padded(of_cell, jnp.zeros_like(of_cell))]
    for scale, w in zip(scales, jnp.split(params.w_hh, 4), strict=True):
        terms.append(scale[:, None] * padded(jnp.zeros_like(w), w))
    return sum(terms[1:], terms[0])
