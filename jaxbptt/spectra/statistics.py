"""What a spectrum of exponents says: its error bars, its dimension, its entropy rate, its spread over sequences."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LyapunovExponents(NamedTuple):
    """k exponents, in nats per step, descending."""

    exponents: jax.Array  # [k]
    standard_error: (
        jax.Array
    )  # [k] from the block means: s / √blocks; for intervals take Student's t, blocks − 1 degrees
    local: jax.Array  # [blocks, k] finite-time exponents: each block of time by itself
    interval: jax.Array  # [] mean steps between QRs
    interval_error: jax.Array  # [k] largest difference from QR at every step, per step, in the blocks checked
    size: jax.Array  # [] N

    def kaplan_yorke_dimension(self) -> jax.Array:
        """`kaplan_yorke_dimension` of these exponents; NaN where the k computed do not settle it."""
        dimension = kaplan_yorke_dimension(self.exponents)
        return jnp.where((dimension < len(self.exponents)) | (len(self.exponents) == self.size), dimension, jnp.nan)

    def entropy_rate(self) -> jax.Array:
        """`entropy_rate` of these exponents; NaN where more than the k computed may be positive."""
        settled = (self.exponents[-1] <= 0) | (len(self.exponents) == self.size)
        return jnp.where(settled, entropy_rate(self.exponents), jnp.nan)


class PooledExponents(NamedTuple):
    """k exponents over B sequences or initial states, in nats per step."""

    exponents: jax.Array  # [k] mean
    standard_error: jax.Array  # [k] of the mean, from the spread between: s / √B
    spread: jax.Array  # [k] standard deviation between
    within: jax.Array  # [k] root mean square of the single standard errors: what `spread` is if they are all alike


def kaplan_yorke_dimension(exponents: jax.Array) -> jax.Array:
    """D = j + (λ_1 + … + λ_j) / |λ_{j+1}|, j the last index up to which the sum is not negative.

    Args:
      exponents: [N], descending, in any unit; −inf allowed.

    Returns:
      Scalar in 0 … N, of the dtype of exponents.

    Reference: Kaplan & Yorke (1979), Lecture Notes in Mathematics 730.
    """
    sums = jnp.cumsum(exponents)
    j = jnp.sum(jnp.cumprod(sums >= 0))
    whole = jnp.where(j > 0, sums[jnp.maximum(j - 1, 0)], 0)
    following = exponents[jnp.minimum(j, len(exponents) - 1)]
    part = jnp.where(j < len(exponents), whole / jnp.where(following < 0, -following, 1), 0)
    return jnp.where(jnp.any(jnp.isnan(exponents)), jnp.nan, j.astype(exponents.dtype) + part)


def entropy_rate(exponents: jax.Array) -> jax.Array:
    """Σ of the positive exponents: the entropy rate of an attractor with a smooth measure, else an upper bound of it.

    Args:
      exponents: [N], nats per step.

    Returns:
      Scalar, nats per step, of the dtype of exponents.

    Reference: Pesin (1977), Russ. Math. Surv. 32; Ruelle (1978), Bol. Soc. Bras. Mat. 9.
    """
    return jnp.sum(jnp.where(exponents <= 0, 0, exponents))


def pool_exponents(results: LyapunovExponents) -> PooledExponents:
    """The mean over sequences or initial states, and whether they differ by more than their error bars.

    Args:
      results: with a leading axis B ≥ 2 on every field, as `jax.lax.map` over sequences returns.

    Returns:
      PooledExponents. spread well above within: the sequences, or the basins of the initial states, are not alike.

    Raises:
      ValueError: no leading axis, or B < 2.
    """
    if jnp.ndim(results.exponents) != 2 or len(results.exponents) < 2:
        raise ValueError(f"results: got exponents of shape {list(jnp.shape(results.exponents))}, expected [B ≥ 2, k]")
    mean = jnp.mean(results.exponents, axis=0)
    spread = _deviation(results.exponents, mean)
    within = jnp.sqrt(jnp.mean(results.standard_error**2, axis=0))
    return PooledExponents(mean, spread / jnp.sqrt(jnp.asarray(len(results.exponents), mean.dtype)), spread, within)


def summarise(local, lengths, interval, interval_error, size):
    """LyapunovExponents from the block means [blocks, k] over `lengths` [blocks] steps."""
    weights = jnp.asarray(lengths / lengths.sum(), local.dtype)
    exponents = jnp.sum(weights[:, None] * local, axis=0)
    order = jnp.argsort(exponents, descending=True)
    error = _deviation(local, exponents) / jnp.sqrt(jnp.asarray(len(local), local.dtype))
    interval, size = jnp.asarray(interval, local.dtype), jnp.asarray(size)
    return LyapunovExponents(exponents[order], error[order], local[:, order], interval, interval_error[order], size)


def _deviation(values, mean):
    """Sample standard deviation over axis 0; NaN for one sample, 0 where the mean is −inf (lost exactly)."""
    if len(values) < 2:
        return jnp.full_like(mean, jnp.nan)
    lost = mean == -jnp.inf
    off = jnp.where(lost[None, :], 0, values - jnp.where(lost, 0, mean)[None, :])
    return jnp.sqrt(jnp.sum(off**2, axis=0) / (len(values) - 1))
