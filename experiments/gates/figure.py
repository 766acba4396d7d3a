"""The figure of the gates experiment: a column a cell."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, files

INNER = (2.5, 97.5)  # per cent: the interval over keys
COLOURS = {"gru": "#c77d0a", "lstm, b_f = 0": "#542788", "lstm, b_f = 1": "#8073ac", "lstm, b_f = 2": "#2166ac"}
LINES = (":", "--", "-")  # of H
WORDS = {"font.size": 16, "axes.titlesize": 17, "legend.fontsize": 14}


def plot(results: dict[str, Any], path: Path) -> None:
    """A column a cell: spectral radius over gain, λ_1 over gain, and the eigenvalues where the limit is critical."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(1 + 4.3 * len(results), 18), layout="constrained")
        figure.suptitle("From which gain on is the rest state of a gated net unstable, and what follows?", fontsize=20)
        axes = figure.subplots(3, len(results), sharex="row", sharey="row", squeeze=False, height_ratios=(1, 1, 0.9))
        for (top, middle, bottom), (name, result) in zip(axes.T, results.items(), strict=True):
            title = name.upper() if name == "gru" else name.replace("lstm, b_f", "LSTM, $b_f$")
            top.set_title(f"{title}:\ncritical gain {result.limit:.4g}", fontweight="bold")
            _plot_radii(top, result, COLOURS[name])
            _plot_exponents(middle, result, COLOURS[name])
            for ax in (top, middle):
                ax.axvline(1, color="0.1", linewidth=1.2, linestyle="--", zorder=0)
                ax.set_xlabel(r"gain / critical gain")
            _plot_disc(bottom, result, COLOURS[name])
        axes[0, 0].set(ylabel="spectral radius of J at the origin", xlim=(0.45, 1.45), ylim=(0.5, 1.3))
        axes[1, 0].set(ylabel=r"$\lambda_1$ of the trajectory, nats per step", xlim=(0, None))
        axes[2, 0].set(ylabel="Im μ", xlim=(-0.1, 1.15), ylim=(-0.65, 0.65))
        for ax in axes.flat:
            ax.spines[["top", "right"]].set_visible(False)
        axes[0, 0].legend(frameon=False, loc="upper left", borderaxespad=0)
        axes[1, 0].legend(frameon=False, loc="lower right")
        captions.add_caption(figure, _caption(next(iter(results.values()))), 15)
        files.write_figure(path, figure, dpi=80)


def _caption(result):
    (_, keys), (_, nets) = result.critical.shape, result.exponents.shape
    sizes, inner = ", ".join(map(str, result.sizes)), INNER[1] - INNER[0]
    return (
        f"No inputs, no biases but b_f, Gaussian recurrent weights of variance gain²/H; H = {sizes} units, {keys}"
        " draws each. Critical gain (vertical dashes): for H → ∞, by the circular law (Ginibre 1965). Above: spectral"
        f" radius of the Jacobian J at the origin, mean over draws; band: {inner:g} % of them at H = {result.sizes[0]};"
        f" dots and bars: mean and {inner:g} % of the gains at which a draw's radius is 1. Middle: largest exponent λ₁"
        f" of {nets} nets of H = {result.sizes[0]} along T = {result.length} steps after {result.transient} from a"
        f" random state. Below: dots: eigenvalues μ of J at the critical gain, one draw, H = {result.sizes[-1]},"
        " without an LSTM's zeros; dashed: the disc that they fill for H → ∞; solid: the unit circle."
    )


def _plot_radii(ax, result, colour):
    """Means over keys; the bars below say where the radius of 95 % of the nets crosses 1."""
    limit = float(result.limit)
    heights = 0.66 - 0.055 * np.arange(len(result.sizes))
    for size, radii, critical, height, line in zip(
        result.sizes, result.radii, result.critical / limit, heights, itertools.cycle(LINES), strict=False
    ):
        ax.plot(result.gains / limit, radii.mean(axis=1), line, color=colour, linewidth=2.4, label=f"H = {size}")
        low, high = np.percentile(critical, INNER)
        ax.plot([low, high], [height, height], line, color=colour, linewidth=2.4)
        ax.plot(critical.mean(), height, "o", color=colour, markersize=8)
    low, high = np.percentile(result.radii[0], INNER, axis=1)
    ax.fill_between(result.gains / limit, low, high, color=colour, alpha=0.18, linewidth=0)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.text(1, 0.71, "where 95 % cross 1", color=colour, ha="center", fontsize=14, bbox=white)
    ax.axhline(1, color="0.5", linewidth=1.2, zorder=0)


def _plot_exponents(ax, result, colour):
    of_origin, multiples = np.log(result.radii[0].mean(axis=1)), result.gains / result.limit
    ax.plot(multiples, of_origin, color="0.5", linewidth=2, label="ln spectral radius")
    ax.plot(multiples, result.exponents.mean(axis=1), color=colour, linewidth=2.4, label="λ₁, mean over nets")
    single = np.repeat(multiples, result.exponents.shape[1])
    ax.plot(single, result.exponents.ravel(), "o", color=colour, markersize=6, alpha=0.6, label="λ₁, single nets")
    ax.axhline(0, color="0.5", linewidth=1.2, zorder=0)


def _plot_disc(ax, result, colour):
    circle, limit = np.exp(1j * np.linspace(0, 2 * np.pi, 300)), float(result.limit)
    edge = 1 + limit / 4 * (circle - 1)
    ax.plot(result.disc.real, result.disc.imag, "o", color=colour, markersize=4, alpha=0.8)
    ax.plot(edge.real, edge.imag, color="0.4", linewidth=1.8, linestyle="--")
    ax.plot(circle.real, circle.imag, color="0.1", linewidth=1.8)
    ax.set(xlabel="Re μ", aspect="equal")
