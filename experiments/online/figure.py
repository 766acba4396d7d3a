"""The figure of the online experiment: cosines, final losses and cost of every rule."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, files, text
from experiments.descent import find_best_rates

from .rules import LEAK, PUBLISHED, RANK, SKETCH
from .tasks import HELD_OUT, TASKS

STYLES = {  # colour and mark: exact or biased towards it, traces, unbiased products
    "RTRL": ("#000000", "o"),
    SKETCH: ("#56B4E9", "s"),
    "SnAp-1": ("#0072B2", "s"),
    "RFLO": ("#D55E00", "^"),
    "e-prop, random": ("#8C510A", "^"),
    "KeRNL": ("#F4A582", "^"),
    "immediate": ("#E6AB02", "^"),
    f"OK-RTRL, r = {RANK}": ("#00441B", "D"),
    "KF-RTRL": ("#009E73", "D"),
    "reverse KF-RTRL": ("#9ACD32", "D"),
    "UORO": ("#CC79A7", "D"),
}
WORDS = {"font.size": 15, "axes.titlesize": 16, "legend.fontsize": 15}


def plot(results: dict[str, Any], path: Path) -> None:
    """A column a task: cosines, cosines over windows, final losses. Below: cost."""
    import matplotlib
    from matplotlib.figure import Figure

    results = text.take_alphabet(results)[1]
    outcome = next(iter(results.values()))
    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(17, 26), layout="constrained")
        figure.suptitle("Gradients forward in time: what does each online rule keep, learn and cost?", fontsize=20)
        captions.add_caption(figure, _caption(outcome), 15)
        above, below = figure.subfigures(2, 1, height_ratios=(3.1, 1))
        rows = above.subplots(3, len(results), squeeze=False)
        for axes, (name, of_task) in zip(rows.T, results.items(), strict=True):
            _plot_cosines(axes[0], name, of_task)
            _plot_windows(axes[1], of_task)
            _plot_losses(axes[2], name, of_task)
        rows[1, 0].set_ylabel("cosine, mean over training")
        lines = above.legend(*rows[1, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        lines.set_frame_on(False)
        costs = below.subplots(1, 2)
        _plot_cost(costs[0], results, "state_floats", "floats in the state")
        _plot_cost(costs[1], results, "flops", "flops a step, the rule's own")
        costs[1].set_yticklabels([])
        for ax in np.concatenate((rows.ravel(), costs)):
            ax.title.set_fontweight("bold")
            ax.spines[["top", "right"]].set_visible(False)
        files.write_figure(path, figure, dpi=85)


def _caption(outcome):
    _, rates, keys = outcome.final.shape
    return (
        f"Elman net, N = {outcome.size} units, sequences of T = {outcome.windows[-1]} steps, {keys} keys (weights,"
        " data, signs). Squares: approximations of RTRL; triangles: traces; diamonds: random, unbiased. Cosines to the"
        " exact gradient of the cell's params: at fixed params along the training by exact gradients, of"
        f" {outcome.sequences} sequences each (RTRL: of one). First row: hollow: before training, filled: after it;"
        " line: range over training and keys; grey band: range over tasks shipped with sketched-rtrl, N = 64, whose"
        " tasks, weights and cosines (of single steps averaged over a batch) differ. Second row: of gradients summed"
        f" over consecutive steps of one sequence. Third row: loss of {HELD_OUT} held-out sequences after training by"
        f" each rule with Adam at its best of {rates} rates (RTRL by BPTT, whose gradient is the same); bar: mean,"
        f" dots: keys; dashed: untrained. RFLO and e-prop: with a leak factor of {LEAK:g} that the cell does not have;"
        " e-prop with one draw of random feedback; KeRNL learns its kernel anew in each sequence. Cost: counted, not"
        " timed."
    )


def _name_rows(ax, names, *, shown=True):
    ax.set_yticks(range(len(names)), names if shown else [""] * len(names))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)


def _plot_cosines(ax, name, outcome):
    names = list(map(str, outcome.rules))
    _name_rows(ax, names, shown=ax.get_subplotspec().is_first_col())
    for i, rule in enumerate(names):
        (colour, marker), values = STYLES[rule], outcome.cosine[i, ..., -1]
        if rule in PUBLISHED:
            ax.barh(i, np.diff(PUBLISHED[rule])[0], left=PUBLISHED[rule][0], height=0.7, color="0.85", zorder=0.5)
        ax.plot([values.min(), values.max()], [i, i], color=colour, linewidth=3)
        ends = values.mean(axis=1)[[0, -1]]
        for end, face in zip(ends, ("white", colour), strict=True):
            ax.plot(end, i, marker, color=colour, markerfacecolor=face, markersize=11, markeredgewidth=2)
    ax.axvline(0, color="0.6", linewidth=1, zorder=0)
    ax.set(title=name, xlabel="cosine of a sequence's gradient", xlim=(_least(outcome.cosine[..., -1]), 1.06))


def _plot_losses(ax, name, outcome):
    names = list(map(str, outcome.rules))
    _name_rows(ax, names, shown=ax.get_subplotspec().is_first_col())
    for i, rule in enumerate(names):
        final = outcome.final[i, find_best_rates(outcome.final[i])]
        if not np.isfinite(final).any():
            ax.text(0, i, " not trained", va="center", fontsize=13, color="0.35")
            continue
        ax.barh(i, final.mean(), color=STYLES[rule][0], alpha=0.45)
        ax.plot(final, np.full(len(final), i), "o", color=STYLES[rule][0], markeredgecolor="white", markersize=9)
    ax.axvline(outcome.start.mean(), color="0.3", linestyle="--", linewidth=1.6)
    ax.set(title="final held-out loss", xlabel=f"loss per step, {TASKS[name]}", xlim=(0, None))


def _least(cosines):
    """Where the axis of cosines begins."""
    return min(-0.1, np.nanmin(cosines) - 0.06)


def _plot_windows(ax, outcome):
    windowed = outcome.cosine.mean(axis=(1, 2))
    for i, rule in enumerate(map(str, outcome.rules)):
        colour, marker = STYLES[rule]
        width = 7 - 0.5 * i  # what lies over another line lets it be seen
        ax.plot(outcome.windows, windowed[i], color=colour, marker=marker, markersize=8, linewidth=width, label=rule)
    ax.axhline(0, color="0.6", linewidth=1, zorder=0)
    ax.set(title="over the window of losses", xlabel="steps summed", xscale="log", ylim=(_least(windowed), 1.08))
    ax.set_xticks(outcome.windows, outcome.windows)
    ax.minorticks_off()


def _plot_cost(ax, results, what, label):
    """A mark a rule, of the first task; the others differ in their inputs alone."""
    outcome = next(iter(results.values()))
    names, values = list(map(str, outcome.rules)), getattr(outcome, what)
    _name_rows(ax, names)
    for i, rule in enumerate(names):
        colour, marker = STYLES[rule]
        ax.plot(max(values[i], 1), i, marker, color=colour, markersize=12)
        ax.text(max(values[i], 1) * 1.3, i, f"{values[i]:,}", va="center", fontsize=14)
    ax.set(title="cost: " + label, xscale="log", xlabel=f"{label} ({next(iter(results))} task)")
    ax.set_xlim(max(values.min(), 1) / 3, values.max() * 12)
