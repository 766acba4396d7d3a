import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import isometry as experiment
from experiments import systems
from experiments.isometry import chains, starts, summary, theory, training
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll

from .runs import WITH_SUMMARY, run_tiny

SMALL = "--size 6 --keys 2 --transient 3 --hidden 4 --trainings 2 --updates 10 --batch 1"
NAMES = tuple(starts.STARTS)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (chains, "STEPS", (16, 32)),
            (chains, "DRAWS", 16),
            (training, "RATES", (0.01, 0.001)),
            (training, "HELD_OUT", 2),
        ):
            patch.setattr(module, name, value)
        run = run_tiny("isometry", SMALL, tmp_path_factory.mktemp("isometry"), "standard")
        config = experiment.Config(size=6, keys=2, transient=3, hidden=4, trainings=2, updates=10, batch=1)
        with jax.numpy_dtype_promotion("standard"):
            again = experiment.run(config)
        return run, again


@pytest.mark.slow
def test_a_small_run_is_whole_and_the_same_again(small):
    run, again = small
    assert run.code == 0, run.progress
    assert run.files == WITH_SUMMARY
    for name, array in run.arrays.items():
        result, field = name.split(".")
        np.testing.assert_array_equal(array, getattr(again[result], field), err_msg=name)
    assert run.arrays["spectra.log_values"].shape == (len(NAMES), 2, 2, 6)
    assert run.arrays["training.losses"].shape == (len(NAMES), 2, 2, 2)
    assert run.arrays["training.updates"].tolist() == [5, 10]
    assert len(run.summary["claims"]) == 6


@pytest.mark.slow
def test_what_is_exact_is_met(small):
    assert max(small[0].summary["exact"].values()) < 1e-13
    assert small[0].summary["farthest"] < 4


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_density_has_the_moments_of_its_law(order):
    points, density, cumulative = theory.fuss_catalan_law(order)
    weights = np.diff(cumulative, prepend=0)
    assert cumulative[-1] == pytest.approx(1, abs=1e-8)
    for power in (1, 2, 3):
        number = math.comb(order * power + power, power) / (order * power + 1)  # Fuss and Catalan's
        assert weights @ np.exp(2 * power * points) == pytest.approx(number, rel=1e-7)
    assert weights @ points == pytest.approx(-order / 2, rel=1e-3)
    assert np.trapezoid(density, points) == pytest.approx(1, rel=1e-3)


def test_the_first_order_is_the_quarter_circle_law():
    points, density, _ = theory.fuss_catalan_law(1)
    sigma = np.exp(points)
    np.testing.assert_allclose(density, sigma * np.sqrt(4 - sigma**2) / np.pi, rtol=1e-6, atol=1e-10)


def test_second_moments_are_those_of_one_and_of_many_entries():
    """N = 1: σ² is a product of squares of Gaussians, E x⁴ = 3 each; N → ∞: Fuss–Catalan numbers."""
    np.testing.assert_allclose(theory.second_moments(1, 3), [3, 9, 27])
    np.testing.assert_allclose(theory.second_moments(10**9, 4), [2, 3, 4, 5], rtol=1e-8)
    assert theory.log_determinant(1)[0] == pytest.approx(-(np.euler_gamma + np.log(2)) / 2)


@pytest.mark.parametrize(("gain", "drive"), [(0.9, 0.1), (1.5, 0.0), (2.0, 0.3)])
def test_the_mean_field_is_that_of_the_reference_systems(gain, drive):
    found = theory.mean_field(gain, drive)
    assert np.log(found.chi) / 2 == pytest.approx(systems.mean_field_exponent(gain, drive), abs=1e-12)
    assert found.kurtosis > 1
    assert theory.mean_field(theory.critical_gain(drive), drive).chi == pytest.approx(1, abs=1e-9)


def test_relative_variance_of_independent_layers():
    """D W … D W of independent orthogonal or Gaussian W, N = 300 and D of two values, against the formula."""
    rng = np.random.default_rng(0)
    size, steps = 300, 4
    values = np.repeat([0.6, 1.3], size // 2)
    kurtosis = np.mean(values**4) / np.mean(values**2) ** 2
    for orthogonal in (False, True):
        product = np.eye(size)
        for _ in range(steps):
            w = rng.standard_normal((size, size)) / size**0.5
            product = values[:, None] * ((np.linalg.qr(w)[0] if orthogonal else w) @ product)
        square = np.linalg.svd(product, compute_uv=False) ** 2
        predicted = theory.relative_variance(steps, kurtosis, orthogonal=orthogonal)
        assert square.var() / square.mean() ** 2 == pytest.approx(predicted, rel=0.1)


def test_the_gated_law_has_its_mean_and_is_that_of_its_matrix():
    points, density, _ = theory.gated_law(0.9, 7)
    assert points.mean() == pytest.approx(7 * np.log(0.9), rel=1e-9)
    assert np.trapezoid(density, points) == pytest.approx(1, rel=1e-3)
    q, r = np.linalg.qr(np.random.default_rng(1).standard_normal((200, 200)))
    q *= np.sign(np.diagonal(r))  # uniform over the group
    sigma = np.linalg.svd(np.linalg.matrix_power(0.9 * np.eye(200) + 0.1 * q, 7), compute_uv=False)
    assert theory.kolmogorov_distance(np.log(sigma), theory.gated_law(0.9, 7)) < 0.02


def test_kolmogorov_distance():
    law = np.array([0.0, 1.0]), np.ones(2), np.array([0.0, 1.0])  # uniform
    assert theory.kolmogorov_distance(np.array([0.5]), law) == 0.5
    assert theory.kolmogorov_distance(np.array([0.3, 2.0]), law) == pytest.approx(0.5)


def test_gates_start_constant_and_kinds_share_a_step():
    cell = starts.STARTS[starts.GATED](3, 8)
    params = cell.init(jax.random.key(0))
    states = unroll(cell, params, jnp.zeros((1, 3)), initial=jnp.zeros(8))
    q = params.w_hh[16:] / 2
    np.testing.assert_allclose(q.T @ q, np.eye(8), atol=1e-12)
    jacobian = step_jacobians(cell, params, states)[0]
    np.testing.assert_allclose(jacobian, starts.KEEP * np.eye(8) + (1 - starts.KEEP) * q, atol=1e-14)
    assert (params.w_hx[:16] == 0).all()
    assert (params.w_hx[16:] != 0).all()
    assert sum(starts.KINDS, ()) == NAMES
    for kind in starts.KINDS:
        first, last = (starts.STARTS[name](3, 8) for name in (kind[0], kind[-1]))
        drawn, state, x = first.init(jax.random.key(1)), jnp.linspace(-0.5, 0.5, 8), jnp.ones(3)
        np.testing.assert_array_equal(last.step(drawn, state, x), first.step(drawn, state, x))


def fake(updates=(40, 10, 60, 100, 15, 80, 12), spread=(4.0, 1.0, 5.0, 7.0, 1.2, 6.0, 1.1), noise=0.001, **changes):
    """Laws met; losses that fall below the stated one after `updates`, singular values of a stated spread."""
    rng = np.random.default_rng(0)
    steps, size, keys = np.array(chains.STEPS), 400, 3
    laws = [theory.fuss_catalan_law(int(step)) for step in steps]
    ranks = (np.arange(size)[::-1] + 0.5) / size
    rows = np.stack([np.interp(ranks, cumulative, points) for points, _, cumulative in laws])
    mean = theory.log_determinant(size)[0]
    rows += (steps * mean - rows.sum(axis=1))[:, None] / size
    moments = np.ones((2, 2, chains.MOMENT_STEPS))
    moments[:, 1] = theory.second_moments(chains.SMALL, chains.MOMENT_STEPS)
    moments += changes.pop("moment", 0)
    products = chains.Products(
        steps,
        np.broadcast_to(rows, (2, keys, *rows.shape)).copy(),
        np.full(keys, mean * changes.pop("determinant", 1)),
        moments,
        np.full_like(moments, 0.01),
    )
    normal = np.sort(rng.standard_normal(size))[::-1]
    values = np.broadcast_to(
        np.array(spread)[:, None, None, None] * normal, (len(NAMES), keys, len(steps), size)
    ).copy()
    squares = theory.mean_field(starts.CRITICAL, starts.DRIVE).kurtosis - 1
    width = np.sqrt(np.log1p(summary.LAW_AT * squares)) / 2  # of a lognormal with the predicted relative variance
    values[1, :, list(steps).index(summary.LAW_AT)] = width * normal
    values *= 1 + noise * rng.standard_normal((1, keys, 1, 1))
    spectra = chains.Spectra(np.array(NAMES), steps, values)
    counts = np.array(updates)[:, None, None, None] * np.array([2, 1])[:, None, None]
    at = np.arange(1, 101)
    losses = np.where(at >= counts + np.arange(keys)[:, None], 0.5, 1.0)
    trained = training.Training(np.array(NAMES), np.array([0.1, 0.01]), at, losses, np.array(0.7), np.array(64))
    exact = chains.Exact(*(np.array(changes.pop(name, 0.0)) for name in chains.Exact._fields))
    return {"products": products, "exact": exact, "spectra": spectra, "training": trained}


@pytest.mark.parametrize(
    ("changes", "at", "verdict"),
    [
        ({}, (0, 2, 3, 4, 5), "holds"),
        ({"updates": (10, 40, 60, 100, 15, 12, 80)}, (2, 3), "fails"),
        ({"updates": (60, 100, 40, 10, 80, 15, 90)}, (4, 5), "fails"),
        ({"updates": (200,) * 7}, (2, 3, 4, 5), "cannot tell: a key has no number"),  # none reaches the loss
        ({"updates": (200, 10, 60, 100, 15, 10, 200)}, (2,), "holds"),  # the slow one does not
        ({"updates": (200, 10, 60, 100, 15, 10, 200)}, (3,), "fails"),  # the one that should be fast does not
    ],
)
def test_verdicts(changes, at, verdict):
    found = summary.summarise(fake(**changes), experiment.Config())
    verdicts = [claim["verdict"] for claim in found.numbers["claims"]]
    assert [verdicts[i] for i in at] == [verdict] * len(at)
    assert found.exit_code == 0


def test_updates_are_counted_to_the_stated_loss_at_the_best_rate():
    trained = fake()["training"]
    assert training.pick_rates(trained).tolist() == [1] * 7
    np.testing.assert_array_equal(summary.pick_updates(trained)[1], [10, 11, 12])
    never = fake(updates=(200,) * 7)["training"]
    assert (summary.pick_updates(never) == 100).all()


def test_relative_variance_is_of_the_squares():
    results = fake(noise=0)
    predicted = theory.relative_variance(
        summary.LAW_AT, theory.mean_field(starts.CRITICAL, starts.DRIVE).kurtosis, orthogonal=True
    )
    assert summary.relative_variances(results["spectra"], starts.ORTHOGONAL)[0] == pytest.approx(predicted, rel=0.2)


@pytest.mark.parametrize(
    "broken", [{"orthogonal": 1e-9}, {"gated": np.nan}, {"determinant": 1 + 1e-9}, {"moment": 0.05}]
)
def test_exit_code(broken):
    assert summary.summarise(fake(**broken), experiment.Config()).exit_code == 1


def test_rank_correlation():
    assert summary.rank_correlation(np.array([1, 5, 9]), np.array([2.0, 3, 30])) == pytest.approx(1)
    assert summary.rank_correlation(np.array([1, 5, 9]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert np.isnan(summary.rank_correlation(np.array([1, 5, 9]), np.ones(3)))


@pytest.mark.parametrize("name", [name for name in starts.STARTS if name != starts.GATED])
def test_the_drive_is_independent_of_the_recurrent_weights(name):
    """They come from keys of their own: correlation within five standard errors of 0."""
    params = starts.STARTS[name](4, 40).init(jax.random.key(0))
    drive, weights = np.ravel(params.w_hx), np.ravel(params.w_hh)
    assert abs(np.corrcoef(drive, weights[: len(drive)])[0, 1]) < 5 / np.sqrt(len(drive))
    assert drive.std() == pytest.approx(starts.DRIVE**0.5, rel=0.3)
