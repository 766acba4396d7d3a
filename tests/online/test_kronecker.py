"""The Kronecker rules are unbiased: over every pattern of their signs, and over keys; and exact where they can be."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, models, online
from jaxbptt.comparison import compare
from jaxbptt.online import kronecker, kronecker_sum, reverse_kronecker
from tests import cases
from tests.mutation import mutate
from tests.online.problems import (
    KEY,
    assert_mean_is_one,
    exact_of,
    instance_of,
    mean_over_all_signs,
    model_of,
    online_of,
)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "stack"])
def test_unbiased_over_all_signs(name):
    assert compare(*mean_over_all_signs(kronecker, name)).relative < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize("old", ["p_1 * sensitivity.vector", "p_2 * v", "inverse_1 * carried", "inverse_2 * direct"])
def test_a_slip_of_five_percent_is_biased(old):
    expected, mean = mean_over_all_signs(mutate(kronecker, old, "1.05 * " + old), "elman")
    assert compare(expected, mean).relative > 1e-3


@pytest.mark.parametrize("name", ["elman", "gru"])
def test_keys_average_to_the_gradient(name):
    assert_mean_is_one(online.kf_rtrl(), name)


@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_reverse_is_unbiased_over_all_signs(name):
    assert compare(*mean_over_all_signs(reverse_kronecker, name)).relative < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize(
    "old", ["p_1 * sensitivity.vector", "p_2 * signs", "inverse_1 * carried", "inverse_2 * direct"]
)
def test_a_slip_of_five_percent_in_the_reverse_is_biased(old):
    expected, mean = mean_over_all_signs(mutate(reverse_kronecker, old, "1.05 * " + old), "elman")
    assert compare(expected, mean).relative > 1e-3


def test_reverse_is_exact_while_there_is_one_product():
    """One pre-activation and one step: dh_1/dΘ = D ⊗ v, whatever the sign; two pre-activations are mixed."""
    one = models.sequence_model(cells.elman(1, 1), 2)
    for model, exact in ((one, True), (model_of("elman"), False)):
        data = cases.instance(model, KEY, length=1, num_outputs=2 if exact else cases.O)
        for key in jax.random.split(KEY, 3):
            actual = online_of(online.reverse_kf_rtrl(), model, data, key=key)[1]
            assert (compare(exact_of(model, data)[1], actual).relative < 1e-12) == exact


def test_reverse_keys_average_to_the_gradient():
    assert_mean_is_one(online.reverse_kf_rtrl(), "elman")


def bind_rank(module, rank):
    """The module with its rank bound, as `mean_over_all_signs` takes it."""
    return types.SimpleNamespace(_plan=functools.partial(module._plan, rank=rank), METHOD=module.METHOD)


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "rank"), [("elman", 1), ("elman", 2), ("lstm", 2), ("gru", 1)])
def test_ok_is_unbiased_over_all_signs(name, rank):
    assert compare(*mean_over_all_signs(bind_rank(kronecker_sum, rank), name)).relative < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_ok_is_exact_while_the_sum_has_its_rank(name):
    """T = 5 terms: r = 5 holds them all, r = 4 does not; more products than entries of v change nothing."""
    model, data = model_of(name), instance_of(name)
    expected = exact_of(model, data)[1]
    for rank, exact in ((4, False), (5, True), (9, True)):
        actual = online_of(online.ok_rtrl(rank), model, data, key=KEY)[1]
        assert (compare(expected, actual).relative < 1e-12) == exact


def test_ok_has_the_least_variance():
    """Of C = diag(σ) [r + 1, r + 1]: E ‖M Mᵀ − C‖² = s²/(k − 1) − Σ σ², k mixed σ of sum s, by enumeration."""
    for values, mixed in (([3.0, 1.0, 1.0, 0.5], 3), ([1.8, 1.5, 1.2, 1.0], 4), ([9.0, 4.0, 1.0, 0.0], 2)):
        sigma, count = np.array(values), len(values)
        every = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
        drawn = np.asarray(jax.vmap(functools.partial(kronecker_sum._mix, jnp.array(values)))(every))
        squares = drawn @ drawn.swapaxes(1, 2)
        np.testing.assert_allclose(squares.mean(axis=0), np.diag(sigma), atol=1e-14)
        small = sigma[count - mixed :]
        least = small.sum() ** 2 / (mixed - 1) - np.sum(small**2)
        np.testing.assert_allclose(np.mean(np.sum((squares - np.diag(sigma)) ** 2, axis=(1, 2))), least, atol=1e-13)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("total / parts, values", "1.05 * total / parts, values"),
        ("1 - parts * values / divisor", "1 - 0.95 * parts * values / divisor"),
        ("right.T @ mix", "right @ mix"),
        ("values > rounding", "values > 0.3 * values[0]"),
    ],
)
def test_a_slip_in_ok_is_biased(old, new):
    expected, mean = mean_over_all_signs(bind_rank(mutate(kronecker_sum, old, new), 2), "elman")
    assert compare(expected, mean).relative > 1e-3
