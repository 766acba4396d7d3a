"""What rounding does to the exponents of a QR scan, followed through its R factors.

An error of the frame, Q_t (I + Δ_t) with Δ strictly lower triangular, changes R_t R_{t−1} … as

    X = R Δ R^{−1}        ln r_ii changes by X_ii,        Δ' = the strictly lower part of X, plus the QR's own rounding

So Δ_ji grows like r_jj/r_ii: a direction j that fell behind i and catches up by D nats makes e^D of every eps. The
variances of independent errors follow the same equation with squared entries; for R^{−1} its first order,
(I − U) diag(R)^{−1}, is enough. Their scale is that of the columns of the factorised matrix, eps ‖M_i‖/r_ii, and of
what the multiplications before the QR have added.

Reference: Dieci & Van Vleck (2005), Numer. Math. 101 (errors of QR methods for exponents); Stewart (1997), ETNA 5.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 1e30  # bound on the factors of a product, and HUGE on its terms: float32 is at most inf there, never NaN
HUGE = 1e37
SAFETY = 2  # times what the rounding of a QR is on average: a few steps that are nearly singular can make up the sum
ALTOGETHER = 1e-2  # of the variance of a complete mixture, which then no longer grows: expected or not, it may be there
LIMIT = 1e-3  # nats per step: an exponent whose rounding error exceeds it is NaN


class Rounding(NamedTuple):
    """In units of eps², float32: only their size matters."""

    mixed: jax.Array  # [K, K] variance of Δ_ji, j > i
    worst: jax.Array  # [K, K] the largest it has been after the warm-up
    squares: jax.Array  # [K] variance of Σ ln r_ii after the warm-up, nats²


def no_rounding(width: int) -> Rounding:
    """Before the first step."""
    none = jnp.zeros((width, width), jnp.float32)
    return Rounding(none, none, none[0])


def follow(rounding: Rounding, r: jax.Array, noise: jax.Array, same: jax.Array | None, counts: jax.Array) -> Rounding:
    """The variances after one QR, M = Q R.

    Args:
      rounding: before it.
      r: R [K, K].
      noise: [K] what rounding did to each column of M, per direction, in units of eps.
      same: [K, K] whether two directions can mix at all; None: all can.
      counts: [] whether the warm-up is over.

    Returns:
      Rounding. A direction with r_ii = 0 is lost exactly and mixes with none.
    """
    # At most sizes of r: every kernel that is started counts as much as its work, and a mask reads a diagonal in one.
    width, single = len(r), lambda x: jnp.clip(x, -LARGEST, LARGEST).astype(jnp.float32)
    diagonal, below = np.eye(width, dtype=bool), np.tril(np.ones((width, width), bool), -1)
    r = jnp.abs(single(r))
    pivots = jnp.sum(jnp.where(diagonal, r, 0), axis=0)
    inverse = jnp.where(pivots > 0, 1 / pivots, 0)
    upper = jnp.where(below, 0, jnp.minimum(r * inverse[:, None], LARGEST) ** 2)  # (r_ij/r_ii)²
    moved = jnp.minimum(upper @ rounding.mixed, HUGE) @ upper
    ratio = jnp.minimum(pivots[:, None] * inverse[None, :], LARGEST) ** 2  # (r_jj/r_ii)² at [j, i], 0 where one is lost
    local = jnp.minimum(SAFETY * single(noise) * inverse, LARGEST) ** 2
    fits = below & (ratio > 0) if same is None else below & (ratio > 0) & same
    mixed = jnp.where(fits, jnp.minimum(moved * ratio + local[None, :], most_mixed(noise.dtype)), 0)
    worst = jnp.where(counts, jnp.maximum(rounding.worst, mixed), rounding.worst)
    logs = jnp.log(jnp.where(pivots > 0, pivots, 1)) ** 2  # their own rounding
    changes = jnp.sum(jnp.where(diagonal, moved, 0), axis=0)
    squares = rounding.squares + jnp.where(counts, jnp.minimum(local + changes + logs, HUGE), 0)
    return Rounding(mixed, worst, squares)


def most_mixed(dtype: Any) -> float:
    """The variance, in units of eps², at which two directions are mixed altogether: Δ = 1."""
    return min(1 / float(jnp.finfo(dtype).eps) ** 2, 1e31)


def error_of_sums(rounding: Rounding, counted: jax.Array, dtype: Any) -> jax.Array:
    """[K] standard deviation of Σ ln r_ii in nats over `counted` QRs; inf where directions may have mixed altogether.

    A share s of another direction, mixed into one, also changes its length by a factor of 1 + s/2 (second order).
    """
    eps, cap = float(jnp.finfo(dtype).eps), most_mixed(dtype)
    worst = jnp.maximum(jnp.max(rounding.worst, axis=0), jnp.max(rounding.worst, axis=1))
    second = jnp.sqrt(counted.astype(dtype)) * (worst.astype(dtype) * (0.5 / cap))
    first = eps * jnp.sqrt(rounding.squares).astype(dtype)
    return jnp.where(worst >= ALTOGETHER * cap, jnp.inf, jnp.hypot(first, second))
