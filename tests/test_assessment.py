import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import assessment, gradients, models, operations, truncation
from tests.cases import CELLS, instance

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
    function = lambda p, x, y: assessment.assess(MODEL, estimator, p, x, y, initial=INITIAL, **options)  # noqa: E731
    return jax.jit(function)(*ARGUMENTS)


def test_the_exact_gradient_is_perfect():
    found = assessed(gradients.autodiff)
    for quality in (found.whole, *jax.tree.leaves(found.by_leaf, is_leaf=lambda q: isinstance(q, assessment.Quality))):
        np.testing.assert_allclose([quality.projection, quality.cosine], 1, rtol=1e-12)
        np.testing.assert_allclose([quality.bias, quality.spread, quality.standard_error], 0, atol=1e-12)
        assert np.isnan(quality.z_score)


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


def test_batches_of_keys_make_no_difference(monkeypatch):
    keys = jax.random.split(jax.random.key(1), 12)
    together = assessed(noisy, keys=keys)
    monkeypatch.setattr(assessment, "AT_ONCE", 5)
    apart = assessed(noisy, keys=keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), together, apart)


def test_lags_that_truncation_drops_are_seen():
    kept = assessed(functools.partial(truncation.lag, steps=3), lags=5).by_lag
    np.testing.assert_allclose(kept, [1, 1, 1, 0, 0], atol=1e-8)
    np.testing.assert_allclose(assessed(gradients.autodiff, lags=5).by_lag, 1, atol=1e-8)


def test_alignment():
    g = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    other = {"a": jnp.array([0.0, 1.0]), "b": jnp.array([0.0])}
    half = jax.tree.map(lambda leaf: -0.5 * leaf, g)
    expected = [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]
    np.testing.assert_allclose(assessment.alignment([g, other, half]), expected, atol=1e-15)
    np.testing.assert_allclose(assessment.alignment({"g": g, "o": other, "h": half}), expected, atol=1e-15)


def test_operations_are_those_of_the_program():
    def loop(w, h):
        return jax.lax.scan(lambda h, _: (jnp.tanh(w @ h), None), h, None, length=7)[0]

    count = operations.count_operations(loop, jnp.ones((5, 5)), jnp.ones(5))
    assert count.flops == 7 * (2 * 25 + 5)
    assert count.bytes == 7 * 8 * (25 + 5 + 5 + 5 + 5)
    assert count.exact
    either = operations.count_operations(
        lambda x: jax.lax.cond(x[0] > 0, lambda x: x @ x, lambda x: x[0], x), jnp.ones(9)
    )
    assert 18 <= either.flops <= 18 + 4
    forever = operations.count_operations(lambda x: jax.lax.while_loop(lambda x: x < 5, lambda x: x + 1, x), 1.0)
    assert not forever.exact


def test_the_price_of_truncation_grows_with_its_reach():
    steps = [
        assessment.cost_per_step(functools.partial(truncation.lag, steps=steps), MODEL, *ARGUMENTS).flops
        for steps in (1, 3, 6)
    ]
    assert steps == sorted(steps)
    assert steps[-1] > 1.5 * steps[0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: assessment.assess(MODEL, noisy, *ARGUMENTS, keys=jax.random.key(0)), TypeError, "keys: got "),
        (lambda: assessment.assess(MODEL, noisy, *ARGUMENTS, keys=jnp.ones(3)), TypeError, "keys: got float64"),
        (
            lambda: assessment.assess(MODEL, gradients.bptt, *ARGUMENTS, lags=7),
            ValueError,
            "lags: got 7, expected at most",
        ),
        (lambda: assessment.alignment([]), ValueError, "gradients: got none"),
        (lambda: assessment.alignment([jnp.ones(2), jnp.ones(3)]), ValueError, "gradients: got shape"),
    ],
)
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message):
        call()
