"""The figure of the memory experiment: sensitivities beside the singular values."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import files

from .parametrisations import CORRELATIONS, NAMES, exact_moments

COLOURS = ("#b2182b", "#e08214", "#2166ac")


def plot(results: dict[str, Any], path: Path) -> None:
    """Sensitivities over 1 − λ; beside them what the singular values do."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8), layout="constrained")
    figure.suptitle(r"The curse of memory: $h' = \lambda h + \gamma x$, sensitive though nothing explodes", fontsize=17)
    left, right = figure.add_gridspec(1, 2, width_ratios=(1.35, 1))
    left, right = left.subgridspec(2, 1, height_ratios=(3, 1)), right.subgridspec(2, 1)
    sensitive, norms, rates = (figure.add_subplot(place) for place in (left[0], right[0], right[1]))
    ratios = figure.add_subplot(left[1], sharex=sensitive)
    growth = results["growth"]
    fine = np.geomspace(growth.forgetting.min() / 1.3, growth.forgetting.max() * 1.3, 200)
    offsets = iter(np.geomspace(0.84, 1 / 0.84, len(NAMES) * len(CORRELATIONS)))
    for name, colour in zip(NAMES, COLOURS, strict=True):
        for correlation, line, face in zip(CORRELATIONS, ("-", "--"), (colour, "white"), strict=True):
            result = results[f"{name}, ρ = {correlation:g}"]
            exact = exact_moments(1 - fine, correlation).sensitivities[name]
            sensitive.plot(fine, exact, color=colour, linestyle=line, linewidth=1.6)
            style = {"color": colour, "markerfacecolor": face, "fmt": "o", "capsize": 2.5, "elinewidth": 1.4}
            sensitive.errorbar(result.forgetting, result.measured, 2 * result.standard_error, markersize=7, **style)
            ratio, error = (values / result.exact for values in (result.measured, 2 * result.standard_error))
            ratios.errorbar(result.forgetting * next(offsets), ratio, error, markersize=4.5, **style)
        sensitive.plot([], [], "o-", color=colour, label=name.replace(", in ", ", derivative in "))
    for correlation, line, face in zip(CORRELATIONS, ("-", "--"), ("0.3", "white"), strict=True):
        label = rf"$\rho$ = {correlation:g}"
        sensitive.plot([], [], "o", linestyle=line, color="0.3", markerfacecolor=face, label=label)
    corner = np.array([2e-3, 2e-2])
    sensitive.plot(corner, 2e9 * (corner / corner[0]) ** -3.0, color="0.3", linewidth=1)
    sensitive.text(7e-3, 1.2e8, r"slope $-3$", color="0.3", fontsize="large")
    sensitive.set(xscale="log", yscale="log", ylabel=r"$\mathrm{E}\,(dh/d\theta)^2$")
    sensitive.set_title("sensitivity: lines exact, points measured", fontweight="bold")
    sensitive.legend(frameon=False, loc="upper right")
    sensitive.tick_params(labelbottom=False)
    ratios.axhline(1, color="0.3", linewidth=1.2)
    ratios.set(xlabel=r"$1-\lambda$", ylabel="measured / exact,\n2 standard errors")
    shades = [str(level) for level in np.linspace(0.65, 0.0, len(growth.forgetting))]
    for forgetting, values, shade in zip(growth.forgetting, growth.log_norms.T, shades, strict=True):
        norms.plot(growth.steps, values / np.log(10), color=shade, linewidth=2, label=f"{1 - forgetting:g}")
    norms.axhline(0, color="0.5", linewidth=0.9, linestyle=":")
    norms.set(xscale="log", ylim=(-10, 0.8), xlim=(10, None), xlabel="step t", ylabel=r"$\log_{10}\,\|dh_t/dh_0\|$")
    norms.set_title("singular values only shrink", fontweight="bold")
    norms.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title=r"$\lambda$")
    rates.plot(fine, -np.log1p(-fine), color="0.3", linewidth=1.6, label=r"$-\ln\lambda$, exact")
    rates.plot(growth.forgetting, -growth.exponents, "o", color="#1b7837", markersize=8, label="from the Jacobians")
    rates.set(xscale="log", yscale="log", xlabel=r"$1-\lambda$", ylabel="minus the exponent (nats per step)")
    rates.set_title("Lyapunov exponents stay negative", fontweight="bold")
    rates.legend(frameon=False, loc="lower right")
    for ax in (sensitive, ratios, norms, rates):
        ax.spines[["top", "right"]].set_visible(False)
    files.write_figure(path, figure, dpi=120)
