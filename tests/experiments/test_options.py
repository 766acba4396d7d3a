import dataclasses
import math
import re

import numpy as np
import pytest

from experiments import options


@options.config
class Config:
    keys: int = options.size(5, "trainings", least=2, most=50, full=20)
    sizes: tuple = options.sizes((2, 8), "sizes")
    gain: float = options.number(1.0, "gain", above=0, most=4)
    shift: float = options.number(0.0, "shift, 100 % at 1")
    scheme: str = options.choice("delayed-xor", ("delayed-xor", "copy"), "scheme")
    slowest: float = options.choice(0.99, (0.9, 0.99), "the largest λ")
    cell: tuple = options.choices("lstm", ("elman", "lstm"), "cells", full="all")
    text: str | None = options.file("a text file", shown="the manual")
    only: str | None = options.text("rows that have it", shown="all")
    id: tuple | None = options.texts("rows", shown="all")
    seed: int = options.seed()
    full: bool = options.flag("the record run")
    out: str = options.out("test")


@options.config
class Run:
    resume: bool = options.flag("go on with a run")
    no_cache: bool = options.flag("compile again")


def parse(words):
    return options.parse(Config, words.split(), "python -m experiments test", "A test, 50 % of it.")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", Config()),
        ("--full", Config(keys=20, cell="all", full=True)),
        ("--keys 7 --full", Config(keys=7, cell=("elman", "lstm"), full=True)),
        ("--full --keys 7 --cell=lstm", Config(keys=7, full=True)),
        ("--sizes 1,2,3 --seed 9", Config(sizes=[1, 2, 3], seed=9)),
        ("--shift -1e-3", Config(shift=-1e-3)),
        ("--shift -.5 --scheme copy", Config(shift=-0.5, scheme="copy")),
        ("--id a,b --only c --text d --out e", Config(id=("a", "b"), only="c", text="d", out="e")),
        ("--cell ELMAN,lstm", Config(cell="all")),
        ("--cell lstm,elman", Config(cell=("lstm", "elman"))),
        ("--slowest .90", Config(slowest=0.9)),
    ],
)
def test_words_and_a_config_by_hand_agree(words, expected):
    assert parse(words) == expected


@pytest.mark.parametrize("name", ["delayed XOR", "DELAYED_XOR", "delayed-xor"])
def test_a_name_is_known_by_its_letters(name):
    assert Config(scheme=name).scheme == "delayed-xor"
    assert options.parse(Config, ["--scheme", name], "", "").scheme == "delayed-xor"


def test_values_are_kept_in_one_form():
    config = Config(keys=np.int32(3), gain=2, sizes=np.arange(1, 3).tolist(), cell="all")
    assert [type(value) for value in (config.keys, config.gain, config.sizes)] == [int, float, tuple]
    assert config.cell == ("elman", "lstm")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.keys = 4
    assert dataclasses.replace(config, keys=4).keys == 4
    assert [field.name for field in dataclasses.fields(Config) if field.metadata.get("file")] == ["text"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"keys": 1}, "keys: got 1, expected at least 2"),
        ({"keys": 51}, "keys: got 51, expected at most 50"),
        ({"keys": "3"}, "keys: got '3', expected an integer"),
        ({"keys": True}, "keys: got True, expected an integer"),
        ({"keys": 3.0}, "keys: got 3.0, expected an integer"),
        ({"seed": 10**100}, f"seed: got 1{'0' * 49}…00000, expected at most 2147483647"),
        ({"sizes": (2, 0)}, "sizes: got 0, expected at least 1"),
        ({"sizes": (2, 2)}, "sizes: got 2,2, expected no value twice"),
        ({"sizes": ()}, "sizes: got (), expected a tuple of integers"),
        ({"sizes": 2}, "sizes: got 2, expected a tuple of integers"),
        ({"gain": 0}, "gain: got 0, expected a finite number above 0, at most 4"),
        ({"gain": 4.5}, "gain: got 4.5, expected a finite number above 0, at most 4"),
        ({"shift": math.nan}, "shift: got nan, expected a finite number"),
        ({"shift": -math.inf}, "shift: got -inf, expected a finite number"),
        ({"shift": "1"}, "shift: got '1', expected a number"),
        ({"scheme": "kopy"}, "scheme: got 'kopy', expected delayed-xor or copy, did you mean 'copy'?"),
        ({"scheme": "thing"}, "scheme: got 'thing', expected delayed-xor or copy"),
        ({"slowest": 0.5}, "slowest: got 0.5, expected 0.9 or 0.99"),
        ({"cell": ("elman", "elman")}, "cell: got elman,elman, expected no value twice"),
        ({"cell": "all,elman"}, "cell: got 'all', expected some of elman, lstm; or all"),
        ({"cell": "elmann"}, "cell: got 'elmann', expected some of elman, lstm; or all, did you mean 'elman'?"),
        ({"cell": ()}, "cell: got (), expected a tuple of names"),
        ({"text": ""}, "text: got '', expected a file"),
        ({"out": None}, "out: got None, expected a folder"),
        ({"id": ("a", " ")}, "id: got ' ', expected some text"),
        ({"full": 1}, "full: got 1, expected False or True"),
    ],
)
def test_what_may_not_be_gets_one_line(given, line):
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(line)}$"):
        Config(**given)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--keys many", "keys: got 'many', expected an integer"),
        ("--keys 1e1", "keys: got '1e1', expected an integer"),
        ("--sizes 1,,2", "sizes: got '1,,2', expected integers with commas between them"),
        ("--gain -inf", "gain: got -inf, expected a finite number above 0, at most 4"),
        ("--gain x", "gain: got 'x', expected a number"),
        ("--slowest x", "slowest: got 'x', expected 0.9 or 0.99"),
        ("--kyes 3", "unrecognized option --kyes, did you mean --keys? (--help lists the options)"),
        ("--ful", "unrecognized option --ful, did you mean --full? (--help lists the options)"),
        ("--depth=3", "unrecognized option --depth (--help lists the options)"),
        ("-x", "unrecognized option -x (--help lists the options)"),
        ("chaos", "unexpected word 'chaos' (--help lists the options)"),
        ("--out", "--out: expected one argument (--help lists the options)"),
        ("--out --full", "--out: expected one argument (--help lists the options)"),
        ("--full=yes", "--full: ignored explicit argument 'yes' (--help lists the options)"),
    ],
)
def test_words_that_cannot_be_read_get_one_line(words, line):
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(line)}$"):
        parse(words)


def test_help_says_units_bounds_and_defaults_in_two_groups(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        options.parse_with(Config, Run, ["--help"], "python -m experiments test", "A test, 50 % of it.")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    of_experiment, of_run = (" ".join(part.split()) for part in said.split("of the run:"))
    for line in (
        "A test, 50 % of it.",
        "--keys N trainings; at least 2, at most 50 (default: 5; with --full 20)",
        "--sizes N,… sizes; each at least 1 (default: 2,8)",
        "--gain X gain; above 0, at most 4 (default: 1)",
        "--shift X shift, 100 % at 1 (default: 0)",
        "--cell NAME,… cells; some of elman, lstm; or all (default: lstm; with --full all)",
        "--text FILE a text file (default: the manual)",
    ):
        assert line in of_experiment, line
    for line in ("--full the record run", "--out FOLDER", "--resume go on with a run", "--no-cache compile again"):
        assert line in of_run, line


def test_what_a_run_is_told_is_apart():
    words = ["--resume", "--keys", "3", "--no-cache"]
    assert options.parse_with(Config, Run, words, "", "") == (Config(keys=3), Run(resume=True, no_cache=True))
    with pytest.raises(ValueError, match="unrecognized option --resume"):
        options.parse(Config, ["--resume"], "", "")


def test_what_is_nearest():
    known = ("vanishing", "chaos", "S4.16")
    assert options.nearest("vanising", known) == "vanishing"
    assert options.nearest("s4.61", known) == "S4.16"
    assert options.nearest("nothing-like-it", known) is None
    assert options.match("id", "s4.16", known) == "S4.16"
