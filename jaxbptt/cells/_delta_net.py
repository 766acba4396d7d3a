"""The delta rule as a recurrence: a matrix memory that overwrites what a key held, with or without decay."""

import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.cells._unit_keys import pull_to_unit, to_unit
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.initializers import draw_input_weights
from jaxbptt.cells.structure import BlockParts, DiagonalLowRank

DECAY_RATES = 0.0, 16.0  # e^{a_log} is drawn uniformly from them,
TIME_STEPS = 1e-3, 1e-1  # and softplus(b_g) log-uniformly from these, as published


class DeltaNetParams(NamedTuple):
    """θ of `delta_net`: floats of one dtype, named as in the equations.

    Attributes:
      w_q, w_k: [K, M], of the query and of the key, which are scaled to length one.
      w_v: [V, M], of the value.
      w_beta, b_beta: [M] and [], of β = σ(w_β·x + b_β), the part of what the key held that is overwritten.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.delta_net(num_inputs=2, num_keys=3, num_values=4).init(jax.random.key(0))
      >>> jax.tree.map(jnp.shape, params)
      DeltaNetParams(w_q=(3, 2), w_k=(3, 2), w_v=(4, 2), w_beta=(2,), b_beta=())
    """

    w_q: jax.Array
    w_k: jax.Array
    w_v: jax.Array
    w_beta: jax.Array
    b_beta: jax.Array


class GatedDeltaNetParams(NamedTuple):
    """θ of `delta_net` with `gated=True`: floats of one dtype, named as in the equations.

    Attributes:
      w_q, w_k: [K, M], of the query and of the key, which are scaled to length one.
      w_v: [V, M], of the value.
      w_beta, b_beta: [M] and [], of β = σ(w_β·x + b_β), the part of what the key held that is overwritten.
      a_log, w_g, b_g: [], [M] and [], of the log decay g = −e^{a_log} softplus(w_g·x + b_g).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.delta_net(num_inputs=2, num_keys=3, num_values=4, gated=True).init(jax.random.key(0))
      >>> decay = -jnp.exp(params.a_log) * jax.nn.softplus(params.b_g)  # g at x = 0
      >>> -1.6 < float(decay) < 0
      True
    """

    w_q: jax.Array
    w_k: jax.Array
    w_v: jax.Array
    w_beta: jax.Array
    b_beta: jax.Array
    a_log: jax.Array
    w_g: jax.Array
    b_g: jax.Array


AnyParams: TypeAlias = DeltaNetParams | GatedDeltaNetParams


class Decay(NamedTuple):
    """g and its slopes, all []."""

    log: jax.Array  # g = −e^{a_log} softplus(g̃) ≤ 0, also dg/da_log
    slope: jax.Array  # dg/dg̃ = −e^{a_log} σ(g̃)


class DeltaNetDrive(NamedTuple):
    """What x_t alone says."""

    key: jax.Array  # [K] k, of length one
    inverse: jax.Array  # [] 1/‖W_k x‖
    value: jax.Array  # [V] v
    beta: jax.Array  # []
    decay: Decay | None  # None: g = 0


class DeltaNetFactors(NamedTuple):
    """What multiplies a cotangent at one step."""

    drive: DeltaNetDrive
    state: jax.Array  # [K, V] S
    held: jax.Array  # [V] u = e^g Sᵀ k, what the decayed memory holds at k


class DeltaNetDelta(NamedTuple):
    """Cotangents of what is affine in x_t."""

    key: jax.Array  # [K] of W_k x
    value: jax.Array  # [V]
    beta: jax.Array  # [] of w_β·x + b_β
    g: jax.Array | None  # [] of w_g·x + b_g
    a_log: jax.Array | None  # []


def delta_net(num_inputs: int, num_keys: int, num_values: int, *, gated: bool = False) -> Cell:
    """S' = e^g (I − β k kᵀ) S + β k vᵀ,  y' = S'ᵀ q,  with g = 0 unless gated.

    k = W_k x/‖W_k x‖,  v = W_v x,  q = W_q x/‖W_q x‖,  β = σ(w_β·x + b_β),  g = −e^{a_log} softplus(w_g·x + b_g) ≤ 0,
    all from x_t alone; y is the cell's output, of its state and x. A key of zeros writes nothing, a query of zeros
    reads 0, both with derivative 0.

    The hand derivation, with α = e^g, u = α Sᵀ k (what is held at k), ε = v − u (S' = α S + β k εᵀ), the cotangent Λ of
    S', and p = Λᵀ k: the cotangents are β p (v), β Λ ε − αβ S p (k), ε·p (β), α ⟨S, Λ⟩ − β p·u (g) and α (Λ − β k pᵀ)
    (previous state); that of W_k x is (I − k kᵀ)/‖W_k x‖ times that of k. Row-major J_t = A ⊗ I_V, A = e^g (I − β k
    kᵀ), does not depend on the state: its singular values are e^g (K − 1 times) and e^g |1 − β|, each V times.

    Args:
      num_inputs: M ≥ 0.
      num_keys: K ≥ 1.
      num_values: V ≥ 1; the flattened state has N = K V entries.
      gated: whether the memory decays.

    Returns:
      Cell on S [K, V], zeros at first, with `DeltaNetParams` or `GatedDeltaNetParams`: matrices and w_β, w_g ~ N(0,
      1/M), b_β = 0, e^{a_log} ~ U(0, 16], softplus(b_g) log-uniform in [0.001, 0.1]. One head; the published block's
      convolutions and SiLU before q, k and v, its factor 1/√K on q, output gate and norm are left out.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small; a `gated` that is not a bool.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.delta_net(num_inputs=2, num_keys=3, num_values=4)
      >>> params, x = cell.init(jax.random.key(0)), jnp.array([1.0, 2.0])
      >>> params = params._replace(w_q=params.w_k, b_beta=jnp.asarray(100.0))  # q = k and β = 1
      >>> state = cell.step(params, jnp.ones((3, 4)), x)
      >>> bool(jnp.allclose(cell.output(params, state, x), params.w_v @ x, atol=1e-5))  # k is overwritten: v is read
      True

    Reference: Yang et al. (2024), arXiv:2406.06484 (DeltaNet) and arXiv:2412.06464 (gated); Schlag, Irie & Schmidhuber
    (2021), arXiv:2102.11174.
    """
    _validation.require_size("num_inputs", num_inputs, least=0)
    _validation.require_size("num_keys", num_keys)
    _validation.require_size("num_values", num_values)
    _validation.require_type("gated", gated, bool, "a bool")

    def init(key):
        _validation.require_key(key)
        keys = jax.random.split(key, 7)
        sizes = num_keys, num_keys, num_values, 1, 1
        w_q, w_k, w_v, w_beta, w_g = (
            draw_input_weights(k, n, num_inputs) for k, n in zip(keys[:5], sizes, strict=True)
        )
        plain = DeltaNetParams(w_q, w_k, w_v, w_beta[0], jnp.zeros((), w_q.dtype))
        return GatedDeltaNetParams(*plain, *_draw_decay(keys[5], keys[6], w_g[0])) if gated else plain

    place = np.arange(num_keys * num_values).reshape(1, num_keys, num_values)
    return Cell(
        init=init,
        initial_state=lambda params: jnp.zeros((num_keys, num_values), params.w_k.dtype),
        step=lambda params, state, x: _advance(params, state, _drive(params, x))[0],
        derivation=Derivation(_state_jacobian, _PULLBACK, BlockParts(_form_parts, place, affine=True)),
        num_inputs=num_inputs,
        output=lambda params, state, x: to_unit(params.w_q @ x)[0] @ state,
    )


def _draw_decay(rate_key, time_key, w_g):
    """(a_log, w_g, b_g)."""
    low, high = DECAY_RATES
    rate = high - (high - low) * jax.random.uniform(rate_key, (), w_g.dtype)
    step = jnp.exp(jax.random.uniform(time_key, (), w_g.dtype, *map(math.log, TIME_STEPS)))
    return jnp.log(rate), w_g, jnp.log(jnp.expm1(step))


def _drive(params: AnyParams, x: jax.Array) -> DeltaNetDrive:
    decay = None
    if isinstance(params, GatedDeltaNetParams):
        rate, g = jnp.exp(params.a_log), x @ params.w_g + params.b_g
        decay = Decay(-rate * jax.nn.softplus(g), -rate * jax.nn.sigmoid(g))
    beta = jax.nn.sigmoid(x @ params.w_beta + params.b_beta)
    return DeltaNetDrive(*to_unit(x @ params.w_k.T), x @ params.w_v.T, beta, decay)


def _decayed(drive, leaf):
    """e^g leaf."""
    return leaf if drive.decay is None else jnp.exp(drive.decay.log) * leaf


def _advance(params, state, drive):
    old = _decayed(drive, state)
    held = drive.key @ old
    return old + (drive.beta * drive.key)[:, None] * (drive.value - held)[None], (drive, held)


def _expand(state, new, kept):
    return DeltaNetFactors(kept[0], state, kept[1])


def _delta(factors, cotangent):
    drive, state, held = factors
    error = drive.value - held
    pulled = drive.key @ cotangent
    value = drive.beta * pulled
    key = drive.beta * (cotangent @ error) - _decayed(drive, state @ value)
    beta = jnp.sum(error * pulled) * drive.beta * (1 - drive.beta)
    raw = pull_to_unit(drive.key, drive.inverse, key)
    if drive.decay is None:
        return DeltaNetDelta(raw, value, beta, None, None)
    g = _decayed(drive, jnp.sum(state * cotangent)) - jnp.sum(value * held)
    return DeltaNetDelta(raw, value, beta, g * drive.decay.slope, g * drive.decay.log)


def _pull_state(params, factors, cotangent, delta):
    return _decayed(factors.drive, cotangent - factors.drive.key[:, None] * delta.value[None])


def _pull_params(params, state, x, delta):
    found = {"w_k": outer(delta.key, x), "w_v": outer(delta.value, x), "w_beta": delta.beta * x, "b_beta": delta.beta}
    if delta.g is not None:
        found |= {"a_log": delta.a_log, "w_g": delta.g * x, "b_g": delta.g}
    return params._replace(w_q=jnp.zeros_like(params.w_q), **found)  # the step reads no query


def _pull_input(params, delta):
    x = delta.key @ params.w_k + delta.value @ params.w_v + delta.beta * params.w_beta
    return x if delta.g is None else x + delta.g * params.w_g


_PULLBACK = FactoredPullback(_drive, _advance, _expand, _delta, _pull_state, _pull_params, _pull_input)


def _form_parts(params, factors):
    drive = factors.drive
    diagonal, left = _decayed(drive, jnp.ones_like(drive.key)), _decayed(drive, -drive.beta * drive.key)
    return DiagonalLowRank(diagonal[None], left[None, :, None], drive.key[None, :, None])


def _state_jacobian(params, state, x):
    core = _form_parts(params, _PULLBACK.factors(params, state, x)).matrix()[0]
    return jnp.kron(core, jnp.eye(state.shape[1], dtype=core.dtype))
