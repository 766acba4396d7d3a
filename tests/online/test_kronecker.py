"""KF-RTRL is unbiased: over every pattern of its signs, and over keys."""

import pytest

from jaxbptt import online
from jaxbptt.comparison import compare
from jaxbptt.online import kronecker
from tests.mutation import mutate
from tests.online.problems import assert_mean_is_one, mean_over_all_signs


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "stack"])
def test_unbiased_over_all_signs(name):
    assert compare(*mean_over_all_signs(kronecker, name)).relative < 1e-12


@pytest.mark.parametrize("old", ["p_1 * sensitivity.vector", "p_2 * v", "inverse_1 * carried", "inverse_2 * direct"])
def test_a_slip_of_five_percent_is_biased(old):
    expected, mean = mean_over_all_signs(mutate(kronecker, old, "1.05 * " + old), "elman")
    assert compare(expected, mean).relative > 1e-3


@pytest.mark.parametrize("name", ["elman", "gru"])
def test_keys_average_to_the_gradient(name):
    assert_mean_is_one(online.kf_rtrl(), name)
