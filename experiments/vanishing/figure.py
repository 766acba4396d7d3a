"""The figures of the vanishing experiment, one row a cell: growth, and the theories of it."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, files
from experiments.nets import SCHEMES

from .sweep import CELLS, PARTED, SHOWN, THEORIES

THEORY_STYLES = {  # field of Sweep: colour, line
    "powers": ("#d1495b", "--"),
    "bound": ("#7a5195", "-."),
    "norms": ("#b8860b", "-."),
    "radii": ("#2a9d8f", ":"),
    "mean_field": ("#111111", "-"),
    "carry": ("#d1495b", "--"),
}
SCHEME_STYLES = (("#31688e", "o"), ("#1f9e89", "s"), ("#c77d0a", "D"))
GAIN_COLOURS = ("#3b76af", "#555555", "#c8553d")
WORDS = {"font.size": 14, "axes.titlesize": 15, "legend.fontsize": 12}


def plot(results: dict[str, Any], path: Path) -> None:
    """A row a cell: singular values over time, λ_1 over gain."""
    panels = {
        "singular values over time": (_plot_growth, "gaussian"),
        r"growth rate $\lambda_1$ over gain": (_plot_exponents, "all"),
    }
    caption = (
        "Left, Gaussian weights: band from σ₁ to the upper quartile of the spectrum; dashed: what a theory without a"
        " fit expects. Right: λ₁ by QR; bars: two standard errors over time; theories, of Gaussian weights: red, powers"
        " of W or the gate alone; violet, bound; ochre, step norms; green, step eigenvalues; black, mean field."
    )
    _plot_rows(results, path, panels, "Where the gradient goes", caption)


def plot_theories(results: dict[str, Any], path: Path) -> None:
    """A row a cell: eigenvalues in the complex plane, theory less λ_1."""
    panels = {
        "eigenvalues and the unit circle": (_plot_plane, "gaussian"),
        r"theory less $\lambda_1$": (_plot_gaps, "gaussian"),
    }
    caption = (
        "Gaussian weights. Left: eigenvalues at gains ½ (blue), 1 (grey) and 2 (red); of an LSTM and a GRU, W is the"
        f" block of the candidate. Right: each theory's rate less the measured λ₁; grey: within {PARTED:g} nats per"
        " step; linear up to 0.1, logarithmic beyond."
    )
    _plot_rows(results, path, panels, "Which theory says where the gradient goes", caption)


def _plot_rows(results, path, panels, title, caption):
    """The panels side by side, a row a cell, and what they mean below."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [name for name in CELLS if f"{name}, gaussian" in results]
    first = results[f"{rows[0]}, gaussian"]
    size, length = first.log_singular_values.shape[2], int(first.steps[-1])
    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(13, 1.9 + 4.6 * len(rows)), layout="constrained")
        figure.suptitle(f"{title}: nets that read text, weights as drawn", fontsize=19)
        axes = figure.subplots(len(rows), len(panels), squeeze=False)
        for row, name in zip(axes, rows, strict=True):
            sweeps = {scheme: results[f"{name}, {scheme}"] for scheme in SCHEMES}
            for ax, (heading, (draw, which)) in zip(row, panels.items(), strict=True):
                draw(ax, sweeps if which == "all" else sweeps[which])
                ax.set_title(f"{CELLS[name]}: {heading}", fontweight="bold", pad=10)
                ax.spines[["top", "right"]].set_visible(False)
        facts = f"N = {size} state entries, T = {length} steps, one draw of the weights for each cell and scheme. "
        captions.add_caption(figure, facts + caption, 13)
        files.write_figure(path, figure, dpi=100)


def _plot_growth(ax, sweep):
    """σ_1 and the upper quarter of the spectrum for three gains; dashed, what a theory without a fit expects."""
    name = "powers" if np.isfinite(sweep.powers).all() else "carry"
    for i, values, colour in zip(SHOWN, sweep.log_singular_values / np.log(10), GAIN_COLOURS, strict=True):
        quarter = np.maximum(values[:, values.shape[1] // 4], -1e4)  # −inf cannot be drawn
        ax.fill_between(sweep.steps, quarter, values[:, 0], color=colour, alpha=0.16, linewidth=0)
        ax.plot(sweep.steps, values[:, 0], color=colour, linewidth=2.6, label=f"gain {sweep.gains[i]:.2g}")
        theory = sweep.steps * getattr(sweep, name)[i] / np.log(10)
        ax.plot(sweep.steps, theory, color=colour, linewidth=1.4, linestyle="--")
    ax.plot([], [], color="0.3", linestyle="--", linewidth=1.4, label=THEORIES[name])
    ax.axhline(0, color="0.5", linewidth=0.8)
    tops = sweep.log_singular_values[:, :, 0] / np.log(10)
    low, high = min(tops.min(), -1), max(tops.max(), 1)
    ax.set(ylim=(low - 0.35 * (high - low), high + 0.1 * (high - low)), xlim=(0, sweep.steps[-1]), xlabel="step t")
    ax.set_ylabel(r"$\log_{10}\,\sigma_i(dh_t/dh_0)$")
    ax.legend(frameon=False, loc="lower left", fontsize=12)


def _plot_exponents(ax, sweeps):
    """λ_1 with error bars (two standard errors where they are known), and the theories for the Gaussian scheme."""
    _plot_theories(ax, sweeps["gaussian"], 0)
    for (scheme, sweep), (colour, marker) in zip(sweeps.items(), SCHEME_STYLES, strict=True):
        error = 2 * sweep.standard_error[:, 0]
        style = {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": 0.8, "capsize": 2.5}
        ax.errorbar(sweep.gains, sweep.exponents[:, 0], error, elinewidth=1.6, label=scheme, **style)
    ax.axhline(0, color="0.5", linewidth=0.8)
    top = np.concatenate([sweeps[scheme].exponents[:, 0] for scheme in ("gaussian", "orthogonal")])
    low, high = np.nanmin([*top, -0.1]), np.nanmax([*top, 0.1])
    ax.set(ylim=(low - 0.25 * (high - low), high + 0.3 * (high - low)), ylabel="nats per step")
    handles = [entry for entry in zip(*ax.get_legend_handles_labels(), strict=True) if entry[1] in SCHEMES]
    ax.legend(*zip(*handles, strict=True), frameon=False, loc="upper left")


def _plot_plane(ax, sweep):
    """Eigenvalues of J_t along the text, dots, and of W, rings, for three gains."""
    for i, colour in reversed(list(zip(SHOWN, GAIN_COLOURS, strict=True))):
        of_steps, of_weights = sweep.jacobian_eigenvalues[i].ravel(), sweep.weight_eigenvalues[i]
        ax.plot(of_steps.real, of_steps.imag, ".", color=colour, markersize=2.8, alpha=0.4)
        ax.plot(of_weights.real, of_weights.imag, "o", mfc="none", mec=colour, markersize=5.5, markeredgewidth=1)
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    ax.plot(circle.real, circle.imag, color="0.1", linewidth=1.4)
    ax.plot([], [], ".", color="0.3", label="of $J_t$")
    ax.plot([], [], "o", mfc="none", mec="0.3", label="of W")
    ax.legend(frameon=False, fontsize=12, loc="upper right", handletextpad=0.1)
    ax.set(xlabel=r"Re $\lambda$", ylabel=r"Im $\lambda$")
    ax.set_aspect("equal", adjustable="datalim")


def _plot_gaps(ax, sweep):
    """Each theory less λ_1; inside the band they agree."""
    ax.axhspan(-PARTED, PARTED, color="0.88", linewidth=0, label=f"within {PARTED:g}")
    _plot_theories(ax, sweep, sweep.exponents[:, 0])
    ax.set_yscale("symlog", linthresh=0.1)
    ticks = (-1, -0.3, -0.1, 0, 0.1, 0.3, 1)
    ax.set_yticks(ticks, [f"{tick:+g}".replace("-", "−") if tick else "0" for tick in ticks])
    ax.set(ylabel="nats per step", ylim=(-0.5, 20))
    ax.legend(frameon=False, fontsize=12, ncols=2, loc="upper left")


def _plot_theories(ax, sweep, less):
    for name, (colour, line) in THEORY_STYLES.items():
        theory, label = getattr(sweep, name), THEORIES[name]
        if np.isfinite(theory).any():
            ax.plot(sweep.gains, theory - less, color=colour, linestyle=line, linewidth=1.8, label=label)
    ax.set(xscale="log", xlabel="gain of the recurrent weights")
    ax.set_xticks(sweep.gains[::3], [f"{gain:g}" for gain in sweep.gains[::3]])
    ax.minorticks_off()
