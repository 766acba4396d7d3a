"""python -m experiments [NAME] [options]: run an experiment; without a name, the main job."""

import importlib
import sys
from typing import Any

from . import interrupts

NAMES = (
    "xray",
    "identities",
    "lstm_memory",
    "perturbation",
    "vanishing",
    "chaos",
    "precision",
    "truncation",
    "benchmark",
    "online",
    "memory",
    "delta",
    "gates",
    "parallel",
    "mistakes",
    "training",
    "credit",
    "flossing",
    "forcing",
    "isometry",
)
MAIN_JOB = "xray"


def find_experiment(name: str) -> Any:
    """The `EXPERIMENT` of the module of that name."""
    return importlib.import_module(f"{__package__}.{name}").EXPERIMENT


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help", "list"):
        print("python -m experiments [NAME] [options]; NAME --help lists its options; no NAME: " + MAIN_JOB)
        for name in NAMES:
            print(f"  {name:12} {find_experiment(name).purpose}")
        return 0
    named = bool(arguments) and not arguments[0].startswith("-")
    name, options = (arguments[0], arguments[1:]) if named else (MAIN_JOB, arguments)
    if name not in NAMES:
        print(f"experiments: unknown experiment {name!r}, expected one of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"{__package__}.harness").run_experiment(find_experiment(name), options)
    except (ValueError, TypeError, OSError) as error:
        print(f"experiments {name}: {error}{''.join(getattr(error, '__notes__', ()))}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    interrupts.watch("experiments")
    sys.exit(main(sys.argv[1:]))
