"""Newton's iterations and the forward adjoint, in small: the laws that the experiment judges by."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import parallel
from experiments.parallel import horizon, newton


@pytest.fixture(scope="module")
def iterations():
    """Two gains, T = 24, of a net of four units, with the outlook of 200 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(newton, "GAINS", (0.2, 2.0))
        patch.setattr(newton, "LENGTHS", (24,))
        patch.setattr(newton, "TRIAL", 200)
        return newton.measure_iterations(4, 100, 0, lambda message: None)


@pytest.fixture(scope="module")
def scalar():
    return horizon.measure_scalar(0.5, "float32", 0)


def fake_nets(horizons):
    return horizon.Nets(np.array([30.0, 40.0]), np.array([32, 45]), np.array(horizons))


def test_newton_takes_few_iterations_where_the_outlook_says_so(iterations):
    assert iterations.verdict[0] == [0], "forgotten at 1.6 nats a step"
    assert iterations.exponent[0] < np.log(0.5)
    assert iterations.converged.all()
    assert np.all(iterations.iterations <= iterations.lengths[None])
    judged = newton.judge_iterations(iterations)
    assert newton.holds(judged)
    assert judged["largest_difference_where_it_pays"] < 1e-13
    assert judged["largest_deviation_from_reference"] is None, "that is of N = 100"


def test_iterations_that_break_a_law_are_told(iterations):
    broken = (
        iterations._replace(converged=np.array([[True], [False]])),
        iterations._replace(difference=np.array([[1e-9], [0]])),
    )
    assert not any(newton.holds(newton.judge_iterations(result)) for result in broken)
    changed = {"lengths": np.array([24, 240]), "verdict": np.zeros((2, 2), int), "converged": np.ones((2, 2), bool)}
    longer = iterations._replace(**changed, iterations=np.array([[4, 4], [7, 10]]), difference=np.zeros((2, 2)))
    assert newton.judge_iterations(longer)["largest_change_with_T_where_it_pays"] == 3
    unpaid = longer._replace(verdict=np.array([[0, 0], [2, 2]]))
    assert newton.judge_iterations(unpaid)["largest_change_with_T_where_it_pays"] == 0


def test_the_deviation_from_the_reference():
    gains = sorted(newton.REFERENCE)
    counts = np.array([[100 if count is None else count for count in newton.REFERENCE[gain]] for gain in gains])
    counts[2, 1] += 5
    fake = newton.Iterations(
        size=np.array(100),
        most=np.array(100),
        gains=np.array(gains),
        lengths=np.array(newton.LENGTHS),
        exponent=np.zeros(5),
        exponent_error=np.zeros(5),
        verdict=np.ones((5, 3), int),
        iterations=counts,
        converged=np.ones((5, 3), bool),
        difference=np.zeros((5, 3)),
    )
    judged = newton.judge_iterations(fake)
    assert (judged["largest_deviation_from_reference"], judged["fewer_than_the_reference"]) == (5, 0)
    counts[2, 2] = 17
    assert newton.judge_iterations(fake)["fewer_than_the_reference"] == 1


def test_a_scalar_loses_its_adjoint_where_it_is_predicted(scalar):
    np.testing.assert_allclose(scalar.predicted, (24 * np.log(2) + np.log(1 - 0.25) / 2) / np.log(2), rtol=1e-12)
    judged = parallel.judge_scalar(scalar)
    assert judged["holds"], judged
    assert judged["horizon_in_time"]
    assert scalar.error[0] < 1e-6
    assert scalar.error[-1] > 1
    late = scalar._replace(horizon=scalar.lost + 1)
    far = scalar._replace(predicted=scalar.predicted + 12)
    ended = scalar._replace(end_horizon=scalar.end_horizon - 1)
    assert not any(parallel.judge_scalar(each)["holds"] for each in (late, far, ended))


@pytest.mark.parametrize(
    ("decay", "dtype", "steps"), [(0.9, "float32", 150), (0.99, "float32", 1460), (0.999, "float64", 33612)]
)
def test_the_published_predictions(decay, dtype, steps):
    assert horizon.predict_scalar(decay, dtype) == pytest.approx(steps, abs=0.5)


def test_the_digits_of_the_float_set_how_far_a_chain_is_carried(monkeypatch):
    """J = S diag(0.9, 0.5) S⁻¹: from float32 to float64 29 ln 2/−λ_N = 29 steps more, after a warm-up 29 ln 2/(λ_1 −
    2 λ_N) = 16; the constants are the same."""
    monkeypatch.setattr(horizon, "LONG", 75)
    monkeypatch.setattr(horizon, "SIZE", 2)
    random = np.random.default_rng(0)
    basis = np.array([[1.0, 0.7], [-0.2, 1.0]])
    chain = np.broadcast_to(basis @ np.diag([0.9, 0.5]) @ np.linalg.inv(basis), (75, 2, 2))
    local = random.normal(size=(75, 2))
    lost = np.array(
        [horizon._losses(*(jnp.asarray(part, dtype) for part in (chain, local))) for dtype in horizon.FLOATS]
    )
    assert np.all(lost <= 75)
    np.testing.assert_allclose(np.diff(lost, axis=0)[0], [29, 29 * np.log(2) / (np.log(0.9) - 2 * np.log(0.5))], atol=4)


def test_the_summary_and_the_figure_take_arrays(iterations, scalar, tmp_path):
    shown = scalar._replace(decay=np.array(0.9))
    results = {"newton": iterations, "scalar, 0.9, float32": shown, "nets, backward, float32": fake_nets([28.0, 39.0])}
    results["nets, warm-up, float32"] = fake_nets([np.nan, np.nan])
    summary = parallel.summarise(results, parallel.Config())
    assert summary.exit_code == 0
    said = "\n".join(summary.lines)
    assert "lost at t = 32, 45, predicted 30, 40, horizon 28, 39" in said
    assert "lost at T = 32, 45, predicted 30, 40\n" in said + "\n"
    late = parallel.summarise(results | {"nets, backward, float32": fake_nets([28.0, 46.0])}, parallel.Config())
    assert late.exit_code == 1, "a horizon after the loss is too late"
    parallel.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
