import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as entry
from experiments import online as experiment
from experiments import online_tasks

TINY = ["--task", "copy", "--hidden", "4", "--length", "6", "--updates", "4", "--records", "2", "--keys", "2"]
LENGTH = 9
RUN = ("RTRL", "SnAp-1", "UORO")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder of a tiny run from the command line."""
    out = tmp_path_factory.mktemp("online")
    few = {rule: experiment.RULES[rule] for rule in RUN}  # compilation is all that a tiny run costs
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.MonkeyPatch.context() as patch,
    ):  # optax counts its steps in int32 and raises floats to them
        patch.setattr(experiment, "RULES", few)
        assert entry.main(["online", *TINY, "--sequences", "3", "--out", str(out)]) == 0
    return out


def test_a_tiny_run_measures_every_rule(tiny):
    assert {path.name for path in tiny.iterdir()} == {"config.json", "arrays.npz", "summary.json", "figure.png"}
    with np.load(tiny / "arrays.npz", allow_pickle=False) as file:
        get = {name.removeprefix("copy."): array for name, array in file.items()}
    rules, rates = len(RUN), len(online_tasks.RATES)
    assert get["cosine"].shape == get["mean_cosine"].shape == (rules, 3, 2, 4)
    assert get["cosine_all"].shape == (rules, 3, 2)
    assert get["final"].shape == (rules, rates, 2)
    np.testing.assert_array_equal(get["windows"], [1, 2, 4, 6])
    np.testing.assert_array_equal(get["updates"], [0, 2, 4])
    for field in ("cosine", "mean_cosine", "cosine_all"):
        np.testing.assert_allclose(get[field][0], 1, atol=1e-12)  # RTRL is exact
        assert (np.abs(get[field]) <= 1 + 1e-12).all()
        assert (get[field][1:, 0].max(axis=0) < 1 - 1e-4).all()
    assert (get["final"] != get["start"]).all()
    assert len(np.unique(get["final"][:, 0, 0])) == rules  # every rule went its own way
    flops = dict(zip(get["rules"], get["flops"], strict=True))
    assert flops["RTRL"] > flops["UORO"] > flops["SnAp-1"]
    summary = json.loads((tiny / "summary.json").read_text())["copy"]
    assert summary["rules"]["RTRL"]["cosine"] == pytest.approx(1)


def test_tasks_pose_what_they_say():
    symbols = np.arange(200, dtype=np.int32) % 27
    tasks = online_tasks.make_tasks(3, LENGTH, 1.0, symbols)
    drawn = {name: jax.tree.map(np.asarray, task.draw(jax.random.key(2))) for name, task in tasks.items()}
    back = online_tasks.DELAY
    seen, wanted = drawn["copy"]
    np.testing.assert_array_equal(wanted, [0] * back + list(seen.argmax(axis=1)[:-back]))
    signs, wanted = drawn["delayed XOR"]
    np.testing.assert_array_equal(wanted, [0] * back + [int(a != b) for a, b in signs[:-back]])
    (values, marks), wanted = drawn["adding"][0].T, drawn["adding"][1]
    first, second = np.flatnonzero(marks)
    assert first < LENGTH // 2 <= second
    assert wanted.shape == (LENGTH, 1)
    assert wanted[-1, 0] == pytest.approx(values[first] + values[second])
    np.testing.assert_allclose(wanted[first:second, 0], values[first])
    letters, wanted = drawn["text"]
    np.testing.assert_array_equal(letters.argmax(axis=1)[1:], wanted[:-1])
    kept = jax.vmap(tasks["text"].draw_held_out)(jax.random.split(jax.random.key(0), 50))[1]
    assert set(np.unique(kept)) <= set(symbols[-20:])


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
    assert experiment.cosine_by_window(a, b, window) == pytest.approx(np.mean(found), abs=1e-12)


def fake_outcome():
    rules = len(experiment.RULES)
    cosine = np.broadcast_to(np.linspace(1, 0, rules)[:, None, None, None], (rules, 3, 2, 2)).copy()
    final = np.broadcast_to(np.linspace(0.5, 1, rules)[:, None, None], (rules, 2, 2)).copy()
    final[:, 0] += 0.25  # the second rate is the best
    final[-1, 1, 0] = np.nan  # but for the last rule, which failed there once
    return experiment.Outcome(
        rules=np.array(list(experiment.RULES)),
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
    )


def test_summary_words_and_plot_of_arrays(tmp_path):
    results = {"copy": fake_outcome(), "text": fake_outcome()}
    summary = experiment.summarise(results)
    rules = summary["text"]["rules"]
    assert rules["RTRL"] | {"cosine": 1.0, "mean_cosine_one_step": 0.5, "final": 0.5, "rate": 0.2} == rules["RTRL"]
    assert rules["UORO"]["rate"] == 0.1
    assert rules["UORO"]["final"] == pytest.approx(1.25)
    said = experiment.in_words(summary)
    assert any(line.strip().startswith("SnAp-1         0.80 to 0.80 | 0.40 to 0.40 | 0.41 to 0.69") for line in said)
    assert said[-1].startswith("text: loss per step from 1.500 to RTRL 0.500, SnAp-1 0.600")
    experiment.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_draws_are_the_same_for_every_rule_and_key_alone():
    task = online_tasks.make_tasks(3, LENGTH, 1.0, np.arange(200, dtype=np.int32) % 27)["adding"]
    a, b, other = (task.draw(jax.random.key(seed))[0] for seed in (1, 1, 2))
    assert jnp.array_equal(a, b)
    assert not jnp.array_equal(a, other)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--length", "3"], "length: got 3, expected at least 4"),
        (["--length", "9999999"], "length: got 9999999, expected at most"),
        (["--keys", "1"], "keys: got 1, expected at least 2"),
        (["--updates", "1"], "updates: got 1, expected at least 4"),
        (["--gain", "0"], "gain: got 0"),
    ],
)
def test_bad_arguments_get_one_line(arguments, line, tmp_path, capsys):
    assert entry.main(["online", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
