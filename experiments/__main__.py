"""python -m experiments [NAME] [options]: run an experiment; without a name, the main job."""

import importlib
import os
import sys
import textwrap
from typing import Any

from . import interrupts, one_run

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
    "estimators",
)
MAIN_JOB = "xray"
COMMANDS = {"report": "the results of all runs as one page, and the reference of the library"}  # they measure nothing


def find_experiment(name: str) -> Any:
    """The `EXPERIMENT` of the module of that name."""
    return importlib.import_module(f"{__package__}.{name}").EXPERIMENT


def main(arguments: list[str]) -> int:
    """The exit code: of the experiment; each in one line 2: it cannot be done, 3: a process is gone, 130: interrupted.

    141: nobody reads.

    The last is what other tools give where a pipe is closed, as in `| head -1`.
    """
    try:
        try:
            return _run(arguments)
        finally:  # also after --help, which exits
            sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):  # the interpreter flushes both when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141


def run_command(arguments: list[str]) -> None:
    """`main` as a program: it listens to signals and ends the process."""
    interrupts.fill_closed_streams()
    interrupts.watch("experiments")
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks λ
    sys.stderr.reconfigure(errors="replace")
    if _asks_for_main_job(arguments):
        one_run.compile_sooner(os.environ)
        one_run.keep_garbage()
    code = main(arguments)
    if code in (130, 3) or "JAXBPTT_WORKER" in os.environ:
        os._exit(code)  # JAX may compute on in a thread of its own, under which an ordinary end crashes, or wait there
    sys.exit(code)


def _run(arguments):
    # On small matrices LAPACK's threads wait for each other longer than they work. It reads this when it is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Only now: these take a second, in which Ctrl-C is to be one line, too.
    import jaxbptt

    from . import harness, options

    if arguments and arguments[0] in ("-h", "--help", "list"):
        print("python -m experiments [NAME] [options]; NAME --help lists its options; no NAME: " + MAIN_JOB)
        rows = [(name, find_experiment(name).takes, find_experiment(name).purpose) for name in NAMES]
        for name, takes, purpose in (*rows, *((name, "", purpose) for name, purpose in COMMANDS.items())):
            start = f"  {name:12} {takes:>7}  "
            print(textwrap.fill(purpose, 80, initial_indent=start, subsequent_indent=" " * len(start)))
        return 0
    if arguments == ["--version"]:
        print(f"jaxbptt {jaxbptt.__version__}")
        return 0
    named = _names_an_experiment(arguments)
    given, words = (arguments[0], arguments[1:]) if named else (MAIN_JOB, arguments)
    known = (*NAMES, *COMMANDS)
    try:
        name = options.match("experiment", given, known)
    except ValueError:
        near = options.nearest(given, known)
        guess = f"expected one of {', '.join(known)}" if near is None else f"did you mean {near!r}? (list shows all)"
        print(f"experiments: unknown experiment {given!r}, {guess}", file=sys.stderr)
        return 2
    try:
        if name in COMMANDS:
            experiments = {each: find_experiment(each) for each in NAMES}
            return importlib.import_module(f"{__package__}.{name}").main(words, experiments)
        return harness.run_experiment(find_experiment(name), words)
    except BrokenPipeError:
        raise
    except harness.Gone as error:
        print(f"experiments {name}: {error}{''.join(getattr(error, '__notes__', ()))}", file=sys.stderr)
        return harness.GONE
    except (ValueError, TypeError, OSError) as error:
        print(f"experiments {name}: {error}{''.join(getattr(error, '__notes__', ()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"experiments {name}: interrupted{''.join(getattr(error, '__notes__', ()))}", file=sys.stderr)
        return 130


def _names_an_experiment(arguments):
    return bool(arguments) and not arguments[0].startswith("-")


def _asks_for_main_job(arguments):
    return not _names_an_experiment(arguments) or arguments[0] == MAIN_JOB


if __name__ == "__main__":
    run_command(sys.argv[1:])
