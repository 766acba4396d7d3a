"""The standard error of a correlated mean: against NumPy, and by how often its intervals hold the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxbptt.spectra import autoregression
from jaxbptt.spectra.statistics import student_quantile
from tests.mutation import mutate

RIGHT = jax.jit(autoregression.long_run)


def fitted(series, long_run=RIGHT):
    return [np.asarray(field) for field in long_run(jnp.asarray(series), jnp.full(series.shape[1], len(series)))]


def ar1(length, runs, time, seed=0):
    """[T, runs] of variance 1, correlation e^(−lag/time)."""
    rng, phi = np.random.default_rng(seed), np.exp(-1 / time) if time else 0.0
    series = np.empty((length, runs))
    series[0] = rng.standard_normal(runs)
    for t in range(1, length):
        series[t] = phi * series[t - 1] + (1 - phi**2) ** 0.5 * rng.standard_normal(runs)
    return series


def by_hand(x):
    """(S before the correction, var ln S, order): Burg with polynomials, AICc, and Γ⁻¹ as a matrix inverse."""
    n, fits = len(x), []
    forward, backward, a, sigma = x.copy(), x.copy(), np.ones(1), np.mean(x**2)
    for order in range(autoregression.MOST + 1):
        if order:
            f, b = forward[1:], backward[:-1]
            kappa = 2 * np.sum(f * b) / np.sum(f * f + b * b)
            forward, backward = f - kappa * b, b - kappa * f
            a = np.append(a, 0) - kappa * np.append(a, 0)[::-1]
            sigma *= 1 - kappa**2
        if order * autoregression.PER_ORDER <= n:
            fits.append((n * np.log(sigma) + n * (1 + order / n) / (1 - (order + 2) / n), a, sigma))
    _, a, sigma = min(fits, key=lambda fit: fit[0])
    p = len(a) - 1
    response = np.zeros(4000)  # the autocovariance from the impulse response
    for t in range(len(response)):
        response[t] = (t == 0) - sum(a[m] * response[t - m] for m in range(1, min(p, t) + 1))
    covariance = [sigma * response[: len(response) - lag] @ response[lag:] for lag in range(max(p, 1))]
    of_sum = 0.0
    if p:
        gamma = np.array([[covariance[abs(i - j)] for j in range(p)] for i in range(p)])
        of_sum = sigma / n * np.linalg.inv(gamma).sum()
    return sigma / a.sum() ** 2, 2 / (n - 1 - p) + 4 * of_sum / a.sum() ** 2, p


def test_the_recursion_is_burgs_and_its_variance_that_of_the_fit():
    rng = np.random.default_rng(1)
    oscillating = rng.standard_normal((300, 1))
    for t in range(2, 300):
        oscillating[t] += 1.6 * oscillating[t - 1] - 0.8 * oscillating[t - 2]
    series = np.concatenate((ar1(300, 2, 6.0), oscillating, rng.standard_normal((300, 1))), axis=1)
    series -= series.mean(axis=0)
    variance, freedom, time = fitted(series)
    orders = []
    for i, x in enumerate(series.T):
        expected, spread, order = by_hand(x)
        orders.append(order)
        ratio = expected / np.mean(x**2)
        np.testing.assert_allclose(time[i], ratio / 2, rtol=1e-9)
        np.testing.assert_allclose(2 / freedom[i], spread, rtol=1e-6)
        gap = 2 / (ratio + 1)
        corrected = gap - max(4 - 3 * gap, 0) / 300
        np.testing.assert_allclose(variance[i], expected * (gap / corrected) ** 2, rtol=1e-9)
    assert min(orders) == 0
    assert max(orders) >= 2


def test_only_what_is_counted_counts():
    series = ar1(100, 3, 3.0)
    series -= series.mean(axis=0)
    longer = jnp.asarray(np.concatenate((series, np.full((50, 3), 9.0))))
    found = RIGHT(longer, jnp.full(3, 100))
    for field, expected in zip(found, fitted(series), strict=True):
        np.testing.assert_allclose(field, expected, rtol=1e-9)
    assert all(np.isnan(field).all() for field in RIGHT(longer, jnp.full(3, autoregression.FEWEST - 1)))
    assert np.array_equal(RIGHT(jnp.zeros((50, 1)), jnp.full(1, 50)).variance, [0.0])


def coverage(series, long_run=RIGHT):
    """How often 95 % intervals of the mean hold 0, for all series and for those of T ≥ 20 correlation times."""
    mean, length = series.mean(axis=0), len(series)
    variance, freedom, time = fitted(series - mean, long_run)
    inside = np.abs(mean) < scipy.stats.t.ppf(0.975, freedom) * np.sqrt(variance / length)
    return inside.mean(), inside[time <= length / 20].mean(), (time <= length / 20).mean()


@pytest.mark.parametrize("time", [0, 8, 26, 51])
def test_intervals_cover_up_to_a_twentieth_of_the_chain(time):
    every, known, kept = coverage(ar1(1024, 1000, time, seed=time))
    # Standard deviation 0.007: ±2 % is seen at 3, a standard error 20 % too small (coverage 0.90) at 7.
    assert 0.93 < every < 0.97
    assert known > 0.915
    assert kept > (0.55 if time == 51 else 0.99)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("power * ratio * (gap / corrected) ** 2", "power * (gap / corrected) ** 2"),
        ("2 / (n - 1 - order) + 4 / n * earlier * jnp.exp(log_ratio)", "2 / (n - 1 - order)"),
        ("jnp.maximum(gap - jnp.maximum(4 - 3 * gap, 0) / n, gap / 3)", "gap"),
    ],
)
def test_a_missing_term_loses_the_coverage(old, new):
    series = ar1(1024, 1000, 51, seed=51)
    lost = coverage(series)[0] - coverage(series, jax.jit(mutate(autoregression, old, new).long_run))[0]
    assert lost > 0.007  # on the same series: far more than chance


@pytest.mark.slow
@pytest.mark.parametrize("length", [1024, 2500])
def test_the_table_of_coverage(length):
    """4,000 runs each: standard deviation 0.0035."""
    for share in (400, 80, 40, 20):
        every, known, _ = coverage(ar1(length, 4000, length / share, seed=share))
        assert 0.935 < every < 0.97
        assert known > 0.925
    # What it cannot see, as the docstring says: a slow process under ten times as much noise.
    series = ar1(length, 4000, length / 20)
    noise = np.random.default_rng(1).standard_normal(series.shape)
    assert coverage(series + 10**0.5 * noise)[0] < 0.8
    # Beyond the limit most are refused; those that pass by chance cover less.
    every, known, kept = coverage(ar1(length, 4000, length / 10))
    assert kept < 0.25
    assert every > 0.93
    assert known > 0.7


@pytest.mark.sweep
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_quantile_of_students_t(level):
    freedom = np.array([0.7, 1, 2, 3.5, 10, 31, 1000])
    expected = scipy.stats.t.ppf((1 + level) / 2, freedom)
    np.testing.assert_allclose(student_quantile(level, jnp.asarray(freedom)), expected, rtol=1e-9)
    single = student_quantile(level, jnp.asarray(freedom, jnp.float32))
    np.testing.assert_allclose(single, expected, rtol=2e-3)
