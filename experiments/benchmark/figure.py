"""One figure: ratios to every peer over the grid, the share of the machine's speed, and how time grows."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import files

TITLES = {"tanh": "tanh", "lstm": "LSTM", "gru": "GRU"}
COLOURS = {"autodiff": "#1f5f99", "flax": "#3a9d5d", "equinox": "#d1801f", "torch": "#c23b4b", "cudnn": "#7a5195"}
MARKERS = {"autodiff": "o", "flax": "s", "equinox": "^", "torch": "D", "cudnn": "v"}
LABELS = {"autodiff": "jax.value_and_grad", "flax": "Flax", "equinox": "Equinox", "torch": "PyTorch", "cudnn": "cuDNN"}
CELL_COLOURS = {"tanh": "#2a788e", "lstm": "#7a5195", "gru": "#c77d0a"}
WORDS = {"T": "steps T", "N": "units N", "B": "sequences B"}
OURS, THEIRS = "#111111", COLOURS["autodiff"]
SPREAD = 0.78  # of the distance between two places on the axis of a panel, shared by the peers of one case


def plot(results: dict[str, Any], path: Path) -> None:
    """Left: one panel a cell and batch. Right: GFLOP/s under the roofline, time over T, N and B. PNG at `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 11.25), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.32, 1), wspace=0.02)
    gradients = [row for row in results["rows"] if row["suite"] == "gradients" and "seconds" in row]
    scaling = [row for row in results["rows"] if row["suite"] == "scaling" and "seconds" in row]
    dtype = gradients[0]["dtype"] if gradients else "float32"  # of several the first
    gradients = [row for row in gradients if row["dtype"] == dtype]
    environment = results["environment"]
    figure.suptitle("One recurrent gradient, computed by everybody", fontsize=22, fontweight="bold")
    _plot_ratios(left, gradients)
    speed, *others = right.subplots(2, 2).flat if scaling else [right.subplots()]
    _plot_speed(speed, gradients, environment["roofline"][dtype] / 1e9)
    for ax, axis in zip(others, "TNB", strict=False):
        _plot_scaling(ax, axis, [row for row in scaling if row["axis"] == axis])
    device = environment["cpu"] if environment["backend"] == "cpu" else environment["device"]
    where = f"{device}, {environment['cores']} cores, {dtype}, jax {environment['versions']['jax']}"
    right.supxlabel(f"{where}, {environment['date'][:10]}", fontsize=12, color="0.35", x=0.99, ha="right")
    files.write_figure(path, figure, dpi=110)


def _plot_ratios(figure, rows):
    """Median of the paired ratios with their quartiles; above 1 ours is faster."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    cells, batches = (list(dict.fromkeys(row[key] for row in rows)) for key in ("cell", "B"))
    figure.suptitle("how many times faster jaxbptt is (median of pairs, bars: quartiles)", fontsize=15)
    if not rows:
        return
    peers = [name for name in COLOURS if any(row["contestant"] == name for row in rows)]
    places = sorted({(row["T"], row["N"]) for row in rows})
    lengths = sorted({length for length, _ in places})
    position = {place: i + 0.8 * lengths.index(place[0]) for i, place in enumerate(places)}
    axes = figure.subplots(len(cells), len(batches), squeeze=False, sharex=True, sharey="row")
    shown = [row for row in rows if row["contestant"] in peers]
    handles = {}
    for line, cell in zip(axes, cells, strict=True):
        for ax, batch in zip(line, batches, strict=True):
            panel = [row for row in shown if (row["cell"], row["B"]) == (cell, batch)]
            for i, peer in enumerate(peers):
                found = [row for row in panel if row["contestant"] == peer]
                shift = SPREAD * ((i + 0.5) / len(peers) - 0.5)
                x = [position[row["T"], row["N"]] + shift for row in found]
                y = np.array([row["ratio"] for row in found])
                ends = np.array([row["ratio_quartiles"] for row in found]).reshape(-1, 2).T
                style = {"color": COLOURS[peer], "marker": MARKERS[peer], "markersize": 6.5, "elinewidth": 1.6}
                handles[LABELS[peer]] = ax.errorbar(x, y, np.abs(ends - y), linestyle="none", **style)
            _dress_panel(ax, position, lengths)
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        ends = [bound for row in shown if row["cell"] == cell for bound in (row["ratio"], row["ratio_quartiles"][0])]
        line[0].set_ylim(min(0.5, 0.85 * min(ends, default=1)), max(4, 3 * max(ends, default=1)))
        line[0].set_ylabel(TITLES[cell], fontsize=17, fontweight="bold")
    for ax, batch in zip(axes[0], batches, strict=True):
        ax.set_title(f"batch of {batch}" if batch > 1 else "one sequence", fontsize=15, fontweight="bold")
    for ax in axes[-1]:
        ax.set_xlabel("units N", fontsize=13)
    legend = list(handles)
    figure.legend([handles[name] for name in legend], legend, loc="outside lower center", ncols=5, fontsize=14)


def _dress_panel(ax, position, lengths):
    """The line at 1, N below, T above each group."""
    ax.set_yscale("log")
    ax.axhspan(1e-4, 1, color="#c23b4b", alpha=0.07, zorder=0)
    ax.axhline(1, color="0.15", linewidth=1.6, zorder=1)
    ax.set_xticks(list(position.values()), [str(n) for _, n in position], fontsize=11, rotation=0)
    ax.tick_params(axis="y", labelsize=12)
    ax.grid(axis="y", color="0.9", linewidth=0.8)
    ax.minorticks_off()
    for length in lengths:
        group = [x for (t, _), x in position.items() if t == length]
        ax.text(
            np.mean(group),
            0.96,
            f"T = {length}",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=12,
        )
        if length != lengths[0]:
            ax.axvline(min(group) - 0.9, color="0.8", linewidth=1, linestyle=":")
    ax.spines[["top", "right"]].set_visible(False)


def _plot_speed(ax, rows, limit):
    """GFLOP/s of ours over N, at the longest T that has every N."""
    ours = [row for row in rows if row["contestant"] == "jaxbptt"]
    if not ours:
        ax.set_visible(False)
        return
    lengths = {}
    for cell, colour in CELL_COLOURS.items():
        for batch in sorted({row["B"] for row in ours}):
            found = [row for row in ours if (row["cell"], row["B"]) == (cell, batch)]
            if not found:
                continue
            sizes = sorted({row["N"] for row in found})
            whole = [t for t in {row["T"] for row in found} if sum(row["T"] == t for row in found) == len(sizes)]
            if not whole:
                continue
            found = sorted((row for row in found if row["T"] == max(whole)), key=lambda row: row["N"])
            lengths[batch] = max(whole)
            style = "-o" if batch > 1 else "--o"
            label = f"{TITLES[cell]}, B {batch}"
            ax.plot(sizes, [row["gflops"] for row in found], style, color=colour, linewidth=2, label=label)
    ax.axhline(limit, color="0.2", linewidth=2)
    ax.set(xscale="log", yscale="log", title="jaxbptt's speed under the roofline", ylabel="GFLOP/s")
    sizes = sorted({row["N"] for row in ours})
    middle = (sizes[0] * sizes[-1]) ** 0.5
    ax.annotate(
        f"a square product: {limit:.0f}", (middle, limit), (0, 5), textcoords="offset points", fontsize=12, ha="center"
    )
    ax.set_ylim(min(row["gflops"] for row in ours) / 6, 2 * limit)  # room below for the legend
    _dress(
        ax,
        f"units N ({', '.join(f'T {t} at B {b}' for b, t in lengths.items())})",
        sizes,
        columns=2,
        place="lower center",
    )


def _plot_scaling(ax, axis, rows):
    if not rows:
        ax.set_visible(False)
        return
    for contestant, colour, name in (("jaxbptt", OURS, "jaxbptt"), ("autodiff", THEIRS, "autodiff")):
        found = sorted((row for row in rows if row["contestant"] == contestant), key=lambda row: row[axis])
        if not found:
            continue
        exponent = found[0]["exponent"]
        label = name if exponent is None else f"{name}: ∝ {axis}$^{{{exponent:.2f}}}$"
        sizes = [row[axis] for row in found]
        milliseconds = [row["seconds"] * 1e3 for row in found]
        ax.plot(sizes, milliseconds, "-o", color=colour, linewidth=2.2, markersize=7, label=label)
    fixed = ", ".join(f"{key} {rows[0][key]}" for key in "TNB" if key != axis)
    ax.set(xscale="log", yscale="log", title=f"time over {axis} (tanh, {fixed})", ylabel="milliseconds")
    _dress(ax, WORDS[axis], sorted({row[axis] for row in rows}))


def _dress(ax, label, sizes, columns=1, place="upper left"):
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ax.set_xlabel(label, fontsize=13)
    ax.yaxis.label.set_fontsize(13)
    ax.title.set_fontsize(13)
    ax.title.set_fontweight("bold")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=12)
    ax.tick_params(axis="x", which="minor", length=0)
    ax.grid(color="0.92", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=12, ncols=columns, loc=place)
