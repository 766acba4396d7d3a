import jax
import numpy as np
import pytest

from experiments import mistakes
from experiments.mistakes import kernels, row
from jaxbptt import derivations

from .runs import WITH_SUMMARY, run_tiny

CHEAP = "index"  # a part of the name of a row that compiles nothing


def test_a_row_is_caught_and_its_twin_is_not(tmp_path):
    run = run_tiny("mistakes", f"--only {CHEAP}", tmp_path)
    assert run.code == 0
    assert run.files == WITH_SUMMARY
    ((name, found),) = run.summary.items()
    assert name == "chunk's index for the time index"
    assert found["caught"]
    assert found["twin_passes"]
    assert found["error"] > 0.1
    assert found["twin_error"] == 0
    assert found["said"] == f"Right up to T = {kernels.CHUNK}, wrong from T = {kernels.CHUNK + 1}"
    assert f"{found['error']:.1e}" in run.said
    assert "1 of 1 caught, 1 of 1 correct twins passed" in run.said


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["delta rule", "half of a batch", "chunk"])
def test_exact_facts_hold_for_the_twin_alone(name, seed):
    (one,) = [each for each in mistakes.MISTAKES if name in each.name]
    key = jax.random.key(seed)
    wrong, right = one.look(key, True), one.look(key, False)
    assert not wrong.passes
    assert wrong.error > 1e-3
    assert right.passes
    assert right.error < row.EXACT


@pytest.mark.parametrize("name", ["denominator plus 1e-6", "elementwise"])
def test_facts_about_cells_of_the_library(name):
    (one,) = [each for each in mistakes.MISTAKES if name in each.name]
    wrong, right = (one.look(jax.random.key(3), mistaken) for mistaken in (True, False))
    assert (wrong.passes, right.passes) == (False, True)
    assert wrong.error > 1e-4


def fake(**changes):
    outcome = {
        "error": 0.3,
        "cosine": np.nan,
        "caught": True,
        "said": "sign",
        "twin_error": 1e-16,
        "twin_passes": True,
        "twin": "right",
        "catcher": "check",
        "about": "J_t",
        "on_purpose": False,
        "seconds": 1.0,
    }
    return mistakes.Outcome(**{key: np.asarray(value) for key, value in (outcome | changes).items()})


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 0, "J_t: sign"),
        ({"caught": False}, 1, "MISSED"),
        ({"twin_passes": False}, 1, "TWIN NOT PASSED"),
        ({"on_purpose": True, "cosine": 0.25}, 0, "+0.250"),
    ],
)
def test_what_is_missed_is_told(changes, code, said, tmp_path):
    results = {"a": fake(), "b": fake(**changes)}
    summary = mistakes.summarise(results, mistakes.Config())
    assert summary.exit_code == code
    assert said in summary.lines[2]
    assert summary.numbers["b"]["error"] == 0.3
    mistakes.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_every_catcher_has_a_colour_and_every_row_a_name_of_its_own():
    names = [each.name for each in mistakes.MISTAKES]
    assert len(set(names)) == len(names) == 16
    assert {each.catcher for each in mistakes.MISTAKES} == set(mistakes.figure.CATCHER_COLOURS)
    assert [each.name for each in mistakes.MISTAKES if each.on_purpose] == ["√(1 − a²), its derivative bounded"]


def test_slips_in_few_words():
    finding = derivations.Finding("params.w", None, 1.0, None, None, None, None, 1.0, "")
    assert row.name_slips(derivations.Report((), "")) == "all correct"
    assert row.name_slips(derivations.Report((finding,), "")) == "wrong: params.w"
    assert row.name_slips(derivations.Report((finding, finding._replace(slip="sign")), "")) == "sign"


@pytest.mark.slow
def test_every_mistake_is_caught_and_every_twin_passes(tmp_path):
    run = run_tiny("mistakes", "--seed 4", tmp_path)
    assert run.code == 0, run.said
    for name, slip in {
        "tanh' at tanh a": "activated_value",
        "σ' at σ(a)": "activated_value",
        "(1 − h)² for 1 − h²": "squared_complement",
        "LSTM, i for g at the input gate": "swapped_gates",
        "RWKV-7, I ⊗ A for I ⊗ Aᵀ": "transposed_jacobian",
    }.items():
        assert run.summary[name]["said"] == slip
    assert "pullback linear" in run.summary["state cotangent clipped in the backward pass"]["said"]
