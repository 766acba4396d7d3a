"""The recurrence of RWKV-7: a matrix memory with a decay for each key channel and a generalised delta rule."""

import math
from typing import NamedTuple

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

MOST_DECAY = math.exp(-0.5)  # −ln w is below it: w > 0.545, as published
# First values as published for a first layer, without their variation within and over heads.
DECAY_BIAS = -5.5, 0.5  # b_w of the first and of the last channel
RATE_BIAS = -0.19  # b_a
REMOVAL = 0.71  # ξ


class RWKV7Params(NamedTuple):
    """θ of `rwkv7`: floats of one dtype, named as in the equations.

    Attributes:
      w_r: [K, M], of the receptance r, which reads the memory.
      w_w, b_w: [K, M] and [K], of d, from which the decay w of each key channel.
      w_k, w_v: [K, M] and [V, M], of the key and the value.
      w_a, b_a: [K, M] and [K], of α, the rate at which what a key held is removed.
      xi: ξ [K], which turns the key into the direction that is removed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.rwkv7(num_inputs=2, num_keys=3, num_values=4).init(jax.random.key(0))
      >>> params.b_w.tolist(), params.w_k.shape, params.w_v.shape
      ([-5.5, -2.5, 0.5], (3, 2), (4, 2))
    """

    w_r: jax.Array
    w_w: jax.Array
    b_w: jax.Array
    w_k: jax.Array
    w_v: jax.Array
    w_a: jax.Array
    b_a: jax.Array
    xi: jax.Array


class RWKV7Drive(NamedTuple):
    """What x_t alone says."""

    decay: jax.Array  # [K] w
    decay_slope: jax.Array  # [K] dw/dd
    key: jax.Array  # [K] k
    value: jax.Array  # [V] v
    removed: jax.Array  # [K] κ̂ = −a, of length one
    inverse: jax.Array  # [] 1/‖ξ ⊙ k‖
    rate: jax.Array  # [K] α
    xi: jax.Array  # [K] ξ


class RWKV7Factors(NamedTuple):
    """What multiplies a cotangent at one step."""

    drive: RWKV7Drive
    state: jax.Array  # [V, K] S
    held: jax.Array  # [V] S κ̂


class RWKV7Delta(NamedTuple):
    """Cotangents of what is affine in x_t, and of ξ."""

    decay: jax.Array  # [K] of d
    key: jax.Array  # [K]
    value: jax.Array  # [V]
    rate: jax.Array  # [K] of W_a x + b_a
    xi: jax.Array  # [K]


def rwkv7(num_inputs: int, num_keys: int, num_values: int) -> Cell:
    """S' = S (diag(w) + a bᵀ) + v kᵀ,  y' = S' r,  a = −κ̂,  b = κ̂ ⊙ α,  w = e^{−e^{w̃}}.

    r = W_r x,  k = W_k x,  v = W_v x,  κ̂ = ξ ⊙ k/‖ξ ⊙ k‖,  α = σ(W_a x + b_a),  w̃ = −½ + ln σ(d) with d = W_w x + b_w
    (so w = e^{−σ(d)/√e} > 0.545), all from x_t alone; y is the cell's output, of its state and x. A key of zeros
    removes nothing, with derivative 0.

    The hand derivation, with the cotangent Λ of S', what was held u = S κ̂ and p = Λ b: the cotangents are Λᵀ v (k), Λ
    k (v), Σ_v S ⊙ Λ (w), Sᵀ p (a), −Λᵀ u (b) and Λ diag(w) + p aᵀ (previous state). Those of a and b go on to κ̂, α and
    ξ ⊙ k; that of ξ ⊙ k is (I − κ̂ κ̂ᵀ)/‖ξ ⊙ k‖ times that of κ̂. Row-major J_t = I_V ⊗ Aᵀ, A = diag(w) + a bᵀ, does
    not depend on the state, and ln|det J_t| = V (Σ ln w + ln|1 + bᵀ diag(w)⁻¹ a|).

    Args:
      num_inputs: M ≥ 0.
      num_keys: K ≥ 1.
      num_values: V ≥ 1; the flattened state has N = V K entries.

    Returns:
      Cell on S [V, K], zeros at first, with `RWKV7Params`: matrices ~ N(0, 1/M), b_a = −0.19, ξ = 0.71, b_w from −5.5
      to 0.5. One head; of the published block token shift, low-rank maps (w̃ and α are affine in x here), the mixing of
      α into k and of the first layer's v, group norm, bonus and output gate are left out.

    Raises:
      TypeError, ValueError: a size that is not an int or is too small.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.rwkv7(num_inputs=2, num_keys=3, num_values=4)
      >>> params = cell.init(jax.random.key(0))
      >>> kept = cell.step(params, jnp.ones((4, 3)), jnp.zeros(2))  # x = 0: S' = S diag(w)
      >>> bool(((kept > 0.545) & (kept < 1)).all())
      True

    Reference: Peng et al. (2025), RWKV-7 "Goose", arXiv:2503.14456.
    """
    _validation.require_size("num_inputs", num_inputs, least=0)
    _validation.require_size("num_keys", num_keys)
    _validation.require_size("num_values", num_values)

    def init(key):
        _validation.require_key(key)
        sizes = num_keys, num_keys, num_keys, num_values, num_keys
        keys = jax.random.split(key, len(sizes))
        w_r, w_w, w_k, w_v, w_a = (draw_input_weights(k, n, num_inputs) for k, n in zip(keys, sizes, strict=True))
        b_w = jnp.linspace(*DECAY_BIAS, num_keys, dtype=w_w.dtype)
        b_a, xi = jnp.full_like(b_w, RATE_BIAS), jnp.full_like(b_w, REMOVAL)
        return RWKV7Params(w_r, w_w, b_w, w_k, w_v, w_a, b_a, xi)

    place = np.arange(num_values * num_keys).reshape(num_values, num_keys).T[None]
    return Cell(
        init=init,
        initial_state=lambda params: jnp.zeros((num_values, num_keys), params.w_k.dtype),
        step=lambda params, state, x: _advance(params, state, _drive(params, x))[0],
        derivation=Derivation(_state_jacobian, _PULLBACK, BlockParts(_form_parts, place, affine=True)),
        num_inputs=num_inputs,
        output=lambda params, state, x: state @ (params.w_r @ x),
    )


def _drive(params, x):
    gate = jax.nn.sigmoid(x @ params.w_w.T + params.b_w)
    decay = jnp.exp(-MOST_DECAY * gate)
    key = x @ params.w_k.T
    removed, inverse = to_unit(params.xi * key)
    return RWKV7Drive(
        decay=decay,
        decay_slope=-MOST_DECAY * gate * (1 - gate) * decay,
        key=key,
        value=x @ params.w_v.T,
        removed=removed,
        inverse=inverse,
        rate=jax.nn.sigmoid(x @ params.w_a.T + params.b_a),
        xi=params.xi,
    )


def _advance(params, state, drive):
    held = state @ drive.removed
    written = drive.value[:, None] * drive.key[None] - held[:, None] * (drive.removed * drive.rate)[None]
    return state * drive.decay[None] + written, (drive, held)


def _expand(state, new, kept):
    return RWKV7Factors(kept[0], state, kept[1])


def _delta(factors, cotangent):
    drive, state, held = factors
    pulled = cotangent @ (drive.removed * drive.rate)
    of_b = -(held @ cotangent)
    removed = drive.rate * of_b - pulled @ state
    raw = pull_to_unit(drive.removed, drive.inverse, removed)
    return RWKV7Delta(
        decay=drive.decay_slope * jnp.sum(state * cotangent, axis=0),
        key=drive.value @ cotangent + drive.xi * raw,
        value=cotangent @ drive.key,
        rate=drive.removed * of_b * drive.rate * (1 - drive.rate),
        xi=drive.key * raw,
    )


def _pull_state(params, factors, cotangent, delta):
    drive = factors.drive
    pulled = cotangent @ (drive.removed * drive.rate)
    return cotangent * drive.decay[None] - pulled[:, None] * drive.removed[None]


def _pull_params(params, state, x, delta):
    return RWKV7Params(
        w_r=jnp.zeros_like(params.w_r),  # the step does not read r
        w_w=outer(delta.decay, x),
        b_w=delta.decay,
        w_k=outer(delta.key, x),
        w_v=outer(delta.value, x),
        w_a=outer(delta.rate, x),
        b_a=delta.rate,
        xi=delta.xi,
    )


def _pull_input(params, delta):
    return delta.decay @ params.w_w + delta.key @ params.w_k + delta.value @ params.w_v + delta.rate @ params.w_a


_PULLBACK = FactoredPullback(_drive, _advance, _expand, _delta, _pull_state, _pull_params, _pull_input)


def _form_parts(params, factors):
    """Aᵀ = diag(w) + b aᵀ."""
    drive = factors.drive
    b = drive.removed * drive.rate
    return DiagonalLowRank(drive.decay[None], b[None, :, None], -drive.removed[None, :, None])


def _state_jacobian(params, state, x):
    core = _form_parts(params, _PULLBACK.factors(params, state, x)).matrix()[0]
    return jnp.kron(jnp.eye(state.shape[0], dtype=core.dtype), core)
