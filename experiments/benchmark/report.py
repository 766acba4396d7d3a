"""The rows as a table for the terminal, 120 columns at most."""

import textwrap
from collections.abc import Sequence
from typing import Any


def render(results: dict[str, Any]) -> str:
    """Every suite with its rows; times are medians, ratios medians of pairs (their quartiles)."""
    lines = _head(results["environment"])
    suites = dict.fromkeys(row["suite"] for row in results["rows"])
    for suite in suites:
        rows = [row for row in results["rows"] if row["suite"] == suite]
        lines += ["", f"{suite} ({', '.join(dict.fromkeys(row['dtype'] for row in rows))})"]
        lines += _absent(rows)
        table = [_cells(row) for row in rows if row["status"] in ("ok", "differs")]
        lines += _aligned([_titles(suite), *table])
    return "\n".join(lines)


def _head(environment):
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    precision = environment["default_matmul_precision"] or "default"
    roofline = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in environment["roofline"].items())
    return [
        f"{environment['date'][:10]}, {environment['cpu']}, {environment['cores']} cores, {environment['device']},"
        f" matmul precision {precision}",
        *textwrap.wrap(versions, 118),
        f"roofline (GFLOP/s of a large product): {roofline}",
    ]


def _titles(suite):
    ratio = "× roofline time" if suite == "terms" else "ours faster by"
    return ("cell", "T", "N", "B", "by", "time", ratio, "(quartiles)", "GFLOP/s", "temp", "compile", "note")


def _cells(row):
    place = (row["cell"], row["T"], row["N"], row["B"], row["contestant"])
    if row["status"] == "differs":
        return (*map(str, place), "", "differs", f"{row['difference']:.0e}", "", "", "", "not ranked")
    ratio, spread = f"{row['ratio']:.2f}", "({:.2f} {:.2f})".format(*row["ratio_quartiles"])
    if row["contestant"] == "jaxbptt":
        ratio = spread = ""
    if "times_roofline" in row:
        ratio, spread = f"{row['times_roofline']:.2f}", ""
    elif row["suite"] == "terms":
        ratio = spread = ""
    exponent = row.get("exponent")
    note = "" if exponent is None else f"~ {row['axis']}^{exponent:.2f}"
    gflops = f"{row['gflops']:.1f}" if "gflops" in row else ""
    compiled = row["compile_seconds"]
    return (
        *map(str, place),
        _seconds(row["seconds"]),
        ratio,
        spread,
        gflops,
        _bytes(row["temp_bytes"]),
        "" if compiled is None else f"{compiled:.1f} s",
        note,
    )


def _absent(rows):
    """One line for each peer and reason it stayed out."""
    reasons: dict[tuple, int] = {}
    for row in rows:
        if row["status"] not in ("ok", "differs"):
            reason = (row["contestant"], row["status"], row["note"])
            reasons[reason] = reasons.get(reason, 0) + 1
    return [f"  {name} {status} ({note})" for name, status, note in reasons]


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    left = {0, 4, 11}
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
