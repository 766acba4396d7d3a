"""Linear operations that carry samples of their own rounding error: what is computed, and how wrong it may be.

Every operation maps the errors that came in as it maps the numbers, and adds to each sample normal errors of one unit
roundoff of what was rounded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import lu_factor, lu_solve
from jaxtyping import Array, Bool, Float

from jaxbptt.cells.factored import length_of
from jaxbptt.types import Key, Scalar

PROBES = 8
SAFETY = 3.0  # an error is taken for so many times its root mean square over the probes


class Probed(NamedTuple):
    """A vector [N] or matrix [N, N] in floats, and samples of what rounding did to it."""

    value: jax.Array  # [...]
    errors: jax.Array  # [PROBES, ...], in unit roundoffs


class Sizes(NamedTuple):
    """Of a vector: the logs of its norm and of what its error may be."""

    norm: Scalar
    error: Scalar


def exact(value: jax.Array) -> Probed:
    """A value without an error."""
    return Probed(value, jnp.zeros((PROBES, *value.shape), value.dtype))


def add_rounding(key: Key, probed: Probed, size: jax.Array) -> Probed:
    """With a fresh error of `size` unit roundoffs, entry by entry."""
    drawn = jax.random.normal(key, probed.errors.shape, probed.errors.dtype)
    return probed._replace(errors=probed.errors + drawn * size[None])


def add_repeated(key: Key, probed: Probed, roundoffs: float) -> Probed:
    """With an error of so many unit roundoffs of the value, signed, and of one key at every step.

    Steps that are alike are rounded alike: the error of a rounded 1/λ has one sign for all of them, and adds up.
    """
    drawn = jax.random.normal(key, probed.errors.shape, probed.errors.dtype)
    return probed._replace(errors=probed.errors + roundoffs * drawn * probed.value[None])


def multiply(key: Key, matrix: jax.Array, probed: Probed) -> Probed:
    """matrix · value, for a vector or a matrix: the matrix and the product are rounded."""
    product = Probed(matrix @ probed.value, jnp.einsum("ij,kj...->ki...", matrix, probed.errors))
    return add_rounding(key, product, jnp.abs(matrix) @ jnp.abs(probed.value))


def solve_transposed(key: Key, matrix: Float[Array, "state state"], probed: Probed) -> tuple[Probed, Bool[Array, ""]]:
    """(matrix⁻ᵀ value, whether the matrix is singular up to rounding)."""
    one, other = jax.random.split(key)
    factors = lu_factor(matrix)
    solve = lambda columns: lu_solve(factors, columns, trans=1)
    value = solve(probed.value)
    # Refined once: a solver that multiplies by rounded inverses of the pivots errs alike at steps that are alike.
    value = value + solve(probed.value - matrix.T @ value)
    # The computed value solves exactly a system with the matrix changed by about one rounding.
    before = add_rounding(one, probed, jnp.abs(matrix).T @ jnp.abs(value))
    drawn = jax.random.normal(other, before.errors.shape, value.dtype)
    errors, samples = jnp.split(solve(jnp.concatenate((before.errors, drawn)).T).T, 2)
    # E‖A⁻ᵀ ξ‖² = ‖A⁻¹‖² for a standard normal ξ.
    condition = jnp.sqrt(jnp.sum(matrix**2) * jnp.sum(samples**2) / PROBES)
    largest = 1 / (len(matrix) * float(jnp.finfo(value.dtype).eps))
    return Probed(value, errors), ~(condition < largest)


def measure(probed: Probed) -> Sizes:
    """The norm of a vector and the estimate of its error, as logs."""
    roundoff = SAFETY * float(jnp.finfo(probed.value.dtype).eps) / 2
    error = length_of(probed.errors, (0, 1)) * roundoff / PROBES**0.5
    return Sizes(jnp.log(length_of(probed.value, (0,))), jnp.log(error))
