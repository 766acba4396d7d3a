"""The figure of the memory experiment: sensitivities beside the singular values."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, files

from .parametrisations import CORRELATIONS, NAMES, exact_moments

COLOURS = ("#D55E00", "#E69F00", "#0072B2")  # Okabe & Ito's
WORDS = {"font.size": 16, "axes.titlesize": 17, "legend.fontsize": 14.5}


def plot(results: dict[str, Any], path: Path) -> None:
    """Sensitivities over 1 − λ; beside them what the singular values do."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(17, 13), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        figure.suptitle(
            r"The curse of memory: $h' = \lambda h + \gamma x$ is sensitive though nothing explodes", fontsize=20
        )
        left, right = figure.add_gridspec(1, 2, width_ratios=(1.25, 1))
        left, right = left.subgridspec(2, 1, height_ratios=(3, 1)), right.subgridspec(2, 1)
        sensitive, norms, rates = (figure.add_subplot(place) for place in (left[0], right[0], right[1]))
        ratios = figure.add_subplot(left[1], sharex=sensitive)
        growth = results["growth"]
        fine = np.geomspace(growth.forgetting.min() / 1.3, growth.forgetting.max() * 1.3, 200)
        _plot_sensitivities(sensitive, ratios, results, fine)
        _plot_growth(norms, rates, growth, fine)
        for ax in (sensitive, ratios, norms, rates):
            ax.title.set_fontweight("bold")
            ax.spines[["top", "right"]].set_visible(False)
        captions.add_caption(figure, _caption(results), 15)
        files.write_figure(path, figure, dpi=90)


def _caption(results):
    one = results[f"{NAMES[0]}, ρ = {CORRELATIONS[0]:g}"]
    return (
        "x: a stationary Gaussian AR(1) of correlation ρ and unit variance; h: one state entry for each λ, real, of an"
        f" LRU. Points: dh_t/dθ by forward differentiation of the simulated recurrence, squared, mean over {one.keys}"
        f" sequences of T = {one.length:,} steps after a start that is left out; bars: two standard errors over"
        " sequences (below, points are moved apart along 1 − λ). Lines: the exact stationary mean squares. θ is λ, or"
        " ν with λ = exp(−exp ν), γ held fixed or moving with it. Right: norms and exponents of the same recurrence's"
        " Jacobians. The curse: Zucchet & Orvieto (2024); ν: Orvieto et al. (2023)."
    )


def _plot_sensitivities(sensitive, ratios, results, fine):
    """Measured mean squares on exact lines, and their ratio."""
    offsets = iter(np.geomspace(0.8, 1 / 0.8, len(NAMES) * len(CORRELATIONS)))
    for name, colour in zip(NAMES, COLOURS, strict=True):
        for correlation, line, face in zip(CORRELATIONS, ("-", "--"), (colour, "white"), strict=True):
            result = results[f"{name}, ρ = {correlation:g}"]
            exact = exact_moments(1 - fine, correlation).sensitivities[name]
            sensitive.plot(fine, exact, color=colour, linestyle=line, linewidth=2)
            style = {"color": colour, "markerfacecolor": face, "fmt": "o", "capsize": 3, "elinewidth": 1.8}
            sensitive.errorbar(result.forgetting, result.measured, 2 * result.standard_error, markersize=9, **style)
            ratio, error = (values / result.exact for values in (result.measured, 2 * result.standard_error))
            ratios.errorbar(result.forgetting * next(offsets), ratio, error, markersize=6, **style)
        sensitive.plot([], [], "o-", color=colour, label=name.replace(", in ", ", θ = "))
    for correlation, line, face in zip(CORRELATIONS, ("-", "--"), ("0.3", "white"), strict=True):
        label = rf"$\rho$ = {correlation:g}"
        sensitive.plot([], [], "o", linestyle=line, color="0.3", markerfacecolor=face, label=label)
    corner = np.array([2e-3, 2e-2])
    sensitive.plot(corner, 2e9 * (corner / corner[0]) ** -3.0, color="0.3", linewidth=1.6)
    sensitive.text(7e-3, 1.2e8, r"slope $-3$", color="0.3")
    sensitive.set(xscale="log", yscale="log", ylabel=r"$\mathrm{E}\,(dh/d\theta)^2$, dimensionless")
    sensitive.set_title("sensitivity: lines exact, points measured")
    sensitive.legend(frameon=False, loc="upper right")
    sensitive.tick_params(labelbottom=False)
    ratios.axhline(1, color="0.3", linewidth=1.4)
    ratios.set(xlabel=r"$1-\lambda$", ylabel="measured / exact")


def _plot_growth(norms, rates, growth, fine):
    """The norms of the products of Jacobians over time, and their exponents."""
    shades = [str(level) for level in np.linspace(0.7, 0.0, len(growth.forgetting))]
    for forgetting, values, shade in zip(growth.forgetting, growth.log_norms.T, shades, strict=True):
        norms.plot(growth.steps, values / np.log(10), color=shade, linewidth=2.4, label=f"λ = {1 - forgetting:g}")
    norms.axhline(0, color="0.5", linewidth=1.2, linestyle=":")
    norms.set(xscale="log", ylim=(-10, 0.8), xlim=(10, None), xlabel="step t")
    norms.set(title="singular values only shrink", ylabel=r"$\log_{10}\,\|dh_t/dh_0\|$")
    norms.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.98, 1))
    rates.plot(fine, -np.log1p(-fine), color="0.3", linewidth=2, label=r"$-\ln\lambda$, exact")
    rates.plot(growth.forgetting, -growth.exponents, "o", color="#CC79A7", markersize=11, label="from the Jacobians")
    rates.set(xscale="log", yscale="log", xlabel=r"$1-\lambda$", ylabel="minus the exponent, nats per step")
    rates.set_title("Lyapunov exponents stay negative")
    rates.legend(frameon=False, loc="lower right")
