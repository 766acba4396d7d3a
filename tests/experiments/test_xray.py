import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import xray

from .runs import WITH_SUMMARY

ROOT = Path(__file__).parents[2]
SMALL = "--hidden 4 --length 12 --cell lstm"


def test_small_run_from_the_command_line(tmp_path):
    (tmp_path / "text.txt").write_text("The quick, brown fox -- jumps over the lazy dog! " * 5)
    out = tmp_path / "o"
    places = ["--text", str(tmp_path / "text.txt"), "--out", str(out)]
    command = [sys.executable, "-m", "experiments", *SMALL.split(), *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "gradient proved: 4 routes agree to" in done.stdout
    assert "lstm: gradient by bptt" in done.stderr
    assert f"wrote config.json, arrays.npz, summary.json and figure.png to {out}" in done.stderr
    assert {path.name for path in out.iterdir()} == WITH_SUMMARY
    summary = json.loads((out / "summary.json").read_text())["lstm"]
    assert summary["proved"]
    assert summary["singular_values"] == 8
    with np.load(out / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["lstm.norms"].shape == (12, 12)
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")


def fake(rate, length=40, error=1e-15):
    steps = np.arange(1, length + 1)
    values = np.outer(steps, [rate, rate - 1.0, -np.inf])
    assembled = values.copy()
    assembled[:, 1] += 0.2
    norms = np.tril(np.ones((length, length)))
    profile = norms.sum(0)[::-1] * 0 + 1.0
    errors = np.array([error, 0, 0])
    reach = np.array([1, 20, 39])
    return xray.XRay(np.array(3.3), errors, steps, values, assembled, values[-1], norms, profile, reach)


@pytest.mark.parametrize(
    ("rate", "trend", "words"),
    [
        (-0.5, "vanishing", "half-life 1.4 steps, leaves float32 at step 175 (extrapolated)"),
        (0.5, "exploding", "doubling time 1.4 steps, leaves float32 at step 177 (extrapolated)"),
        (-4.0, "vanishing", "half-life 0.2 steps, leaves float32 by step 22"),
        (0.001, "stable", "stays in float32 over these 40 steps"),
        (-np.inf, "vanishing", "half-life 0.0 steps, leaves float32 by step 1"),
        (0.0, "stable", "half-life inf steps, stays in float32 over these 40 steps"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(rate, trend, words):
    summary = xray.judge(fake(rate))
    assert summary["trend"] == trend
    assert summary["rate_per_step"] == pytest.approx(rate)
    assert summary["assembled_wrong_float64"] == (1 if np.isfinite(rate) else 0)
    assert summary["assembled_wrong_float32"] == 0
    assert summary["verdict"][1].endswith(words)
    assert "90 % of the gradient reaches 20 steps back" in summary["verdict"][2]


def test_a_wrong_gradient_is_not_proved():
    summary = xray.judge(fake(-0.1, error=1e-11))
    assert not summary["proved"]
    assert "NOT proved" in summary["verdict"][0]
    assert not xray.judge(fake(-0.1, error=np.nan))["proved"]


def test_plot_takes_arrays(tmp_path):
    xray.plot({"elman": fake(-0.1), "gru": fake(0.1)}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(("error", "code"), [(1e-15, 0), (1e-11, 1)])
def test_a_gradient_that_is_not_proved_is_an_exit_code(error, code):
    summary = xray.summarise({"elman": fake(-0.1), "gru": fake(-0.1, error=error)}, xray.Config())
    assert summary.exit_code == code
    assert [line.split("\n")[0] for line in summary.lines] == ["elman", "gru"]
