"""The figure of the parallel experiment: Newton's iterations over λ_1, the error of δ_t over t."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, files

from .horizon import Scalar
from .newton import TRIAL, VERDICTS

LENGTH_COLOURS = ("#0072b2", "#d55e00", "#111111")
SIZES = (16, 11, 6.5)
VERDICT_MARKERS = ("o", "D", "X")
VERDICT_SHADES = (0.95, 0.4, 0.0)  # opacity of the strips
LINEAR = 0.01  # nats per step: λ_1 is drawn linearly within, by its logarithm beyond
DECAY_COLOURS = {0.9: "#009e73", 0.99: "#0072b2", 0.999: "#cc79a7"}
FLOAT_LINES = {"float32": "--", "float64": "-"}
WORDS = {"font.size": 16, "axes.titlesize": 17, "legend.fontsize": 14}


def plot(results: dict[str, Any], path: Path) -> None:
    """Left: iterations, one colour a T, below them where the outlook says that it pays. Right: the scalars."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(17, 11.5), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12)
        title = "Do the exponents say what Newton's method takes, and how far an adjoint is carried forward?"
        figure.suptitle(title, fontsize=20)
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 0.17), width_ratios=(1.05, 1))
        iterations = figure.add_subplot(grid[0, 0])
        regions = figure.add_subplot(grid[1, 0], sharex=iterations)
        _plot_iterations(iterations, results["newton"])
        _plot_regions(regions, results["newton"])
        _plot_errors(figure.add_subplot(grid[:, 1]), results)
        for ax in figure.axes:
            ax.spines[["top", "right"]].set_visible(False)
        captions.add_caption(figure, _caption(results), 15)
        files.write_figure(path, figure, dpi=90)


def _caption(results):
    newton = results["newton"]
    seeds = {len(found.lost) for found in results.values() if isinstance(found, Scalar)}
    return (
        f"Left: Newton's method on all T steps at once, one draw of a tanh net without inputs, N = {newton.size}, at"
        f" {len(newton.gains)} gains, float64; λ₁ by QR over {TRIAL} steps, its axes linear within ±{LINEAR:g} and"
        " logarithmic beyond; dashed: T iterations, always enough. Marks: what the toolkit's outlook said before"
        " the run, by whether λ₁T is below −10 nats or −1 nat (strips) for all that λ₁ may be within its error. Right:"
        " δ_t = y_t + λ δ_{t+1}, y_t normal, carried forward from the exact δ₁ by δ_{t+1} = (δ_t − y_t)/λ; error"
        " against extended precision, over the root mean square 1/√(1 − λ²) of δ; median over"
        f" {max(seeds, default=0)} seeds; u: unit roundoff."
    )


def _plot_iterations(ax, result):
    """Long sequences in small marks on top of short ones in large ones: where T does not matter they coincide."""
    for j, (length, colour, size) in enumerate(zip(result.lengths, LENGTH_COLOURS, SIZES, strict=False)):
        if length <= result.most:
            ax.axhline(length, color=colour, linewidth=1.8, linestyle="--")
            ax.text(-0.95, 1.04 * length, f"T = {length}", color=colour, va="bottom")
        for i, verdict in enumerate(result.verdict[:, j]):
            marker = VERDICT_MARKERS[verdict] if result.converged[i, j] else "^"
            face = colour if verdict == 0 else "white"
            style = {"markersize": size, "markeredgecolor": colour, "markerfacecolor": face, "markeredgewidth": 2}
            ax.plot(result.exponent[i], result.iterations[i, j], marker, **style)
        ax.plot([], [], "s", color=colour, markersize=size - 1, label=f"T = {length}")
    for verdict, marker in zip(VERDICTS, VERDICT_MARKERS, strict=True):
        face = "0.3" if verdict == "pays" else "white"
        ax.plot([], [], marker, color="0.3", markerfacecolor=face, markersize=10, label=f"outlook: {verdict}")
    if not result.converged.all():
        ax.plot([], [], "^", color="0.3", markerfacecolor="white", markersize=10, label=f"stopped at {result.most}")
    ax.set(yscale="log", ylim=(3, 1.6 * result.most), ylabel="Newton's iterations")
    ax.set_xscale("symlog", linthresh=LINEAR)
    ax.set_yticks((4, 10, 30, 100), ("4", "10", "30", "100"))
    ax.minorticks_off()
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.tick_params(labelbottom=False)
    ax.set_title(f"the forward pass in parallel: tanh nets, N = {result.size}", fontweight="bold")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.88))


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
    ax.text(0.012, (len(result.lengths) - 1) / 2, "dark: pays\nlight: cannot tell", va="center", fontsize=14)


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
            linewidth=2.4,
            label=label,
        )
        ax.plot(found.predicted, 1, "v", color=colour, markersize=14, markeredgecolor="white")
        ax.plot(np.median(found.horizon), 1, "|", color=colour, markersize=20, markeredgewidth=3)
    lines = ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.85))
    marks = {
        r"predicted: $\ln(u/\sqrt{1-\lambda^2})\,/\ln\lambda$": {"marker": "v", "markersize": 12},
        "horizon that the toolkit reports": {"marker": "|", "markersize": 18, "markeredgewidth": 3},
    }
    handles = [ax.plot([], [], color="0.3", linestyle="", label=label, **style)[0] for label, style in marks.items()]
    ax.legend(handles=handles, frameon=False, loc="lower right")
    ax.add_artist(lines)
    ax.axhline(1, color="0.6", linewidth=1.2)
    ax.set(xscale="log", yscale="log", ylim=(1e-18, 1e3), xlim=(1, None), xlabel="step t")
    ax.set_ylabel(r"error of $\delta_t$ / size of $\delta$, dimensionless")
    ax.set_title("the adjoint carried forward: $h_t = λ h_{t-1}$", fontweight="bold")
