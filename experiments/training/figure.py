"""The figure of the training experiment: a row a family of nets, and one for what clipping does."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, files, text
from experiments.claims import mean_interval

from .arms import ARMS, CLIPPINGS
from .clipping import BOUND

FAMILIES = (
    ("tanh, Gaussian", "tanh, orthogonal", "ReLU, identity"),
    ("LSTM, forget bias 0", "LSTM, forget bias 1", "LSTM, forget bias 3", "LSTM, chrono"),
    ("GRU", "LRU, ring", "minLSTM, chrono"),
)
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # Okabe & Ito's
LINES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D")
ALL_COLOURS = (
    "#000000",
    "#999999",
    "#E69F00",
    "#56B4E9",
    "#0072B2",
    "#332288",
    "#44AA99",
    "#009E73",
    "#D55E00",
    "#CC79A7",
)
ABOVE = {"frameon": False, "handlelength": 2.6, "columnspacing": 1.2}
WORDS = {"font.size": 14, "axes.titlesize": 15, "axes.labelsize": 14, "legend.fontsize": 12.5}


def plot(results: dict[str, Any], path: Path) -> None:
    """The nets on the first task, clipping, and right answers by task where there are several."""
    import matplotlib
    from matplotlib.figure import Figure

    results = text.take_alphabet(results)[1]
    tasks = list(dict.fromkeys(name.split(": ")[0] for name in results))
    first, rows = tasks[0], len(FAMILIES) + 1 + (len(tasks) > 1)
    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(17, 4.0 * rows + 1.8), layout="constrained")
        axes = figure.subplots(rows, 4, squeeze=False)
        for row, family in zip(axes, FAMILIES, strict=False):
            curves = {name: results[f"{first}: {name}"] for name in family}
            _plot_loss(row[0], curves)
            _plot_reach(row[1], curves)
            _plot_growth(row[2], curves)
            _plot_spectra(row[3], curves)
        clipped = {kind: results[f"{first}: gain 2, {kind}"] for kind in CLIPPINGS}
        row = axes[len(FAMILIES)]
        _plot_loss(row[0], {f"tanh, gain 2, {kind}": curves for kind, curves in clipped.items()})
        _plot_norms(row[1], clipped)
        _plot_cosines(row[2], clipped[CLIPPINGS[1]])
        _plot_spectra(row[3], clipped)
        for row in axes[: len(FAMILIES) + 1]:
            _name_above(row[1], row[0])
            for ax in row[:3]:
                ax.set_xlabel("updates")
        if len(tasks) > 1:
            grid = axes[-1, 0].get_gridspec()
            for ax in axes[-1]:
                ax.remove()
            _plot_tasks(figure.add_subplot(grid[-1, :]), tasks, results)
        for ax in figure.axes:
            ax.spines[["top", "right"]].set_visible(False)
        title = "the loss, how far back the gradient reaches, how fast perturbations grow"
        figure.suptitle(f"Learning a memory ({first} task): {title}", fontsize=17)
        captions.add_caption(figure, _caption(clipped[CLIPPINGS[0]]), 13)
        files.write_figure(path, figure, dpi=100)


def _caption(curves):
    """What lines, bands, bars and words mean."""
    keys, size = curves.loss.shape[1], curves.log_sigma.shape[2]
    return (
        f"Lines: median of {keys} keys; bands: lowest to highest key. N = {size}. Loss: held out; dotted: the best"
        " answer without memory. 90 % reach: the lag within which 90 % of the summed norms of the gradient's terms lie"
        " (jaxbptt.monitor, one sequence). λ₁: growth of a random tangent; bars: its standard error. σᵢ: thin before,"
        " thick after training; left out: zero, or lost in float32. Last row: a chaotic net. ‖dC/dθ‖ of a batch; thin"
        f" lines: after clipping. In time: ‖λ_t‖ ≤ {BOUND} at every step back. Cosine: of the mean clipped gradient of"
        " 8 batches to their mean exact one, along the training that clips by the norm. AdamW, each net at its best of"
        " three rates, clipped by the global norm 1."
    )


def _name_above(ax, drawn, rows=1):
    """The legend of what is drawn, above these axes and wider than they may be."""
    handles, names = drawn.get_legend_handles_labels()
    ax.set_title(" \n" * (rows - 1) + " ", pad=8)
    columns = -(-len(names) // rows)
    legend = ax.legend(
        handles,
        names,
        loc="lower center",
        bbox_to_anchor=(1.05 if ax is not drawn else 0.5, 1.0),
        ncols=columns,
        **ABOVE,
    )
    legend.set_in_layout(False)


def _lines(ax, updates, values, i, label=None):
    """Median and range of values [E, D]."""
    ax.fill_between(updates, values.min(axis=1), values.max(axis=1), color=COLOURS[i], alpha=0.18, linewidth=0)
    ax.plot(updates, np.median(values, axis=1), LINES[i], color=COLOURS[i], linewidth=2.4, label=label)


def _plot_loss(ax, curves):
    for i, (name, each) in enumerate(curves.items()):
        _lines(ax, each.updates, each.loss, i, name)
    ax.axhline(float(each.memoryless), color="0.3", linestyle=":", linewidth=1.6)
    top = 1.15 * max(float(np.nan_to_num(each.memoryless)), *(each.loss[1:].max() for each in curves.values()))
    ax.set(ylabel="loss", ylim=(0, top))


def _plot_reach(ax, curves):
    for i, each in enumerate(curves.values()):
        _lines(ax, each.updates, each.reach_90, i)
    ax.set(ylabel="90 % reach, steps", ylim=(0, None))


def _plot_growth(ax, curves):
    for i, each in enumerate(curves.values()):
        middle, error = np.median(each.lambda_1, axis=1), np.median(each.lambda_1_error, axis=1)
        shift = (i - 1) * 0.008 * each.updates[-1]
        style = {"color": COLOURS[i], "linestyle": LINES[i], "marker": MARKERS[i], "capsize": 3}
        ax.errorbar(each.updates + shift, middle, error, linewidth=1.8, markersize=5, elinewidth=1.5, **style)
    ax.axhline(0, color="0.3", linewidth=1)
    ax.set(ylabel="λ₁, nats per step")


def _plot_spectra(ax, curves):
    lowest = 0.0
    for i, each in enumerate(curves.values()):
        known = np.isfinite(each.log_sigma)
        middle = np.median(np.where(known, each.log_sigma, 0), axis=1) / np.log(10)
        for values, shown, width in zip(middle, known.all(axis=1), (1.3, 2.6), strict=True):
            at = np.arange(1, len(values) + 1)[shown]
            ax.plot(at, values[shown], LINES[i], color=COLOURS[i], linewidth=width)
            lowest = min([lowest, *values[shown][len(at) // 2 :][:1]])
    ax.axhline(0, color="0.3", linewidth=1)
    ax.set(xlabel="singular value i", ylabel="log₁₀ σᵢ(dh_T/dh₀)", ylim=(lowest, None), xlim=(1, None))


def _plot_norms(ax, curves):
    for i, (kind, each) in enumerate(curves.items()):
        _lines(ax, each.updates, each.gradient_norm, i, kind)
        if i:
            ax.plot(each.updates, np.median(each.clipped_norm, axis=1), LINES[i], color=COLOURS[i], linewidth=1.3)
    ax.set(yscale="log", ylabel="‖dC/dθ‖")


def _plot_cosines(ax, curves):
    for i, kind in enumerate(CLIPPINGS):
        if i:
            _lines(ax, curves.updates, curves.cosine[..., i], i, kind)
    ax.axhline(1, color="0.3", linewidth=1)
    ax.set(ylabel="cosine to the exact gradient", ylim=(min(0, float(np.nanmin(curves.cosine))), 1.05))


def _plot_tasks(ax, tasks, results):
    """Mean and t interval over keys; nets side by side."""
    for i, name in enumerate(ARMS):
        found = [mean_interval(results[f"{task}: {name}"].accuracy[-1]) for task in tasks]
        value, low, high = (np.array([getattr(each, key) for each in found]) for key in ("value", "low", "high"))
        at = np.arange(len(tasks)) + (i - len(ARMS) / 2 + 0.5) * 0.075
        style = {"fmt": MARKERS[i % 4], "color": ALL_COLOURS[i], "capsize": 2, "markersize": 8, "linewidth": 2}
        ax.errorbar(at, value, (value - low, high - value), label=name, **style)
    ax.set_xticks(np.arange(len(tasks)), tasks)
    ax.set(ylabel="share of right answers\n(bars: 95 % t interval)", ylim=(0, 1.05))
    _name_above(ax, ax, rows=2)
