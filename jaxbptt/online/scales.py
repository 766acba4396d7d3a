"""The scale that balances a rank-one product of random sign: least variance, same mean."""

import jax
import jax.numpy as jnp


def balance(left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(ρ, 1/ρ) with ρ = √(‖left‖/‖right‖), so that ρ·right and left/ρ have one norm; (0, 0) if either is zero.

    A zero product may be dropped: it adds nothing to the mean, and its other factor adds only noise. NaN stays NaN.
    """
    a, b = (jnp.linalg.norm(jnp.ravel(part)) for part in (left, right))
    zero = (a == 0) | (b == 0)
    a, b = (jnp.where(zero, jnp.ones_like(norm), norm) for norm in (a, b))
    keep = jnp.where(zero, jnp.zeros_like(a), jnp.ones_like(a))
    return keep * jnp.sqrt(a) / jnp.sqrt(b), keep * jnp.sqrt(b) / jnp.sqrt(a)
