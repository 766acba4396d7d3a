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
PER_ORDER = 12  # samples, at least
FEWEST = 8  # samples
MOST_REGULAR = 1 - 1e-6  # largest |κ|: a series of period 2, or none but rounding, has 1


class LongRun(NamedTuple):
    """Of k series."""

    variance: jax.Array  # [k] S, corrected for the bias of φ
    degrees_of_freedom: jax.Array  # [k]
    correlation_time: jax.Array  # [k] S/(2 var x) as fitted, in samples: ½ if independent


class _Fit(NamedTuple):
    """Of one order m; all [k]."""

    criterion: jax.Array  # AICc
    log_ratio: jax.Array  # ln S_m/σ_0²
    spread: jax.Array  # var ln S


def long_run(series: jax.Array, counts: jax.Array) -> LongRun:
    """S of each column's first `counts` [k] entries in `series` [n, k], of mean zero; NaN if fewer than FEWEST."""
    used = jnp.arange(len(series))[:, None] < counts[None, :]
    n = counts.astype(series.dtype)
    # Scaled, a series of rounding noise alone does not square to nothing.
    scale = jnp.max(jnp.abs(jnp.where(used, series, 0)), axis=0)
    unit = jnp.where(used, series, 0) / jnp.where(scale > 0, scale, 1)[None, :]

    def fit(order, log_sigma, log_gain, earlier):
        log_ratio = log_sigma - 2 * log_gain
        criterion = n * log_sigma + n * (n + order) / jnp.maximum(n - order - 2, 1)
        spread = 2 / (n - 1 - order) + 4 / n * earlier * jnp.exp(log_ratio)
        return _Fit(jnp.where(PER_ORDER * order <= n, criterion, jnp.inf), log_ratio, spread)

    def raise_order(carry, order):
        forward, backward, log_sigma, log_gain, earlier, best = carry
        inside = used & (jnp.arange(len(series))[:, None] >= order)
        forward, backward = jnp.where(inside, forward, 0), jnp.where(inside, jnp.roll(backward, 1, axis=0), 0)
        total = jnp.sum(forward * forward + backward * backward, axis=0)
        kappa = 2 * jnp.sum(forward * backward, axis=0) / jnp.where(total > 0, total, 1)
        kappa = jnp.clip(kappa, -MOST_REGULAR, MOST_REGULAR)
        earlier = earlier + jnp.exp(2 * log_gain - log_sigma)
        log_sigma, log_gain = log_sigma + jnp.log1p(-kappa * kappa), log_gain + jnp.log1p(-kappa)
        new = fit(order.astype(n.dtype), log_sigma, log_gain, earlier)
        best = jax.tree.map(lambda old, new_: jnp.where(new.criterion < best.criterion, new_, old), best, new)
        both = forward - kappa[None, :] * backward, backward - kappa[None, :] * forward
        return (*both, log_sigma, log_gain, earlier, best), None

    none = jnp.zeros_like(n)
    start = unit, unit, none, none, none, fit(none, none, none, none)
    best = jax.lax.scan(raise_order, start, jnp.arange(1, MOST + 1))[0][-1]
    ratio, power = jnp.exp(best.log_ratio), scale * scale * jnp.mean(unit * unit, axis=0) * (len(series) / n)
    # An estimated φ is too small by (1 + 3φ)/n (Marriott & Pope); the correction at the φ of the same correlation time.
    gap = 2 / (ratio + 1)  # 1 − φ
    corrected = jnp.maximum(gap - jnp.maximum(4 - 3 * gap, 0) / n, gap / 3)
    variance = power * ratio * (gap / corrected) ** 2
    return LongRun(*(jnp.where(n < FEWEST, jnp.nan, each) for each in (variance, 2 / best.spread, 0.5 * ratio)))
