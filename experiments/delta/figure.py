"""The figure of the delta experiment: the law over p and K, over β, and clustered keys."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from experiments import files

from .chains import KINDS, SHOWN_BETA, SHOWN_SIZE, exact_exponents

SIZE_COLOURS = ("#d9b300", "#7ab648", "#22a884", "#2a788e", "#440154")
KIND_STYLES = (("#555555", "o"), ("#2166ac", "s"), ("#67a9cf", "D"), ("#d6604d", "^"))


def plot(results: dict[str, Any], path: Path) -> None:
    """The law over p and K, over β, and what keys in few directions do."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16.5, 6), layout="constrained")
    figure.suptitle(
        r"How fast the delta rule forgets: $S' = (I-\beta kk^{\mathsf{T}})S+\beta kv^{\mathsf{T}}$", fontsize=17
    )
    shapes, over_beta, kinds = figure.subplots(1, 3)
    _plot_shapes(shapes, results)
    _plot_betas(over_beta, results[f"K = {SHOWN_SIZE}"])
    _plot_kinds(kinds, results)
    for ax in (shapes, over_beta, kinds):
        ax.axhline(0, color="0.5", linewidth=0.8, zorder=0)
        ax.title.set_fontweight("bold")
        ax.spines[["top", "right"]].set_visible(False)
    files.write_figure(path, figure, dpi=120)


def _plot_shapes(ax, results):
    shown = [result for name, result in results.items() if name.startswith("K = ")]
    for result, colour in zip(shown, itertools.cycle(SIZE_COLOURS), strict=False):
        size = result.exact.shape[1]
        at, places = list(result.betas).index(SHOWN_BETA), (np.arange(size) + 0.5) / size
        ax.plot(places, size * result.exact[at], color=colour, linewidth=1.3)
        _plot_points(
            ax, places, size * result.exponents[at], size * result.standard_error[at], colour, "o", f"K = {size}"
        )
    c, x = SHOWN_BETA * (2 - SHOWN_BETA), np.linspace(0, 1, 200)
    ax.plot(x, -c / 2 / (1 - c * x), color="0.1", linewidth=1.6, linestyle="--", label=r"$K\to\infty$")
    ax.set(title=rf"uniform keys, $\beta$ = {SHOWN_BETA:g}: lines exact", xlabel="(p − ½) / K")
    ax.set(ylabel=r"$K\,\lambda_p$ (nats per step)")
    ax.legend(frameon=False, loc="lower left")


def _plot_betas(ax, result):
    fine = np.unique(np.concatenate((np.linspace(0.005, 2, 400), 1 + np.geomspace(1e-3, 0.1, 40), [1.0])))
    fine = fine[fine != 1]
    exact = np.stack([exact_exponents(SHOWN_SIZE, beta) for beta in fine])
    shades = [str(level) for level in np.linspace(0.75, 0.0, SHOWN_SIZE)]
    for p, shade in enumerate(shades):
        label = {0: r"$\lambda_1$", SHOWN_SIZE - 1: rf"$\lambda_{SHOWN_SIZE}$"}.get(p)
        ax.plot(fine, exact[:, p], color=shade, linewidth=1.5)
        _plot_points(ax, result.betas, result.exponents[:, p], result.standard_error[:, p], shade, "o", label)
    ax.set(
        title=f"uniform keys, K = {SHOWN_SIZE}: lines exact", xlabel=r"$\beta$", ylabel=r"$\lambda_p$ (nats per step)"
    )
    ax.set(ylim=(-1.5, 0.06))
    ax.legend(frameon=False, loc="lower left")


def _plot_kinds(ax, results):
    places = np.arange(1, SHOWN_SIZE + 1)
    for kind, (colour, marker) in zip(KINDS, KIND_STYLES, strict=True):
        result = results[kind]
        _plot_points(ax, places, result.exponents, result.standard_error, colour, marker, KINDS[kind])
        ax.plot(places, result.exact, "_", color="0.1", markersize=13, markeredgewidth=1.4)
    ax.plot([], [], "_", color="0.1", markersize=13, label="exact")
    ax.set(title=rf"K = {SHOWN_SIZE}, $\beta$ = {SHOWN_BETA:g}: all sums are $\ln(1-\beta)$", xlabel="p")
    ax.set(ylabel=r"$\lambda_p$ (nats per step)")
    ax.legend(frameon=False, loc="lower left", title="keys", alignment="left")


def _plot_points(ax, places, values, errors, colour, marker, label):
    style = {"color": colour, "fmt": marker, "markersize": 5.5, "capsize": 2.5, "elinewidth": 1.4}
    ax.errorbar(places, values, 2 * errors, label=label, **style)
