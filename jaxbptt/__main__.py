"""python -m jaxbptt: an x-ray or a verification of a model of yours; the version, and an overview of the modules."""

import argparse
import difflib
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxbptt import __doc__ as overview
from jaxbptt import __version__

USAGE = """usage: python -m jaxbptt xray FILE.py:FUNCTION [--out FOLDER] [--x64]
       python -m jaxbptt verify FILE.py:FUNCTION [--x64]
       python -m jaxbptt [--help | --version]

FUNCTION() returns (model, params, inputs, targets), or (adapted, inputs, targets) with what an adapter gave."""
SUMMARY = "summary.json"
EXPECTED = "(model, params, inputs, targets) or (adapted, inputs, targets)"


class Unusable(Exception):
    """A subject that cannot be loaded; the message is one line."""


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Unusable(f"{message} (--help lists the options)")


def main(arguments: list[str] | None = None) -> int:
    """Run `xray` or `verify` on what a function in a file returns, or print the version or the overview of the modules.

    Args:
      arguments: the words of the command line; None: those of this process.

    Returns:
      The exit code: 0 (proved, verified), 1 (not so), 2 (what was asked cannot be done; one line says why),
      130 (interrupted), or 141 (nobody reads what is printed, as in `| head -1`).
    """
    try:
        try:
            return _obey(sys.argv[1:] if arguments is None else arguments)
        finally:  # also after --help, which exits
            sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):  # the interpreter flushes both when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141


def run() -> NoReturn:
    """End this process with the exit code of `main`: what the command `jaxbptt` calls.

    Returns:
      Never.
    """
    code = main()
    if code == 130:
        os._exit(code)  # JAX may compute on in a thread of its own, under which an ordinary end crashes
    sys.exit(code)


def _obey(given):
    if given == ["--version"]:
        sys.stdout.write(f"jaxbptt {__version__}\n")
        return 0
    if given in ([], ["-h"], ["--help"]):
        sys.stdout.write(f"{USAGE}\n\n{overview}\n")
        return 0
    if given[0] not in ("xray", "verify"):
        near = _nearest(given[0], ("xray", "verify", "--help", "--version"))
        expects = f"got {given[0]!r}, expected xray, verify, --help or --version"
        guess = f"unknown command {given[0]!r}, did you mean {near!r}? (--help shows all)"
        sys.stderr.write(f"jaxbptt: {expects if near is None else guess}\n")
        return 2
    try:
        return _run(given[0], given[1:])
    except KeyboardInterrupt:
        sys.stderr.write(f"jaxbptt {given[0]}: interrupted\n")
        return 130
    except BrokenPipeError:
        raise
    except (Unusable, ValueError, TypeError, OSError) as error:
        sys.stderr.write(f"jaxbptt {given[0]}: {str(error).partition(chr(10))[0]}\n")
        return 2


def _parse(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = _OneLineParser(prog=f"python -m jaxbptt {command}", usage=USAGE, allow_abbrev=False)
    parser.add_argument("subject", metavar="FILE.py:FUNCTION")
    parser.add_argument("--x64", "--float64", action="store_true", help="enable float64 before the file is loaded")
    if command == "xray":
        parser.add_argument("--out", metavar="FOLDER", help="default: results/xray-FUNCTION")
    options, strangers = parser.parse_known_args(arguments)
    misspelt = [word.partition("=")[0] for word in strangers if word.startswith("-")]
    if misspelt:
        near = _nearest(misspelt[0], ("--help", "--x64", "--float64") + (("--out",) if command == "xray" else ()))
        parser.error(f"unrecognized option {misspelt[0]}" + (f", did you mean {near}?" if near else ""))
    if strangers:
        parser.error(f"unexpected word {strangers[0]!r}")
    return options


def _run(command: str, arguments: Sequence[str]) -> int:
    options = _parse(command, arguments)
    if options.x64:
        import jax

        jax.config.update("jax_enable_x64", True)
    subject = load_subject(options.subject)
    if command == "verify":
        verdict = importlib.import_module("jaxbptt.report").verify(*subject)
        sys.stdout.write(f"{verdict}\n")
        return 0 if verdict.ok else 1
    out = Path(options.out or f"results/xray-{options.subject.rpartition(':')[2]}")
    _try_to_write(out)  # before the work
    found = importlib.import_module("jaxbptt.report").xray(*subject)  # only now: it takes a second to import
    sys.stdout.write(f"{found}\n")
    sys.stdout.flush()
    _save(found, out)
    sys.stdout.write(f"Wrote arrays.npz, summary.json and figure.png to {out}.\n")
    return 0 if found.summary["proved"] else 1


def _nearest(word, known):
    """The one of `known` that is spelt most like `word`, dashes aside; None if none is."""
    plain = {each.strip("-"): each for each in known}
    return next((plain[each] for each in difflib.get_close_matches(word.strip("-"), plain, n=1)), None)


def _try_to_write(out):
    """Raise where a folder cannot be made or written; nothing is left there."""
    place = _nearest_there(out)
    if not place.is_dir():
        raise Unusable(f"--out {out}: {place} is no folder")
    for name in ("arrays.npz", SUMMARY, "figure.png"):
        if (out / name).is_dir():
            raise Unusable(f"--out {out}: {out / name} is a folder")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**20))
    except OSError as error:
        raise Unusable(f"--out {out}: cannot write in {place}: {error.strerror or error}") from error


def _save(found, out):
    """All files or, where one fails, none; as by `XRay.save`, where summary.json is, all are of one report."""
    try:
        with tempfile.TemporaryDirectory(dir=_nearest_there(out), prefix=".xray-") as aside:
            found.save(aside)
            out.mkdir(parents=True, exist_ok=True)
            (out / SUMMARY).unlink(missing_ok=True)
            for file in sorted(Path(aside).iterdir(), key=lambda file: file.name == SUMMARY):
                file.replace(out / file.name)
    except OSError as error:
        raise Unusable(f"--out {out}: {error.strerror or error}") from error


def _nearest_there(path):
    """The path, or the nearest of its parents that is there."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def load_subject(place: str) -> tuple[Any, Any, Any, Any]:
    """(model, params, inputs, targets) from "FILE.py:FUNCTION".

    Args:
      place: a path and the name of a function in that file that takes no arguments.

    Returns:
      What the function returned, an adapted model in its two parts.

    Raises:
      Unusable: no such file or function, one that raises, or a result of another kind.
    """
    path, colon, name = place.rpartition(":")
    if not colon or not path or not name:
        raise Unusable(f"got {place!r}, expected FILE.py:FUNCTION")
    if not Path(path).is_file():
        raise Unusable(f"{path}: no such file")
    module = _load(Path(path))
    function = getattr(module, name, None)
    if not callable(function):
        raise Unusable(f"{path}: has no function {name!r}")
    try:
        returned = function()
    except (Exception, SystemExit) as error:
        raise Unusable(f"{name}() raised {_in_one_line(error)}") from error
    return _take(name, returned)


def _load(path):
    """The module in a file; what it imports from beside it is found, as if it were run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Unusable(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickles look their module up by its name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise Unusable(f"{path}: raised {_in_one_line(error)} while it was loaded") from error
    return module


def _take(name, returned):
    if isinstance(returned, tuple) and len(returned) == 4:
        return returned
    if isinstance(returned, tuple) and len(returned) == 3 and hasattr(returned[0], "model"):
        adapted, inputs, targets = returned
        return adapted.model, adapted.params, inputs, targets
    got = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else type(returned).__name__
    raise Unusable(f"{name}() returned {got}, expected {EXPECTED}")


def _in_one_line(error):
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


if __name__ == "__main__":
    run()
