import dataclasses
import os
import re
import subprocess
import sys

import pytest

import jaxbptt
from experiments import __main__ as entry
from experiments import harness, options

# What depends on data or on other options; the bounds that an option declares are tested for all of them below.
BAD = {
    "xray": [
        ("--text /no/such", "text: cannot read /no/such: No such file or directory"),
        ("--text {empty}", "leaves 0 different symbols, expected at least 2 (nothing dropped of 0 characters)"),
        ("--text {one}", "leaves 1 different symbols, expected at least 2"),
        ("--text {binary}", "not UTF-8 text"),
        ("--text {short}", "length: got T = 256, expected at most what is left (11 symbols in the text"),
    ],
    "lstm_memory": [("--text {short}", "length: got T = 100, expected at most 10")],
    "vanishing": [("--length 9999999", "length: got T = 9999999, expected at most")],
    "truncation": [
        ("--window 97", "window: got 97, expected at most 96"),
        ("--length 999999 --window 9", "length: got T = 999999, expected at most"),
        ("--text /no/such", "text: cannot read /no/such"),
    ],
    "online": [
        ("--length 9999999", "length: got 9999999, expected at most"),
        ("--updates 1", "updates: got 1, expected at least 4"),
    ],
    "delta": [("--sizes 2,4", "sizes: got 2,4, expected 8 among them")],
    "gates": [("--nets 33", "nets: got 33, expected at most 32")],
    "mistakes": [("--only nosuch", "only: got 'nosuch', expected a part of a row's name: delta rule")],
    "nosuch": [("", "unknown experiment 'nosuch', expected one of xray, identities")],
    "vanising": [("--size 8", "unknown experiment 'vanising', did you mean 'vanishing'? (list shows all)")],
    "chaos": [("--cell lstm", "unrecognized option --cell (--help lists the options)")],
    "LSTM-memory": [("--hiden 3", "unrecognized option --hiden, did you mean --hidden? (--help lists the options)")],
}
FREE = {("xray", "gain"), ("xray", "forget_bias"), ("lstm_memory", "gain")}  # of any sign and size
UNITS = "entries|units|steps|nets|matrices|symbols|sequences|trainings|updates|times|iterations|draws|windows|samples"
UNITS += "|exponents|streams|longest 1/"  # of 1/(1 − λ) steps


@pytest.mark.parametrize(("name", "words", "line"), [(name, *case) for name, cases in BAD.items() for case in cases])
def test_bad_arguments_get_one_line(name, words, line, tmp_path, capsys):
    contents = {"empty": b"", "one": b"aaaa", "binary": b"\xff\xfe\x00", "short": b"hello there"}
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content)
    words = words.format(**{file: tmp_path / file for file in contents}).split()
    assert entry.main([name, *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    known = name.lower().replace("-", "_")
    assert error.startswith(f"experiments {known}: " if known in entry.NAMES else "experiments: ")
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def declared(name):
    return dataclasses.fields(entry.find_experiment(name).config)


def make_bad_values(field):
    """(word, what came, what is expected) of an option, from its kind and the bounds that it states in --help."""
    kind = field.metadata["kind"]
    if kind.read is None:
        return
    item, many = kind.placeholder.removesuffix(",…"), kind.placeholder.endswith(",…")
    expected = {"NAME": kind.bounds, "TEXT": "some text"}.get(item, kind.what)
    words = {"N": ("many", "1.5", "1e20", ""), "X": ("many", ""), "NAME": ("no-such-name", "")}.get(item, ("", " "))
    yield from ((word, repr(word), expected) for word in words)
    for end, value in re.findall(r"(at least|at most|above) ([\d.]+)", kind.bounds):
        past = f"{float(value) + {'at least': -1, 'at most': 1, 'above': 0}[end]:g}"
        yield past, past, f"{end} {value}"
    if item == "N":
        yield str(10**20), str(10**20), "at most"
    if item == "X":
        yield from ((word, word, "a finite number" if expected == "a number" else expected) for word in ("nan", "inf"))
    value = ("a",) if field.default is None else kind.check(field.name, field.default)
    good = value[0] if isinstance(value, tuple) else value
    if item == "NAME":
        yield f"{good}x", repr(f"{good}x"), f"{expected}, did you mean '"
    if many:
        yield f"{good},{good}", f"{good},{good}", "no value twice"
        yield f"{good},", repr(f"{good},") if item == "N" else "''", expected


@pytest.mark.parametrize("name", entry.NAMES)
def test_every_bad_value_of_every_option_gets_one_line(name, tmp_path, capsys):
    out, tried = tmp_path / "out", 0
    for field in declared(name):
        option = "--" + field.name.replace("_", "-")
        for word, got, expected in make_bad_values(field):
            words = [option, word] if field.name == "out" else ["--out", str(out), option, word]
            assert entry.main([name, *words]) == 2, words
            error = capsys.readouterr().err
            assert error.startswith(f"experiments {name}: {field.name}: got {got}"), (words, error)
            assert expected in error
            assert error.count("\n") == 1
            tried += 1
    assert tried > len(declared(name))
    assert not out.exists()


@pytest.mark.parametrize("name", entry.NAMES)
def test_a_config_by_hand_keeps_to_the_same_bounds(name):
    config = entry.find_experiment(name).config
    config()  # the defaults are within them
    for field in dataclasses.fields(config):
        for word, got, expected in make_bad_values(field):
            if field.metadata["kind"].placeholder == "N" and word == got:
                with pytest.raises(ValueError, match=f"^{field.name}: got {got}, expected {expected}"):
                    config(**{field.name: int(word)})


def test_numbers_have_bounds_or_are_free_on_purpose():
    numbers = [(name, field) for name in entry.NAMES for field in declared(name)]
    unbounded = {
        (name, field.name)
        for name, field in numbers
        if field.metadata["kind"].placeholder.removesuffix(",…") in ("N", "X") and not field.metadata["kind"].bounds
    }
    assert unbounded == FREE
    texts = [field for _, field in numbers if field.name == "text"]
    assert texts
    assert all(field.metadata["file"] for field in texts)


def test_version(capsys):
    assert entry.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxbptt {jaxbptt.__version__}\n"


def test_a_list_may_be_one_name_or_several():
    for name, option in (("xray", "cell"), ("online", "task"), ("training", "task"), ("benchmark", "suite")):
        config = entry.find_experiment(name).config
        (field,) = (field for field in dataclasses.fields(config) if field.name == option)
        known = field.metadata["kind"].check(option, "all")
        assert getattr(config(**{option: known[1]}), option) == known[1:2]
        assert getattr(config(**{option: known[1::-1]}), option) == known[1::-1]
    online = entry.find_experiment("online").config
    assert online(task="delayed XOR").task == online(task="delayed_xor").task == ("delayed-xor",)


PRINTS = "import sys; from experiments import __main__ as entry, harness; harness.run_experiment = "
PRINTS += "lambda *call: print('found', flush=True) or 0; sys.exit(entry.main(['chaos']))"


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("words", "stream", "other"),
    [
        (["-m", "experiments", "chaos", "--help"], "stdout", "stderr"),
        (["-m", "experiments", "mistakes", "--only", "nosuch"], "stderr", "stdout"),
        (["-c", PRINTS], "stdout", "stderr"),
    ],
    ids=["help", "an error", "a run"],
)
def test_a_closed_pipe_ends_it_quietly(words, stream, other):
    reader, writer = os.pipe()
    os.close(reader)
    environment, streams = {**os.environ, "PYTHONUNBUFFERED": ""}, {stream: writer, other: subprocess.PIPE}
    done = subprocess.run([sys.executable, *words], env=environment, **streams, check=False)
    os.close(writer)
    assert (done.returncode, getattr(done, other)) == (141, b"")


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupt(*call):
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "run_experiment", interrupt)
    assert entry.main(["chaos"]) == 130
    assert capsys.readouterr().err == "experiments chaos: interrupted\n"


@pytest.mark.parametrize("word", ["-h", "--help", "list"])
def test_help_lists_the_experiments(word, capsys):
    assert entry.main([word]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("no NAME: xray")
    assert [line.split()[0] for line in lines if not line.startswith("    ")] == [*entry.NAMES, *entry.COMMANDS]
    assert all(len(line) <= 80 for line in lines)
    assert all(entry.find_experiment(line.split()[0]).takes in line for line in lines[:1])


@pytest.mark.parametrize("name", entry.NAMES)
def test_every_experiment_says_what_it_is(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    experiment = entry.find_experiment(name)
    assert experiment.name == name
    assert "\n" not in experiment.purpose
    fields = {field.name: field for field in dataclasses.fields(experiment.config)}
    assert fields["out"].default == f"results/{name}"
    with pytest.raises(SystemExit, match="0"):
        entry.main([name, "--help"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    said = " ".join(said.split())
    assert f"usage: python -m experiments {name} " in said
    assert " ".join(experiment.description.split("\n\n")[0].split()) in said
    of_experiment, of_run = said.split(" of the run: ")
    for field in fields.values():
        kind, help = field.metadata["kind"], field.metadata["help"]
        where = of_run if field.name in ("out", "full") else of_experiment
        bounds = f"; {kind.bounds}" if kind.bounds else ""
        default = " (default: " if kind.read else ""
        assert (
            f"--{field.name.replace('_', '-')} {kind.placeholder} {help}{bounds}{default}".replace("  ", " ") in where
        )
        if kind.placeholder.removesuffix(",…") == "N" and field.name != "seed":
            assert re.search(UNITS, help), help


def test_without_a_name_the_main_job_runs(monkeypatch):
    called = []
    monkeypatch.setattr(harness, "run_experiment", lambda *call: called.append(call) or 1)
    assert entry.main(["--cell", "gru"]) == entry.main([]) == 1
    assert [(experiment.name, words) for experiment, words in called] == [("xray", ["--cell", "gru"]), ("xray", [])]


def test_what_was_measured_is_written_before_it_is_drawn(tmp_path, capsys):
    @options.config
    class Config:
        out: str = options.out("fails")

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
