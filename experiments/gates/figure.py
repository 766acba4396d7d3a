"""The figure of the gates experiment: a column a cell."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from experiments import files

INNER = (2.5, 97.5)  # per cent: the interval over keys
COLOURS = {"gru": "#c77d0a", "lstm, b_f = 0": "#542788", "lstm, b_f = 1": "#8073ac", "lstm, b_f = 2": "#2166ac"}


def plot(results: dict[str, Any], path: Path) -> None:
    """A column a cell: spectral radius over gain, λ_1 over gain, and the eigenvalues where the limit is critical."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(results), 11), layout="constrained")
    figure.suptitle("Gated nets at rest: from which gain on the origin is unstable, and what follows", fontsize=17)
    axes = figure.subplots(3, len(results), sharex="row", sharey="row", squeeze=False, height_ratios=(1, 1, 1.2))
    for (top, middle, bottom), (name, result) in zip(axes.T, results.items(), strict=True):
        title = name.upper() if name == "gru" else name.replace("lstm, b_f", "LSTM, $b_f$")
        top.set_title(f"{title}: critical gain {result.limit:.4g}", fontweight="bold")
        _plot_radii(top, result, COLOURS[name])
        _plot_exponents(middle, result, COLOURS[name])
        for ax in (top, middle):
            ax.axvline(1, color="0.1", linewidth=1, linestyle="--", zorder=0)
            ax.set_xlabel(r"gain / critical gain ($H\to\infty$)")
        _plot_disc(bottom, result, COLOURS[name])
    axes[0, 0].set(ylabel="spectral radius of J at the origin", xlim=(0.45, 1.45), ylim=(0.5, 1.3))
    axes[1, 0].set(ylabel=r"$\lambda_1$ of the trajectory (nats per step)", xlim=(0, None))
    axes[2, 0].set(ylabel="Im", xlim=(-0.1, 1.15), ylim=(-0.6, 0.6))
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, loc="upper left")
    axes[1, 0].legend(frameon=False, loc="lower right")
    handles, labels = axes[2, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3, fontsize="large")
    files.write_figure(path, figure, dpi=110)


def _plot_radii(ax, result, colour):
    """Means over keys; the bars below say where the radius of 95 % of the nets crosses 1."""
    limit = float(result.limit)
    heights = 0.66 - 0.05 * np.arange(len(result.sizes))
    for size, radii, critical, height, line in zip(
        result.sizes, result.radii, result.critical / limit, heights, itertools.cycle((":", "--", "-")), strict=False
    ):
        ax.plot(
            result.gains / limit, radii.mean(axis=1), color=colour, linestyle=line, linewidth=2, label=f"H = {size}"
        )
        low, high = np.percentile(critical, INNER)
        ax.plot([low, high], [height, height], color=colour, linestyle=line, linewidth=2)
        ax.plot(critical.mean(), height, "o", color=colour, markersize=6)
    low, high = np.percentile(result.radii[0], INNER, axis=1)
    label = f"H = {result.sizes[0]}, 95 % of nets"
    ax.fill_between(result.gains / limit, low, high, color=colour, alpha=0.15, linewidth=0, label=label)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.text(1, 0.7, "where 95 % of nets cross 1", color=colour, ha="center", bbox=white)
    ax.axhline(1, color="0.5", linewidth=0.9, zorder=0)


def _plot_exponents(ax, result, colour):
    of_origin, multiples = np.log(result.radii[0].mean(axis=1)), result.gains / result.limit
    ax.plot(multiples, of_origin, color="0.5", linewidth=1.5, label="ln spectral radius at the origin")
    ax.plot(multiples, result.exponents.mean(axis=1), color=colour, linewidth=2, label=f"mean, H = {result.sizes[0]}")
    single = np.repeat(multiples, result.exponents.shape[1])
    ax.plot(single, result.exponents.ravel(), "o", color=colour, markersize=4.5, alpha=0.6, label="single nets")
    ax.axhline(0, color="0.5", linewidth=0.9, zorder=0)


def _plot_disc(ax, result, colour):
    circle, limit = np.exp(1j * np.linspace(0, 2 * np.pi, 300)), float(result.limit)
    edge = 1 + limit / 4 * (circle - 1)
    label = f"eigenvalues of J at the critical gain, H = {result.sizes[-1]}"
    ax.plot(result.disc.real, result.disc.imag, "o", color=colour, markersize=3.5, alpha=0.8, label=label)
    ax.plot(edge.real, edge.imag, color="0.4", linewidth=1.3, linestyle="--", label=r"their disc for $H\to\infty$")
    ax.plot(circle.real, circle.imag, color="0.1", linewidth=1.5, label="unit circle")
    ax.set(xlabel="Re", aspect="equal")
