"""python -m jaxbptt xray|verify FILE.py:FUNCTION, on small files."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
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


@pytest.mark.sweep
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


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("xrya a.py:b", "jaxbptt: unknown command 'xrya', did you mean 'xray'? (--help shows all)"),
        ("verfy", "jaxbptt: unknown command 'verfy', did you mean 'verify'? (--help shows all)"),
        ("--verison", "jaxbptt: unknown command '--verison', did you mean '--version'? (--help shows all)"),
        ("train", "jaxbptt: got 'train', expected xray, verify, --help or --version"),
        ("xray", "jaxbptt xray: the following arguments are required: FILE.py:FUNCTION (--help lists the options)"),
        ("xray a.py:b --deep", "jaxbptt xray: unrecognized option --deep (--help lists the options)"),
        (
            "xray a.py:b --ouf=x",
            "jaxbptt xray: unrecognized option --ouf, did you mean --out? (--help lists the options)",
        ),
        ("verify a.py:b c", "jaxbptt verify: unexpected word 'c' (--help lists the options)"),
        ("verify a.py:b --out x", "jaxbptt verify: unrecognized option --out (--help lists the options)"),
        (
            "verify a.py:b --x46",
            "jaxbptt verify: unrecognized option --x46, did you mean --x64? (--help lists the options)",
        ),
    ],
)
def test_other_words_get_one_line(words, line, capsys):
    assert command_line.main(words.split()) == 2
    assert capsys.readouterr().err == line + "\n"


class Found(SimpleNamespace):
    """Stands for a report: writes a file, then does what `then` does."""

    summary = {"proved": True}  # noqa: RUF012
    __str__ = lambda self: "found"

    def save(self, folder):
        with open(os.path.join(folder, "arrays.npz"), "w") as file:
            file.write("arrays")
        self.then()


def fail(error):
    def then(*at, **named):
        raise error

    return then


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FULL, 2, "jaxbptt xray: --out deep/er/here: No space left on device"),
        (KeyboardInterrupt(), 130, "jaxbptt xray: interrupted"),
    ],
)
@pytest.mark.parametrize("where", ["while it is computed", "while it is saved"])
def test_what_fails_leaves_nothing(file, error, code, line, where, monkeypatch, capsys):
    computing = where == "while it is computed"
    if computing and error is FULL:
        line = "jaxbptt xray: [Errno 28] No space left on device"
    monkeypatch.setattr(report, "xray", fail(error) if computing else lambda *at: Found(then=fail(error)))
    before = set(os.listdir())
    assert command_line.main(["xray", "mine.py:problem", "--out", "deep/er/here"]) == code
    assert capsys.readouterr().err == line + "\n"
    assert set(os.listdir()) - before <= {"__pycache__"}


def test_a_report_that_is_cut_off_has_no_summary(file, monkeypatch):
    """Neither the old one beside new arrays nor the new one beside old arrays."""

    def save(folder):
        for name in ("arrays.npz", "figure.png", "summary.json"):
            (Path(folder) / name).write_text("new")

    found, replace = Found(then=None), Path.replace
    found.save = save
    here = file.parent / "here"
    here.mkdir()
    for cut in ("arrays.npz", "figure.png", "summary.json"):
        for name in ("arrays.npz", "figure.png", "summary.json"):
            (here / name).write_text("old")
        monkeypatch.setattr(report, "xray", lambda *at: found)
        failing = lambda path, to, cut=cut: fail(FULL)() if path.name == cut else replace(path, to)
        monkeypatch.setattr(Path, "replace", failing)
        assert command_line.main(["xray", "mine.py:problem", "--out", "here"]) == 2
        assert not (here / "summary.json").exists()
    (here / "summary.json").mkdir()
    monkeypatch.setattr(report, "xray", fail(AssertionError("the work began")))
    assert command_line.main(["xray", "mine.py:problem", "--out", "here"]) == 2


def test_what_was_there_stays_where_saving_fails(file, monkeypatch):
    (file.parent / "here").mkdir()
    (file.parent / "here" / "arrays.npz").write_text("old")
    monkeypatch.setattr(report, "xray", lambda *at: Found(then=fail(FULL)))
    assert command_line.main(["xray", "mine.py:problem", "--out", "here"]) == 2
    assert [(path.name, path.read_text()) for path in (file.parent / "here").iterdir()] == [("arrays.npz", "old")]
    monkeypatch.setattr(report, "xray", lambda *at: Found(then=lambda: None))
    assert command_line.main(["xray", "mine.py:problem", "--out", "here"]) == 0
    assert [(path.name, path.read_text()) for path in (file.parent / "here").iterdir()] == [("arrays.npz", "arrays")]


@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("mine.py", "--out mine.py: mine.py is no folder"),
        ("mine.py/here", "--out mine.py/here: {there}/mine.py is no folder"),
        ("full/here", "--out full/here: cannot write in {there}: No space left on device"),
    ],
)
def test_a_folder_that_cannot_be_written_is_known_before_the_work(file, out, line, monkeypatch, capsys):
    if "full" in out:
        monkeypatch.setattr(tempfile, "TemporaryFile", fail(FULL))
    monkeypatch.setattr(report, "xray", fail(AssertionError("the work began")))
    assert command_line.main(["xray", "mine.py:problem", "--out", out]) == 2
    assert capsys.readouterr().err == f"jaxbptt xray: {line.format(there=file.parent)}\n"
    assert not (file.parent / "full").exists()


def test_a_closed_pipe_ends_it_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command, environment = [sys.executable, "-m", "jaxbptt", "--help"], {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(("code", "said"), [(130, b""), (1, b"handlers\n")])
def test_an_interrupted_process_ends_at_once(code, said):
    program = "import atexit; from jaxbptt import __main__ as entry; atexit.register(print, 'handlers'); "
    program += f"entry.main = lambda: {code}; entry.run()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, said, b"")


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
