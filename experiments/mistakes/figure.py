"""The figure of the mistakes: a row each, from where the correct twin stands to how far the mistake is off."""

from pathlib import Path
from typing import Any

from experiments import captions, files

CHECK, FACT = "#0072B2", "#D55E00"  # Okabe & Ito's
MARKERS = {CHECK: "o", FACT: "s"}
CATCHER_COLOURS = {  # the toolkit's checks, exact facts
    "check": CHECK,
    "check_gradient": CHECK,
    "check_vjp": CHECK,
    "verify": CHECK,
    "overwriting a key": FACT,
    "product of step Jacobians": FACT,
    "gauge identity": FACT,
    "batch against single": FACT,
}
LEAST = 2e-17  # where an error of 0 is drawn
CAPTION = (
    "Each row is one small version of published code, drawn and run once in float64, with the mistake and without."
    " Error: ‖wrong − right‖ / ‖right‖ of what is named beside it; right is what the library's exact routes give, or"
    " the other side of an exact equation. Lines lead from the correct twin, which passes the same check, to the"
    f" mistake. After the colon: the check or the fact that catches it. An error of 0 is drawn at {LEAST:g}."
)
WORDS = {"font.size": 14.5, "legend.fontsize": 14}


def plot(results: dict[str, Any], path: Path) -> None:
    """How far each mistake is off, and what catches it; on the same line, where the correct twin stands."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(16, 4.4 + 0.47 * len(results)), layout="constrained")
        ax = figure.subplots()
        for place, row in enumerate(results.values()):
            colour = CATCHER_COLOURS[str(row.catcher)]
            twin, error = (max(float(value), LEAST) for value in (row.twin_error, row.error))
            ax.plot((twin, error), (place, place), ":" if row.on_purpose else "-", color=colour, linewidth=2, zorder=1)
            ax.plot(twin, place, "o", color="white", markeredgecolor="0.1", markeredgewidth=1.6, markersize=9)
            ax.plot(error, place, MARKERS[colour], color=colour, markersize=11)
            said = f"{_in_words(error)} {_typeset(str(row.about))}" + (f": {row.catcher}" if row.caught else ": MISSED")
            ax.text(3 * error, place, said, va="center")
        ax.set_yticks(range(len(results)), list(results))
        label = "relative error, dimensionless (of a gradient: its worst leaf)"
        ax.set(xscale="log", xlim=(LEAST / 2, 1e13), ylim=(len(results) - 0.4, -0.6), xlabel=label)
        ax.set_xticks([10.0**power for power in (-15, -12, -9, -6, -3, 0)])
        ax.minorticks_off()
        figure.suptitle("How far are mistakes of published recurrent code off, and what catches each?", fontsize=19)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
        _add_legend(ax, any(row.on_purpose for row in results.values()))
        captions.add_caption(figure, CAPTION, 14)
        files.write_figure(path, figure, dpi=90)


def _add_legend(ax, on_purpose):
    ax.plot([], [], "o", color="white", markeredgecolor="0.1", markeredgewidth=1.6, markersize=9, label="correct twin")
    for label, colour in (("mistake that a check of the toolkit catches", CHECK), ("that an exact fact catches", FACT)):
        ax.plot([], [], MARKERS[colour] + "-", color=colour, linewidth=2, markersize=11, label=label)
    if on_purpose:
        ax.plot([], [], ":", color="0.1", linewidth=2, label="on purpose in the published code")
    ax.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.3, 1.0), columnspacing=1.4)


def _in_words(error):
    if error >= 2:
        return f"{error:.3g} times"
    return f"{100 * error:.2g} % of" if error < 0.995 else "100 % of"


def _typeset(about):
    return f"${about}$" if "_" in about else f"the {about}"
