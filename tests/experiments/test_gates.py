import jax
import numpy as np
import pytest

from experiments import gates
from jaxbptt import cells

from .runs import WITH_SUMMARY, run_tiny

LIMITS = {"gru": 2, "lstm, b_f = 0": 2, "lstm, b_f = 1": 1.07577, "lstm, b_f = 2": 0.47681}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    options = "--sizes 6,12 --keys 3 --nets 2 --length 500 --transient 100"
    return run_tiny("gates", options, tmp_path_factory.mktemp("gates"))


@pytest.mark.slow
def test_a_small_run_says_what_it_found(small):
    assert small.code == 0
    assert small.files == WITH_SUMMARY
    for name, limit in LIMITS.items():
        assert small.summary[name]["limit"] == pytest.approx(limit, abs=5e-6)
        assert small.summary[name]["sizes"] == [6, 12]
        assert small.arrays[f"{name}.critical"].shape == (2, 3)
        assert small.arrays[f"{name}.disc"].shape == (12,)
    assert small.summary["scaled_error"] < 1e-13
    assert small.summary["radius_error"] < 1e-12
    assert "H → ∞ 1.07577" in small.said


def test_a_net_at_rest_grows_as_its_origin_says(small):
    for name in LIMITS:
        of_origin = np.log(small.arrays[f"{name}.radii"][0][:, :2])
        exponents = small.arrays[f"{name}.exponents"]
        assert exponents.shape == of_origin.shape == (len(gates.MULTIPLES), 2)
        np.testing.assert_allclose(exponents[0], of_origin[0], atol=0.02)
        assert (exponents[-1] < of_origin[-1]).all()  # what grows at the origin saturates away from it


@pytest.mark.parametrize("name", LIMITS)
def test_the_critical_gain_puts_the_radius_at_one(name):
    rng = np.random.default_rng(0)
    of_weights = rng.standard_normal(20) + 1j * rng.standard_normal(20)
    at = gates.critical_gain(name, of_weights)
    for gain, expected in ((at, 0), (0.99 * at, -1), (1.01 * at, 1)):
        radius = np.abs(gates.expected_eigenvalues(name, gain * of_weights)).max()
        assert (abs(radius - 1) < 1e-14) if expected == 0 else (np.sign(radius - 1) == expected)
    assert gates.critical_gain(name, np.array([1.0])) == pytest.approx(LIMITS[name], abs=5e-6)  # b > 0
    assert gates.critical_gain(name, np.array([-1.0])) > 4  # b < 0
    assert gates.critical_gain(name, np.array([0.0, 1.0])) == gates.critical_gain(name, np.array([1.0]))


def test_pairing():
    assert gates.match_error(np.array([1j, 2.0, 0.0]), np.array([2.0, 1j])) == 0
    assert gates.match_error(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == 1  # one is missing, though each is near one


def test_a_wrong_formula_is_found():
    name, cell = "lstm, b_f = 1", cells.lstm(0, 5)
    params = gates.set_forget_bias(name, cell.init(jax.random.key(0)))
    block = gates.candidate_block(np.asarray(params.w_hh))
    f = gates.carry_of(name)
    found = np.linalg.eigvals(np.block([[f * np.eye(5), block / 2], [f / 2 * np.eye(5), block / 4]]))
    of_weights = np.linalg.eigvals(block)
    assert gates.match_error(found, gates.expected_eigenvalues(name, of_weights)) < 1e-13
    assert gates.match_error(found, gates.expected_eigenvalues(name, 1.001 * of_weights)) > 1e-5
    np.testing.assert_array_equal(params.b_h, np.repeat([0.0, 1.0, 0.0, 0.0], 5))


def fake_stability(**changes):
    gains, ones = 2 * np.array(gates.MULTIPLES), np.ones((10, 2))
    radii = np.linspace(0.5, 2, 10)[:, None] * ones
    plain = gates.Stability(
        np.array(2.0),
        np.array([4]),
        2 + np.array([[0.1, -0.1]]),
        *np.zeros(3),
        gains,
        radii[None],
        np.log(radii),
        ones[0],
        np.array(9),
        np.array(4),
    )
    return plain._replace(**changes)


@pytest.mark.parametrize(
    ("change", "code"),
    [({}, 0), ({"eigenvalue_error": 1e-9}, 0), ({"scaled_error": 1e-9}, 1), ({"radius_error": 1e-9}, 1)],
)
def test_exit_code(change, code):
    summary = gates.summarise({"gru": fake_stability(**change)}, gates.Config())
    assert summary.exit_code == code
    assert summary.numbers["gru"]["stable_difference"] == 0
    assert summary.numbers["gru"]["chaotic_from"] == 1.0
