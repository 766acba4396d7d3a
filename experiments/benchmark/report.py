"""The rows as a table for the terminal, 120 columns at most."""

import textwrap
from collections.abc import Collection, Sequence
from typing import Any

from . import floors

SPREAD = 1.25  # of the upper quartile over the lower: beyond it a measurement is marked as noisy
QUIET = 0.5  # load for each core before the run, above which other work is mentioned
CANNOT_TELL = "cannot tell"
MEANINGS = {  # of the marks, in the order of their columns
    "~": f"noisy: of the rounds, the quartiles are more than a factor {SPREAD:g} apart; other work shares the machine",
    "!": "the two printed times, medians of all rounds, have another ratio, outside the quartiles of the pairs: the"
    " machine changed its speed during the rounds; of the two, trust the pairs, which are neighbours in time",
    "^": "above the roofline, which nothing can be: the products that it is measured with were disturbed more than this"
    " row, or had fewer threads",
    CANNOT_TELL: "which is faster: the quartiles of the pairs lie on both sides of 1",
}


def render(results: dict[str, Any]) -> str:
    """Every suite with its rows; times are medians, ratios medians of pairs (their quartiles); then what marks mean."""
    environment = results["environment"]
    lines = _head(environment) + _without_peers(results)
    tables = dict.fromkeys((row["suite"], row["dtype"]) for row in results["rows"])
    marks = set()
    for suite, dtype in tables:
        rows = [row for row in results["rows"] if (row["suite"], row["dtype"]) == (suite, dtype)]
        lines += ["", f"{suite} ({dtype})"]
        lines += _absent(rows)
        shown = [(row, find_marks(row, environment["roofline"])) for row in rows if row["status"] in ("ok", "differs")]
        lines += _aligned([_titles(suite), *(_cells(row, found) for row, found in shown)])
        marks |= {mark for _, found in shown for mark in found.values()}
    lines += _floors(results["rows"])
    legend = [f"{mark} {meaning}" for mark, meaning in MEANINGS.items() if mark in marks]
    wrapped = [part for line in legend for part in textwrap.wrap(line, 118, subsequent_indent="  ")]
    return "\n".join([*lines, *([""] if legend else []), *wrapped])


def find_marks(row: dict[str, Any], roofline: dict[str, float]) -> dict[str, str]:
    """{column: mark} of what a reader must know of a row before believing it.

    Args:
      row: as `timing.race` makes it, with its suite, dtype and, in the suite of terms, times_roofline.
      roofline: flops per second by dtype.
    """
    marks = {}
    if "seconds" not in row:
        return marks
    if _is_wide(row["quartiles"]):
        marks["time"] = "~"
    if row.get("gflops", 0.0) * 1e9 > roofline[row["dtype"]]:
        marks["gflops"] = "^"
    if row.get("times_roofline", 1.0) < 1:
        marks["ratio"] = "^"
    if _is_compared(row):
        low, high = row["ratio_quartiles"]
        if _is_wide((low, high)):
            marks["quartiles"] = "~"
        if not low <= row["ratio_of_medians"] <= high:
            marks["ratio"] = "!"
        if low < 1 < high:
            marks["note"] = CANNOT_TELL
    return marks


def _is_wide(quartiles):
    return quartiles[1] > SPREAD * quartiles[0]


def _is_compared(row):
    """Ours is what the others are compared with; in the suite of terms nothing is, and a product is a bound."""
    return row["contestant"] not in ("jaxbptt", "square product") and row["suite"] != "terms"


def _without_peers(results):
    peers = [row for row in results["rows"] if row["contestant"] in results["environment"]["versions"]]
    if not peers or any("seconds" in row for row in peers):
        return []
    said = "No peer takes part: what follows is jaxbptt beside JAX's own ways. For the peers that exist for this"
    return [*textwrap.wrap(f"{said} platform: python -m pip install --editable '.[bench]'", 118)]


def _head(environment):
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    precision = environment["default_matmul_precision"] or "default"
    roofline = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in environment["roofline"].items())
    lines = [
        f"{environment['date'][:10]}, {environment['cpu']}, {environment['cores']} cores, {environment['device']},"
        f" matmul precision {precision}",
        *textwrap.wrap(versions, 118),
        f"roofline (GFLOP/s of the fastest square product, before or after the run): {roofline}",
    ]
    lines += [f"{name}={value}" for name, value in environment["flags"].items()]
    load, cores = environment["load"], environment["cores"]
    if load is not None and load > QUIET * cores:
        lines.append(f"other work: a load of {load:.1f} on {cores} cores in the minute before the run; times are noisy")
    for name, fastest in environment["roofline"].items():
        factor = fastest / min(run[name] for run in environment["roofline_runs"])
        if factor > SPREAD:
            lines.append(f"the roofline of {name} before the run and after it differ by a factor {factor:.1f}")
    return lines


def _titles(suite):
    ratio = "× product time" if suite == "terms" else "ours faster by"
    return ("cell", "T", "N", "B", "by", "time", ratio, "(quartiles)", "GFLOP/s", "temp", "compile", "note")


def _cells(row, marks):
    """Strings of one row; a mark stands behind its number, a blank where others may have one."""
    at = lambda column: marks.get(column, " ")
    place = (row["cell"], row["T"], row["N"], row["B"], row["contestant"])
    if row["status"] == "differs":
        return (*map(str, place), "", "differs", f"{row['difference']:.0e}", "", "", "", "not ranked")
    ratio = spread = ""
    if "times_roofline" in row:
        ratio = f"{row['times_roofline']:.2f}{at('ratio')}"
    elif _is_compared(row):
        ratio = f"{row['ratio']:.2f}{at('ratio')}"
        spread = "({:.2f} {:.2f})".format(*row["ratio_quartiles"]) + at("quartiles")
    notes = [marks["note"]] if "note" in marks else []
    if row.get("exponent") is not None:
        notes.insert(0, f"∝ {row['axis']}^{row['exponent']:.2f}")
    if row["suite"] == "wide" and "memory_ratio" in row:
        notes.append(f"mem {row['memory_ratio']:.2f}")
    if "product_share" in row:
        notes.append(f"{row['product_share']:.0%}")
    gflops = f"{row['gflops']:.1f}{at('gflops')}" if "gflops" in row else ""
    compiled = row["compile_seconds"]
    return (
        *map(str, place),
        _seconds(row["seconds"]) + at("time"),
        ratio,
        spread,
        gflops,
        _bytes(row["temp_bytes"]),
        "" if compiled is None else f"{compiled:.1f} s",
        ", ".join(notes),
    )


def _floors(rows):
    """A line for each floor: its worst case, its median, how many cases are beyond it."""
    lines, found = [], floors.find_floors(rows)
    for dtype in dict.fromkeys(each.dtype for each in found):
        table = [("floor", "asked", "worst", "median", "beyond", "held", "worst at (T N B)")]
        for each in found:
            if each.dtype == dtype:
                row, asked = each.row, f"{'≤' if each.floor.most else '≥'} {each.floor.bound:.2f}"
                place = f"{row['cell']} {row['T']} {row['N']} {row['B']}"
                numbers = f"{each.worst:.2f}", f"{each.median:.2f}", f"{each.below} of {each.cases}"
                table.append((each.floor.what, asked, *numbers, each.held, place))
        lines += ["", f"floors ({dtype})", *_aligned(table, left=(0, 6))]
    return lines


def _absent(rows):
    """One line for each peer and reason it stayed out."""
    reasons: dict[tuple, int] = {}
    for row in rows:
        if row["status"] not in ("ok", "differs"):
            reason = (row["contestant"], row["status"], row["note"])
            reasons[reason] = reasons.get(reason, 0) + 1
    return [f"  {name} {status} ({note})" for name, status, note in reasons]


def _aligned(table: Sequence[Sequence[str]], left: Collection[int] = (0, 4, 11)) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  " + "  ".join(f"{cell:{'<' if i in left else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in table
    ]


def _seconds(value):
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def _bytes(count):
    if count is None:
        return "n/a"
    return f"{count / 2**20:.1f} MB" if count >= 2**20 / 10 else f"{count / 1024:.1f} kB"
