"""Statistics of Lyapunov exponents: standard errors, dimension, entropy rate, spread over sequences."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbptt.types import ArrayLike, Integer, Scalar


class LyapunovExponents(NamedTuple):
    """k exponents, in nats per step, descending."""

    exponents: Float[Array, " k"]
    standard_error: Float[Array, " k"]  # s / √blocks; for intervals use Student's t with blocks − 1 degrees of freedom
    local: Float[Array, "blocks k"]  # finite-time exponents of each block of time
    interval: Scalar  # mean steps between QRs
    interval_error: Float[Array, " k"]  # largest difference per step from QR at every step, in the checked blocks
    size: Integer  # N

    def kaplan_yorke_dimension(self) -> Scalar:
        """`kaplan_yorke_dimension` of these exponents; NaN where the k computed ones do not determine it."""
        dimension = kaplan_yorke_dimension(self.exponents)
        return jnp.where((dimension < len(self.exponents)) | (len(self.exponents) == self.size), dimension, jnp.nan)

    def entropy_rate(self) -> Scalar:
        """`entropy_rate` of these exponents; NaN where exponents beyond the k computed ones may be positive."""
        settled = (self.exponents[-1] <= 0) | (len(self.exponents) == self.size)
        return jnp.where(settled, entropy_rate(self.exponents), jnp.nan)


class PooledExponents(NamedTuple):
    """k exponents over B sequences or initial states, in nats per step."""

    exponents: Float[Array, " k"]  # mean
    standard_error: Float[Array, " k"]  # of the mean, from the spread between the B: s / √B
    spread: Float[Array, " k"]  # standard deviation between the B
    within: Float[Array, " k"]  # root mean square of the B standard errors: the size of `spread` if all B are alike


def kaplan_yorke_dimension(exponents: Float[ArrayLike, " k"]) -> Scalar:
    """D = j + (λ_1 + … + λ_j) / |λ_{j+1}|, j the last index up to which the sum is not negative.

    Args:
      exponents: [N], descending, in any unit; −inf allowed.

    Returns:
      Scalar in 0 … N, of the dtype of exponents.

    Reference: Kaplan & Yorke (1979), Lecture Notes in Mathematics 730.
    """
    exponents = jnp.asarray(exponents)
    sums = jnp.cumsum(exponents)
    j = jnp.sum(jnp.cumprod(sums >= 0))
    whole = jnp.where(j > 0, sums[jnp.maximum(j - 1, 0)], 0)
    following = exponents[jnp.minimum(j, len(exponents) - 1)]
    part = jnp.where(j < len(exponents), whole / jnp.where(following < 0, -following, 1), 0)
    return jnp.where(jnp.any(jnp.isnan(exponents)), jnp.nan, j.astype(exponents.dtype) + part)


def entropy_rate(exponents: Float[ArrayLike, " k"]) -> Scalar:
    """Σ of the positive exponents: the entropy rate of an attractor with a smooth measure, else an upper bound on it.

    Args:
      exponents: [N], nats per step.

    Returns:
      Scalar, nats per step, of the dtype of exponents.

    Reference: Pesin (1977), Russ. Math. Surv. 32; Ruelle (1978), Bol. Soc. Bras. Mat. 9.
    """
    return jnp.sum(jnp.where(exponents <= 0, 0, exponents))


def pool_exponents(results: LyapunovExponents) -> PooledExponents:
    """The mean over sequences or initial states, and whether they differ by more than their standard errors.

    Args:
      results: with a leading axis B ≥ 2 on every field, as `jax.lax.map` over sequences returns.

    Returns:
      PooledExponents. `spread` well above `within`: the sequences, or the basins of the initial states, differ.

    Raises:
      ValueError: no leading axis, or B < 2.
    """
    if jnp.ndim(results.exponents) != 2 or len(results.exponents) < 2:
        raise ValueError(f"results: got exponents of shape {list(jnp.shape(results.exponents))}, expected [B ≥ 2, k]")
    mean = jnp.mean(results.exponents, axis=0)
    spread = _deviation(results.exponents, mean)
    within = jnp.sqrt(jnp.mean(results.standard_error**2, axis=0))
    return PooledExponents(mean, spread / jnp.sqrt(jnp.asarray(len(results.exponents), mean.dtype)), spread, within)


def summarise(
    local: jax.Array, lengths: np.ndarray, interval: jax.Array, interval_error: jax.Array, size: int
) -> LyapunovExponents:
    """LyapunovExponents from the block means [blocks, k] over `lengths` [blocks] steps."""
    weights = jnp.asarray(lengths / lengths.sum(), local.dtype)
    exponents = jnp.sum(weights[:, None] * local, axis=0)
    order = jnp.argsort(exponents, descending=True)
    error = _deviation(local, exponents) / jnp.sqrt(jnp.asarray(len(local), local.dtype))
    interval = jnp.asarray(interval, local.dtype)
    return LyapunovExponents(
        exponents[order], error[order], local[:, order], interval, interval_error[order], jnp.asarray(size)
    )


def _deviation(values, mean):
    """Sample standard deviation over axis 0; NaN for one sample, 0 where the mean is −inf (lost exactly)."""
    if len(values) < 2:
        return jnp.full_like(mean, jnp.nan)
    lost = mean == -jnp.inf
    off = jnp.where(lost[None, :], 0, values - jnp.where(lost, 0, mean)[None, :])
    return jnp.sqrt(jnp.sum(off**2, axis=0) / (len(values) - 1))
