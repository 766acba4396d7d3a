"""The mLSTM cell of the xLSTM: a matrix memory with exponential gates of the input alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.cells._stabiliser import is_stored, stabilise
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.initializers import draw_input_weights
from jaxbptt.cells.structure import Border, BorderedParts

FORGET_BIAS = 3.0  # the least of those published, which grow from 3 to 6 over the heads
INPUT_SPREAD = 0.1  # of b_i, as published


class MLSTMParams(NamedTuple):
    """θ of `mlstm`: floats of one dtype, named as in the equations.

    Attributes:
      w_q, b_q: [K, M] and [K], of the query q.
      w_k, b_k: [K, M] and [K], of the key k, where W_k x is divided by √K.
      w_v, b_v: [V, M] and [V], of the value v.
      w_i, b_i: [M] and [], of ĩ, the log of the input gate.
      w_f, b_f: [M] and [], of f̃: the forget gate is σ(f̃).
      w_o, b_o: [V, M] and [V], of õ: the output gate is σ(õ).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.mlstm(num_inputs=2, num_keys=3, num_values=4).init(jax.random.key(0))
      >>> params.w_k.shape, params.w_v.shape, float(params.b_f)
      ((3, 2), (4, 2), 3.0)
    """

    w_q: jax.Array
    b_q: jax.Array
    w_k: jax.Array
    b_k: jax.Array
    w_v: jax.Array
    b_v: jax.Array
    w_i: jax.Array
    b_i: jax.Array
    w_f: jax.Array
    b_f: jax.Array
    w_o: jax.Array
    b_o: jax.Array


class MLSTMState(NamedTuple):
    """(C_t, n_t, m_t) of `mlstm`, in this order when flattened.

    Attributes:
      cell: C_t [K, V], the memory, divided by e^{m_t}.
      normaliser: n_t [K], the weighted sum of the keys, divided likewise.
      stabiliser: m_t [], the log of the scale.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.mlstm(num_inputs=2, num_keys=3, num_values=4)
      >>> jax.tree.map(jnp.shape, cell.initial_state(cell.init(jax.random.key(0))))
      MLSTMState(cell=(3, 4), normaliser=(3,), stabiliser=())
    """

    cell: jax.Array
    normaliser: jax.Array
    stabiliser: jax.Array

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the fields, in order."""
        return "C", "n", "m"


class MLSTMDrive(NamedTuple):
    """What x_t alone says."""

    k: jax.Array  # [K]
    v: jax.Array  # [V]
    i: jax.Array  # [] ĩ
    f: jax.Array  # [] f̃


class MLSTMDelta(NamedTuple):
    """Cotangents of what x_t alone says, and of m."""

    k: jax.Array  # [K]
    v: jax.Array  # [V]
    i: jax.Array  # []
    f: jax.Array  # []
    m: jax.Array  # [] γ + s λ_m


class MLSTMFactors(NamedTuple):
    """What multiplies a cotangent at one step; γ = ∂⁺(C', n')/∂⁺m = kept (C, n) − written (k vᵀ, k)."""

    forget: jax.Array  # [] f'
    write: jax.Array  # [] i'
    carried: jax.Array  # [] s = ∂⁺m'/∂⁺m
    log_forget: jax.Array  # [] d ln σ(f̃)/df̃ = σ(−f̃)
    k: jax.Array  # [K]
    v: jax.Array  # [V]
    cell: jax.Array  # [K, V] C
    normaliser: jax.Array  # [K] n

    @property
    def kept(self) -> jax.Array:
        """(1 − s) f' []."""
        return (1 - self.carried) * self.forget

    @property
    def written(self) -> jax.Array:
        """s i' []."""
        return self.carried * self.write


def mlstm(num_inputs: int, num_keys: int, num_values: int) -> Cell:
    """C' = f' C + i' k vᵀ,  n' = f' n + i' k,  y' = σ(õ) ⊙ C'ᵀ q / max(|n'ᵀ q|, e^{−m'}),  all gates from x_t alone.

    q = W_q x + b_q,  k = W_k x/√K + b_k,  v = W_v x + b_v,  õ = W_o x + b_o,  ĩ = w_i·x + b_i,  f̃ = w_f·x + b_f;
    f' = e^{ln σ(f̃) + m − m'},  i' = e^{ĩ − m'}; the stabiliser is m' = max(ln σ(f̃) + m, ĩ), or ĩ where n = 0: nothing
    is stored yet, as at the first step (in float32 f' overflows there below ĩ = −88). A prime marks the new value; y is
    the cell's output, of its state and x.

    The hand derivation, with s = ∂⁺m'/∂⁺m ∈ {0, 1} (½ at a tie, JAX's derivative of a maximum; 0 where n = 0) and
    cotangents Λ of C', λ_n of n', λ_m of m': γ = (1−s) f' (⟨C, Λ⟩ + n·λ_n) − s i' k·(Λ v + λ_n) is the part of the
    cotangent of m that does not come from m'; those of k, v, ĩ, f̃ are δ = (i' (Λ v + λ_n), i' Λᵀ k, (1−s) λ_m − γ,
    σ(−f̃) (γ + s λ_m)), those of the previous state (f' Λ, f' λ_n, γ + s λ_m). J_t is f' I with one more column and
    row, those of m.

    Over a span the (C, n) block of the chain is F I, F = e^{Σ ln f + m_0 − m_T}, so dh_T/dh_0 has the singular value F
    with multiplicity K V + K − 1, and the two of [[F, ‖U‖], [0, S]], U the last column, S ∈ {0, 1}. (C, n, m) → (C
    e^{−δ}, n e^{−δ}, m + δ) changes no y: for losses on y, ⟨C, Λ⟩ + n·λ_n = λ_m. That needs max(·, e^{−m'}): with
    max(·, 1), or with the 1e-6 that the published code adds to the denominator, y depends on m itself.

    Args:
      num_inputs: M ≥ 0.
      num_keys: K ≥ 1.
      num_values: V ≥ 1; the flattened state has N = K V + K + 1 entries.

    Returns:
      Cell on `MLSTMState(cell [K, V], normaliser [K], stabiliser [])`, all zeros at first, with `MLSTMParams`: matrices
      ~ N(0, 1/M), w_i = w_f = 0, b_i ~ N(0, 0.1²), b_f = 3, other biases 0. One head; the block's convolution, norm and
      projections are left out.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians, trajectories
      >>> cell = cells.mlstm(num_inputs=2, num_keys=3, num_values=4)
      >>> params = cell.init(jax.random.key(0))
      >>> chain = jacobians.structured_jacobians(cell, params, trajectories.unroll(cell, params, jnp.ones((5, 2))))
      >>> chain.size, chain.steps.scale.shape, chain.steps.column.shape  # J_t: f' I and one more column, N = 16
      (16, (5,), (5, 15))

    Reference: Beck et al. (2024), xLSTM, arXiv:2405.04517 (stabilised as in its appendix).
    """
    _validation.require_size("num_inputs", num_inputs, least=0)
    _validation.require_size("num_keys", num_keys)
    _validation.require_size("num_values", num_values)

    def init(key):
        _validation.require_key(key)
        keys = jax.random.split(key, 5)
        sizes = num_keys, num_keys, num_values, num_values
        w_q, w_k, w_v, w_o = (draw_input_weights(k, size, num_inputs) for k, size in zip(keys[:4], sizes, strict=True))
        dtype, none = w_q.dtype, jnp.zeros(num_inputs, w_q.dtype)
        b_k, b_v = jnp.zeros(num_keys, dtype), jnp.zeros(num_values, dtype)
        b_i = jnp.asarray(INPUT_SPREAD, dtype) * jax.random.normal(keys[4], (), dtype)
        b_f = jnp.asarray(FORGET_BIAS, dtype)
        return MLSTMParams(w_q, b_k, w_k, b_k, w_v, b_v, none, b_i, none, b_f, w_o, b_v)

    def initial_state(params):
        cell = jnp.zeros((num_keys, num_values), params.b_k.dtype)
        return MLSTMState(cell, jnp.zeros_like(params.b_k), jnp.zeros_like(params.b_i))

    return Cell(
        init=init,
        initial_state=initial_state,
        step=lambda params, state, x: _advance(params, state, _drive(params, x))[0],
        derivation=Derivation(_state_jacobian, _PULLBACK, _PARTS),
        num_inputs=num_inputs,
        output=_output,
    )


def _output(params, state, x):
    q, o = params.w_q @ x + params.b_q, jax.nn.sigmoid(params.w_o @ x + params.b_o)
    length = jnp.maximum(jnp.abs(state.normaliser @ q), jnp.exp(-state.stabiliser))
    return o * (q @ state.cell / length)


def _drive(params, x):
    return MLSTMDrive(
        k=x @ params.w_k.T * len(params.b_k) ** -0.5 + params.b_k,
        v=x @ params.w_v.T + params.b_v,
        i=x @ params.w_i + params.b_i,
        f=x @ params.w_f + params.b_f,
    )


def _advance(params, state, drive):
    k, v, i, f = drive
    gates = stabilise(jax.nn.log_sigmoid(f), i, state.stabiliser, jnp.any(is_stored(state.normaliser)))
    written = gates.write * k
    cell = gates.forget * state.cell + written[:, None] * v[None]
    return MLSTMState(cell, gates.forget * state.normaliser + written, gates.m), (drive, gates)


def _expand(state, new, kept):
    (k, v, _, f), gates = kept
    return MLSTMFactors(
        gates.forget, gates.write, gates.carried, jax.nn.sigmoid(-f), k, v, state.cell, state.normaliser
    )


def _delta(factors, cotangent):
    of_cell, of_normaliser, of_m = cotangent
    of_k = of_cell @ factors.v + of_normaliser
    carried = jnp.vdot(factors.cell, of_cell) + jnp.vdot(factors.normaliser, of_normaliser)
    gamma = factors.kept * carried - factors.written * jnp.sum(factors.k * of_k)
    return MLSTMDelta(
        k=factors.write * of_k,
        v=factors.write * (factors.k @ of_cell),
        i=(1 - factors.carried) * of_m - gamma,
        f=factors.log_forget * (gamma + factors.carried * of_m),
        m=gamma + factors.carried * of_m,
    )


def _pull_state(params, factors, cotangent, delta):
    of_cell, of_normaliser, _ = cotangent
    return MLSTMState(factors.forget * of_cell, factors.forget * of_normaliser, delta.m)


def _pull_params(params, state, x, delta):
    zeros = jax.tree.map(jnp.zeros_like, params)  # the step reads neither q nor o
    return zeros._replace(
        w_k=outer(delta.k * len(delta.k) ** -0.5, x),
        b_k=delta.k,
        w_v=outer(delta.v, x),
        b_v=delta.v,
        w_i=delta.i * x,
        b_i=delta.i,
        w_f=delta.f * x,
        b_f=delta.f,
    )


def _pull_input(params, delta):
    of_keys = delta.k @ params.w_k * len(delta.k) ** -0.5
    return of_keys + delta.v @ params.w_v + delta.i * params.w_i + delta.f * params.w_f


_PULLBACK = FactoredPullback(_drive, _advance, _expand, _delta, _pull_state, _pull_params, _pull_input)


def _form_parts(params, factors):
    of_cell = factors.kept * factors.cell - factors.written * (factors.k[:, None] * factors.v[None])
    of_normaliser = factors.kept * factors.normaliser - factors.written * factors.k
    return Border(factors.forget, jnp.concatenate((of_cell.ravel(), of_normaliser)), factors.carried)


_PARTS = BorderedParts(_form_parts)


def _state_jacobian(params, state, x):
    scale, column, corner = _form_parts(params, _PULLBACK.factors(params, state, x))
    size = len(column) + 1
    diagonal = jnp.full(size, scale).at[-1].set(0)
    return jnp.diag(diagonal).at[:, -1].set(jnp.append(column, corner))
