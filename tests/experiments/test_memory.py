import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import memory
from experiments.memory import parametrisations

from .runs import WITH_SUMMARY, run_tiny

TABLE = {  # λ, ρ: E h², E (dh/dλ)²; in ν with γ fixed, with γ tied
    (0.9, 0.0): (5.263158, 263.8869, 0.450829, 0.249077),
    (0.99, 0.0): (50.251256, 251262.63, 0.495008, 0.249992),
    (0.999, 0.0): (500.250125, 2.501251e8, 0.499500, 0.250000),
    (0.9, 0.9): (50.138504, 3756.954, 6.41845, 2.372786),
    (0.99, 0.9): (871.790, 4737807, 9.33388, 4.337010),
    (0.999, 0.9): (9415.51, 4.751957e9, 9.48966, 4.705400),
}


@pytest.mark.parametrize(("decay", "correlation"), TABLE)
def test_mean_squares_are_those_of_the_literature(decay, correlation):
    exact = parametrisations.exact_moments(np.array([decay]), correlation)
    got = [exact.state[0], *(exact.sensitivities[name][0] for name in parametrisations.NAMES)]
    np.testing.assert_allclose(got, TABLE[decay, correlation], rtol=2e-6)


@pytest.mark.parametrize("correlation", [0.0, 0.9, -0.5])
@pytest.mark.parametrize("name", parametrisations.NAMES)
def test_mean_squares_by_their_series(name, correlation):
    """h = Σ_i γ λ^i x_{t−i}: E (dh/dθ)² is the quadratic form of the coefficients' derivatives in ρ^|i−j|."""
    decay, powers = 0.7, np.arange(200)
    scheme = parametrisations.PARAMETRISATIONS[name]

    def coefficients(theta):
        params = scheme.params(theta[None])
        return jnp.exp(params.gamma_log) * jnp.exp(-jnp.exp(params.nu_log)) ** jnp.asarray(powers, float)

    derivative = jax.jacfwd(coefficients)(scheme.of_lambda(jnp.asarray(decay)))
    covariance = correlation ** np.abs(powers[:, None] - powers)
    exact = parametrisations.exact_moments(np.array([decay]), correlation)
    assert exact.sensitivities[name][0] == pytest.approx(float(derivative @ covariance @ derivative), rel=1e-12)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return run_tiny("memory", "--keys 8 --memories 1", tmp_path_factory.mktemp("memory"))


def test_a_small_run_meets_the_laws(small):
    assert small.code == 0
    assert small.files == WITH_SUMMARY
    assert small.summary["farthest"] < 4
    assert small.summary["derivative_error"] < 1e-12
    assert small.summary["exponent_error"] < 1e-14
    assert small.summary["γ = 1, in λ, ρ = 0"]["slopes"] == pytest.approx([-2.979, -2.998], abs=5e-4)
    assert small.summary["γ = 1, in λ, ρ = 0.9"]["slopes"] == pytest.approx([-3.101, -3.001], abs=5e-4)
    assert "2.50125e+08" in small.said


def test_nothing_explodes(small):
    steps, log_norms = small.arrays["growth.steps"], small.arrays["growth.log_norms"]
    expected = steps[:, None] * np.log1p(-small.arrays["growth.forgetting"])
    np.testing.assert_allclose(log_norms, expected, rtol=1e-12)
    assert steps[-1] == 21_000


def fake_results(**changes):
    ones = np.ones(6)
    squares, size = (ones, ones, 0.1 * ones), (np.array(2), np.array(9))
    one = memory.Sensitivity(np.array(memory.FORGETTING), *squares, *squares, np.array(0.0), *size)
    growth = memory.Growth(one.forgetting, np.array([1]), np.log1p(-one.forgetting)[None], np.log1p(-one.forgetting))
    growth = growth._replace(**{key: changes.pop(key) for key in list(changes) if key in growth._fields})
    names = [f"{name}, ρ = {rho:g}" for name in parametrisations.NAMES for rho in parametrisations.CORRELATIONS]
    return dict.fromkeys(names, one) | {names[1]: one._replace(**changes), "growth": growth}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"measured": np.array([1, 1, 1, 1, 1, 1.41])}, 1),
        ({"measured_state": np.array([1, 0.5, 1, 1, 1, 1])}, 1),
        ({"derivative_error": np.array(1e-9)}, 1),
        ({"exponents": np.full(6, -0.1)}, 1),
        ({"log_norms": np.full((1, 6), 0.1)}, 1),
    ],
)
def test_exit_code(changes, code):
    assert memory.summarise(fake_results(**changes), memory.Config()).exit_code == code
