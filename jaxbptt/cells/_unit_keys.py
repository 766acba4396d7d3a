"""Keys of length one, with their pullback."""

import jax
import jax.numpy as jnp


def to_unit(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(k̂ = k/‖k‖ [K], 1/‖k‖ []), no square leaving the float range; both 0, with derivative 0, for a key of zeros."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(key)))
    scale = jnp.where(largest > 0, largest, 1)
    scaled = key / scale
    square = jnp.sum(scaled * scaled)
    inverse = jnp.where(square > 0, 1 / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return scaled * inverse, inverse / scale


def pull_to_unit(unit: jax.Array, inverse: jax.Array, cotangent: jax.Array) -> jax.Array:
    """(∂⁺k̂/∂⁺k)ᵀ cotangent = (I − k̂ k̂ᵀ) cotangent / ‖k‖."""
    return inverse * (cotangent - unit * jnp.sum(unit * cotangent))
