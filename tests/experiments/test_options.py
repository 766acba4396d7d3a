from dataclasses import dataclass, field

import pytest

from experiments import options


@dataclass(frozen=True)
class Config:
    keys: int = field(default=5, metadata={"help": "trainings", "full": 20})
    sizes: tuple = field(default=(2, 8), metadata={"type": options.integers, "shown": "2,8", "help": "sizes"})
    seed: int = field(default=0, metadata={"help": "seed"})
    full: bool = field(default=False, metadata={"help": "the record run"})


def parse(words):
    return options.parse(Config, words.split(), "python -m experiments test", "A test.")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", Config()),
        ("--full", Config(keys=20, full=True)),
        ("--keys 7 --full", Config(keys=7, full=True)),
        ("--full --keys 7", Config(keys=7, full=True)),
        ("--sizes 1,2,3 --seed 9", Config(sizes=(1, 2, 3), seed=9)),
    ],
)
def test_full_changes_the_defaults_alone(words, expected):
    assert parse(words) == expected


def test_help_says_both_defaults(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "trainings (default: 5; with --full 20)" in said
    assert "sizes (default: 2,8)" in said
    assert "the record run" in said


@pytest.mark.parametrize("seed", ["-1", str(2**31), "100000000000000000000"])
def test_a_seed_is_small_and_not_negative(seed):
    with pytest.raises(ValueError, match=f"seed: got {seed}, expected at"):
        parse(f"--seed {seed}")
