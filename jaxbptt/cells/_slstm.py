"""The sLSTM cell of the xLSTM: scalar memory, exponential input gate, normaliser and stabiliser in the state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.cells._stabiliser import gates_of, is_stored, stabilise
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.initializers import Scheme, draw_weights, gaussian, require_scheme
from jaxbptt.cells.structure import JacobianParts

FORGET_BIAS = 3.0, 6.0  # of the first and of the last unit, as in the published code's "small_init"


class SLSTMParams(NamedTuple):
    """θ of `slstm`: floats of one dtype, named as in the equations.

    Attributes:
      w_hx: [4H, M], of the input; rows in the order z, i, f, o (candidate, input gate, forget gate, output gate), as in
        all leaves.
      w_hh: [4H, H], of y_{t−1}.
      b_h: [4H], the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.slstm(num_inputs=2, num_hidden=3).init(jax.random.key(0))
      >>> dict(zip(params.gates, jnp.split(params.b_h, 4)))["f"].tolist()
      [3.0, 4.5, 6.0]
    """

    w_hx: jax.Array
    w_hh: jax.Array
    b_h: jax.Array

    @property
    def gates(self) -> tuple[str, ...]:
        """The letters of the blocks of rows, in order."""
        return "z", "i", "f", "o"


class SLSTMState(NamedTuple):
    """(c_t, n_t, m_t, y_t) of `slstm`, each [H], in this order when flattened.

    Attributes:
      cell: c_t [H], the memory, divided by e^{m_t}.
      normaliser: n_t [H], the sum of the input gates, divided likewise.
      stabiliser: m_t [H], the log of the scale.
      hidden: y_t [H], what a readout or the layer above sees.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.slstm(num_inputs=2, num_hidden=3)
      >>> jax.tree.map(jnp.shape, cell.initial_state(cell.init(jax.random.key(0))))
      SLSTMState(cell=(3,), normaliser=(3,), stabiliser=(3,), hidden=(3,))
    """

    cell: jax.Array
    normaliser: jax.Array
    stabiliser: jax.Array
    hidden: jax.Array

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the fields, in order."""
        return "c", "n", "m", "y"


class SLSTMFactors(NamedTuple):
    """The factors that multiply a cotangent at one step, each [H]."""

    forget: jax.Array  # f' = ∂⁺c'/∂⁺c = ∂⁺n'/∂⁺n
    carried: jax.Array  # s = ∂⁺m'/∂⁺m
    cell: jax.Array  # γ_c = ∂⁺c'/∂⁺m
    normaliser: jax.Array  # γ_n = ∂⁺n'/∂⁺m
    hidden: tuple[jax.Array, jax.Array]  # ∂⁺y/∂⁺c' = σ(õ)/n' and ∂⁺y/∂⁺n' = −y/n'
    z: jax.Array  # ∂⁺c'/∂⁺z̃ = i' (1 − z²)
    log_forget: jax.Array  # d ln σ(f̃)/df̃ = σ(−f̃)
    output: jax.Array  # ∂⁺y/∂⁺õ = σ'(õ) c'/n'


def slstm(num_inputs: int, num_hidden: int, *, recurrent: Scheme = gaussian(1.0)) -> Cell:
    """c' = f' c + i' z,  n' = f' n + i',  y' = σ(õ) c'/n',  its exponential gates divided by e^{m'}.

    (z̃, ĩ, f̃, õ) = W_hx x_t + W_hh y_{t−1} + b_h,  z = tanh z̃,  f' = e^{ln σ(f̃) + m − m'},  i' = e^{ĩ − m'}; the
    stabiliser is m' = max(ln σ(f̃) + m, ĩ), or ĩ where n = 0: nothing is stored yet, as at the first step (in float32
    f' overflows there below ĩ = −88). A prime marks the new value.

    The hand derivation, with s = ∂⁺m'/∂⁺m ∈ {0, 1} (½ at a tie, JAX's derivative of a maximum; 0 where n = 0), is
    written with dc = λ_c + σ(õ)/n' λ_y, dn = λ_n − y'/n' λ_y, and γ = γ_c dc + γ_n dn, the part of the cotangent of m
    that does not come from m', γ_c = (1−s) f' c − s i' z and γ_n = (1−s) f' n − s i'. Then δ = (i' (1−z²) dc, (1−s) λ_m
    − γ, σ(−f̃) (γ + s λ_m), σ'(õ) c'/n' λ_y). The cotangents are δ x_tᵀ (w_hx), δ y_{t−1}ᵀ (w_hh), δ (b_h), W_hxᵀ δ
    (input) and (f' dc, f' dn, γ + s λ_m, W_hhᵀ δ) (previous state).

    (c, n, m) → (c e^{−δ}, n e^{−δ}, m + δ) changes no y: for losses on y, c ⊙ λ_c + n ⊙ λ_n = λ_m at every step. The
    rank of J_t is 4H less the number of units whose ĩ sets m'. With c_0 = n_0 = 0, dC/db_i = 0. Stopping the gradient
    at m' everywhere leaves that of losses on y exact, at only some of its uses it does not.

    Args:
      num_inputs: M ≥ 0.
      num_hidden: H ≥ 1; the flattened state has N = 4H entries.
      recurrent: the scheme that draws each gate's [H, H] block of w_hh. One head: the blocks are full matrices.

    Returns:
      Cell on `SLSTMState(cell, normaliser, stabiliser, hidden)`, all zeros at first, with `SLSTMParams(w_hx [4H, M],
      w_hh [4H, H], b_h [4H])`, gate order z, i, f, o; b_h is zero but for its f part, from 3 to 6.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small; a recurrent that is no scheme.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.slstm(num_inputs=1, num_hidden=2)
      >>> params, one = cell.init(jax.random.key(0)), jnp.ones(2)
      >>> state, same = cells.SLSTMState(one, one, 0 * one, one), cells.SLSTMState(one / jnp.e, one / jnp.e, one, one)
      >>> y, other = (cell.step(params, each, jnp.ones(1)).hidden for each in (state, same))
      >>> bool(jnp.allclose(y, other))  # (c e^{−δ}, n e^{−δ}, m + δ) changes no y
      True

    Reference: Beck et al. (2024), xLSTM, arXiv:2405.04517.
    """
    _validation.require_size("num_inputs", num_inputs, least=0)
    _validation.require_size("num_hidden", num_hidden)
    require_scheme(recurrent)

    def init(key):
        _validation.require_key(key)
        w_hx, w_hh = draw_weights(key, recurrent, num_inputs, num_hidden, num_gates=4)
        forget = jnp.linspace(*FORGET_BIAS, num_hidden, dtype=w_hh.dtype)
        return SLSTMParams(w_hx, w_hh, jnp.zeros_like(w_hh[:, 0]).at[2 * num_hidden : 3 * num_hidden].set(forget))

    return Cell(
        init=init,
        initial_state=lambda params: SLSTMState(*[jnp.zeros_like(params.b_h[:num_hidden])] * 4),
        step=lambda params, state, x: _advance(params, state, _drive(params, x))[0],
        derivation=Derivation(_state_jacobian, _PULLBACK, _PARTS),
        num_inputs=num_inputs,
    )


def _drive(params, x):
    return x @ params.w_hx.T + params.b_h


def _advance(params, state, drive):
    c, n, m, y = state
    z, i, f, o = jnp.split(drive + params.w_hh @ y, 4)
    z, o = jnp.tanh(z), jax.nn.sigmoid(o)
    gates = stabilise(jax.nn.log_sigmoid(f), i, m, is_stored(n))
    new_c, new_n = gates.forget * c + gates.write * z, gates.forget * n + gates.write
    return SLSTMState(new_c, new_n, gates.m, o * (new_c / new_n)), (z, f, o, gates.apart)


def _expand(state, new, kept):
    z, f, o, apart = kept
    forget, write, set_by_m = gates_of(apart, is_stored(state.normaliser))
    carried, written = (1 - set_by_m) * forget, set_by_m * write
    return SLSTMFactors(
        forget=forget,
        carried=set_by_m,
        cell=carried * state.cell - written * z,
        normaliser=carried * state.normaliser - written,
        hidden=(o / new.normaliser, -new.hidden / new.normaliser),
        z=write * (1 - z) * (1 + z),
        log_forget=jax.nn.sigmoid(-f),
        output=(1 - o) * new.hidden,
    )


def _cotangents(factors, cotangent):
    """dc, dn, γ and γ + s λ_m."""
    c = cotangent.cell + factors.hidden[0] * cotangent.hidden
    n = cotangent.normaliser + factors.hidden[1] * cotangent.hidden
    gamma = factors.cell * c + factors.normaliser * n
    return c, n, gamma, gamma + factors.carried * cotangent.stabiliser


def _delta(factors, cotangent):
    c, _, gamma, m = _cotangents(factors, cotangent)
    i = (1 - factors.carried) * cotangent.stabiliser - gamma
    return jnp.concatenate((factors.z * c, i, factors.log_forget * m, factors.output * cotangent.hidden))


def _pull_state(params, factors, cotangent, delta):
    c, n, _, m = _cotangents(factors, cotangent)
    return SLSTMState(factors.forget * c, factors.forget * n, m, delta @ params.w_hh)


def _pull_params(params, state, x, delta):
    return SLSTMParams(outer(delta, x), outer(delta, state.hidden), delta)


def _pull_input(params, delta):
    return delta @ params.w_hx


_PULLBACK = FactoredPullback(_drive, _advance, _expand, _delta, _pull_state, _pull_params, _pull_input)


class SLSTMJacobian(NamedTuple):
    """J with columns (c, n, m) in diagonals and the columns of y as one block.

    Rows: c' = (f', 0, γ_c), n' = (0, f', γ_n), m' = (0, 0, s), and y' = ∂⁺y'/∂⁺c' times the first, ∂⁺y'/∂⁺n' times the
    second.
    """

    forget: jax.Array  # [H]
    column: tuple[jax.Array, jax.Array, jax.Array]  # γ_c, γ_n, s, each [H]
    hidden: tuple[jax.Array, jax.Array]  # ∂⁺y'/∂⁺c' and ∂⁺y'/∂⁺n', each [H]
    of_hidden: jax.Array  # [4H, H]


def _form_parts(params, factors):
    w_z, w_i, w_f, w_o = jnp.split(params.w_hh, 4)
    kept = factors.log_forget[:, None] * w_f  # ∂⁺(ln f + m)/∂⁺y
    apart = kept - w_i
    c = factors.z[:, None] * w_z + factors.cell[:, None] * apart
    n = factors.normaliser[:, None] * apart
    m = w_i + factors.carried[:, None] * apart
    y = factors.hidden[0][:, None] * c + factors.hidden[1][:, None] * n + factors.output[:, None] * w_o
    column = factors.cell, factors.normaliser, factors.carried
    return SLSTMJacobian(factors.forget, column, factors.hidden, jnp.concatenate((c, n, m, y)))


def _left(parts, matrix):
    c, n, m, y = jnp.split(matrix, 4)
    (of_c, of_n), (to_c, to_n, to_m) = parts.hidden, parts.column
    c = parts.forget[:, None] * c + to_c[:, None] * m
    n = parts.forget[:, None] * n + to_n[:, None] * m
    rows = c, n, to_m[:, None] * m, of_c[:, None] * c + of_n[:, None] * n
    return jnp.concatenate(rows) + parts.of_hidden @ y


def _right(parts, matrix):
    c, n, m, y = jnp.split(matrix, 4, axis=1)
    (of_c, of_n), (to_c, to_n, to_m) = parts.hidden, parts.column
    c, n = c + of_c[None] * y, n + of_n[None] * y
    m = to_c[None] * c + to_n[None] * n + to_m[None] * m
    return jnp.concatenate((parts.forget[None] * c, parts.forget[None] * n, m, matrix @ parts.of_hidden), axis=1)


def _dense(parts):
    return _left(parts, jnp.eye(4 * len(parts.forget), dtype=parts.forget.dtype))


_PARTS = JacobianParts(_form_parts, _dense, _left, _right)


def _state_jacobian(params, state, x):
    return _PARTS.dense(_form_parts(params, _PULLBACK.factors(params, state, x)))
