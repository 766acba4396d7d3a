"""What an experiment is, and how any of them is run from its options to its files."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from experiments import files, interrupts, options

from . import compiled, folder, hosts, record, supervisor
from .asked import RunOptions, SpreadOptions, find_group, refuse_spread
from .hosts import Gone
from .points import Traced
from .progress import QUIET, Progress, Quiet, describe_points
from .supervisor import GONE

__all__ = ["GONE", "QUIET", "Experiment", "Gone", "Progress", "Quiet", "Summary", "Traced", "run_experiment"]

CONFIG, ARRAYS = "config.json", "arrays.npz"
SPREAD = "vanishing and chaos"  # the experiments that are


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
    spread: bool = False  # its sweeps are of traced functions alone: --devices and several processes
    takes: str = ""  # run time of the default run on two cores, e.g. "20 s"
    alt: Mapping[str, str] = MappingProxyType({})  # file of each figure: what is seen, for those who cannot see it

    @property
    def plots(self) -> Mapping[str, Callable[[Any, Path], None]]:
        return {self.figure_file: self.plot, **self.further_plots}


def run_experiment(experiment: Experiment, arguments: Sequence[str]) -> int:
    """Parse, look at the folder, run, draw, put the results in their place, print; returns the exit code."""
    description = (experiment.description or experiment.purpose).split("\n\n")[0]
    prog = f"python -m experiments {experiment.name}"
    if not experiment.spread:
        refuse_spread(experiment.name, arguments, SPREAD)
    kind = SpreadOptions if experiment.spread else RunOptions
    config, asked = options.parse_with(experiment.config, kind, arguments, prog, description)
    group = find_group(asked) if experiment.spread else hosts.ALONE
    together = experiment.spread and asked.coordinator is not None
    if together and not supervisor.is_worker():
        address, out = asked.coordinator, Path(config.out)
        return supervisor.supervise(experiment.name, arguments, address, group, asked.timeout, out)
    if experiment.float64:
        jax.config.update("jax_enable_x64", True)
    if experiment.keeps_compiled and not asked.no_cache:
        compiled.keep_compiled()
    hosts.make_cpu_devices(group.devices, os.environ.get("XLA_FLAGS", ""))
    if together:
        supervisor.begin_work()
        hosts.join(asked.coordinator, group, asked.timeout)
        supervisor.report(supervisor.MET)
    identity, machine = record.identify(experiment.name, config), record.describe_machine()
    problem = hosts.lacks_devices(group.devices)
    if together:
        hosts.agree(group, identity, problem)
        supervisor.report(supervisor.AGREED)
    elif problem:
        raise ValueError(problem)
    if group.process_id:
        return _take_part(experiment, config, group)
    known = (CONFIG, ARRAYS, experiment.summary_file, *experiment.plots)
    try:
        place = folder.begin(Path(config.out), identity, known, resume=asked.resume, force=asked.force)
    except (ValueError, OSError, folder.Finished) as error:
        hosts.tell(group, json.dumps([str(error), getattr(error, "exit_code", 2)]).encode())
        if not isinstance(error, folder.Finished):
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    interrupts.describe_with(lambda: describe_points(place.partial) or folder.discard(place) or "")
    try:
        hosts.tell(group)
        facts = {**identity, **machine, "processes": group.processes, "devices": group.places}
        summary, failure = _run(experiment, config, facts, place, group)
    except BaseException as error:
        error.add_note(describe_points(place.partial))
        raise
    finally:
        folder.leave(place)
    print("\n".join(summary.lines), flush=True)  # only now: nobody may be reading
    if failure is not None:
        raise failure
    return summary.exit_code


def _take_part(experiment, config, group):
    """Compute with the others, as a process that keeps nothing."""
    if said := hosts.tell(group):
        line, code = json.loads(said)
        if code == 2:
            raise ValueError(f"process 0 ends: {line}")
        print(f"process 0 ends: {line}", file=sys.stderr)
        return code
    start, which = time.monotonic(), f"process {group.process_id} of {group.processes}"
    print(f"[{0:5.1f} s] {which} computes its share; process 0 keeps the results", file=sys.stderr)
    experiment.run(config, Progress(Path(), group))
    hosts.leave()
    print(f"[{time.monotonic() - start:5.1f} s] {which} has done its share", file=sys.stderr)
    return 0


def _run(experiment, config, facts, place, group):
    """(summary, what went wrong while drawing); the results are in their place."""
    progress, start, staged = Progress(place.points, group), time.monotonic(), place.staged
    results = experiment.run(config, progress)
    if facts["processes"] > 1:
        hosts.leave()
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
