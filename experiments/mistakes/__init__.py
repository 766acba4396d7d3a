"""Mistakes of published recurrent code, each in a small version: what it does to the numbers, and what catches it.

Hypothesis: each of them runs without a word, is off by far more than rounding, and is caught by the check, or the exact
fact, that is named beside it; the same code without the mistake passes the same check.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import harness, options

from . import kernels, memories, slopes
from .figure import plot

MISTAKES = (*memories.ROWS, *slopes.ROWS, *kernels.ROWS)


@options.config
class Config:
    only: str | None = options.text("rows whose name has this part, such as LSTM", shown="all rows")
    seed: int = options.seed("seed of weights, inputs and losses")
    out: str = options.out("mistakes")


class Outcome(NamedTuple):
    """One mistake and its correct twin."""

    error: np.ndarray  # [] relative, of what is named by `about`; of a gradient, its worst leaf
    cosine: np.ndarray  # [] of the worst leaf with the right one; NaN where it is about something else
    caught: np.ndarray  # [] bool
    said: np.ndarray  # [] what the catcher said
    twin_error: np.ndarray  # []
    twin_passes: np.ndarray  # [] bool
    twin: np.ndarray  # [] what it does
    catcher: np.ndarray  # []
    about: np.ndarray  # []
    on_purpose: np.ndarray  # [] bool: the published code means it
    seconds: np.ndarray  # []


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Outcome]:
    """Every row and its twin, by the row's name (the caller enables x64)."""
    rows = [row for row in MISTAKES if config.only is None or config.only in row.name]
    if not rows:
        names = "; ".join(row.name for row in MISTAKES)
        raise ValueError(f"only: got {config.only!r}, expected a part of a row's name: {names}")
    key, twins = jax.random.key(config.seed), {}
    return {row.name: _compare(row, key, twins, progress) for row in rows}


def _compare(row, key, twins, progress):
    """`twins` keeps what correct twins gave, by catcher and name."""
    progress(row.name)
    start, of_twin = time.monotonic(), (row.catcher, row.twin)
    if of_twin not in twins:
        twins[of_twin] = row.look(key, False)
    wrong, right = row.look(key, True), twins[of_twin]
    outcome = Outcome(
        error=wrong.error,
        cosine=wrong.cosine,
        caught=not wrong.passes,
        said=wrong.said,
        twin_error=right.error,
        twin_passes=right.passes,
        twin=row.twin,
        catcher=row.catcher,
        about=row.about,
        on_purpose=row.on_purpose,
        seconds=time.monotonic() - start,
    )
    return Outcome(*map(np.asarray, outcome))


def summarise(results: dict[str, Outcome], config: Config) -> harness.Summary:
    """The table; 1 where a mistake is missed or a twin is not passed."""
    width, catchers = (max(map(len, words)) for words in (results, (str(row.catcher) for row in results.values())))
    lines = [f"{'mistake':{width}}  {'off by':>7}  {'cosine':>6}  {'twin':>7}  {'caught by':{catchers}}  which says"]
    for name, row in results.items():
        cosine = "" if np.isnan(row.cosine) else f"{row.cosine:+.3f}"
        caught = str(row.catcher) if row.caught else "MISSED"
        said = f"{row.said}{'' if row.twin_passes else '; TWIN NOT PASSED'}"
        said += " (on purpose in the published code)" if row.on_purpose else ""
        error = f"{row.error:7.1e}  {cosine:>6}  {row.twin_error:7.0e}"
        lines.append(f"{name:{width}}  {error}  {caught:{catchers}}  {row.about}: {said}")
    caught, passed = (sum(bool(getattr(row, key)) for row in results.values()) for key in ("caught", "twin_passes"))
    lines.append(f"{caught} of {len(results)} caught, {passed} of {len(results)} correct twins passed")
    judged = {name: {key: value.item() for key, value in row._asdict().items()} for name, row in results.items()}
    return harness.Summary(lines, judged, 0 if caught == passed == len(results) else 1)


EXPERIMENT = harness.Experiment(
    name="mistakes",
    purpose="mistakes of published recurrent code: what each does to the numbers, and what catches it",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="1.3 min",
    alt={
        "figure.png": (
            "One bar for each mistake of published code, its relative error on a logarithmic axis, coloured by which "
            "check catches it and labelled with its size; a circle on each bar shows the error of the correct twin, "
            "near 1e-16."
        ),
    },
)
