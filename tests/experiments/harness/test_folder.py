"""What may be written where, and a kill −9 at every single moment of a run."""

import json
import os
import shutil
import signal
import sys
import time
import warnings
from collections import namedtuple
from pathlib import Path

import pytest

from experiments.harness import folder, record

from . import toy

SPACE = namedtuple("SPACE", "total used free")


def test_a_run_leaves_its_set_and_nothing_else(tmp_path, capsys):
    out = tmp_path / "new" / "toy"
    assert toy.run_toy(out) == 0
    assert toy.read_set(out) == 1
    assert toy.names_beside(out) == {"toy"}
    said = capsys.readouterr()
    assert said.out == "value 1\n"
    assert "wrote arrays.npz, config.json, figure.png, summary.json and run.json" in said.err


def test_a_finished_run_is_replaced_by_force_alone(tmp_path, capsys):
    out = tmp_path / "toy"
    toy.run_toy(out)
    (out / "notes.txt").write_text("mine")
    (tmp_path / "toy" / ".hidden").mkdir()
    for options, words in (
        ((), "holds a finished run of these options; --force replaces it"),
        (("--value", "2"), "holds another finished run (value 1, not 2); --force replaces it"),
        (("--value", "2", "--resume"), "holds another finished run (value 1, not 2)"),
    ):
        with pytest.raises(ValueError, match=r"^out: ") as refused:
            toy.run_toy(out, *options)
        assert words in str(refused.value)
    capsys.readouterr()
    assert toy.run_toy(out, "--resume") == 0
    assert "holds the finished run" in capsys.readouterr().err
    assert toy.read_set(out) == 1
    assert toy.run_toy(out, "--value", "2", "--force") == 0
    assert toy.read_set(out) == 2
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / ".hidden").is_dir()
    assert toy.names_beside(out) == {"toy"}


def fail_at(last):
    """A toy that ends, as if interrupted, at point `last`; it counts what it computed."""
    computed = []

    def done(i):
        if i == last:
            raise KeyboardInterrupt
        computed.append(i)

    return toy.make_experiment(done), computed


def test_points_are_kept_and_continued_from(tmp_path, capsys):
    out = tmp_path / "toy"
    experiment, _ = fail_at(2)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        toy.run_toy(out, experiment=experiment)
    assert interrupted.value.__notes__ == [f"; 2 points are kept in {out}.partial (--resume continues)"]
    assert toy.names_beside(out) == {"toy.partial"}
    with pytest.raises(ValueError, match=r"holds 2 points of another run \(value 1, not 2\); its own options"):
        toy.run_toy(out, "--value", "2", "--resume")
    assert toy.read_points(out) == 2
    experiment, computed = fail_at(None)
    assert toy.run_toy(out, "--resume", experiment=experiment) == 0
    assert computed == [2]
    assert "2 of 3 points are there already" in capsys.readouterr().err
    assert toy.read_set(out) == 1
    assert toy.names_beside(out) == {"toy"}


def test_an_unfinished_run_is_begun_anew_by_force_alone(tmp_path):
    out = tmp_path / "toy"
    for options in ((), ("--force",)):
        with pytest.raises(KeyboardInterrupt):
            toy.run_toy(out, *options, experiment=fail_at(1)[0])
    experiment, computed = fail_at(None)
    toy.run_toy(out, "--force", experiment=experiment)
    assert computed == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt):
        toy.run_toy(out, "--force", experiment=fail_at(1)[0])
    with pytest.raises(ValueError, match=r"holds a finished run, .* 1 points of another one of these options"):
        toy.run_toy(out)
    experiment, computed = fail_at(None)
    toy.run_toy(out, "--resume", experiment=experiment)
    assert computed == [1, 2]


def test_a_run_without_points_leaves_nothing_when_it_fails(tmp_path):
    out = tmp_path / "results" / "toy"
    with pytest.raises(KeyboardInterrupt):
        toy.run_toy(out, experiment=fail_at(0)[0])
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_is_kept_when_it_cannot_be_drawn(tmp_path, capsys):
    def plot(results, path):
        raise ValueError("no ink")

    with pytest.raises(ValueError, match="no ink"):
        toy.run_toy(tmp_path / "toy", experiment=toy.make_experiment(plot=plot))
    record = json.loads((tmp_path / "toy" / "run.json").read_text())
    assert set(record["files"]) == {"arrays.npz", "config.json", "summary.json"}
    assert (record["exit_code"], record["failure"]) == (2, "no ink")
    assert toy.run_toy(tmp_path / "toy", "--resume") == 2
    assert "of these options, which failed: no ink" in capsys.readouterr().err


def test_the_record_keeps_the_exit_code_and_the_seconds(tmp_path):
    summary = toy.harness.Summary(["not as expected"], None, exit_code=1)
    experiment = toy.make_experiment(lambda i: time.sleep(0.1), summarise=lambda results, config: summary)
    assert toy.run_toy(tmp_path / "toy", experiment=experiment) == 1
    record = json.loads((tmp_path / "toy" / "run.json").read_text())
    assert (record["exit_code"], record["failure"], record["lines"]) == (1, None, ["not as expected"])
    assert 0.3 <= record["seconds"] < 60
    assert toy.run_toy(tmp_path / "toy", "--resume") == 1


def test_a_finished_run_is_in_its_place_before_it_is_printed(tmp_path, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        toy.run_toy(tmp_path / "toy")
    monkeypatch.undo()
    assert toy.read_set(tmp_path / "toy") == 1


def test_the_lock_is_given_back_once_though_nobody_reads_the_last_line(tmp_path, monkeypatch):
    def say(self, message):
        if message.startswith("wrote"):
            raise BrokenPipeError

    monkeypatch.setattr(toy.harness.Progress, "__call__", say)
    with pytest.raises(BrokenPipeError):
        toy.run_toy(tmp_path / "toy")
    assert toy.read_set(tmp_path / "toy") == 1
    assert toy.names_beside(tmp_path / "toy") == {"toy"}


def test_a_partial_folder_that_somebody_removes_is_an_error(tmp_path):
    def done(i):
        if i == 1:
            shutil.rmtree(tmp_path / "toy.partial")

    with pytest.raises(FileNotFoundError, match=r"toy\.partial"):
        toy.run_toy(tmp_path / "toy", experiment=toy.make_experiment(done))
    monkey = toy.make_experiment()
    whole = monkey._replace(run=lambda config, progress: shutil.rmtree(tmp_path / "toy.partial") or monkey.run(config))
    assert toy.run_toy(tmp_path / "toy", experiment=whole) == 0
    assert toy.read_set(tmp_path / "toy") == 1


def test_points_without_a_record_are_not_thrown_away(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        toy.run_toy(tmp_path / "toy", experiment=fail_at(2)[0])
    (tmp_path / "toy.partial" / "run.json").write_text("")
    with pytest.raises(ValueError, match=r"holds points and no run.json that says of what; --force begins anew"):
        toy.run_toy(tmp_path / "toy", "--resume")
    assert toy.read_points(tmp_path / "toy") == 2
    assert toy.run_toy(tmp_path / "toy", "--force") == 0


def link_in_a_circle(out):
    out.symlink_to(out)


def put_a_strangers_record(out):
    out.mkdir()
    (out / "run.json").write_text('{"id": "abc", "files": ["model.pt"]}')
    (out / "model.pt").touch()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda out: out.write_text("mine"), "a file; expected a folder"),
        (lambda out: os.chdir(out.parent) or "..", "the folder you are in, or one above it"),
        (lambda out: os.chdir(out.parent) or ".", "the folder you are in, or one above it"),
        (lambda out: "/proc", "a mount point"),
        (lambda out: "/proc/toy", "cannot make /proc/toy.partial"),
        (lambda out: out.mkdir() or (out / "thesis.tex").touch(), "holds other things (thesis.tex); expected a new or"),
        (link_in_a_circle, "which leads nowhere"),
        (put_a_strangers_record, "holds other things (model.pt, ...); expected a new or an empty folder"),
        (lambda out: out.with_name("toy.partial"), "where an unfinished run keeps its points"),
        (lambda out: out.parent / "new" / ("x" * 250), "File name too long"),
        (lambda out: out.mkdir() or (out / "arrays.npz").touch(), "holds results without a record; --force replaces"),
        (lambda out: (out.parent / "file").touch() or out.parent / "file" / "toy", "cannot make"),
    ],
)
def test_a_place_that_cannot_take_results_is_one_line_before_the_work(prepare, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back
    out = tmp_path / "toy"
    given = prepare(out)
    out = given if isinstance(given, str | os.PathLike) else out
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    experiment, computed = fail_at(None)
    with pytest.raises(ValueError, match=r"^out: ") as refused:
        toy.run_toy(out, experiment=experiment)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert computed == []
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_moved_is_one_line_before_the_work(tmp_path, monkeypatch):
    toy.run_toy(tmp_path / "toy")
    rename = Path.rename

    def busy(path, target):
        if path.name == "toy":
            raise OSError(16, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(ValueError, match=r"toy cannot be replaced \(Device or resource busy\); name another folder$"):
        toy.run_toy(tmp_path / "toy", "--force")
    assert toy.read_set(tmp_path / "toy") == 1
    assert toy.names_beside(tmp_path / "toy") == {"toy"}


def test_a_disk_without_room_is_one_line_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SPACE(10, 9, 2**20))
    with pytest.raises(ValueError, match=r"^out: .* has room for 1.0 MiB, expected at least 16 MiB$"):
        toy.run_toy(tmp_path / "toy")
    monkeypatch.undo()

    def write(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.files, "write_atomically", write)
    with pytest.raises(ValueError, match=r"^out: cannot write to .*: No space left on device$"):
        toy.run_toy(tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_results_without_a_record_are_replaced_by_force(tmp_path):
    out = tmp_path / "toy"
    out.mkdir()
    (out / "arrays.npz").write_text("of an older version")
    assert toy.run_toy(out, "--force") == 0
    assert toy.read_set(out) == 1


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "toy").symlink_to(tmp_path / "elsewhere")
    toy.run_toy(tmp_path / "toy")
    assert (tmp_path / "toy").is_symlink()
    assert toy.read_set(tmp_path / "elsewhere") == 1


def test_two_runs_at_once_into_one_folder_are_refused(tmp_path):
    out = tmp_path / "toy"

    def second(i):
        with pytest.raises(ValueError, match=rf"is being written by another run \(process {os.getpid()}\)"):
            toy.run_toy(out)

    assert toy.run_toy(out, experiment=toy.make_experiment(second)) == 0
    assert toy.read_set(out) == 1


def run_in_a_child(out, options, *, die_at=None, two_renames=False):
    """(whether it was killed, points that it had kept): a run in a process of its own, killed at the die_at-th thing
    that it does to a file under out's parent, before it is done."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the child computes nothing
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            if two_renames:
                sys.platform = "other"
            count, root = [0], str(out.parent)

            def look(event, arguments):
                if event == "ctypes.dlsym" or any(root in str(argument) for argument in arguments):
                    count[0] += 1
                    if count[0] == die_at:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(look)
            experiment = toy.make_experiment(lambda i: os.write(writer, b"." * bool(i)))  # the one before it is kept
            code = toy.run_toy(out, *options, experiment=experiment)
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        kept = len(pipe.read())
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status), kept


@pytest.mark.sweep
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["new", "overwriting", "resuming", "overwriting by two renames"])
def test_a_kill_at_any_moment_loses_and_mixes_nothing(kind, tmp_path, capfd, monkeypatch, record_property):
    """Every audited event of the run in turn; then the next start finishes it and leaves nothing else."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the system lives on, and so does what it was given
    monkeypatch.setattr(record, "describe_machine", dict)
    two_renames, moment, killed = kind.endswith("renames"), 0, True
    while killed:
        moment += 1
        out = tmp_path / str(moment) / "toy"
        out.parent.mkdir()
        options = ["--value", "2", "--resume"]
        before = 0
        if kind.startswith("overwriting"):
            toy.run_toy(out)
            (out / "notes.txt").write_text("mine")
            options += ["--force"]
        elif kind == "resuming":
            with pytest.raises(KeyboardInterrupt):
                toy.run_toy(out, *options, experiment=fail_at(2)[0])
            before = 2
        killed, kept = run_in_a_child(out, options, die_at=moment, two_renames=two_renames)
        if (out / "run.json").exists():
            assert toy.read_set(out) in ((1, 2) if kind.startswith("overwriting") else (2,))
        elif two_renames:
            assert toy.names_beside(out) == {"toy.partial"}
        else:
            assert not out.exists()
        finished = (out / "run.json").exists() and toy.read_set(out) == 2
        assert toy.read_points(out) >= max(before, kept) or finished or toy.read_set(out.parent / "toy.partial/results")
        again, computed = fail_at(None)
        assert toy.run_toy(out, *options, experiment=again) == 0
        assert len(computed) <= (0 if finished else toy.POINTS - max(before, kept))
        assert toy.read_set(out) == 2
        assert toy.names_beside(out) == {"toy"}
        assert (out / "notes.txt").exists() == kind.startswith("overwriting")
        shutil.rmtree(out.parent)
    assert moment > 30
    record_property("table", f"killed at each of {moment - 1} moments, {kind}")
