"""What an estimate of the gradient is worth, on estimates whose worth is known."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import assessment, gradients, models, online, truncation
from tests.cases import CELLS, instance
from tests.mutation import mutate

LENGTH, N, M, O = 6, 3, 2, 4
MODEL = models.sequence_model(CELLS["elman"], O)
PARAMS, INPUTS, TARGETS, INITIAL = instance(MODEL, jax.random.key(0), length=LENGTH)
ARGUMENTS = (PARAMS, INPUTS, TARGETS)
EXACT = jax.jit(lambda p, x, y: gradients.bptt(MODEL, p, x, y, initial=INITIAL)[1])(*ARGUMENTS)


def noisy(model, params, inputs, targets, *, initial, key, factor=1.0, noise=0.5):
    """factor · g, with noise of relative size `noise` on every leaf."""
    leaves, structure = jax.tree.flatten(EXACT)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    grads = [
        factor * leaf + noise * jnp.linalg.norm(leaf) / leaf.size**0.5 * draw
        for leaf, draw in zip(leaves, drawn, strict=True)
    ]
    return jnp.zeros(()), jax.tree.unflatten(structure, grads)


def assessed(estimator, **options):
    function = lambda p, x, y: assessment.assess(MODEL, estimator, p, x, y, initial=INITIAL, **options)
    return jax.jit(function)(*ARGUMENTS)


def test_the_exact_gradient_is_perfect():
    found = assessed(gradients.autodiff)
    for quality in (found.whole, *jax.tree.leaves(found.by_leaf, is_leaf=lambda q: isinstance(q, assessment.Quality))):
        np.testing.assert_allclose([quality.projection, quality.cosine], 1, rtol=1e-12)
        np.testing.assert_allclose([quality.bias, quality.spread, quality.standard_error], 0, atol=1e-12)
        assert np.isnan(quality.z_score)
        np.testing.assert_allclose(quality.interval(), 0, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 0.95])
def test_a_random_estimate_is_judged_as_it_is(factor):
    keys = jax.random.split(jax.random.key(1), 2000)
    found = assessed(functools.partial(noisy, factor=factor), keys=keys)
    sizes = np.array([leaf.size for leaf in jax.tree.leaves(EXACT)])
    norms = np.array([np.linalg.norm(leaf) for leaf in jax.tree.leaves(EXACT)])
    spread = 0.5 * np.linalg.norm(norms) / np.linalg.norm(norms)
    np.testing.assert_allclose(found.whole.spread, spread, rtol=0.05)
    # ⟨noise, g⟩/‖g‖² of one key has variance Σ (0.5 ‖g_l‖²)² / size_l / ‖g‖⁴.
    single = 0.5 * np.sqrt(np.sum(norms**4 / sizes)) / np.sum(norms**2)
    np.testing.assert_allclose(found.whole.standard_error, single / 2000**0.5, rtol=0.1)
    assert abs(found.whole.projection - factor) < 4 * found.whole.standard_error
    low, high = found.whole.interval()
    np.testing.assert_allclose([low, high], factor - 1, atol=6 * found.whole.standard_error)
    # A slip of 5 % is many standard errors; none is within chance.
    assert abs(found.whole.z_score) < 4 if factor == 1 else found.whole.z_score < -7
    expected = np.sqrt((1 - factor) ** 2 + spread**2 / 2000)
    np.testing.assert_allclose(found.whole.bias, expected, rtol=0.1)
    np.testing.assert_allclose(found.whole.cosine, factor / np.hypot(factor, 0.5), atol=0.05)


def drawn(keys):
    """The estimates of `noisy`, [K, |θ|]."""
    one = lambda key: ravel_pytree(noisy(None, None, None, None, initial=None, key=key)[1])[0]
    return np.asarray(jax.jit(jax.vmap(one))(keys))


def by_hand(estimates):
    """Their Quality, in NumPy."""
    exact, count = np.asarray(ravel_pytree(EXACT)[0]), len(estimates)
    norm, along = np.linalg.norm(exact), estimates @ exact / np.sum(exact**2)
    error = np.std(along, ddof=1) / count**0.5
    return assessment.Quality(
        projection=along.mean(),
        standard_error=error,
        z_score=(along.mean() - 1) / error,
        bias=np.linalg.norm(estimates.mean(0) - exact) / norm,
        spread=np.sqrt(np.sum(np.var(estimates, axis=0, ddof=1))) / norm,
        cosine=np.mean(estimates @ exact / np.linalg.norm(estimates, axis=1) / norm),
        num_keys=count,
    )


@pytest.mark.parametrize(("count", "at_once"), [(2, 32), (12, 5)])
def test_a_few_keys_are_judged_by_the_formulas(count, at_once, monkeypatch):
    """√(K/(K−1)) is 1.4 for two keys; batches of any size give the same."""
    monkeypatch.setattr(assessment, "AT_ONCE", at_once)
    keys = jax.random.split(jax.random.key(1), count)
    chex.assert_trees_all_close(assessed(noisy, keys=keys).whole, by_hand(drawn(keys)), rtol=1e-9)


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        ("", "", False),
        ("* (num_keys / max(num_keys - 1, 1)) / norm", "/ norm", True),
        ("/ max(num_keys - 1, 1)\n", "/ num_keys\n", True),
        ("jnp.sqrt(variance / max(num_keys, 1))", "jnp.sqrt(variance)", True),
        ("jnp.mean(products[:, 1]) - mean", "jnp.mean(products[:, 1])", True),
    ],
)
def test_a_broken_formula_is_seen(old, new, seen):
    estimates, exact = drawn(jax.random.split(jax.random.key(1), 2)), np.asarray(ravel_pytree(EXACT)[0])
    products = jnp.asarray(np.stack((estimates @ exact, np.sum(estimates**2, axis=1)), axis=1))
    mean = estimates.mean(axis=0)
    squares = (np.sum(vector**2) for vector in (exact, mean - exact, mean))
    found = mutate(assessment, old, new)._quality(len(estimates), products, *squares)
    assert np.allclose(found, by_hand(estimates), rtol=1e-9) != seen


@functools.cache
def coverage(num_keys, level, old="", new=""):
    """How often the interval of K normal estimates of mean 1 holds 0, in 4,000 repetitions."""
    module = mutate(assessment, old, new)

    def holds(projections):
        nothing = jnp.ones(())
        products = jnp.stack((projections, projections**2), axis=1)
        low, high = module._quality(num_keys, products, nothing, nothing, nothing).interval(level)
        return (low <= 0) & (high >= 0)

    drawn = 1 + 0.3 * jax.random.normal(jax.random.key(2), (4000, num_keys))
    return jax.jit(jax.vmap(holds))(drawn).mean()


@pytest.mark.sweep
@pytest.mark.parametrize(("num_keys", "level"), [(2, 0.95), (3, 0.95), (10, 0.95), (3, 0.8)])
def test_intervals_of_few_keys_hold_the_truth_as_often_as_they_say(num_keys, level):
    assert abs(coverage(num_keys, level) - level) < 4 * (level * (1 - level) / 4000) ** 0.5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("quantile * self.standard_error", "1.96 * self.standard_error"),
        ("self.num_keys - 1, 1)", "self.num_keys, 1)"),
        ("self.projection - 1 + half", "self.projection - 1"),
    ],
)
def test_a_broken_interval_is_seen(old, new):
    assert coverage(3, 0.95, old, new) < 0.92


def test_one_key_or_the_same_estimate_every_time_says_nothing_of_the_spread():
    keys = jax.random.split(jax.random.key(1), 3)
    one = assessed(noisy, keys=keys[:1]).whole
    # Bound as an estimator that draws nothing: K equal estimates, up to rounding.
    same = assessed(lambda *data, key, **options: noisy(*data, key=keys[0], **options), keys=keys).whole
    for found in (one, same):
        assert np.isnan([found.standard_error, found.z_score, *found.interval()]).all()
        np.testing.assert_allclose(found.projection, one.projection, rtol=1e-12)
    assert np.isnan(one.spread)
    with pytest.raises(ValueError, match="level: got 1, expected a number between 0 and 1"):
        one.interval(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uoro", "randomised"])
def test_intervals_of_real_estimators(name):
    """Skewed, not normal: .91 to .96 of 4,000 intervals hold the truth."""
    model = models.sequence_model(CELLS["elman"], O)
    estimator = {
        "uoro": functools.partial(online.run, online.uoro()),
        "randomised": functools.partial(truncation.randomised, keep=0.6),
    }[name]
    exact = ravel_pytree(EXACT)[0]

    def judge(keys):
        one = lambda key: ravel_pytree(estimator(model, *ARGUMENTS, initial=INITIAL, key=key)[1])[0]
        estimates = jax.vmap(one)(keys)
        products = jnp.stack((estimates @ exact, jnp.sum(estimates**2, axis=1)), axis=1)
        mean = estimates.mean(axis=0)
        squares = (jnp.sum(vector**2) for vector in (exact, mean - exact, mean))
        low, high = assessment._quality(len(keys), products, *squares).interval()
        return (low <= 0) & (high >= 0)

    for num_keys in (3, 10, 30):
        keys = jax.random.split(jax.random.key(3), (4000, num_keys))
        assert 0.91 < jax.jit(lambda keys: jax.lax.map(judge, keys))(keys).mean() < 0.965


def test_lags_that_truncation_drops_are_seen():
    kept = assessed(functools.partial(truncation.lag, num_lags=3), num_lags=5).by_lag
    np.testing.assert_allclose(kept, [1, 1, 1, 0, 0], atol=1e-8)
    np.testing.assert_allclose(assessed(gradients.autodiff, num_lags=5).by_lag, 1, atol=1e-8)


def test_alignment():
    g = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    other = {"a": jnp.array([0.0, 1.0]), "b": jnp.array([0.0])}
    half = jax.tree.map(lambda leaf: -0.5 * leaf, g)
    expected = [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]
    np.testing.assert_allclose(assessment.alignment([g, other, half]), expected, atol=1e-15)
    np.testing.assert_allclose(assessment.alignment({"g": g, "o": other, "h": half}), expected, atol=1e-15)


def test_the_price_of_truncation_grows_with_its_reach():
    steps = [
        assessment.cost_per_step(MODEL, functools.partial(truncation.lag, num_lags=steps), *ARGUMENTS).flops
        for steps in (1, 3, 6)
    ]
    assert steps == sorted(steps)
    assert steps[-1] > 1.5 * steps[0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: assessment.assess(MODEL, noisy, *ARGUMENTS, keys=jax.random.key(0)), TypeError, "keys: got "),
        (lambda: assessment.assess(MODEL, noisy, *ARGUMENTS, keys=jnp.ones(3)), TypeError, "keys: got float64"),
        (lambda: assessed(gradients.bptt, num_lags=7), ValueError, "num_lags: got 7, expected at most 6"),
        (
            lambda: assessment.cost_per_step(gradients.bptt, MODEL, *ARGUMENTS),
            TypeError,
            "model: got function, expected",
        ),
        (lambda: assessment.alignment([]), ValueError, "gradients: got none"),
        (lambda: assessment.alignment([jnp.ones(2), jnp.ones(3)]), ValueError, "gradients: got shape"),
    ],
)
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
