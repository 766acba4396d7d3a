"""The figure of the online experiment: cosines, final losses and cost of every rule."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import files
from experiments.descent import find_best_rates

from .rules import PUBLISHED
from .tasks import TASKS

COLOURS = {
    "RTRL": "#222222",
    "SnAp-1": "#31688e",
    "KF-RTRL": "#2a9d8f",
    "RFLO": "#c77d0a",
    "RFLO, no leak": "#e3b778",
    "UORO": "#d1495b",
}


def plot(results: dict[str, Any], path: Path) -> None:
    """Above: cosine over training, published ranges at the side. Then final losses. Below: windows and cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 15.5), layout="constrained")
    figure.suptitle("Gradients forward in time: what each online rule keeps, learns and costs", fontsize=17)
    above, below = figure.subfigures(2, 1, height_ratios=(3, 1))
    rows = above.subplots(3, len(results), squeeze=False)
    for axes, (name, outcome) in zip(rows.T, results.items(), strict=True):
        _plot_training(axes[0], name, outcome)
        _plot_windows(axes[1], outcome)
        _plot_losses(axes[2], name, outcome)
    rows[0, 0].set_ylabel("cosine to the exact gradient\nof a sequence (cell's params)")
    rows[1, 0].set_ylabel("cosine, mean over training\nsolid: one sequence, dashed: their mean")
    rows[0, 0].legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(0, 0.93), ncols=2)
    costs = below.subplots(1, 2)
    _plot_cost(costs[0], results, "state_floats", "floats in the state")
    _plot_cost(costs[1], results, "flops", "flops a step, the rule's own")
    rows = np.concatenate((rows.ravel(), costs))
    for ax in rows.flat:
        ax.title.set_fontweight("bold")
        ax.spines[["top", "right"]].set_visible(False)
    files.write_figure(path, figure, dpi=110)


def _plot_training(ax, name, outcome):
    last = outcome.updates[-1]
    for i, rule in enumerate(map(str, outcome.rules)):
        colour = COLOURS[rule]
        values = outcome.cosine[i, ..., -1]
        ax.plot(outcome.updates, values.mean(axis=1), color=colour, marker="o", markersize=4, label=rule, **_line(rule))
        ax.fill_between(outcome.updates, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.18, linewidth=0)
        if rule in PUBLISHED:
            place = last * (1.06 + 0.05 * i)
            ax.plot([place, place], PUBLISHED[rule], color=colour, linewidth=6, alpha=0.75, solid_capstyle="butt")
    ax.text(last * 1.2, 1.0, "published", ha="center", va="bottom", fontsize=9, color="0.35")
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(title=name, xlabel="updates by exact gradients", ylim=(-0.1, 1.08), xlim=(-0.02 * last, 1.36 * last))
    ax.set_xticks(outcome.updates)


def _line(rule):
    """ "No leak" wide and behind: it all but hides SnAp-1."""
    return {"linewidth": 6, "zorder": 1} if rule == "RFLO, no leak" else {"linewidth": 2}


def _plot_losses(ax, name, outcome):
    names = list(map(str, outcome.rules))
    for i, rule in enumerate(names):
        final = outcome.final[i, find_best_rates(outcome.final[i])]
        ax.barh(i, final.mean(), color=COLOURS[rule], alpha=0.45)
        ax.plot(final, np.full(len(final), i), "o", color=COLOURS[rule], markersize=5)
    ax.axvline(outcome.start.mean(), color="0.4", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(names)), names if ax.get_subplotspec().is_first_col() else [""] * len(names))
    ax.invert_yaxis()
    ax.set(title="final held-out loss", xlabel=f"loss per step ({TASKS[name]}); dashed: untrained")


def _plot_windows(ax, outcome):
    for i, rule in enumerate(map(str, outcome.rules)):
        colour = COLOURS[rule]
        alone = outcome.cosine[i].mean(axis=(0, 1))
        ax.plot(outcome.windows, alone, color=colour, marker="o", markersize=4, **_line(rule))
        ax.plot(outcome.windows, outcome.mean_cosine[i].mean(axis=(0, 1)), color=colour, linewidth=1.2, linestyle="--")
    ax.set(title="over the window of losses", xlabel="steps summed", xscale="log", ylim=(-0.1, 1.08))
    ax.set_xticks(outcome.windows, outcome.windows)
    ax.minorticks_off()


def _plot_cost(ax, results, what, label):
    """Bars of the first task; the others differ in their inputs alone."""
    outcome = next(iter(results.values()))
    names, values = list(map(str, outcome.rules)), getattr(outcome, what)
    for i, rule in enumerate(names):
        ax.barh(i, max(values[i], 1), color=COLOURS[rule], alpha=0.75)
        ax.text(max(values[i], 1) * 1.15, i, f"{values[i]:,}", va="center", fontsize=9)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(title="cost: " + label, xscale="log", xlabel=f"{label} ({next(iter(results))})")
    ax.set_xlim(10, values.max() * 8)
