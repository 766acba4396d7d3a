"""The options of an experiment: each declared once with its bounds, which hold on the command line and in a Config.

    @options.config
    class Config:
        nets: int = options.size(4, "nets drawn at each gain", least=2)
        out: str = options.out("chaos")

`parse` reads a Config from the command line; `Config(nets=1)` and `--nets 1` get the same line, "nets: got 1, expected
at least 2". What depends on other options or on data is checked where it is known, by `require_size` and `match`.
"""

import argparse
import dataclasses
import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, dataclass_transform

LARGEST = 2**31 - 1  # integer: more is neither a seed nor an index in JAX's default int32
OF_THE_RUN = ("full", "out")  # options of every kind of experiment, shown apart from its own

T = TypeVar("T")


class Kind(NamedTuple):
    """What an option may be."""

    read: Callable[[str], Any] | None  # a word of the command line -> value, ValueError if it is none; None: a flag
    check: Callable[[str, Any], Any]  # (name, value) -> the value as it is kept; one line of error if it may not be
    what: str  # an option of this kind, in words
    placeholder: str  # in --help
    bounds: str = ""  # in --help


def size(default: Any, help: str, *, least: int = 1, most: int = LARGEST, full: Any = None, shown: Any = None) -> Any:
    """An integer; `full` is the default of the record run (--full), `shown` what --help says of None; so below."""
    return _field(_integer(least, most), default, help, full=full, shown=shown)


def sizes(default: tuple[int, ...], help: str, *, least: int = 1, most: int = LARGEST) -> Any:
    """Integers, no two alike."""
    return _field(_list_of(_integer(least, most), "integers"), default, help)


def seed(help: str = "seed of everything random") -> Any:
    """Of a random key."""
    return size(0, help, least=0)


def number(
    default: float, help: str, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> Any:
    """A finite float."""
    ends = {"above": above, "at least": least, "at most": most}
    bounds = ", ".join(f"{end} {value:g}" for end, value in ends.items() if math.isfinite(value))

    def check(name, value):
        if isinstance(value, bool | str) or not hasattr(value, "__float__"):
            raise TypeError(f"{name}: got {_shorten(value)}, expected a number")
        if not (math.isfinite(value) and above < value <= most and value >= least):
            raise ValueError(f"{name}: got {value}, expected a finite number {bounds}".rstrip())
        return float(value)

    return _field(Kind(float, check, "a number", "X", bounds), default, help)


def choice(default: Any, names: Collection[Any], help: str) -> Any:
    """One of these."""
    return _field(_one_of(tuple(names)), default, help)


def choices(default: str, names: Collection[str], help: str, *, full: str | None = None) -> Any:
    """Some of these in the order given, or "all": a tuple, however it was said."""
    known, bounds = tuple(names), f"some of {', '.join(names)}; or all"
    some = _list_of(_one_of(known, bounds), "names")

    def check(name, value):
        given = tuple(value.split(",")) if isinstance(value, str) else value
        return known if given == ("all",) else some.check(name, given)

    return _field(some._replace(check=check, bounds=bounds), default, help, full=full)


def flag(help: str) -> Any:
    """False unless it is said."""
    return _field(Kind(None, partial(match, known=(False, True)), "a flag", ""), False, help)


def text(help: str, *, shown: str) -> Any:
    """Words; `shown` is what --help says of the default, None."""
    return _field(_words("some text", "TEXT"), None, help, shown=shown)


def texts(help: str, *, shown: str) -> Any:
    """Several of them, no two alike."""
    return _field(_list_of(_words("some text", "TEXT"), "words"), None, help, shown=shown)


def file(help: str, *, shown: str) -> Any:
    """A file that is read: what it holds is part of what a run is. By default None, of which `shown` is told."""
    return _field(_words("a file", "FILE"), None, help, shown=shown, file=True)


def out(experiment: str) -> Any:
    """The folder of the results."""
    return _field(_words("a folder", "FOLDER"), f"results/{experiment}", "folder of the results")


@dataclass_transform(frozen_default=True)
def config(options: type[T]) -> type[T]:
    """A frozen dataclass of such fields, each checked when one is made and kept in one form (a tuple, a known name)."""

    def check_all(self):
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.metadata["kind"]
            kept = None if value is field.default is None else kind.check(field.name, value)
            object.__setattr__(self, field.name, kept)

    options.__post_init__ = check_all
    return dataclasses.dataclass(frozen=True)(options)


def parse(config_type: type, arguments: Sequence[str], prog: str, description: str) -> Any:
    """A Config from the command line."""
    return parse_with(config_type, None, arguments, prog, description)[0]


def parse_with(
    config_type: type, run_type: type | None, arguments: Sequence[str], prog: str, description: str
) -> tuple[Any, Any]:
    """A Config, and what says how to run it: another type under `config`, or None.

    Raises:
      ValueError, TypeError: one line.
    """
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [options]",
        description=description,
        formatter_class=partial(argparse.HelpFormatter, max_help_position=27),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    of_experiment, of_run = map(parser.add_argument_group, ("of the experiment", "of the run"))
    types = {config_type: of_experiment} | ({run_type: of_run} if run_type else {})
    names = ["--help"]
    for field, group in ((field, group) for each, group in types.items() for field in dataclasses.fields(each)):
        kind, where = field.metadata["kind"], of_run if field.name in OF_THE_RUN else group
        words = {"metavar": kind.placeholder} if kind.read else {"action": "store_true"}
        names.append("--" + field.name.replace("_", "-"))
        where.add_argument(names[-1], help=_explain(field).replace("%", "%%"), **words)
    of_run.add_argument("-h", "--help", action="help", help="show this and stop")
    found, rest = parser.parse_known_args(_join_values(arguments))
    if rest:
        raise ValueError(_name_stranger(rest, names))
    made = [each(**{field.name: _read(field, vars(found)) for field in dataclasses.fields(each)}) for each in types]
    return made[0], made[1] if run_type else None


def match(name: str, value: Any, known: Collection[Any], expected: str | None = None) -> Any:
    """The one of `known` that is meant: case does not count, and spaces, "_" and "-" are alike.

    Raises:
      ValueError: there is none; the line says what is expected (`known`, if not told) and what comes near.
    """
    folded = {_fold(each): each for each in known}
    if _fold(value) in folded:
        return folded[_fold(value)]
    near = nearest(value, known) if isinstance(value, str) else None
    guess = "" if near is None else f", did you mean {near!r}?"
    raise ValueError(f"{name}: got {_shorten(value)}, expected {expected or _any_of(known)}{guess}")


def nearest(word: Any, known: Collection[Any]) -> Any:
    """The one of `known` that is spelt most like `word`; None if none is."""
    folded = {_fold(each): each for each in known}
    found = difflib.get_close_matches(_fold(word), folded, n=1)
    return folded[found[0]] if found else None


def require_size(name: str, value: Any, *, least: int = 1, most: int = LARGEST) -> int:
    """`value` as an int; raises unless it is an integer of at least `least`, at most `most`."""
    try:
        kept = operator.index(value)
    except TypeError:
        kept = None
    if kept is None or isinstance(value, bool):
        raise TypeError(f"{name}: got {_shorten(value)}, expected an integer")
    if not least <= kept <= most:
        bound = f"at least {least}" if kept < least else f"at most {most}"
        raise ValueError(f"{name}: got {_shorten(kept)}, expected {bound}")
    return kept


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message.removeprefix('argument ')} (--help lists the options)")


def _field(kind, default, help, **words):
    metadata = {"kind": kind, "help": help} | {key: value for key, value in words.items() if value is not None}
    return dataclasses.field(default=default, metadata=metadata)


def _integer(least, most):
    end = f", at most {most}" if most < LARGEST else ""
    return Kind(int, partial(require_size, least=least, most=most), "an integer", "N", f"at least {least}{end}")


def _one_of(names, words=None):
    words, read = words or _any_of(names), type(names[0])
    return Kind(read, partial(match, known=names, expected=words), words, "NAME" if read is str else "X", words)


def _list_of(item, what):
    def check(name, values):
        if not (isinstance(values, tuple | list) and values):
            raise TypeError(f"{name}: got {_shorten(values)}, expected a tuple of {what}")
        kept = tuple(item.check(name, value) for value in values)
        if len(set(kept)) < len(kept):
            raise ValueError(f"{name}: got {_say(kept)}, expected no value twice")
        return kept

    read = lambda text: tuple(item.read(part) for part in text.split(","))
    bounds = f"each {item.bounds}" if item.bounds else ""
    return Kind(read, check, f"{what} with commas between them", f"{item.placeholder},…", bounds)


def _words(what, placeholder):
    def check(name, value):
        if not (isinstance(value, str) and value.strip()):
            raise (ValueError if isinstance(value, str) else TypeError)(f"{name}: got {value!r}, expected {what}")
        return value

    return Kind(str, check, what, placeholder)


def _read(field, given):
    """What was given; else the default, under --full that of the record run."""
    name, kind = field.name, field.metadata["kind"]
    if name not in given:
        return field.metadata.get("full", field.default) if given.get("full") else field.default
    try:
        return given[name] if kind.read is None else kind.read(given[name])
    except ValueError:
        raise ValueError(f"{name}: got {_shorten(given[name])}, expected {kind.what}") from None


def _explain(field):
    """An option's line of --help."""
    kind, words = field.metadata["kind"], field.metadata
    if kind.read is None:
        return words["help"]
    default = words.get("shown", _say(field.default)) + (f"; with --full {words['full']}" if "full" in words else "")
    return f"{words['help']}{'; ' if kind.bounds else ''}{kind.bounds} (default: {default})"


def _join_values(arguments):
    """`--name -1,2` as `--name=-1,2`: else argparse takes what begins with "-" for an option."""
    joined: list[str] = []
    for word in arguments:
        if joined and joined[-1].startswith("--") and re.match(r"-(\d|\.\d|inf|nan)", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _name_stranger(rest, names):
    """What cannot be placed, in words."""
    word = next((word for word in rest if word.startswith("-")), rest[0]).partition("=")[0]
    near = nearest(word, names) if word.startswith("--") else None
    what = f"unrecognized option {word}" if word.startswith("-") else f"unexpected word {_shorten(word)}"
    return f"{what}{'' if near is None else f', did you mean {near}?'} (--help lists the options)"


def _say(value):
    if isinstance(value, tuple):
        return ",".join(map(_say, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _any_of(known):
    *others, last = map(str, known)
    return f"{', '.join(others)} or {last}" if others else last


def _fold(name):
    return re.sub(r"[\s_-]+", "-", str(name).lower()).strip("-")


def _shorten(value):
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:50]}…{said[-5:]}"
