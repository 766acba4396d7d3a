"""The lag chosen for a bias: the norms by lag are the table's, and the bound holds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import gradients, terms, truncation
from jaxbptt.comparison import compare
from tests import cases
from tests.mutation import mutate_package
from tests.truncation.problems import KEY, T, by_table, direct_part, model_of, of, small


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "own_initial"), [("lstm", False), ("custom", False), ("custom", True)])
def test_lag_profile_is_the_table_by_lag(name, own_initial):
    model = model_of(name, "mean")
    data = cases.instance(model, KEY, gain=1.5)
    profile = of(model, "lag_profile", own_initial, num_lags=4)(*data)
    chex.assert_shape(profile, (4,))
    table = of(model, "gradient_terms", own_initial, terms)(*data).profile()[:4]
    if own_initial:
        assert np.all(profile.norms > table)  # with the terms of h_0
    else:
        np.testing.assert_allclose(profile.norms, table, rtol=1e-12)
    direct = direct_part(model, data, own_initial)
    tables = [truncation.sliding_weights(T, 1, steps) for steps in (1, 2, 3, 4)]
    for kept, grads in zip(profile.kept, by_table(model, own_initial, data, tables)[1], strict=True):
        recurrent = ravel_pytree(jax.tree.map(jnp.subtract, grads, direct))[0]
        np.testing.assert_allclose(kept, jnp.linalg.norm(recurrent), rtol=1e-12)


@pytest.mark.parametrize("moving_start", [False, True])
def test_the_bound_holds_and_adaptive_keeps_to_it(moving_start):
    model = model_of("elman", "sum")
    if moving_start:
        model = model._replace(initial_state=lambda params: jnp.sin(params.cell.b_h + 1))
    params, *rest = cases.instance(model, KEY, length=24)
    data = jax.tree.map(lambda leaf: 0.5 * leaf, params), *rest
    direct = direct_part(model, data, True)
    exact = jax.tree.map(jnp.subtract, of(model, "autodiff", True, gradients)(*data)[1], direct)
    profile = of(model, "lag_profile", True, num_lags=12)(*data)
    chosen = truncation.choose_lag(profile.norms, 0.05, kept=profile.kept)
    assert 1 < chosen.num_lags < 12
    assert chosen.bound[chosen.num_lags - 1] <= 0.05 < chosen.bound[chosen.num_lags - 2]
    tables = [truncation.sliding_weights(24, 1, steps) for steps in range(1, 13)]
    size = jnp.linalg.norm(ravel_pytree(exact)[0])
    kept = by_table(model, True, data, tables)[1]
    for bound, grads in zip(chosen.bound, kept, strict=True):
        bias = ravel_pytree(jax.tree.map(lambda a, b, c: a - b - c, grads, direct, exact))[0]
        assert jnp.linalg.norm(bias) <= bound * size
    _, actual = of(model, "adaptive", True, tolerance=0.05, num_lags=12)(*data)  # L traced
    assert compare(kept[int(chosen.num_lags) - 1], actual).relative < 1e-12
    assert compare(kept[int(chosen.num_lags)], actual).relative > 1e-8


GEOMETRIC = 0.5 ** np.arange(10.0)
BOUND = 0.5 ** np.arange(1, 11) / (1 - 2 * 0.5**10)


def test_choose_lag_on_a_geometric_profile():
    """φ_ℓ = β^ℓ: the bound is β^L / (1 − 2 β^R) exactly."""
    norms = jnp.asarray(GEOMETRIC)
    chosen = truncation.choose_lag(norms, 0.01)
    np.testing.assert_allclose(chosen.decay, 0.5, rtol=1e-13)
    np.testing.assert_allclose(chosen.bound, BOUND, rtol=1e-12)
    assert int(chosen.num_lags) == 7
    assert int(truncation.choose_lag(3 * norms, 0.3).num_lags) == 2
    # An envelope, not the fit alone: later norms above the line lift the whole tail.
    lifted = truncation.choose_lag(norms.at[7].mul(2), 0.01)
    slope = np.polyfit(np.arange(4, 10), np.log(norms.at[7].mul(2)[4:]), 1)[0]
    np.testing.assert_allclose(lifted.decay, np.exp(slope), rtol=1e-12)
    tail = norms[7] * 2 * lifted.decay**3 / (1 - lifted.decay)
    error = np.append(np.cumsum(norms.at[7].mul(2)[::-1])[::-1][1:], 0) + tail
    np.testing.assert_allclose(lifted.bound[4] / lifted.bound[8], error[4] / error[8], rtol=1e-12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[1:], 0) + tail", "[1:], 0)"),
        ("[1:], 0) + tail", "[:-1], 0) + tail"),
        ("size * jnp.log(decay)", "(size - 1) * jnp.log(decay)"),
        ("jnp.max(kept - error)", "jnp.max(kept)"),
        ("jnp.log1p(-jnp.minimum(decay, 1))", "jnp.zeros(())"),
    ],
)
def test_a_broken_choice_is_seen(old, new):
    bound = mutate_package(truncation, old, new).choose_lag(jnp.asarray(GEOMETRIC), 0.01).bound
    assert not np.allclose(bound, BOUND, rtol=1e-6, atol=0)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("leaf.at[offset].set(0), cotangents", "leaf, cotangents"),
        ("jnp.maximum(steps - offset, 0)", "steps"),
        ("norm = norm + _norm(from_initial)", "norm = norm"),
        ("(norm, _norm(gradient))", "(norm, norm)"),
    ],
)
def test_a_broken_profile_is_seen(old, new):
    model, data, _ = small()
    profile = lambda module: jax.jit(lambda: module.lag_profile(model, *data, num_lags=4))()
    right, wrong = profile(truncation), profile(mutate_package(truncation, old, new))
    assert max(np.abs(a / b - 1).max() for a, b in zip(wrong, right, strict=True)) > 1e-3


def test_choose_lag_where_nothing_is_known():
    growing = truncation.choose_lag(2.0 ** jnp.arange(6.0), 0.5)
    assert int(growing.num_lags) == 6
    assert growing.decay > 1
    assert np.all(np.isinf(growing.bound))
    finished = truncation.choose_lag(jnp.array([1.0, 0.5, 0, 0, 0, 0]), 0.1)
    assert int(finished.num_lags) == 2
    np.testing.assert_array_equal(finished.bound[1:], 0)
    assert int(truncation.choose_lag(jnp.zeros(3), 0.1).num_lags) == 1
    cancelled = truncation.choose_lag(jnp.array([1.0, 0.5, 0.1]), 0.1, kept=jnp.zeros(3))
    assert np.all(np.isinf(cancelled.bound))
    bad = jax.jit(lambda norms: truncation.choose_lag(norms, 0.5))(jnp.array([1.0, jnp.nan, 0.1]))
    assert np.all(np.isnan(bad.bound))
    assert np.isnan(bad.decay)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: truncation.choose_lag(jnp.ones(1), 0.5), ValueError, "R, the size of norms: got 1"),
        (lambda: truncation.choose_lag(-jnp.ones(3), 0.5), ValueError, "norms: got a negative"),
        (lambda: truncation.choose_lag(jnp.ones(3), 1.1), ValueError, "tolerance: got 1.1"),
        (lambda: truncation.choose_lag(jnp.ones(3), 0.5, kept=jnp.ones(2)), ValueError, r"kept: got shape \[2\]"),
        (lambda: jax.jit(lambda t: truncation.choose_lag(jnp.ones(3), t))(0.5), TypeError, "tolerance: got a traced"),
    ],
)
def test_bad_choices_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
