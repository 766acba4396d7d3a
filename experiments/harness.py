"""What an experiment is, and how any of them is run from its options to its files."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from . import files, options


class Summary(NamedTuple):
    """What a run found."""

    lines: Sequence[str]  # printed
    numbers: Any = None  # of the summary's file; None: there is no such file
    exit_code: int = 0  # 1: not what was expected


class Experiment(NamedTuple):
    """One experiment: `run` measures, the rest are pure functions of what it found."""

    name: str  # python -m experiments NAME
    purpose: str  # one line of the list of experiments
    description: str | None  # what NAME --help says first: its first paragraph; None under python -OO
    config: type  # a frozen dataclass whose fields are the options; `out` is the folder of the results
    run: Callable[[Any, Callable[[str], None]], Any]  # (config, progress) -> results
    summarise: Callable[[Any, Any], Summary]  # (results, config) -> Summary
    plot: Callable[[Any, Path], None]  # (results, path): writes one figure
    float64: bool = True  # x64 is switched on
    keeps_arrays: bool = True  # results: {name: NamedTuple of arrays}, kept in arrays.npz beside config.json
    further_plots: Mapping[str, Callable[[Any, Path], None]] = MappingProxyType({})  # file: as `plot`
    summary_file: str = "summary.json"
    figure_file: str = "figure.png"


class Progress:
    """Lines on stderr with the seconds since the start."""

    def __init__(self):
        self.start = time.monotonic()

    def __call__(self, message: str) -> None:
        print(f"[{time.monotonic() - self.start:5.1f} s] {message}", file=sys.stderr, flush=True)


def run_experiment(experiment: Experiment, arguments: Sequence[str]) -> int:
    """Parse, run, write, print, plot; returns the exit code. What was measured is on the disk before it is drawn."""
    description = (experiment.description or experiment.purpose).split("\n\n")[0]
    config = options.parse(experiment.config, arguments, f"python -m experiments {experiment.name}", description)
    if experiment.float64:
        jax.config.update("jax_enable_x64", True)
    out, progress, written = Path(config.out), Progress(), []
    results = experiment.run(config, progress)
    summary = experiment.summarise(results, config)
    if experiment.keeps_arrays:
        files.write_results(out, config, results)
        written += ["config.json", "arrays.npz"]
    if summary.numbers is not None:
        files.write_json(out / experiment.summary_file, summary.numbers)
        written.append(experiment.summary_file)
    print("\n".join(summary.lines), flush=True)
    for file, plot in {experiment.figure_file: experiment.plot, **experiment.further_plots}.items():
        progress(Path(file).stem)
        plot(results, out / file)
        written.append(file)
    progress(f"wrote {', '.join(written[:-1])} and {written[-1]} to {out}")
    return summary.exit_code
