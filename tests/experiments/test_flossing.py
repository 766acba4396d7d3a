import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as entry
from experiments import flossing as experiment
from experiments.flossing import figure, spectra, summary, training
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll

from .runs import WITH_SUMMARY, run_tiny

SMALL = "--hidden 3 --delay 6 --exponents 2 --updates 12 --floss 4 --again 2 --every 2 --batch 2 --keys 2"
ARMS = ("plain", "orthogonal", "critical", "before", "during")
KEYS, RECORDS, BUDGET = 12, 10, 4


@pytest.mark.slow
def test_a_small_run_is_whole_and_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "HELD_OUT", 2)
    monkeypatch.setattr(training, "FLOSS_RATE", 0.03)
    first, second = (run_tiny("flossing", SMALL, tmp_path, promotion="standard") for _ in range(2))
    assert first.code == 0
    assert first.files == WITH_SUMMARY
    assert len(first.summary["claims"]) == 7
    arrays = first.arrays
    for name in arrays.keys() - {"cost.seconds"}:
        np.testing.assert_array_equal(arrays[name], second.arrays[name], err_msg=name)
    sizes, accuracy = arrays["training.size"], arrays["training.accuracy"]
    assert sizes.shape == accuracy.shape == (5, 2, 2, 15)
    np.testing.assert_array_equal(np.isnan(sizes).all(axis=(1, 2)).sum(axis=1), [0, 0, 9, 9, 9])
    np.testing.assert_array_equal(sizes[3, ..., :2], sizes[4, ..., :2])  # one flossing before training serves both
    np.testing.assert_array_equal(sizes[3, 0, :, :2], sizes[3, 1, :, :2])
    assert (sizes[3, ..., 1] < sizes[3, ..., 0]).all()
    np.testing.assert_array_equal(sizes[3, ..., 2], sizes[4, ..., 2])  # nor does it matter yet that one flosses again
    assert (sizes[3, ..., 3] != sizes[4, ..., 3]).all()
    np.testing.assert_array_equal(arrays["training.flossed"][3:, :6], [[1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 1]])


def test_exponents_sum_to_the_mean_log_determinant_however_seldom_the_qr():
    config = experiment.Config(hidden=3, delay=6)
    model = training.make_net(config)
    params, inputs = model.init(jax.random.key(1)), training.make_task(config).draw(jax.random.key(2))[0]
    measure = lambda params: [training.leading_exponents(model, params, inputs, 3, every) for every in (1, 2)]
    each, seldom = jax.jit(measure)(params)
    jacobians = np.asarray(step_jacobians(model, params, unroll(model, params, inputs)))[training.WARM_UP :]
    np.testing.assert_allclose(jnp.sum(each), np.mean(np.linalg.slogdet(jacobians)[1]), rtol=1e-10)
    np.testing.assert_allclose(seldom, each, rtol=1e-10)


def test_arms_that_floss_keep_to_the_budget():
    config = experiment.Config()
    plans = training.plan_arms(config)
    assert tuple(plans) == ARMS
    for arm, (start, plan) in plans.items():
        spent = config.every * len(plan) + (config.floss if start == "flossed" else 0)
        assert spent == (2.5 if arm in ("plain", "orthogonal") else 1) * config.updates, arm
        assert config.every * plan.count("floss") == (2 * config.again if arm == "during" else 0)


def test_flops_by_hand():
    floss, train = training.count_flops(experiment.Config(hidden=4, delay=8, exponents=3, batch=5))
    assert train == 3 * 16 * 5 * 32
    assert floss == pytest.approx(3 * 16 * (32 + (128 + 96 + 144 - 36) / 2))


def fake(**solved):
    """Of each arm as many nets solve it as is said, at the second rate; "longer": plain ones at the end."""
    counts = {"plain": 0, "longer": 0, "orthogonal": 0, "critical": 0, "before": 0, "during": 0} | solved
    accuracy = np.full((5, 2, KEYS, RECORDS), 0.5)
    for a, arm in enumerate(ARMS):
        accuracy[a, 1, : counts[arm], BUDGET - 1 :] = 1
    accuracy[0, 1, : counts["longer"], -1] = 1
    accuracy[3:, ..., BUDGET:] = np.nan
    flossed = np.zeros((5, RECORDS), bool)
    flossed[3:, 0] = True
    updates = 10 * np.arange(1, RECORDS + 1)
    trained = training.Training(
        np.array(ARMS),
        *(np.array(5), np.array(24), np.array([1e-3, 3e-3]), updates, np.array(10 * BUDGET)),
        *(flossed, accuracy, accuracy + 0.1),
    )
    keys = 1 + 0.01 * np.random.default_rng(0).normal(size=(1, KEYS, 1))
    exponents = np.array([1.0, 0.8, 0.2, 0.1])[:, None, None] * keys * -np.arange(1.0, 5)
    found = spectra.Spectra(np.array(["plain", "orthogonal", "critical", "flossed"]), exponents, 20 * exponents)
    return {"training": trained, "spectra": found, "cost": training.Cost(np.array([3.0, 1]), np.array([4e-3, 1e-3]))}


def verdicts(results):
    return [claim["verdict"] for claim in summary.summarise(results, None).numbers["claims"]]


UNKNOWN = f"cannot tell with {KEYS} keys"


@pytest.mark.parametrize(
    ("solved", "expected"),
    [
        ({"before": 10, "during": 12, "critical": 12}, ["holds", "holds", "holds", UNKNOWN, UNKNOWN]),
        ({"before": 10, "longer": 9}, ["holds", UNKNOWN, "holds", "holds", "fails"]),
        (
            {"before": 1, "plain": 11, "longer": 11, "critical": 1, "during": 11},
            ["fails", "fails", UNKNOWN, UNKNOWN, "holds"],
        ),
    ],
)
def test_an_arm_does_better_where_chance_would_not(solved, expected):
    assert verdicts(fake(**solved))[:5] == expected


def test_what_flossing_does_to_the_start():
    results = fake()
    assert verdicts(results)[5:] == ["holds", "holds"]
    for name in ("exponents", "log_singular"):
        again = getattr(results["spectra"], name).copy()
        again[3] = 0.9 * again[0]
        worse = results | {"spectra": results["spectra"]._replace(**{name: again})}
        assert verdicts(worse)[5:] == [
            "fails" if name == "exponents" else "holds",
            "holds" if name == "exponents" else "fails",
        ]


def test_the_best_rate_is_the_one_that_solves_most():
    trained = fake(before=3)["training"]
    outcome = summary.best_outcome(trained, "before", 10 * BUDGET)
    assert (outcome.rate, outcome.solved, outcome.keys) == (3e-3, 3, KEYS)
    lines = summary.summarise(fake(before=3), None).lines
    assert any(line.startswith("flossed before ") and "3 of 12 solve it (5% to 57%)" in line for line in lines)
    assert "an update of flossing costs 4.0 of training in processor time (4.00 ms a net), 3.0 in flops" in "\n".join(
        lines
    )
    assert "all in all 1.75 times plain training" in "\n".join(lines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--delay 25", "delay: got 25, expected an even number"),
        ("--exponents 33", "exponents: got 33, expected at most 32"),
        ("--floss 150", "floss: got 150, expected a multiple of every = 100"),
        ("--updates 500 --floss 500", "updates: got 500, expected at least"),
    ],
)
def test_options_that_do_not_fit_get_one_line(options, said, capsys):
    assert entry.main(["flossing", *options.split()]) == 2
    assert said in capsys.readouterr().err


def test_plot_takes_arrays(tmp_path):
    figure.plot(fake(before=10, during=12), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
