"""Every equation of the source notes judged by running it: holds, holds under a condition, fails (and what is right).

A row is one short function under `@identity` in a module of its subject. The residuals at random instances and at the
smallest counterexample decide the verdict; it stands beside the expected one.
"""

import importlib
import pkgutil
import re
from collections import Counter
from pathlib import Path
from typing import Any

from experiments import files, harness, options

SOURCES = {
    "S0": "exercise notes on RNN gradients",
    "S1": "chain-rule bookkeeping",
    "S2": "perceptron and RNN, forward and backward",
    "S3": "slides of equations 9.7.1 to 9.7.16",
    "S4": "tutorial solutions: Jacobians, expansions, powers, LSTM",
    "X": "statements the notes lean on",
}
VERDICTS = ("fails", "conditional", "holds")
WORDS = {"false": "fails", "true": "holds"}


@options.config
class Config:
    source: tuple = options.choices("all", SOURCES, "sources")
    id: tuple | None = options.texts("rows, such as S4.16,S0.9", shown="all")
    only: tuple = options.choices("all", (*VERDICTS, "undecided", *WORDS), "rows of these verdicts")
    out: str = options.out("identities")


def load() -> dict[str, Any]:
    """All rows, by id in the order of the notes; x64 must be on, because rows hold arrays."""
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    from .identity import REGISTRY

    def place(id):
        return list(SOURCES).index(re.match("S.|X", id)[0]), int(re.search(r"\d+$", id)[0])

    return {id: REGISTRY[id] for id in sorted(REGISTRY, key=place)}


def run(config: Config, progress: Any = lambda message: None) -> list[Any]:
    """Judge the rows of the config; a filter on the verdict comes after judging."""
    from .identity import judge

    rows = load()
    expected = f"a row such as 'S4.16' (there are {len(rows)})"
    asked = [options.match("id", id, rows, expected) for id in config.id or ()] or rows
    judgements = []
    for source in SOURCES:
        chosen = [row for id, row in rows.items() if row.source == source and id in asked]
        if chosen and source in config.source:
            progress(f"{source}: {len(chosen)} rows")
            judgements += map(judge, chosen)
    wanted = {WORDS.get(verdict, verdict) for verdict in config.only}
    return [judgement for judgement in judgements if judgement.verdict in wanted]


def record(judgement: Any) -> dict[str, Any]:
    """One row of identities.json."""
    row = judgement.identity
    return {
        "id": row.id,
        "source": row.source,
        "statement": row.statement,
        "latex": row.latex,
        "verdict": judgement.verdict,
        "expected": row.expected,
        "correct": row.correct,
        "correct_latex": row.correct_latex,
        "residual": judgement.residual,
        "residual_outside": judgement.residual_outside,
        "residual_corrected": judgement.residual_corrected,
        "residual_smallest": judgement.residual_smallest,
        "counterexample": row.counterexample,
    }


def table(judgements: list[Any]) -> str:
    """One line a row; residual off the condition behind the slash."""
    lines = [f"{'id':6} {'verdict':12} {'residual':>18}  statement"]
    for judgement in judgements:
        row, outside = judgement.identity, judgement.residual_outside
        residual = f"{judgement.residual:.0e}" + (f" / {outside:.0e}" if outside is not None else "")
        mark = "" if judgement.verdict == row.expected else f"  (expected: {row.expected})"
        lines.append(f"{row.id:6} {judgement.verdict:12} {residual:>18}  {row.statement}{mark}")
        if row.correct:
            lines.append(f"{'':39}  {'right' if judgement.verdict == 'fails' else 'when'}: {row.correct}")
    return "\n".join(lines)


def summarise(judgements: list[Any], config: Config) -> harness.Summary:
    """The table, the records, and whether every verdict is the expected one."""
    wrong = [judgement.identity.id for judgement in judgements if judgement.verdict != judgement.identity.expected]
    counts = Counter(judgement.verdict for judgement in judgements)
    lines = [table(judgements)]
    lines.append(f"{len(judgements)} rows: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts)))
    if wrong:
        lines.append(f"verdict differs from the expected one: {', '.join(wrong)}")
    return harness.Summary(lines, list(map(record, judgements)), exit_code=1 if wrong else 0)


def draw_page(judgements: list[Any], path: Path) -> None:
    """The rows as a page that needs no network."""
    from . import page

    text = page.render(list(map(record, judgements)), SOURCES)
    files.write_atomically(path, lambda file: file.write(text.encode()))


EXPERIMENT = harness.Experiment(
    name="identities",
    purpose="every equation of the source notes judged by running it",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=draw_page,
    keeps_arrays=False,
    summary_file="identities.json",
    figure_file="identities.html",
    takes="1.5 min",
    alt={
        "identities.html": (
            "Not a picture: a page with a card for each equation, with its verdict, its residual and what is right."
        ),
    },
)
