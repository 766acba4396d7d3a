"""What a spectrum of exponents says of itself: error bars that cover, dimension, entropy, spread over sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import spectra
from jaxbptt.spectra import statistics
from tests.mutation import mutate
from tests.spectra.chains import exponents


def covers(result, truth):
    """Which 95 % intervals hold the truth."""
    low, high = np.moveaxis(np.asarray(jax.vmap(type(result).confidence_interval)(result)), 1, 0)
    return (low < truth) & (truth < high)


def test_intervals_of_time_cover_what_they_claim():
    """95 % of them hold the exact exponent (i.i.d. Gaussian steps)."""
    size, length, runs = 3, 320, 300
    draws = jax.random.normal(jax.random.key(0), (runs, length, size, size)) / size**0.5
    result = jax.jit(lambda draws: jax.lax.map(lambda c: spectra.lyapunov_exponents(c, warm_up=0), draws))(draws)
    half = (size - np.arange(size)) / 2
    exact = np.asarray(0.5 * (np.log(2) + jax.scipy.special.digamma(half)) - 0.5 * np.log(size))
    inside = covers(result, exact)
    # 900 trials of probability 0.95: standard deviation 0.0073; a standard error 15 % too small gives 0.90.
    assert abs(inside.mean() - 0.95) < 3.5 * 0.0073


def test_intervals_of_time_cover_correlated_growth():
    """ln J_t an AR(1) process of mean 0.1 with correlation 0.9: √(1/T) of single steps would be 4.4 times too small."""
    length, runs = 1600, 300
    noise = np.random.default_rng(0).standard_normal((runs, length + 100))
    logs = np.zeros(noise.shape)
    for t in range(1, noise.shape[1]):
        logs[:, t] = 0.9 * logs[:, t - 1] + noise[:, t]
    logs = 0.1 + 0.1 * logs[:, 100:]
    chains = jnp.exp(logs)[:, :, None, None]
    result = jax.jit(lambda chains: jax.lax.map(lambda c: spectra.lyapunov_exponents(c, warm_up=0), chains))(chains)
    np.testing.assert_allclose(result.exponents[:, 0], logs.mean(axis=1), atol=1e-12)
    off = np.abs(np.asarray(result.exponents)[:, 0] - 0.1)
    # Standard deviation 0.0126.
    assert abs(covers(result, 0.1).mean() - 0.95) < 3.5 * 0.0126
    # (1 + φ)/(1 − φ)/2 = 9.5, less what is hidden in sums over up to 16 steps.
    assert 6 < np.median(result.correlation_time) < 10
    naive = logs.std(axis=1) / length**0.5
    assert (off < 1.96 * naive).mean() < 0.6


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("spectrum", "dimension", "entropy"),
    [
        ([0.9056, 0.0, -14.5723], 2 + 0.9056 / 14.5723, 0.9056),
        ([0.41922, -1.62319], 1.25827, 0.41922),
        ([0.5, 0.1], 2, 0.6),
        ([-0.1, -2.0], 0, 0),
        ([0.2, -np.inf], 1, 0.2),
        ([-np.inf, -np.inf], 0, 0),
        ([0.3], 1, 0.3),
        ([0.0, -1.0], 1, 0),  # a limit cycle
        ([0.0, 0.0, -2.0], 2, 0),  # a torus
        ([0.5, -0.5, -1.0], 2, 0.5),
        ([-1.0, 0.0, 0.5], 2.5, 0.5),  # in any order
    ],
)
def test_dimension_and_entropy(spectrum, dimension, entropy):
    spectrum = jnp.array(spectrum)
    np.testing.assert_allclose(spectra.kaplan_yorke_dimension(spectrum), dimension, atol=1e-5)
    np.testing.assert_allclose(spectra.entropy_rate(spectrum), entropy)


@pytest.mark.parametrize("function", [spectra.kaplan_yorke_dimension, spectra.entropy_rate])
@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([0.5, -1.0], TypeError, "got list"),
        (np.array([1, -2]), TypeError, "got int64"),
        (np.ones((2, 2)), ValueError, r"got shape \[2, 2\], expected \[N\]"),
        (np.ones(0), ValueError, r"got shape \[0\], expected \[N\]"),
    ],
)
def test_what_is_no_spectrum_is_refused(function, given, error, said):
    with pytest.raises(error, match=f"exponents: {said}"):
        function(given)


def test_what_is_no_result_is_not_pooled():
    with pytest.raises(TypeError, match="results: got ndarray, expected LyapunovExponents"):
        spectra.pool_exponents(np.ones((3, 2)))


def test_a_part_of_the_spectrum_says_what_it_can():
    growing = np.broadcast_to(np.diag([3.0, 2.0, 0.1]), (50, 3, 3))
    part, whole = (exponents(growing, k=k, warm_up=40) for k in (1, 3))
    assert np.isnan(part.kaplan_yorke_dimension())
    assert np.isnan(part.entropy_rate())
    np.testing.assert_allclose(whole.entropy_rate(), np.log(6), rtol=1e-6)
    np.testing.assert_allclose(whole.kaplan_yorke_dimension(), 2 + np.log(6) / np.log(10), rtol=1e-6)
    assert exponents(growing / 5, k=1, warm_up=40).kaplan_yorke_dimension() == 0


def test_pooling_tells_alike_from_unlike():
    @jax.jit
    def pooled(shift):
        factors = jnp.exp(shift * jnp.arange(8.0))[:, None, None, None]
        draws = jax.random.normal(jax.random.key(1), (8, 400, 2, 2)) * factors
        return spectra.pool_exponents(jax.lax.map(lambda c: spectra.lyapunov_exponents(c, interval=1), draws))

    alike, unlike = pooled(0.0), pooled(0.1)
    assert (alike.spread < 2 * alike.within).all()
    assert (unlike.spread > 4 * unlike.within).all()
    np.testing.assert_allclose(unlike.exponents, alike.exponents + 0.35, atol=1e-9)
    np.testing.assert_allclose(alike.standard_error, alike.spread / 8**0.5)


@pytest.mark.parametrize(
    ("old", "new", "spectrum"),
    [
        ("sums >= 0", "sums > 0", [0.0, -1.0]),
        ("sums >= 0", "exponents >= 0", [0.9, -0.2, -14.0]),
        ("jnp.where(j < len(exponents), whole", "jnp.where(j >= 0, whole", [0.5, 0.1]),
    ],
)
def test_a_broken_dimension_is_seen(old, new, spectrum):
    right, wrong = (
        module.kaplan_yorke_dimension(jnp.array(spectrum)) for module in (statistics, mutate(statistics, old, new))
    )
    assert abs(right - wrong) > 1e-3


# Four complex pairs in general position: a chain that separates its exponents slowly.
RATES = np.repeat([-0.03077, -0.07543, -0.3, -0.5], 2)


def pairs(seed):
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0.2, 2.9, 4)
    turns = [[[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] for a in angles]
    matrix = np.exp(RATES)[:, None] * jax.scipy.linalg.block_diag(*np.array(turns))
    frame = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    return frame @ matrix @ frame.T


@pytest.mark.slow
def test_a_warm_up_that_is_too_short_is_seen():
    matrices = jnp.asarray([pairs(seed) for seed in range(6)])
    call = jax.jit(
        lambda m, length: jax.lax.map(
            lambda one: spectra.lyapunov_exponents(jnp.broadcast_to(one, (length, 8, 8)), interval=1), m
        ),
        static_argnums=1,
    )
    short, long = call(matrices, 300), call(matrices, 3000)
    off = np.abs(np.asarray(short.exponents) - RATES)
    assert (off > 1.5 * np.asarray(short.standard_error)).any()
    assert (off.max(axis=1) < 3 * np.asarray(short.warm_up_error).max(axis=1)).all()
    for one in zip(*short, strict=True):
        assert "The warm-up is too short for" in " ".join(type(short)(*one).notes())
    for one in zip(*long, strict=True):
        assert type(long)(*one).notes() == []
    np.testing.assert_allclose(long.exponents, np.broadcast_to(RATES, (6, 8)), atol=1e-6)
    with pytest.warns(RuntimeWarning, match="The warm-up is too short for exponents"):
        spectra.lyapunov_exponents(jnp.broadcast_to(matrices[0], (300, 8, 8)), interval=1)


def test_a_warm_up_that_is_long_enough_is_not_blamed():
    """i.i.d. Gaussian steps: every start is as good as any."""
    draws = jax.random.normal(jax.random.key(3), (20, 500, 8, 8)) / 8**0.5
    result = jax.jit(lambda draws: jax.lax.map(spectra.lyapunov_exponents, draws))(draws)
    assert (result.warm_up_error < result.standard_error).mean() > 0.98


def test_the_reasons_are_given_in_words():
    steps = np.exp(np.cumsum(np.random.default_rng(0).standard_normal(300)) * 0.02)[:, None, None]
    notes = exponents(steps, warm_up=0).notes()
    assert len(notes) == 1
    assert notes[0].startswith("No standard error for exponent 1: growth is correlated over about ")
    assert "too few samples" in exponents(steps[:5], warm_up=0).notes()[0]
    assert exponents(np.exp(0.1 * np.random.default_rng(0).standard_normal((300, 1, 1)))).notes() == []
    assert "NaN in the Jacobians" in exponents(steps * np.nan).notes()[0]
    with pytest.raises(TypeError, match="traced arrays"):
        jax.jit(lambda c: len(spectra.lyapunov_exponents(c).notes()))(steps)
    with pytest.raises(ValueError, match=r"exponents: got shape \[2, 1\]"):
        exponents(steps)._replace(exponents=np.zeros((2, 1))).notes()
    with pytest.raises(ValueError, match="level: got 1"):
        exponents(steps).confidence_interval(1)
