import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import online as experiment
from experiments import text
from experiments.online import figure
from experiments.online import rules as rules_of
from experiments.online import tasks as tasks_of
from experiments.online.cosines import cosine_by_window

from .runs import WITH_SUMMARY, run_tiny

TINY = "--task copy --hidden 4 --length 6 --updates 4 --records 2 --keys 2 --sequences 3"
LENGTH = 9
RUN = ("RTRL", rules_of.SKETCH, "immediate", "UORO")


@pytest.mark.slow
def test_a_tiny_run_measures_every_rule(tmp_path, monkeypatch):
    few = {rule: rules_of.RULES[rule] for rule in RUN}  # compilation is all that a tiny run costs
    monkeypatch.setattr(rules_of, "RULES", few)
    run = run_tiny("online", TINY, tmp_path, promotion="standard")
    assert run.code == 0
    assert run.files == WITH_SUMMARY
    get = {name.removeprefix("copy."): array for name, array in run.arrays.items()}
    rules, rates = len(RUN), len(tasks_of.RATES)
    assert get["cosine"].shape == get["mean_cosine"].shape == (rules, 3, 2, 4)
    assert get["cosine_all"].shape == (rules, 3, 2)
    assert get["final"].shape == (rules, rates, 2)
    np.testing.assert_array_equal(get["windows"], [1, 2, 4, 6])
    np.testing.assert_array_equal(get["updates"], [0, 2, 4])
    for field in ("cosine", "mean_cosine", "cosine_all"):
        np.testing.assert_allclose(get[field][0], 1, atol=1e-12)  # RTRL is exact
        assert (np.abs(get[field]) <= 1 + 1e-12).all()
        assert (get[field][2:, 0].max(axis=0) < 1 - 1e-4).all()
    trained = [rule not in rules_of.UNTRAINED for rule in RUN]
    np.testing.assert_array_equal(np.isfinite(get["final"]).all(axis=(1, 2)), trained)
    assert (get["final"] != get["start"]).all()
    assert len(np.unique(get["final"][trained, 0, 0])) == sum(trained)  # every rule went its own way
    flops = dict(zip(get["rules"], get["flops"], strict=True))
    assert flops["RTRL"] > flops["UORO"] > flops["immediate"]
    assert run.summary["copy"]["rules"]["RTRL"]["cosine"] == pytest.approx(1)
    assert run.said.startswith("cosine to the exact gradient, range over tasks")
    assert "published: sketched-rtrl's shipped results" in run.said


def test_every_step_of_a_task_has_its_loss():
    tasks = tasks_of.make_tasks(3, LENGTH, 1.0, np.arange(200, dtype=np.int32) % 27, 27)
    assert set(tasks) == set(tasks_of.TASKS)
    for name, task in tasks.items():
        inputs, targets = task.draw(jax.random.key(2))
        assert len(inputs) == len(targets) == LENGTH
        assert task.model.reduction == "sum"
        held_out = task.draw_held_out(jax.random.key(2))[0]
        assert bool(jnp.all(held_out == inputs)) == (name != "text")


@pytest.mark.parametrize("window", [1, 2, 5])
def test_cosine_by_window(window):
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    a = a.at[:, 0].set(0)  # a block of window 1 without gradient is left out
    found = []
    for s in range(3):
        for start in range(0, 5 - window + 1, window):
            p, q = (np.asarray(x[s, start : start + window]).sum(axis=0) for x in (a, b))
            if np.linalg.norm(p):
                found.append(p @ q / np.linalg.norm(p) / np.linalg.norm(q))
    assert cosine_by_window(a, b, window) == pytest.approx(np.mean(found), abs=1e-12)


def fake_outcome():
    rules = len(rules_of.RULES)
    cosine = np.broadcast_to(np.linspace(1, 0, rules)[:, None, None, None], (rules, 3, 2, 2)).copy()
    final = np.broadcast_to(np.linspace(0.5, 1, rules)[:, None, None], (rules, 2, 2)).copy()
    final[:, 0] += 0.25  # the second rate is the best
    final[-1, 1, 0] = np.nan  # but for the last rule, which failed there once
    final[1] = np.nan  # and the sketch, which is not trained
    return experiment.Outcome(
        rules=np.array(list(rules_of.RULES)),
        updates=np.array([0, 2, 4]),
        windows=np.array([1, 6]),
        cosine=cosine,
        mean_cosine=cosine / 2,
        cosine_all=cosine[..., -1],
        rates=np.array([0.1, 0.2]),
        start=np.full(2, 1.5),
        final=final,
        state_floats=np.full(rules, 10),
        flops=10 ** np.arange(1, rules + 1),
        size=np.array(3),
        sequences=np.array(2),
    )


def test_summary_words_and_plot_of_arrays(tmp_path):
    read = text.Alphabet(np.array([" ", "a"]), np.array("text: 2 symbols"))
    results = {"copy": fake_outcome(), "text": fake_outcome(), "alphabet": read}
    found = experiment.summarise(results, experiment.Config())
    rules = found.numbers["text"]["rules"]
    assert rules["RTRL"] | {"cosine": 1.0, "mean_cosine_one_step": 0.5, "final": 0.5, "rate": 0.2} == rules["RTRL"]
    assert rules["UORO"]["rate"] == 0.1
    assert rules["UORO"]["final"] == pytest.approx(1.25)
    first, *said, why = found.lines
    assert first == "text: 2 symbols"
    assert why.startswith("published: ")
    assert any(
        line.strip().startswith("SnAp-1                 0.80 to 0.80 | 0.40 to 0.40 | 0.41 to 0.69") for line in said
    )
    assert said[-1].startswith("text: loss per step from 1.500 to RTRL 0.500, SnAp-1 0.600")
    assert rules[rules_of.SKETCH]["final"] is None
    figure.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_draws_are_the_same_for_every_rule_and_key_alone():
    task = tasks_of.make_tasks(3, LENGTH, 1.0, np.arange(200, dtype=np.int32) % 27, 27)["adding"]
    a, b, other = (task.draw(jax.random.key(seed))[0] for seed in (1, 1, 2))
    assert jnp.array_equal(a, b)
    assert not jnp.array_equal(a, other)
