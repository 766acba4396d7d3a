"""python -m jaxbptt xray|verify FILE.py:FUNCTION, on small files."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from jaxbptt import __main__ as command_line
from jaxbptt import report

GOOD = """
from collections import namedtuple
import jax, jax.numpy as jnp
from jaxbptt import cells, models
from beside import LENGTH

def problem():
    cell = cells.elman(2, 3)
    model = models.sequence_model(cell, 1)
    return model, model.init(jax.random.key(0)), jnp.ones((LENGTH, 2)), jnp.ones((LENGTH, 1))

def adapted():
    model, params, inputs, targets = problem()
    return namedtuple("Adapted", "model params restore values")(model, params, None, None), inputs, targets

def wrong():
    model, *data = problem()
    back = model.derivation.pullback
    def pullback(*at):
        of_params, of_state, of_x = back(*at)
        return jax.tree.map(jnp.negative, of_params), of_state, of_x
    return model._replace(derivation=cells.Derivation(model.derivation.state_jacobian, pullback)), *data

def raises():
    raise KeyError("no such weights")

def leaves():
    raise SystemExit(0)

def misfit():
    model, params, inputs, targets = problem()
    return model, params, inputs, targets[1:]

def array():
    return jnp.ones(3)

def pair():
    return 1, 2

number = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside.py").write_text("LENGTH = 6\n")
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    yield tmp_path / "mine.py"
    for name in ("beside", "mine", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("function", "code", "said"), [("problem", 0, "proved"), ("wrong", 1, "NOT proved")])
def test_xray_of_a_file(file, function, code, said, capsys):
    assert command_line.main(["xray", f"mine.py:{function}"]) == code
    out = capsys.readouterr().out
    assert out.startswith(f"Gradient {said}: ")
    folder = file.parent / "results" / f"xray-{function}"
    assert out.endswith(f"Wrote arrays.npz, summary.json and figure.png to results/xray-{function}.\n")
    assert report.load(folder).summary["proved"] == (code == 0)


def test_an_adapted_model_and_a_folder(file, capsys):
    assert command_line.main(["xray", f"{file}:adapted", "--out", "here"]) == 0
    assert report.load(file.parent / "here").summary["steps"] == 6


@pytest.mark.parametrize("ok", [True, False])
def test_verify_of_a_file(file, ok, monkeypatch, capsys):
    class Verdict(SimpleNamespace):
        __str__ = lambda self: "a table"

    called = []
    monkeypatch.setattr(report, "verify", lambda *at: called.append(at) or Verdict(ok=ok), raising=False)
    assert command_line.main(["verify", "mine.py:adapted"]) == (0 if ok else 1)
    assert capsys.readouterr().out == "a table\n"
    assert [len(at) for at in called] == [4]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("mine.py", "got 'mine.py', expected FILE.py:FUNCTION"),
        ("mine.py:", "got 'mine.py:', expected FILE.py:FUNCTION"),
        ("nothing.py:problem", "nothing.py: no such file"),
        ("broken.py:problem", "broken.py: raised ZeroDivisionError: division by zero while it was loaded"),
        ("mine.py:nothing", "mine.py: has no function 'nothing'"),
        ("mine.py:number", "mine.py: has no function 'number'"),
        ("mine.py:raises", "raises() raised KeyError: 'no such weights'"),
        ("mine.py:leaves", "leaves() raised SystemExit"),
        ("mine.py:array", "expected (model, params, inputs, targets) or (adapted, inputs, targets)"),
        ("mine.py:pair", "pair() returned a tuple of 2, expected (model, params, inputs, targets)"),
        ("mine.py:misfit", "targets: got 5 steps, expected 6"),
    ],
)
def test_what_cannot_be_done_gets_one_line(file, place, words, capsys):
    assert command_line.main(["xray", place]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxbptt xray: ")
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["xray"], ["xray", "a.py:b", "--deep"], ["verify", "a.py:b", "--out", "x"]])
def test_other_words_get_one_line(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(words)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("option", ["--x64", "--float64"])
def test_float64_is_enabled_before_the_file_is_loaded(tmp_path, option):
    (tmp_path / "kind.py").write_text(
        "import jax.numpy as jnp\n\ndef kind():\n    raise TypeError(jnp.ones(1).dtype)\n"
    )
    for words, said in (([option], "float64"), ([], "float32")):
        command = [sys.executable, "-m", "jaxbptt", "xray", f"{tmp_path / 'kind.py'}:kind", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == f"jaxbptt xray: kind() raised TypeError: {said}\n"
