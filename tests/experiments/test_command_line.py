import dataclasses

import pytest

from experiments import __main__ as entry
from experiments import harness

BAD = {
    "xray": [
        ("--text /no/such", "text: cannot read /no/such: No such file or directory"),
        ("--text {empty}", "has 0 different letters or spaces, expected at least 2"),
        ("--text {one}", "has 1 different letters or spaces, expected at least 2"),
        ("--text {binary}", "not UTF-8 text"),
        ("--text {short}", "length: got T = 256, expected at most what is left (11 symbols in the text"),
        ("--length 0", "length: got 0, expected at least 1"),
        ("--hidden -3", "hidden: got -3, expected at least 1"),
        ("--gain nan", "gain: got nan, expected a finite number"),
        ("--offset -1", "offset: got -1, expected at least 0"),
    ],
    "lstm_memory": [("--text {short}", "length: got T = 100, expected at most 10")],
    "perturbation": [("--hidden 0", "hidden: got 0, expected at least 1")],
    "vanishing": [
        ("--size 0", "size: got 0, expected at least 2"),
        ("--length 9999999", "length: got T = 9999999, expected at most"),
    ],
    "chaos": [
        ("--nets 1", "nets: got 1, expected at least 2"),
        ("--size 4", "size: got 4, expected at least 8"),
    ],
    "precision": [
        ("--gain nan", "gain: got nan, expected a positive number"),
        ("--records 0", "records: got 0, expected at least 1"),
    ],
    "truncation": [
        ("--window 1", "window: got 1, expected at least 2"),
        ("--window 97", "window: got 97, expected at most 96"),
        ("--length 999999 --window 9", "length: got T = 999999, expected at most"),
        ("--keys 1", "keys: got 1, expected at least 2"),
        ("--updates 5", "updates: got 5, expected at least 20"),
        ("--tolerance 0", "tolerance: got 0.0, expected a number in (0, 1]"),
        ("--text /no/such", "text: cannot read /no/such"),
    ],
    "online": [
        ("--length 3", "length: got 3, expected at least 4"),
        ("--length 9999999", "length: got 9999999, expected at most"),
        ("--keys 1", "keys: got 1, expected at least 2"),
        ("--updates 1", "updates: got 1, expected at least 4"),
        ("--gain 0", "gain: got 0"),
    ],
    "benchmark": [
        ("--cells rnn", "cells: got 'rnn'"),
        ("--lengths 0", "lengths: got 0, expected at least 1"),
        ("--batches 1,0", "batches: got 0, expected at least 1"),
    ],
    "memory": [
        ("--keys 1", "keys: got 1, expected at least 2"),
        ("--memories 0", "memories: got 0, expected at least 1"),
    ],
    "delta": [
        ("--sizes 1,8", "sizes: got 1, expected at least 2"),
        ("--sizes 2,4", "sizes: got 2,4, expected 8 among them"),
        ("--length 10", "length: got 10, expected at least 200"),
    ],
    "gates": [
        ("--sizes 64,1", "sizes: got 1, expected at least 2"),
        ("--keys 1", "keys: got 1, expected at least 2"),
        ("--nets 33", "nets: got 33, expected at most 32"),
        ("--length 1", "length: got 1, expected at least 2"),
        ("--transient -1", "transient: got -1, expected at least 0"),
    ],
    "parallel": [
        ("--size 1", "size: got 1, expected at least 2"),
        ("--iterations 99", "iterations: got 99, expected at least 100"),
    ],
    "mistakes": [("--only nosuch", "only: got 'nosuch', expected a part of a row's name: delta rule")],
    "forcing": [
        ("--keys 1", "keys: got 1, expected at least 2"),
        ("--length 88", "length: got 88, expected at least 89"),
        ("--length 10000", "length: got 10000, expected at most 9999"),
        ("--updates 3", "updates: got 3, expected at least 20"),
    ],
    "isometry": [
        ("--size 3", "size: got 3, expected at least 4"),
        ("--keys 1", "keys: got 1, expected at least 2"),
        ("--updates 9", "updates: got 9, expected at least 10"),
    ],
    "nosuch": [("", "unknown experiment 'nosuch', expected one of xray, identities")],
}


@pytest.mark.parametrize(("name", "options", "line"), [(name, *case) for name, cases in BAD.items() for case in cases])
def test_bad_arguments_get_one_line(name, options, line, tmp_path, capsys):
    contents = {"empty": b"", "one": b"aaaa", "binary": b"\xff\xfe\x00", "short": b"hello there"}
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content)
    options = options.format(**{file: tmp_path / file for file in contents}).split()
    assert entry.main([name, *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("experiments: " if name == "nosuch" else f"experiments {name}: ")
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", ["--cell rnn", "--depth 3", "--hidden many"])
def test_unknown_options_get_one_line(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        entry.main(["xray", *options.split()])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("word", ["-h", "--help", "list"])
def test_help_lists_the_experiments(word, capsys):
    assert entry.main([word]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("no NAME: xray")
    assert [line.split()[0] for line in lines] == list(entry.NAMES)


@pytest.mark.parametrize("name", entry.NAMES)
def test_every_experiment_says_what_it_is(name, capsys):
    experiment = entry.find_experiment(name)
    assert experiment.name == name
    assert "\n" not in experiment.purpose
    fields = {field.name: field for field in dataclasses.fields(experiment.config)}
    assert fields["out"].default == f"results/{name}"
    with pytest.raises(SystemExit, match="0"):
        entry.main([name, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"usage: python -m experiments {name} " in said
    assert " ".join(experiment.description.split("\n\n")[0].split()) in said
    assert all("--" + field.replace("_", "-") in said for field in fields)


def test_without_a_name_the_main_job_runs(monkeypatch):
    called = []
    monkeypatch.setattr(harness, "run_experiment", lambda *call: called.append(call) or 1)
    assert entry.main(["--cell", "gru"]) == entry.main([]) == 1
    assert [(experiment.name, options) for experiment, options in called] == [("xray", ["--cell", "gru"]), ("xray", [])]


def test_what_was_measured_is_written_before_it_is_drawn(tmp_path, capsys):
    @dataclasses.dataclass(frozen=True)
    class Config:
        out: str = dataclasses.field(default="nowhere", metadata={"help": "folder"})

    def plot(results, path):
        raise ValueError(f"{path.name}: {results}")

    experiment = harness.Experiment(
        name="fails",
        purpose="one line",
        description="What it is.\n\nMore.",
        config=Config,
        run=lambda config, progress: [1.5],
        summarise=lambda results, config: harness.Summary(["found"], results),
        plot=plot,
        keeps_arrays=False,
        summary_file="found.json",
        figure_file="page.html",
    )
    with pytest.raises(ValueError, match=r"page.html: \[1.5\]"):
        harness.run_experiment(experiment, ["--out", str(tmp_path)])
    assert (tmp_path / "found.json").read_text() == "[\n  1.5\n]\n"
    assert capsys.readouterr().out == "found\n"
