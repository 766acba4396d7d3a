"""The results of finished runs as one page that needs no network, and the reference of the library beside it.

`python -m experiments report [FOLDER]` reads FOLDER/*/run.json, the record that every run leaves last.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import files, harness

from . import page, reference, runs


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message} (--help lists the options)")


def main(arguments: Sequence[str], experiments: Mapping[str, harness.Experiment]) -> int:
    """Collect, write the reference and the page, say where.

    Raises:
      ValueError: an unknown option; no folder, or no finished run in it. Nothing is written then.
      OSError: the page cannot be written.
    """
    about = (__doc__ or "").split("\n\n")[0]  # none under python -OO
    parser = _Parser(prog="python -m experiments report", description=about, allow_abbrev=False)
    parser.add_argument("folder", nargs="?", default="results", help="folder of the runs (default: results)")
    parser.add_argument("--out", help="the page (default: FOLDER/index.html)")
    parser.add_argument("--no-api", action="store_true", help="leave the reference of the library out")
    options = parser.parse_args(arguments)
    folder = Path(options.folder)
    out = Path(options.out) if options.out else folder / "index.html"
    found, refused = runs.collect(folder, list(experiments))
    if not options.no_api and reference.is_possible():
        print(f"reference of the library: {reference.write(folder / 'api')}", file=sys.stderr, flush=True)
    text = page.render(found, refused, experiments, out.parent, folder / "api" / "index.html", options.no_api)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(out, lambda file: file.write(text.encode()))
    print(f"{out}: {len(found)} runs" + (f", {len(refused)} folders left out" if refused else ""))
    return 0
