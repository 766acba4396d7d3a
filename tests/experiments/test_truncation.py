from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import truncation as experiment
from experiments.truncation import figure, schemes, training
from experiments.truncation import summary as summary_of
from experiments.truncation.errors import Errors, measure_errors
from experiments.truncation.tables import Tables
from jaxbptt import cells, gradients, truncation
from jaxbptt.models import sequence_model, softmax_cross_entropy

from .runs import WITH_SUMMARY, run_tiny

T, K = 6, 3
SMALL = "--hidden 3 --length 6 --window 3 --updates 20 --batch 1 --keys 2 --draws 2"
METHODS = ("full", "carried", "zero_state", "randomised", "randomised_wide", "adaptive")


@pytest.mark.slow
def test_a_small_run_is_whole(tmp_path, monkeypatch):
    for module, name, value in (
        (schemes, "WINDOWS", (2,)),
        (schemes, "LAGS", (2, 6)),
        (schemes, "MEAN_LENGTHS", (2,)),
        (training, "HELD_OUT", 2),
        (training, "RATES", (0.1, 0.2)),
    ):
        monkeypatch.setattr(module, name, value)
    run = run_tiny("truncation", SMALL, tmp_path, promotion="standard")
    assert run.code == 0
    assert run.files == WITH_SUMMARY
    assert "full BPTT" in run.said
    assert "CANNOT TELL WITH 2 KEYS: randomised, as many steps back: does not work much better than" in run.said
    summary = run.summary
    assert tuple(summary["methods"]) == METHODS
    assert summary["methods"]["full"]["less_full"]["mean"] == 0
    arrays = run.arrays
    losses = arrays["training.losses"]
    assert losses.shape == (6, 2, 2, training.RECORDS)
    assert np.isfinite(losses).all()
    # The same weights and batches: after one small update the methods differ a little, the keys a lot.
    assert 0 < np.ptp(losses[:3, 0, 0, 0]) < abs(losses[0, 0, 0, 0] - losses[0, 0, 1, 0])
    np.testing.assert_array_equal(arrays["tables.cuts"].sum(axis=1)[:2], [0, 1])
    full, regular, randomised = arrays["tables.weights"]
    np.testing.assert_array_equal(full, np.tri(T))
    np.testing.assert_array_equal(regular, truncation.window_weights(T, K)[:, 1:])
    for k, cut in enumerate(
        arrays["tables.cuts"][2]
    ):  # where a link is cut nothing below reaches past it, and only there
        assert (randomised[k:, :k] == 0).all() == (cut or k == 0)
    assert arrays["training.cost"][:3] == pytest.approx([3.5, 2, 2])
    assert set(arrays["training.lags"].ravel()) <= {2, 6}


def test_bias_and_spread_are_those_of_the_routes(monkeypatch):
    for name, value in {"WINDOWS": (K, 99), "LAGS": (2,), "MEAN_LENGTHS": (2,)}.items():
        monkeypatch.setattr(schemes, name, value)
    cell = cells.elman(27, 3)
    model = sequence_model(cell, 27, loss=softmax_cross_entropy, reduction="mean")
    params = model.init(jax.random.key(0))
    windows = jnp.asarray(np.random.default_rng(0).integers(0, 27, (2, T + 1)), jnp.int32)
    config = experiment.Config(length=T, draws=400)
    errors = measure_errors(model, params, config, windows, lambda message: None)
    data = jax.nn.one_hot(windows[:, :-1], 27, dtype=params.cell.b_h.dtype), windows[:, 1:]

    def vectors(route, **options):
        grads = jax.jit(jax.vmap(lambda *pair: route(model, params, *pair, **options)[1]))(*data)
        return np.concatenate([leaf.reshape(2, -1) for leaf in grads.cell], axis=1)

    exact = vectors(gradients.autodiff)
    relative = lambda actual: np.linalg.norm(actual - exact) / np.linalg.norm(exact)
    np.testing.assert_allclose(errors.carried, [relative(vectors(truncation.windowed, window=K))], rtol=1e-12)
    np.testing.assert_allclose(
        errors.zero_state, [relative(vectors(truncation.windowed, window=K, carry_state=False))], rtol=1e-12
    )
    np.testing.assert_allclose(errors.lag, [relative(vectors(truncation.lag, num_lags=2))], rtol=1e-12)
    np.testing.assert_allclose(errors.text_spread, np.linalg.norm(exact - exact.mean(0)) / np.linalg.norm(exact))
    np.testing.assert_allclose([errors.window_cost, errors.lag_cost], [[2], [11 / 6]])
    # E over all 2^T patterns: the spread to the precision of 400 draws, the mean within what they leave.
    patterns = (np.arange(2**T)[:, None] >> np.arange(T)) % 2 == 1
    draw = jax.jit(jax.vmap(lambda cuts: jax.vmap(partial(_random_gradient, model, params, cuts))(*data)))
    drawn = np.asarray(draw(jnp.asarray(patterns)))
    spread = np.sqrt(np.sum(np.var(drawn, axis=0))) / np.linalg.norm(exact)
    np.testing.assert_allclose(drawn.mean(axis=0), exact, atol=1e-12)
    np.testing.assert_allclose(errors.spread, [spread], rtol=0.25)
    assert 0.3 < errors.mean_error[0] / (spread / 20) < 2


def _random_gradient(model, params, cuts, inputs, targets):
    grads = truncation.randomised(model, params, inputs, targets, keep=0.5, cuts=cuts)[1]
    return jnp.concatenate([leaf.ravel() for leaf in grads.cell])


@pytest.mark.parametrize("window", [2, 7])
def test_randomised_costs_what_regular_does(window):
    keep = schemes.keep_probabilities(window)
    cost = schemes.expected_steps_back(np.array(list(keep.values())), 4000)
    np.testing.assert_allclose(cost, [(window + 1) / 2, window], rtol=3e-3)
    short = schemes.expected_steps_back(np.array([keep["randomised"]]), 5)
    cuts = jax.vmap(lambda key: truncation.draw_cuts(key, 5, keep["randomised"]))(
        jax.random.split(jax.random.key(0), 4000)
    )
    kept = jax.vmap(lambda cuts: truncation.random_weights(cuts, 0.5)[:, 1:] != 0)(cuts)
    np.testing.assert_allclose(short, np.mean(np.sum(kept, axis=2)), rtol=0.02)


def fake(excess, keys=8):
    """Final losses 2 for regular truncation, 2 + excess for randomised, at the middle one of three rates."""
    rng = np.random.default_rng(1)
    losses = np.full((6, 3, keys, 20), 3.0) - np.linspace(0, 1, 20) + 1e-4 * rng.normal(size=(1, 1, keys, 1))
    losses[:, [0, 2]] += 0.5
    losses[3:5, :, :, -1] += excess
    lags, updates = np.full((3, 20), 4), np.arange(1, 21)
    trained = training.Training(
        np.array(METHODS), np.array([48.5, 4, 4, 4, 7, 4]), np.array([1.0, 2, 3]), updates, losses, lags
    )
    steps = 8
    cuts = np.zeros((3, steps), bool)
    cuts[1:, 3] = True
    weights = np.tri(steps) * np.ones((3, 1, 1))
    tables = Tables(np.array(list("a кот 語ि")), np.exp(-weights[0]), weights, cuts)
    sizes = np.array([2.0, 4, 8])
    errors = Errors(
        sizes,
        sizes,
        1 / sizes,
        2 / sizes,
        sizes,
        sizes,
        1 / sizes**2,
        1 - 1 / sizes,
        sizes,
        3 / sizes,
        0.1 / sizes,
        np.array(0.9),
    )
    return {"training": trained, "tables": tables, "errors": errors}


ALL_WORSE, MIXED = np.full(8, 0.03), np.array([0.1, -0.1] * 4)


@pytest.mark.parametrize(
    ("excess", "verdicts", "title"),
    [
        (ALL_WORSE, ("holds", "holds"), "worse than"),
        (2 * -ALL_WORSE, ("fails", "fails"), "better than"),
        (MIXED, ("cannot tell with 8 keys", "cannot tell with 8 keys"), "better or worse (8 keys cannot tell) than"),
        (0.3 * MIXED, ("holds", "cannot tell with 8 keys"), "better or worse (8 keys cannot tell) than"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(excess, verdicts, title):
    results = fake(excess + 1e-6 * np.arange(8))
    summary = summary_of.judge(results)
    assert [claim["verdict"] for claim in summary["claims"]] == list(verdicts) * 2
    assert [line.split(": ")[0] for line in summary["verdict"][-8::2]] == [verdict.upper() for verdict in verdicts] * 2
    final = results["training"].losses[:, 1, :, -1]
    assert summary_of.compare(dict(zip(METHODS, final, strict=True))) == title
    assert summary["methods"]["carried"]["rate"] == 2
    assert summary["errors_at_cost"]["carried"] == pytest.approx(1 / 4)
    assert summary["errors_at_cost"]["randomised"] == pytest.approx(3 / 4)
    assert summary["methods"]["randomised"]["rate"] == 2
    assert summary["methods"]["randomised"]["less_carried"]["mean"] == pytest.approx(np.mean(excess), abs=1e-5)
    assert summary["randomised_less_carried_by_rate"]["3"] == pytest.approx(np.mean(excess), abs=1e-5)


def test_a_training_that_failed_is_worse_and_decides_nothing():
    paired = summary_of._paired(np.array([*[-0.1] * 7, np.nan]))
    assert paired["worse"] == 1
    assert np.isnan(paired["interval"]).all()


def test_plot_takes_arrays(tmp_path):
    figure.plot(fake(ALL_WORSE), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
