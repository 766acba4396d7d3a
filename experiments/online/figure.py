"""The figure of the online experiment: cosines, final losses and cost of every rule."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, files, text
from experiments.descent import find_best_rates

from .rules import LEAK, PUBLISHED
from .tasks import HELD_OUT, TASKS

STYLES = {  # colour, most of them Okabe & Ito's, and mark
    "RTRL": ("#000000", "o"),
    "SnAp-1": ("#0072B2", "s"),
    "KF-RTRL": ("#009E73", "D"),
    "RFLO": ("#D55E00", "^"),
    "RFLO, no leak": ("#E9C46A", "o"),
    "UORO": ("#CC79A7", "v"),
}
WORDS = {"font.size": 15, "axes.titlesize": 16, "legend.fontsize": 15}


def plot(results: dict[str, Any], path: Path) -> None:
    """Above: cosine over training, published ranges at the side. Then final losses. Below: windows and cost."""
    import matplotlib
    from matplotlib.figure import Figure

    results = text.take_alphabet(results)[1]
    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(17, 22), layout="constrained")
        figure.suptitle("Gradients forward in time: what does each online rule keep, learn and cost?", fontsize=20)
        captions.add_caption(figure, _caption(next(iter(results.values()))), 15)
        above, below = figure.subfigures(2, 1, height_ratios=(3.1, 1))
        rows = above.subplots(3, len(results), squeeze=False)
        for axes, (name, outcome) in zip(rows.T, results.items(), strict=True):
            _plot_training(axes[0], name, outcome)
            _plot_windows(axes[1], outcome)
            _plot_losses(axes[2], name, outcome)
        rows[0, 0].set_ylabel("cosine to the exact gradient\nof a sequence (cell's params)")
        rows[1, 0].set_ylabel("cosine, mean over training\n(cell's params)")
        above.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
        costs = below.subplots(1, 2)
        _plot_cost(costs[0], results, "state_floats", "floats in the state")
        _plot_cost(costs[1], results, "flops", "flops a step, the rule's own")
        for ax in np.concatenate((rows.ravel(), costs)):
            ax.title.set_fontweight("bold")
            ax.spines[["top", "right"]].set_visible(False)
        files.write_figure(path, figure, dpi=85)


def _caption(outcome):
    _, rates, keys = outcome.final.shape
    return (
        f"Elman net, N = {outcome.size} units, sequences of T = {outcome.windows[-1]} steps, {keys} keys (weights,"
        " data, signs). Cosines: at fixed params along the training by exact gradients, of"
        f" {outcome.sequences} sequences each (RTRL: of one). First row: lines and bands: mean and range over keys;"
        " bars at the side: range over tasks shipped with sketched-rtrl, N = 64, whose tasks, weights and cosines (of"
        " single steps averaged over a batch) differ. Second row: of gradients summed over consecutive steps, means"
        " over keys and training; solid: of one sequence, dashed: of the mean of all. Third row: loss of"
        f" {HELD_OUT} held-out sequences after training by each rule with Adam at its best of {rates} rates (RTRL by"
        " BPTT, whose gradient is the same); bar: mean, dots: keys; dashed: untrained. RFLO: with a leak factor of"
        f" {LEAK:g} that the cell does not have. Cost: counted, not timed."
    )


def _plot_training(ax, name, outcome):
    last = outcome.updates[-1]
    for i, rule in enumerate(map(str, outcome.rules)):
        colour, _ = STYLES[rule]
        values = outcome.cosine[i, ..., -1]
        ax.plot(outcome.updates, values.mean(axis=1), label=rule, **_line(rule))
        ax.fill_between(outcome.updates, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.18, linewidth=0)
        if rule in PUBLISHED:
            place = last * (1.06 + 0.05 * i)
            ax.plot([place, place], PUBLISHED[rule], color=colour, linewidth=8, alpha=0.75, solid_capstyle="butt")
    ax.text(last * 1.2, 0.74, "published", ha="center", va="bottom", fontsize=13, color="0.25")
    ax.axhline(0, color="0.6", linewidth=1, zorder=0)
    ax.set(title=name, xlabel="updates by exact gradients", ylim=(-0.1, 1.08), xlim=(-0.02 * last, 1.36 * last))
    ax.set_xticks(outcome.updates)


def _line(rule):
    """ "No leak" wide and behind: it all but hides SnAp-1."""
    colour, marker = STYLES[rule]
    width = {"linewidth": 8, "zorder": 1} if rule == "RFLO, no leak" else {"linewidth": 2.4}
    return {"color": colour, "marker": marker, "markersize": 8, **width}


def _plot_losses(ax, name, outcome):
    names = list(map(str, outcome.rules))
    for i, rule in enumerate(names):
        final = outcome.final[i, find_best_rates(outcome.final[i])]
        ax.barh(i, final.mean(), color=STYLES[rule][0], alpha=0.45)
        ax.plot(final, np.full(len(final), i), "o", color=STYLES[rule][0], markeredgecolor="white", markersize=9)
    ax.axvline(outcome.start.mean(), color="0.3", linestyle="--", linewidth=1.6)
    ax.set_yticks(range(len(names)), names if ax.get_subplotspec().is_first_col() else [""] * len(names))
    ax.invert_yaxis()
    ax.set(title="final held-out loss", xlabel=f"loss per step, {TASKS[name]}", xlim=(0, None))


def _plot_windows(ax, outcome):
    for i, rule in enumerate(map(str, outcome.rules)):
        alone = outcome.cosine[i].mean(axis=(0, 1))
        ax.plot(outcome.windows, alone, **_line(rule))
        mean = outcome.mean_cosine[i].mean(axis=(0, 1))
        ax.plot(outcome.windows, mean, color=STYLES[rule][0], linewidth=1.8, linestyle="--")
    ax.axhline(0, color="0.6", linewidth=1, zorder=0)
    ax.set(title="over the window of losses", xlabel="steps summed", xscale="log", ylim=(-0.1, 1.08))
    ax.set_xticks(outcome.windows, outcome.windows)
    ax.minorticks_off()


def _plot_cost(ax, results, what, label):
    """Bars of the first task; the others differ in their inputs alone."""
    outcome = next(iter(results.values()))
    names, values = list(map(str, outcome.rules)), getattr(outcome, what)
    for i, rule in enumerate(names):
        colour, marker = STYLES[rule]
        ax.plot(max(values[i], 1), i, marker, color=colour, markersize=13)
        ax.text(max(values[i], 1) * 1.3, i, f"{values[i]:,}", va="center", fontsize=14)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", color="0.88")
    ax.set_axisbelow(True)
    ax.set(title="cost: " + label, xscale="log", xlabel=f"{label} ({next(iter(results))} task)")
    ax.set_xlim(max(values.min(), 1) / 3, values.max() * 12)
