"""The figure of the truncation experiment: the cuts on text, error over cost, training, final losses."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, files
from experiments.descent import find_best_rates

from .summary import NAMES, compare, error_curves, judge

COLOURS = {
    "full": "#222222",
    "carried": "#31688e",
    "zero_state": "#c77d0a",
    "randomised": "#d1495b",
    "randomised_wide": "#e79aa5",
    "adaptive": "#2a9d8f",
}
DECADES = 4  # of the tables


def plot(results: dict[str, Any], path: Path) -> None:
    """Above: the text, its cuts and the (t, k) table, three ways. Below: error over cost, training, final losses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 12.6), layout="constrained")
    summary = judge(results)
    losses = results["training"].losses
    final = losses[np.arange(len(losses)), find_best_rates(losses[..., -1]), :, -1]
    judged = compare(dict(zip(map(str, results["training"].methods), final, strict=True)))
    title = f"Truncated gradients on text: at the same reach, cutting at random trains {judged} cutting at fixed steps"
    figure.suptitle(title, fontsize=18)
    training, length = results["training"], len(results["tables"].letters)
    caption = (
        f"A net that reads text; {losses.shape[2]} keys (weights and batches, the same for every scheme), each scheme"
        f" at its best of {len(training.rates)} rates of Adam. Above: the first {length} steps of one sequence, after"
        " training by full BPTT. Below left: of single sequences; bias: ‖mean gradient − exact‖, spread: the root mean"
        " squared distance from the mean. Right: every dot a key."
    )
    captions.add_caption(figure, caption)
    above, below = figure.subfigures(2, 1, height_ratios=(1.12, 1), hspace=0.03)
    _plot_tables(above, results["tables"])
    axes = below.subplots(1, 3, width_ratios=(1.1, 1.05, 1.05))
    _plot_errors(axes[0], results["errors"], summary["methods"]["carried"]["steps_back"])
    _plot_curves(axes[1], results["training"])
    _plot_final(axes[2], results["training"], summary["methods"])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    files.write_figure(path, figure, dpi=110)


def _plot_tables(figure, tables):
    axes = figure.subplots(1, 3, sharey=True)
    steps, kept = len(tables.letters), tables.weights * tables.norms
    top = np.log10(kept.max())
    titles = {
        "full": "full: nothing is cut",
        "carried": "regular: cut at fixed steps",
        "randomised": r"randomised: cut by chance, $\times\,\pi^{-(t-k)}$",
    }
    for ax, table, cuts, (name, title) in zip(axes, kept, tables.cuts, titles.items(), strict=True):
        with np.errstate(divide="ignore"):
            shown = np.where(table > 0, np.maximum(np.log10(table), top - DECADES), np.nan)
        place = {"extent": (0.5, steps + 0.5, steps + 0.5, 0.5), "aspect": "auto"}
        dropped = np.where(np.tri(steps) > 0, 0.09, np.nan)  # grey where a term is dropped, white where there is none
        ax.imshow(dropped, cmap="Greys", vmin=0, vmax=1, **place)
        image = ax.imshow(shown, cmap="magma_r", vmin=top - DECADES, vmax=top, **place)
        for edge in np.flatnonzero(cuts) + 0.5:
            ax.plot([edge, edge], [edge, steps + 0.5], color=COLOURS[name], linewidth=1.4)
            ax.plot([edge, edge], [-1.6, 0.3], color=COLOURS[name], linewidth=3, clip_on=False)
        for k, letter in enumerate(tables.letters, 1):
            style = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 13.5}
            ax.text(k, -0.65, _glyph(letter), color="0.15", **style)
        ax.set_title(title, fontweight="bold", fontsize=15, color=COLOURS[name], pad=36)
        ax.set(xlabel="θ used at step k", xlim=(0.5, steps + 0.5), ylim=(steps + 0.5, 0.5))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("loss at step t", fontsize=12)
    axes[1].text(0.04 * steps, 0.96 * steps, "dropped", color="0.45", fontsize=13)
    figure.colorbar(image, ax=axes, label=r"$\log_{10}$ (weight × ‖term (t, k)‖)", shrink=0.85, pad=0.01)


def _glyph(letter):
    """A dot for a space, a box for what the font lacks."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("monospace"))
    return "·" if letter == " " else letter if font.get_char_index(ord(letter)) else "□"


def _plot_errors(ax, errors, cost):
    labels = ("bias: regular, state carried", "bias: regular, state reset", "bias: the last L steps of every loss")
    labels += ("spread: randomised, no bias",)
    for (name, costs, values), label in zip(error_curves(errors), labels, strict=True):
        line = "--" if name == "randomised" else "-"
        ax.loglog(costs, values, line, color=COLOURS[name], marker="o", markersize=5, linewidth=2.4, label=label)
    style = {"color": COLOURS["randomised"], "linewidth": 1.4}
    ax.loglog(errors.random_cost, errors.mean_error, ":", label="the mean of all draws", **style)
    ax.axhline(errors.text_spread, color="0.55", linewidth=1.4)
    last = max(errors.window_cost[-1], errors.lag_cost[-1])
    note = {"color": "0.4", "ha": "right", "va": "bottom", "fontsize": 10.5}
    ax.text(last, errors.text_spread * 1.08, "spread of the exact gradient, sequence to sequence", **note)
    ax.axvline(cost, color="0.75", linewidth=1.2, zorder=0)
    ax.text(cost * 1.03, 5.2, "trained here", color="0.5", fontsize=10.5, va="top")
    ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 128) if tick <= 2 * last]
    ax.set_xticks(ticks, list(map(str, ticks)))
    ax.minorticks_off()
    ax.set(xlim=(1.3, 1.12 * last), ylim=(1e-3, 7))
    ax.set_xlabel("cost: steps a loss is carried back (mean)", fontsize=12)
    ax.set_ylabel("error / norm of the exact gradient", fontsize=12)
    ax.legend(frameon=False, loc="lower left", fontsize=10.5)
    ax.set_title("bias and spread of one sequence's gradient", fontweight="bold", fontsize=14)


def _plot_curves(ax, training):
    best, ends = find_best_rates(training.losses[..., -1]), []
    for m, name in enumerate(map(str, training.methods)):
        low, middle, high = np.quantile(training.losses[m, best[m]], (0.1, 0.5, 0.9), axis=0)
        ax.fill_between(training.updates, low, high, color=COLOURS[name], alpha=0.12, linewidth=0)
        ax.plot(training.updates, middle, color=COLOURS[name], linewidth=2.2, label=NAMES[name])
        ends += [low[-1], middle[len(middle) // 6]]
    span = max(ends) - min(ends)
    ax.set_ylim(min(ends) - 0.08 * span, max(ends) + 0.05 * span)
    ax.set_xlim(training.updates[len(training.updates) // 10], training.updates[-1])
    ax.legend(frameon=False, fontsize=10.5)
    ax.set_xlabel("updates", fontsize=12)
    ax.set_ylabel("held-out loss, nats per symbol", fontsize=12)
    keys = training.losses.shape[2]
    title = f"training, each at its best rate\n(median and 10 to 90 % of {keys} keys)"
    ax.set_title(title, fontweight="bold", fontsize=14)


def _plot_final(ax, training, methods):
    best = find_best_rates(training.losses[..., -1])
    final = np.stack([training.losses[m, rate, :, -1] for m, rate in enumerate(best)])
    regular = list(training.methods).index("carried")
    excess, labels = final - final[regular], []
    for m, name in enumerate(map(str, training.methods)):
        paired = methods[name]["less_carried"]
        if m != regular:
            ax.plot(excess[m], np.full(len(excess[m]), -m), "o", color=COLOURS[name], alpha=0.4, markersize=8)
            ax.plot(paired["mean"], -m, "|", color=COLOURS[name], markersize=30, markeredgewidth=3.5)
            low, high = paired["interval"]
            words = f"{paired['mean']:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−")
            ax.plot((low, high), (-m, -m), color=COLOURS[name], linewidth=3)
            ax.text(
                max(paired["mean"], 0.33 * np.nanmax(excess)),
                0.34 - m,
                words,
                ha="center",
                color=COLOURS[name],
                fontsize=12,
                fontweight="bold",
            )
        else:
            words = f"{methods[name]['final_median']:.3f} nats per symbol"
            style = {"color": COLOURS[name], "va": "center", "fontsize": 12, "fontweight": "bold"}
            ax.text(0, -m, "  " + words, **style)
        labels.append(NAMES[name].replace(", ", ",\n") + f"\n({methods[name]['steps_back']:.1f} steps back)")
    ax.axvline(0, color="0.5", linewidth=1, zorder=0)
    ax.set_yticks(-np.arange(len(final)), labels, fontsize=11)
    ax.set_ylim(-len(final) + 0.5, 0.65)
    ax.set_xlabel("final loss less regular's with the same key, nats", fontsize=12)
    ax.set_title("after the last update\n(paired over keys; mean, 95 % t interval)", fontweight="bold", fontsize=14)
