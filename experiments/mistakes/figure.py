"""The figure of the mistakes: one bar each."""

from pathlib import Path
from typing import Any

from experiments import files

CATCHER_COLOURS = {  # exact facts in warm colours, the toolkit's checks in cool ones
    "check": "#56b4e9",
    "check_gradient": "#0072b2",
    "check_vjp": "#009e73",
    "verify": "#7a5195",
    "overwriting a key": "#e69f00",
    "product of step Jacobians": "#d55e00",
    "gauge identity": "#f0c929",
    "batch against single": "#8c6d31",
}
LEAST = 1e-17


def plot(results: dict[str, Any], path: Path) -> None:
    """How far each mistake is off, its catcher as colour; beside it, where the correct twin stands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 1.9 + 0.4 * len(results)), layout="constrained")
    ax = figure.subplots()
    for place, row in enumerate(results.values()):
        colour = CATCHER_COLOURS[str(row.catcher)]
        error = max(float(row.error), LEAST)
        hatch = "///" if row.on_purpose else None
        ax.barh(place, error, left=LEAST, height=0.68, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
        ax.plot(max(float(row.twin_error), 1.6 * LEAST), place, "o", color="white", markeredgecolor="0.1", markersize=7)
        said = f"{_in_words(error)} {_typeset(str(row.about))}" + ("" if row.caught else ", MISSED")
        style = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        ax.text(1.8 * error, place, said, va="center", fontsize="medium", bbox=style)
    for catcher, colour in CATCHER_COLOURS.items():
        if any(str(row.catcher) == catcher for row in results.values()):
            ax.barh(0, 0, color=colour, label=catcher)
    ax.plot([], [], "o", color="white", markeredgecolor="0.1", markersize=7, label="the correct twin")
    if any(row.on_purpose for row in results.values()):
        ax.barh(0, 0, color="0.6", hatch="///", edgecolor="white", label="on purpose")
    ax.set_yticks(range(len(results)), list(results))
    ax.set(
        xscale="log",
        xlim=(LEAST, 1e7),
        ylim=(len(results) - 0.4, -0.6),
        xlabel="relative error (of a gradient: its worst leaf)",
    )
    ax.set_xticks([10.0**power for power in (-15, -12, -9, -6, -3, 0, 3)])
    ax.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    ax.set_title("Mistakes of published recurrent code, and what catches each", fontweight="bold", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    files.write_figure(path, figure, dpi=120)


def _in_words(error):
    if error >= 2:
        return f"{error:.3g} times"
    return f"{100 * error:.2g} % of" if error < 0.995 else "100 % of"


def _typeset(about):
    return f"${about}$" if "_" in about else f"the {about}"
