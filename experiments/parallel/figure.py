"""The figure of the parallel experiment: Newton's iterations over λ_1, the error of δ_t over t."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import files

from .horizon import Scalar
from .newton import VERDICTS

LENGTH_COLOURS = ("#0072b2", "#d55e00", "#111111")
SIZES = (13, 9.5, 6)
VERDICT_MARKERS = ("o", "D", "X")
VERDICT_SHADES = (0.95, 0.4, 0.0)  # opacity of the strips
LINEAR = 0.01  # nats per step: λ_1 is drawn linearly within, by its logarithm beyond
DECAY_COLOURS = {0.9: "#009e73", 0.99: "#0072b2", 0.999: "#7a5195"}
FLOAT_LINES = {"float32": "--", "float64": "-"}


def plot(results: dict[str, Any], path: Path) -> None:
    """Left: iterations, one colour a T, below them where the outlook says that it pays. Right: the scalars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.5, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 0.17), width_ratios=(1.05, 1))
    iterations = figure.add_subplot(grid[0, 0])
    regions = figure.add_subplot(grid[1, 0], sharex=iterations)
    _plot_iterations(iterations, results["newton"])
    _plot_regions(regions, results["newton"])
    _plot_errors(figure.add_subplot(grid[:, 1]), results)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    files.write_figure(path, figure, dpi=130)


def _plot_iterations(ax, result):
    """Long sequences in small marks on top of short ones in large ones: where T does not matter they coincide."""
    for j, (length, colour, size) in enumerate(zip(result.lengths, LENGTH_COLOURS, SIZES, strict=False)):
        if length <= result.most:
            ax.axhline(length, color=colour, linewidth=1.3, linestyle="--")
            ax.text(-0.95, 1.04 * length, f"T = {length}", color=colour, va="bottom")
        for i, verdict in enumerate(result.verdict[:, j]):
            marker = VERDICT_MARKERS[verdict] if result.converged[i, j] else "^"
            face = colour if verdict == 0 else "white"
            style = {"markersize": size, "markeredgecolor": colour, "markerfacecolor": face, "markeredgewidth": 1.6}
            ax.plot(result.exponent[i], result.iterations[i, j], marker, **style)
        ax.plot([], [], "s", color=colour, markersize=size - 1, label=f"T = {length}")
    for verdict, marker in zip(VERDICTS, VERDICT_MARKERS, strict=True):
        face = "0.3" if verdict == "pays" else "white"
        ax.plot([], [], marker, color="0.3", markerfacecolor=face, markersize=8, label=f"outlook: {verdict}")
    if not result.converged.all():
        ax.plot([], [], "^", color="0.3", markerfacecolor="white", markersize=8, label=f"stopped at {result.most}")
    ax.set(yscale="log", ylim=(3, 1.6 * result.most), ylabel="Newton's iterations")
    ax.set_xscale("symlog", linthresh=LINEAR)
    ax.set_yticks((4, 10, 30, 100), ("4", "10", "30", "100"))
    ax.minorticks_off()
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.tick_params(labelbottom=False)
    ax.set_title(f"the forward pass in parallel: tanh nets, N = {result.size}", fontweight="bold")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.84))


def _plot_regions(ax, result):
    """One strip a T: dark where λ_1 T ≤ −10 nats, light down to −1, empty beyond."""
    low = min(-1.0, float(np.nanmin(result.exponent)))
    for j, (length, colour) in enumerate(zip(result.lengths, LENGTH_COLOURS, strict=False)):
        for start, stop, shade in zip((low, -10 / length), (-10 / length, -1 / length), VERDICT_SHADES, strict=False):
            ax.barh(j, stop - start, left=start, height=0.75, color=colour, alpha=shade, linewidth=0)
    ax.axvline(0, color="0.6", linewidth=0.8)
    ax.set_yticks(range(len(result.lengths)), [f"T = {length}" for length in result.lengths])
    ax.set(ylim=(len(result.lengths) - 0.5, -0.5), xlabel=r"largest exponent $\lambda_1$, nats per step")
    ax.set_xticks((-1, -0.1, -0.01, 0, 0.01, 0.1), ("−1", "−0.1", "−0.01", "0", "0.01", "0.1"))
    ax.minorticks_off()
    ax.set_xlim(low, 0.2)
    ax.text(0.012, (len(result.lengths) - 1) / 2, "dark: pays\nlight: cannot tell", va="center", fontsize="small")


def _plot_errors(ax, results):
    for name, found in results.items():
        if not isinstance(found, Scalar):
            continue
        dtype = name.rpartition(", ")[2]
        colour = DECAY_COLOURS[float(found.decay)]
        label = f"λ = {found.decay:g}, {dtype}"
        ax.plot(
            found.steps,
            np.maximum(found.error, 1e-18),
            color=colour,
            linestyle=FLOAT_LINES[dtype],
            linewidth=2,
            label=label,
        )
        ax.plot(found.predicted, 1, "v", color=colour, markersize=11, markeredgecolor="white")
        ax.plot(np.median(found.horizon), 1, "|", color=colour, markersize=16, markeredgewidth=2.2)
    ax.plot([], [], "v", color="0.3", markersize=9, label=r"predicted: $\ln(u/\sqrt{1-\lambda^2})\,/\ln\lambda$")
    ax.plot([], [], "|", color="0.3", markersize=13, markeredgewidth=2.2, label="horizon that the toolkit reports")
    ax.axhline(1, color="0.6", linewidth=0.9)
    ax.set(xscale="log", yscale="log", ylim=(1e-18, 1e3), xlim=(1, None), xlabel="step t")
    ax.set_ylabel(r"error of $\delta_t$ over the size of $\delta$, median of seeds")
    ax.set_title("the adjoint carried forward: $h_t = λ h_{t-1}$", fontweight="bold")
    ax.legend(frameon=False, loc="upper left", fontsize="small", bbox_to_anchor=(0, 0.84))
