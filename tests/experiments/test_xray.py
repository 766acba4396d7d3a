import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from experiments import one_run, xray
from jaxbptt.report import XRay

from .runs import WITH_SUMMARY

ROOT = Path(__file__).parents[2]
SMALL = "--hidden 4 --length 12 --cell lstm"


def test_small_run_from_the_command_line(tmp_path):
    (tmp_path / "text.txt").write_text("Съешь же ещё этих мягких французских булок, да выпей чаю! " * 5, "utf-8")
    out = tmp_path / "o"
    places = ["--text", str(tmp_path / "text.txt"), "--out", str(out)]
    command = [sys.executable, "-m", "experiments", *SMALL.split(), *places, "--no-cache"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
    first, *_ = done.stdout.splitlines()
    assert first == (
        "text: 34 symbols: space, абвгдежзийклмнопрстуфхцчшщъыьэюяё; dropped 10 of 290 characters (punctuation 10)"
    )
    assert "Gradient proved: 4 routes agree to" in done.stdout
    assert "lstm: proof, singular values, tables" in done.stderr
    assert f"wrote arrays.npz, config.json, figure.png, summary.json and run.json to {out}" in done.stderr
    assert {path.name for path in out.iterdir()} == WITH_SUMMARY
    summary = json.loads((out / "summary.json").read_text())["lstm"]
    assert summary["proved"]
    assert summary["state_entries"] == 8
    flags = json.loads((out / "run.json").read_text())["flags"]["XLA_FLAGS"].split()
    assert set(one_run.FLAGS) <= set(flags) or not metadata.version("jaxlib").startswith(one_run.KNOWN_TO)
    with np.load(out / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["lstm.norms"].shape == (12, 12)
        assert arrays["lstm.assembled"].shape == (8,)
        assert "".join(arrays["alphabet.characters"]) == " абвгдежзийклмнопрстуфхцчшщъыьэюяё"
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")


def fake(proved):
    """A result of which the rest is the x-ray's own business."""
    final = np.array([0.0, -40.0, -np.inf])
    found = XRay({"proved": proved}, ["A verdict."], np.array([9]), final[None], *[None] * 8)
    return xray.Result(found, np.array([0.05, -36.0, -np.inf]), np.array([0.05, -36.0, np.nan]))


def test_an_assembled_product_is_compared_value_by_value():
    summary = xray.judge(fake(True))
    assert (summary["assembled_wrong_float64"], summary["assembled_wrong_float32"]) == (1, 2)
    sentence = "An assembled product gets 1 of 3 singular values wrong (2 in float32)."
    assert summary["verdict"] == ["A verdict.", sentence]


@pytest.mark.parametrize(("proved", "code"), [(True, 0), (False, 1)])
def test_a_gradient_that_is_not_proved_is_an_exit_code(proved, code):
    summary = xray.summarise({"elman": fake(True), "gru": fake(proved)}, xray.Config())
    assert summary.exit_code == code
    assert [line.split("\n")[0] for line in summary.lines] == ["elman", "gru"]


@pytest.mark.parametrize(
    ("given", "jaxlib", "expected"),
    [
        ({}, "0.10.2", " ".join(one_run.FLAGS)),
        ({}, "0.11.0", None),  # it may not know them, and would end
        ({}, "0.8.0", None),
        ({"XLA_FLAGS": "--a=1 --xla_backend_optimization_level=3"}, "0.10.0", None),
    ],
)
def test_flags_are_added_to_those_given_where_they_are_known(given, jaxlib, expected):
    environment = dict(given)
    one_run.compile_sooner(environment, jaxlib)
    if given:
        assert environment == {"XLA_FLAGS": f"{given['XLA_FLAGS']} {one_run.FLAGS[0]}"}
    else:
        assert environment.get("XLA_FLAGS") == expected
