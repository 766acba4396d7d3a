"""What an experiment is, and how any of them is run from its options to its files."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from experiments import files, interrupts, options

from . import compiled, folder, record
from .progress import QUIET, Progress, Quiet

__all__ = ["QUIET", "Experiment", "Progress", "Quiet", "Summary", "run_experiment"]

CONFIG, ARRAYS = "config.json", "arrays.npz"


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
    run: Callable[[Any, Any], Any]  # (config, progress) -> results; progress: a `Progress` or `QUIET`
    summarise: Callable[[Any, Any], Summary]  # (results, config) -> Summary
    plot: Callable[[Any, Path], None]  # (results, path): writes one figure
    float64: bool = True  # x64 is switched on
    keeps_arrays: bool = True  # results: {name: NamedTuple of arrays}, kept in arrays.npz beside config.json
    keeps_compiled: bool = True  # by the compilation cache; False where compiling is measured
    further_plots: Mapping[str, Callable[[Any, Path], None]] = MappingProxyType({})  # file: as `plot`
    summary_file: str = "summary.json"
    figure_file: str = "figure.png"
    takes: str = ""  # run time of the default run on two cores, e.g. "20 s"
    alt: Mapping[str, str] = MappingProxyType({})  # file of each figure: what is seen, for those who cannot see it

    @property
    def plots(self) -> Mapping[str, Callable[[Any, Path], None]]:
        return {self.figure_file: self.plot, **self.further_plots}


@options.config
class RunOptions:
    resume: bool = options.flag("continue an unfinished run of the same options")
    force: bool = options.flag("replace a finished run; begin an unfinished one anew")
    no_cache: bool = options.flag("compile anew: leave the compilation cache alone")


def run_experiment(experiment: Experiment, arguments: Sequence[str]) -> int:
    """Parse, look at the folder, run, draw, put the results in their place, print; returns the exit code."""
    description = (experiment.description or experiment.purpose).split("\n\n")[0]
    prog = f"python -m experiments {experiment.name}"
    config, asked = options.parse_with(experiment.config, RunOptions, arguments, prog, description)
    if experiment.float64:
        jax.config.update("jax_enable_x64", True)
    if experiment.keeps_compiled and not asked.no_cache:
        compiled.keep_compiled()
    identity, machine = record.identify(experiment.name, config), record.describe_machine()
    known = (CONFIG, ARRAYS, experiment.summary_file, *experiment.plots)
    try:
        place = folder.begin(Path(config.out), identity, known, resume=asked.resume, force=asked.force)
    except folder.Finished as finished:
        print(finished, file=sys.stderr)
        return finished.exit_code
    interrupts.describe_with(lambda: _describe_points(place) or folder.discard(place) or "")
    try:
        summary, failure = _run(experiment, config, {**identity, **machine}, place)
    except BaseException as error:
        error.add_note(_describe_points(place))
        raise
    finally:
        folder.leave(place)
    print("\n".join(summary.lines), flush=True)  # only now: nobody may be reading
    if failure is not None:
        raise failure
    return summary.exit_code


def _run(experiment, config, facts, place):
    """(summary, what went wrong while drawing); the results are in their place."""
    progress, start, staged = Progress(place.points), time.monotonic(), place.staged
    results = experiment.run(config, progress)
    summary = experiment.summarise(results, config)
    staged.mkdir(parents=True)
    if experiment.keeps_arrays:
        files.write_results(staged, config, results)
    if summary.numbers is not None:
        files.write_json(staged / experiment.summary_file, summary.numbers)
    failure = None
    for file, plot in experiment.plots.items():
        progress(Path(file).stem)
        try:
            plot(results, staged / file)
        except Exception as error:  # what was measured is kept all the same
            failure = error
    written = sorted(path.name for path in staged.iterdir())
    facts = {
        **facts,
        "seconds": progress.seconds_before + time.monotonic() - start,
        "peak_memory_bytes": record.peak_memory(),
        "lines": list(summary.lines),
        "exit_code": summary.exit_code if failure is None else 2,
        "failure": None if failure is None else str(failure),
        "files": {name: record.hash_file(staged / name) for name in written},
    }
    folder.commit(place, facts)
    progress(f"wrote {', '.join(written)} and {folder.RECORD} to {place.out}")
    return summary, failure


def _describe_points(place):
    """What is kept of an unfinished run, for the end of a line."""
    count = folder.count_points(place)
    what = "1 point is" if count == 1 else f"{count} points are"
    return f"; {what} kept in {place.partial} (--resume continues)" if count else ""
