"""A Config from the command line, and what its values may be: one line that names the option, what came, what may."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

LARGEST_SEED = 2**31 - 1


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def parse(config_type: type, arguments: Sequence[str], prog: str, description: str) -> Any:
    """A Config from the command line; a field's metadata gives its help, choices and other argparse words.

    A field that is False is a flag. "full" in the metadata is the default under --full, the flag of the record run.
    """
    return parse_with(config_type, None, arguments, prog, description)[0]


def parse_with(config_type, run_type, arguments, prog, description):
    parser = _OneLineParser(prog=prog, description=description, allow_abbrev=False)
    for field in (*dataclasses.fields(config_type), *(dataclasses.fields(run_type) if run_type else ())):
        words, default = dict(field.metadata), field.default
        words.pop("file", None)
        shown, full = words.pop("shown", default), words.pop("full", default)
        if default is False:
            words["action"] = "store_true"
        else:
            words["help"] += f" (default: {shown}{'' if full == default else f'; with --full {full}'})"
            words.setdefault("type", str if default is None else type(default))
        chosen = full if "--full" in arguments else default
        parser.add_argument("--" + field.name.replace("_", "-"), default=chosen, **words)
    values = vars(parser.parse_args(arguments))
    asked = run_type(**{f.name: values.pop(f.name) for f in dataclasses.fields(run_type)}) if run_type else None
    config = config_type(**values)
    if hasattr(config, "seed"):
        require_size("seed", config.seed, least=0, most=LARGEST_SEED)
    return config, asked


def integers(text: str) -> tuple[int, ...]:
    """ "1,32" as numbers: the type of an option."""
    return tuple(int(part) for part in text.split(","))


def require_size(name: str, value: Any, *, least: int = 1, most: int | None = None) -> None:
    """Raise unless `value` is an int of at least `least`, at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an int")
    if value < least:
        raise ValueError(f"{name}: got {value}, expected at least {least}")
    if most is not None and value > most:
        raise ValueError(f"{name}: got {value}, expected at most {most}")


def require_finite(name: str, value: float) -> None:
    """Raise unless `value` is finite."""
    if not math.isfinite(value):
        raise ValueError(f"{name}: got {value}, expected a finite number")


def require_positive(name: str, value: float) -> None:
    """Raise unless `value` is finite and above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value}, expected a finite number above 0")


def require_probability(name: str, value: float) -> None:
    """Raise unless `value` lies in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{name}: got {value}, expected a number in (0, 1]")
