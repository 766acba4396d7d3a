"""Random cuts: every pattern weighted by its chance averages to the gradient, and what is drawn is what is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import truncation
from jaxbptt.comparison import compare
from tests.mutation import mutate_package
from tests.truncation.problems import KEY, PATTERNS, small


def chances(kind):
    """(probability of every pattern, π [2^T, T])."""
    if kind == "same":
        keep = jnp.full((16, 4), 0.6)
    elif kind == "schedule":
        keep = jnp.tile(jnp.array([0.5, 0.9, 0.3, 1.0]), (16, 1))
    else:
        keep = jax.vmap(lambda cuts: truncation.renewal_keep(cuts, mean_length=2.5, exponent=4.0))(PATTERNS)
    return np.where(PATTERNS, 1 - keep, keep).prod(1), keep


def expectation(estimate, kind):
    chance, keep = chances(kind)
    np.testing.assert_allclose(chance.sum(), 1, rtol=1e-14)
    grads = jax.jit(jax.vmap(estimate))(PATTERNS, keep)
    return jax.tree.map(lambda leaf: jnp.tensordot(jnp.asarray(chance), leaf, 1), grads)


def estimator(how, module=truncation):
    """(cuts, π) -> a gradient, by the scan or by one of the two tables."""
    model, data, _ = small()
    if how == "scan":
        return lambda cuts, keep: module.randomised(model, *data, cuts=cuts, keep=keep)[1]
    return lambda cuts, keep: module.weighted_gradient(model, *data, getattr(module, how)(cuts, keep))[1]


@pytest.mark.sweep
@pytest.mark.parametrize("kind", ["same", "schedule", "renewal"])
@pytest.mark.parametrize("how", ["scan", "random_weights", "one_link_weights"])
def test_all_patterns_of_cuts_average_to_the_gradient(kind, how):
    assert compare(small()[2], expectation(estimator(how), kind)).relative < 1e-12


SLIPS = [
    ("scan", "jnp.add, local, from_later", "lambda a, b: a + 0.95 * b, local, from_later"),
    ("scan", "scale.astype(leaf.dtype) * leaf", "jnp.where(scale > 0, 1, 0).astype(leaf.dtype) * leaf"),
    ("scan", "if initial is None else None\n    result", "if initial else None\n    result"),
    ("random_weights", ".astype(probability.dtype) / probability", ".astype(probability.dtype) / (0.95 * probability)"),
    ("random_weights", "jnp.where(columns < t, factor * row, 0)", "jnp.where(columns < t, 0.95 * factor * row, 0)"),
    ("random_weights", "jnp.where(columns < t, factor * row, 0)", "jnp.where(columns < t - 1, factor * row, 0)"),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("how", "old", "new"), SLIPS)
def test_a_slip_of_five_per_cent_breaks_it(how, old, new):
    broken = estimator(how, mutate_package(truncation, old, new))
    assert compare(small()[2], expectation(broken, "same")).relative > 5e-3


def z_scores(module):
    """z of the mean of ⟨ĝ, g⟩/‖g‖² − 1 per leaf over 10,000 keys; no z where nothing is random."""
    model, data, exact = small()
    keys = jax.random.split(jax.random.key(3), 10_000)
    grads = jax.jit(jax.vmap(lambda key: module.randomised(model, *data, keep=0.7, key=key)[1]))(keys)
    for leaf, g in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        along = np.tensordot(leaf, g, g.ndim) / np.sum(g * g)
        if np.ptp(along) < 1e-12:
            np.testing.assert_allclose(along[0], 1, rtol=1e-12)
        else:
            yield (along.mean() - 1) / (along.std() / np.sqrt(len(along)))


def test_keys_average_to_the_gradient():
    z = list(z_scores(truncation))
    assert len(z) == 3
    assert max(map(abs, z)) < 4
    slip = mutate_package(truncation, "jnp.add, local, from_later", "lambda a, b: a + 0.95 * b, local, from_later")
    assert max(map(abs, z_scores(slip))) > 6


def test_renewal_cuts_have_their_mean_and_tell_their_probabilities():
    options = {"mean_length": 6.0, "exponent": 4.0}
    cuts, keep = jax.jit(lambda key: truncation.renewal_cuts(key, 5000, **options))(KEY)
    np.testing.assert_allclose(truncation.renewal_keep(cuts, **options), keep, rtol=1e-14)
    ages = np.arange(1, 200_000)
    survival = np.cumprod(1 - 3 / (2 * 6.0 + ages))
    np.testing.assert_allclose(1 + survival.sum(), 6, rtol=1e-6)  # exactly ℓ_0
    np.testing.assert_allclose(5000 / np.sum(cuts), 6, rtol=0.1)
    windows = np.diff(np.flatnonzero(cuts))
    np.testing.assert_allclose(np.mean(windows > 3), survival[2], atol=0.05)
    np.testing.assert_allclose(keep[0], 1 - 3 / (2 * 6.0 + 1), rtol=1e-14)


def test_draws_follow_keep():
    assert not truncation.draw_cuts(KEY, 50, 1).any()
    cuts = truncation.draw_cuts(KEY, 4000, jnp.tile(jnp.array([0.9, 0.2]), 2000))
    np.testing.assert_allclose([cuts[::2].mean(), cuts[1::2].mean()], [0.1, 0.8], atol=0.03)
    model, data, _ = small()
    _, drawn = truncation.randomised(model, *data, keep=0.5, key=KEY)
    _, same = truncation.randomised(model, *data, keep=0.5, cuts=truncation.draw_cuts(KEY, 4, 0.5))
    assert compare(same, drawn).relative == 0


def test_bad_keep_under_jit_is_nan_throughout():
    model, data, _ = small()
    run = jax.jit(lambda keep: truncation.randomised(model, *data, cuts=PATTERNS[3], keep=keep))
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(run(0.0)))
    assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(run(0.5)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: truncation.draw_cuts(KEY, 0, 0.5), ValueError, "num_steps: got 0"),
        (lambda: truncation.renewal_cuts(KEY, 4, mean_length=1, exponent=4), ValueError, "mean_length: .* above 1"),
        (lambda: truncation.renewal_cuts(KEY, 4, mean_length=3, exponent=2.0), ValueError, "exponent: .* above 2"),
        (lambda: truncation.renewal_keep(PATTERNS[0], mean_length="3", exponent=4), TypeError, "mean_length: got str"),
    ],
)
def test_bad_draws_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
