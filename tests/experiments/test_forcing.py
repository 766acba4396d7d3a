import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import forcing as experiment
from experiments.forcing import figure, growth, nets, summary, training

from .runs import WITH_SUMMARY, run_tiny

SMALL = "--hidden 4 --length 89 --updates 20 --batch 1 --keys 2"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (training, "RECORDS", 2),
            (experiment, "RECORDS", 2),
            (training, "RATES", (0.03, 0.01)),
            (training, "FREE", 40),
            (training, "MEASURED", 8),
            (experiment, "SAMPLES", (120, 40, 80)),
            (growth, "HORIZONS", np.array([2, 3, 4, 5, 6, 7])),
            (growth, "STARTS", 2),
        ):
            patch.setattr(module, name, value)
        run = run_tiny("forcing", SMALL, tmp_path_factory.mktemp("forcing"), "standard")
        with jax.numpy_dtype_promotion("standard"):
            again = experiment.run(experiment.Config(hidden=4, length=89, updates=20, batch=1, keys=2))
        return run, again


@pytest.mark.slow
def test_a_small_run_is_whole_and_the_same_again(small):
    run, again = small
    assert run.code == 0
    assert run.files == WITH_SUMMARY
    for name, array in run.arrays.items():
        result, field = name.split(".")
        np.testing.assert_array_equal(array, getattr(again[result], field), err_msg=name)
    assert np.isfinite(run.arrays["training.errors"]).all()
    assert run.arrays["training.errors"].shape == (len(training.METHODS), 2, 2, 2)
    assert len(run.summary["claims"]) == 7


@pytest.mark.slow
def test_the_methods_share_weights_and_windows_and_differ_in_forcing_alone(small):
    arrays = small[0].arrays
    strength = arrays["training.strength"]
    interval = np.ceil(89 / np.array(training.INTERVALS)) / 89
    np.testing.assert_allclose(strength[: len(interval), 0, 0], interval, rtol=1e-6)
    np.testing.assert_allclose(strength[len(interval)], 1 / 89, rtol=1e-6)
    # After the first two updates only losses beyond the first forcing tell τ = 44 from none, but they do.
    errors = arrays["training.errors"][:, 0, 0, 0]
    assert len(set(errors[:7].tolist())) == 7


def test_what_is_exact_is_met(small):
    exact = small[0].summary["exact"]
    assert max(exact["chain"], exact["cut"], exact["teacher"]) < 1e-14
    assert exact["largest"] < 1e-12


def test_the_pulled_state_and_the_strength_of_a_known_net():
    """h' = a h: J = diag(a), so that α* = 1 − 1/max a wherever the orbit goes."""
    free = nets.shallow(2)
    params = nets.NetParams(
        jnp.array([1.25, 0.5, -2.0]), jnp.zeros((3, 2)), jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros(2)
    )
    data = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)))
    assert nets.strength_at_data(free, params, data) == pytest.approx(0.5, rel=1e-15)
    assert nets.strength_on_orbit(free, params, data) == pytest.approx(0.5, rel=1e-15)
    forcing = nets.Forcing(data[0], jnp.asarray(0.25))
    state = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(
        nets.forced(free).step(params, state, forcing), params.a * (0.75 * state + 0.25 * data[0]), rtol=1e-15
    )


def test_samples_are_those_of_the_flow_at_their_distance():
    """x˙ = σ(y − x): the slope of x˙ over x at fixed y is −σ = −10 per unit time, whatever the scales."""
    data = np.asarray(jax.jit(lambda key: nets.lorenz_data(key, 1000, transient=50))(jax.random.key(0)))
    np.testing.assert_allclose([data.mean(axis=0), data.std(axis=0)], [[0] * 3, [1] * 3], atol=1e-12)
    velocity = (data[2:, 0] - data[:-2, 0]) / (2 * nets.STEP)
    slopes = np.linalg.lstsq(data[1:-1, :2], velocity, rcond=None)[0]
    assert slopes[0] == pytest.approx(-10, rel=0.1)
    assert (nets.LYAPUNOV_TIME, nets.PREDICTABLE) == (22, 15)
    assert nets.force_every(3, 7).tolist() == [1, 0, 0, 1, 0, 0, 1]


def fake(excess=0.5, rate=1.0, free=0.0, exponent=1.0, **changes):
    """Four keys; every method's error e^excess of the predicted one's; slopes and exponents in λ_1 of the data."""
    noise = 0.01 * np.array([-1.0, 1, -1, 1])
    count = len(training.METHODS)
    errors = np.zeros((count, 3, 4, 2)) + np.exp(excess + noise)[:, None]
    for name in (training.PREDICTED, training.CERTAIN):
        errors[training.METHODS.index(name)] = 1.0
    chosen_by = errors + np.array([1.0, 0, 1])[:, None, None]
    own = nets.RATE * (exponent + noise)
    trained = training.Training(
        np.array(training.METHODS),
        np.array(training.RATES),
        np.array([1, 2]),
        chosen_by,
        errors,
        np.full((count, 3, 4), 0.5),
        np.tile(own, (count, 1)),
        np.zeros((count, 4)),
    )
    slopes = nets.RATE * np.array([exponent + free, 0, 0, rate - 1])[:, None] + noise * nets.RATE
    grown = growth.Growth(
        np.array(growth.REGIMES),
        growth.HORIZONS,
        slopes[..., None] * growth.HORIZONS,
        np.full(4, 0.4),
        own,
        np.zeros(4),
        np.array(8),
    )
    exact = {"chain": 0.0, "cut": 0.0, "teacher": 0.0, "largest": -1e-13} | changes
    identities = growth.Identities(*(np.full(4, exact[name]) for name in growth.Identities._fields))
    return {"training": trained, "growth": grown, "identities": identities}


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, ["holds"] * 7),
        ({"excess": -0.5}, ["holds"] * 2 + ["fails"] * 4 + ["holds"]),
        ({"excess": 0.0}, ["holds"] * 2 + ["cannot tell with 4 keys"] * 4 + ["holds"]),
        ({"free": 0.5, "rate": 1.5, "exponent": 1.5}, ["fails"] * 2 + ["holds"] * 4 + ["fails"]),
    ],
)
def test_verdicts(changes, verdicts):
    found = summary.summarise(fake(**changes), experiment.Config())
    assert [claim["verdict"] for claim in found.numbers["claims"]] == verdicts
    assert found.exit_code == 0


@pytest.mark.parametrize("broken", [{"chain": 1e-9}, {"cut": 1e-9}, {"teacher": np.nan}, {"largest": 1e-6}])
def test_exit_code(broken):
    assert summary.summarise(fake(**broken), experiment.Config()).exit_code == 1


def test_the_rate_is_chosen_by_the_validation_data_and_judged_on_the_test_data():
    results = fake()
    results["training"].errors[:, 1, :, -1] = 7.0
    assert (summary.pick_errors(results["training"]) == 7).all()


def test_plot_takes_arrays(tmp_path):
    results = fake()
    results["training"].exponents[6, 0] = np.nan
    figure.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20_000
