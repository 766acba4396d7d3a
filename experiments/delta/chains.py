"""Chains of delta-rule Jacobians, the keys that make them, and the exponents that are known exactly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells
from jaxbptt.jacobians import BlockJacobians, structured_jacobians
from jaxbptt.trajectories import unroll

SIZES = (2, 4, 8, 16, 32)  # K
BETAS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 1.9, 2.0)
COPIES = 2  # V: how often each exponent is there
SHOWN_SIZE, SHOWN_BETA = 8, 0.5  # K and β of what is drawn over the other, and of the clustered keys,
DIRECTIONS, NOISE = 3, 0.3  # which lie in r directions but for noise of size s
KINDS = {
    "uniform": "uniform on the sphere",
    "subspace": f"within {DIRECTIONS} dimensions",
    "noisy subspace": f"near {DIRECTIONS} dimensions",
    "clusters": f"{DIRECTIONS} clusters",
}


def exact_exponents(size: int, beta: float) -> np.ndarray:
    """Λ_p − Λ_{p−1}, p = 1 … K, in nats per step: descending; the last is −∞ at β = 1.

    E ln(1 − c B) by the double-exponential rule, B = σ(π sinh t), which takes the powers B^(p/2 − 1) and (1 − B)^…
    at both ends, and ln(1 − B) at c = 1. 1 − c B = 1 − B + (1 − β)² B loses nothing at B → 1.

    Args:
      size: K.
      beta: β in (0, 2].

    Returns:
      [K].

    Reference: Takahasi & Mori (1974), Publ. RIMS 9 (the rule).
    """
    t = np.arange(-5.0, 5.0, 1 / 128)
    log_b, log_rest = (-np.logaddexp(0, sign * np.pi * np.sinh(t)) for sign in (-1, 1))
    log_factor = np.logaddexp(log_rest, 2 * np.log(abs(1 - beta)) + log_b) if beta != 1 else log_rest
    p = np.arange(1, size)[:, None]
    weights = np.cosh(t) * np.exp(p / 2 * log_b + (size - p) / 2 * log_rest)
    means = (weights @ log_factor) / weights.sum(axis=1) / 2
    with np.errstate(divide="ignore"):
        last = np.log(abs(1 - beta))
    return np.diff(np.concatenate(([0.0], means, [last])))


def exact_of_kind(kind: str) -> np.ndarray:
    """[K] exponents of KINDS at K = SHOWN_SIZE, β = SHOWN_BETA; NaN where no law is known."""
    if kind == "uniform":
        return exact_exponents(SHOWN_SIZE, SHOWN_BETA)
    if kind == "subspace":
        return np.concatenate((np.zeros(SHOWN_SIZE - DIRECTIONS), exact_exponents(DIRECTIONS, SHOWN_BETA)))
    return np.full(SHOWN_SIZE, np.nan)


def draw_keys(key: jax.Array, length: int, size: int, kind: str = "uniform") -> jax.Array:
    """[T, K] unit keys of a kind. s = NOISE, ξ ~ N(0, I/K), so that ‖s ξ‖ is about s.

    uniform: on the sphere. subspace: on the sphere of a random subspace of r dimensions. noisy subspace: such a key
    plus s ξ, scaled to length one. clusters: one of r random directions at each step, plus s ξ, scaled to length one.
    """
    own, frame_key, noise_key = jax.random.split(key, 3)
    if kind == "uniform":
        return _to_unit(jax.random.normal(own, (length, size)))
    if kind == "clusters":
        directions = _to_unit(jax.random.normal(frame_key, (DIRECTIONS, size)))
        keys = directions[jax.random.randint(own, (length,), 0, DIRECTIONS)]
    else:
        frame, _ = jnp.linalg.qr(jax.random.normal(frame_key, (size, DIRECTIONS)))
        keys = _to_unit(jax.random.normal(own, (length, DIRECTIONS))) @ frame.T
    if kind == "subspace":
        return _to_unit(keys)
    return _to_unit(keys + NOISE / size**0.5 * jax.random.normal(noise_key, keys.shape))


def _to_unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)


def make_chain(keys: jax.Array, beta: Any) -> BlockJacobians:
    """J_t = (I − β k kᵀ) ⊗ I_V for any β; the cell's own, β = σ(…), stays below 1."""
    length, size = keys.shape
    place = np.arange(size * COPIES).reshape(1, size, COPIES)
    column = keys[:, None, :, None]
    return BlockJacobians(cells.DiagonalLowRank(jnp.ones((length, 1, size)), -beta * column, column), place, length)


def cell_chain(keys: jax.Array, beta: float) -> Any:
    """The same from `cells.delta_net`, β < 1: W_k = I, so that x_t is the key, and σ(b_β) = β."""
    size = keys.shape[1]
    cell = cells.delta_net(size, size, COPIES)
    params = cell.init(jax.random.key(0))
    logit = jnp.asarray(np.log(beta / (1 - beta)), keys.dtype)
    params = params._replace(w_k=jnp.eye(size), w_beta=jnp.zeros_like(params.w_beta), b_beta=logit)
    return structured_jacobians(cell, params, unroll(cell, params, keys))
