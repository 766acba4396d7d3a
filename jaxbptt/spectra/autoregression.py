"""The variance of the mean of a correlated series, from an autoregression that is fitted to it.

    x_t = Σ_m φ_m x_{t−m} + e_t, var e = σ²      S = σ²/(1 − Σφ)² = Σ_lag cov(x_t, x_{t+lag})      var(mean) = S/n

By Burg's recursion: with the reflection coefficients κ_m and the innovation variances σ_m² of every order m,

    1 − Σφ = A_p = Π_{m≤p} (1 − κ_m)          σ_p² = σ_0² Π_{m≤p} (1 − κ_m²)
    var ln S = 2/(n − 1 − p) + 4/n Σ_{m<p} A_m²/σ_m² σ_p²/A_p²

the last by the delta method, with cov(φ) = σ_p² Γ⁻¹/n and the triangular factors of Γ⁻¹ that the recursion is. So
ln S has the variance of a χ² with 2/var ln S degrees of freedom, and (mean − truth)/√(S/n) is taken for Student's t.
The order is the one of least AICc.

References: Burg (1975), Maximum Entropy Spectral Analysis, PhD thesis, Stanford; Hurvich & Tsai (1989), Biometrika 76;
Berk (1974), Ann. Statist. 2 (spectra by autoregression); Marriott & Pope (1954), Biometrika 41 (bias of φ); Thompson
(2010), arXiv:1011.0175 (correlation times by autoregression).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MOST = 12  # orders tried
FEWEST = 8  # samples


class LongRun(NamedTuple):
    """Of k series."""

    variance: jax.Array  # [k] S, corrected for the bias of φ
    degrees_of_freedom: jax.Array  # [k]
    correlation_time: jax.Array  # [k] S/(2 var x) as fitted, in samples: ½ if independent


def long_run(series: jax.Array, counts: jax.Array) -> LongRun:
    """S of each column's first `counts` [k] entries in `series` [n, k], of mean zero; NaN if fewer than FEWEST."""
    size, k = series.shape
    index, counts = jnp.arange(size)[:, None], counts[None, :]
    n = counts.astype(series.dtype)
    series = jnp.where(index < counts, series, 0)
    # Scaled, a series of rounding noise alone does not square to nothing.
    scale = jnp.max(jnp.abs(series), axis=0, keepdims=True)
    unit = series / jnp.where(scale > 0, scale, 1)

    def raise_order(carry, order):
        forward, backward = carry
        inside = (index >= order) & (index < counts)
        forward, backward = jnp.where(inside, forward, 0), jnp.where(inside, jnp.roll(backward, 1, axis=0), 0)
        total = jnp.sum(forward * forward + backward * backward, axis=0, keepdims=True)
        kappa = 2 * jnp.sum(forward * backward, axis=0, keepdims=True) / jnp.where(total > 0, total, 1)
        return (forward - kappa * backward, backward - kappa * forward), kappa[0]

    kappa = jax.lax.scan(raise_order, (unit, unit), jnp.arange(1, MOST + 1))[1]
    none = jnp.zeros((1, k), series.dtype)
    logs = (jnp.log1p(-kappa * kappa), jnp.log1p(-kappa))
    log_sigma, log_gain = (jnp.concatenate((none, jnp.cumsum(log, axis=0))) for log in logs)  # ln σ_m²/σ_0², ln A_m
    orders = jnp.arange(MOST + 1, dtype=series.dtype)[:, None]
    criterion = n * log_sigma + n * (n + orders) / jnp.maximum(n - orders - 2, 1)
    order = jnp.argmin(jnp.where(4 * orders <= n, criterion, jnp.inf), axis=0)[None, :]
    take = lambda table: jnp.take_along_axis(table, order, axis=0)
    log_ratio = log_sigma - 2 * log_gain  # ln S_m/σ_0²
    earlier = jnp.concatenate((none, jnp.cumsum(jnp.exp(-log_ratio), axis=0)[:-1]))
    ratio = jnp.exp(take(log_ratio))
    spread = 2 / (n - 1 - take(jnp.broadcast_to(orders, log_ratio.shape))) + 4 / n * take(earlier) * ratio
    power = scale * scale * jnp.sum(unit * unit, axis=0, keepdims=True) / n
    # An estimated φ is too small by (1 + 3φ)/n (Marriott & Pope); the correction at the φ of the same correlation time.
    gap = 2 / (ratio + 1)  # 1 − φ
    corrected = jnp.maximum(gap - jnp.maximum(4 - 3 * gap, 0) / n, gap / 3)
    variance = power * ratio * (gap / corrected) ** 2
    return LongRun(*(jnp.where(n < FEWEST, jnp.nan, each)[0] for each in (variance, 2 / spread, 0.5 * ratio)))
