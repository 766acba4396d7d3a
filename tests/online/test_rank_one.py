"""UORO is unbiased: over every pattern of its signs, and over keys."""

import pytest

from jaxbptt import online
from jaxbptt.comparison import compare
from jaxbptt.online import rank_one
from tests.mutation import mutate
from tests.online.problems import assert_mean_is_one, mean_over_all_signs


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "elman start", "lstm"])
def test_unbiased_over_all_signs(name):
    assert compare(*mean_over_all_signs(rank_one, name)).relative < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("elman", "rho_0 * carried"),
        ("elman", "rho_1 * signs"),
        ("elman", "inverse_0 * sensitivity.theta"),
        ("elman", "inverse_1 * direct"),
        ("elman start", "inverse * theta"),
    ],
)
def test_a_slip_of_five_percent_is_biased(name, old):
    expected, mean = mean_over_all_signs(mutate(rank_one, old, "1.05 * " + old), name)
    assert compare(expected, mean).relative > 1e-3


def test_keys_average_to_the_gradient():
    assert_mean_is_one(online.uoro(), "elman")
