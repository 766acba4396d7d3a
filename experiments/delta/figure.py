"""The figure of the delta experiment: the law over p and K, over β, and clustered keys."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, files

from .chains import DIRECTIONS, KINDS, NOISE, SHOWN_BETA, SHOWN_SIZE, exact_exponents

SIZE_COLOURS = ("#d9b300", "#7ab648", "#22a884", "#2a788e", "#440154")
KIND_STYLES = (("#555555", "o"), ("#2166ac", "s"), ("#67a9cf", "D"), ("#d6604d", "^"))
WORDS = {"font.size": 16, "axes.titlesize": 15.5, "legend.fontsize": 14.5}


def plot(results: dict[str, Any], path: Path) -> None:
    """The law over p and K, over β, and what keys in few directions do."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(WORDS):
        figure = Figure(figsize=(17, 9), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        rule = r"$S' = (I-\beta kk^{\mathsf{T}})S+\beta kv^{\mathsf{T}}$"
        figure.suptitle(f"How fast does the delta rule {rule} forget?", fontsize=20)
        shapes, over_beta, kinds = figure.subplots(1, 3)
        _plot_shapes(shapes, results)
        _plot_betas(over_beta, results[f"K = {SHOWN_SIZE}"])
        _plot_kinds(kinds, results)
        for ax in (shapes, over_beta, kinds):
            ax.axhline(0, color="0.5", linewidth=0.8, zorder=0)
            ax.title.set_fontweight("bold")
            ax.spines[["top", "right"]].set_visible(False)
        captions.add_caption(figure, _caption(results["uniform"]), 15)
        files.write_figure(path, figure, dpi=90)


def _caption(result):
    return (
        f"λ_p: the p-th of the K exponents of the Jacobians I − β k kᵀ, by QR along one chain of T = {result.length:,}"
        " steps for each K, β and kind of keys; bars: two standard errors, over time. Left and middle: keys uniform on"
        " the sphere; lines: the exact law, λ_p = Λ_p − Λ_{p−1}, Λ_p = ½ E ln(1 − β(2 − β) B), B from"
        " Beta(p/2, (K − p)/2); dashed: its limit; at β = 1 the last is −∞. Right: unit keys, on the sphere; in a"
        f" subspace; there but for noise of size {NOISE:g}; in {DIRECTIONS} directions but for such noise. Strokes: the"
        " exact law where one is known."
    )


def _plot_shapes(ax, results):
    shown = [result for name, result in results.items() if name.startswith("K = ")]
    for result, colour in zip(shown, itertools.cycle(SIZE_COLOURS), strict=False):
        size = result.exact.shape[1]
        at, places = list(result.betas).index(SHOWN_BETA), (np.arange(size) + 0.5) / size
        ax.plot(places, size * result.exact[at], color=colour, linewidth=1.6)
        _plot_points(
            ax, places, size * result.exponents[at], size * result.standard_error[at], colour, "o", f"K = {size}"
        )
    c, x = SHOWN_BETA * (2 - SHOWN_BETA), np.linspace(0, 1, 200)
    ax.plot(x, -c / 2 / (1 - c * x), color="0.1", linewidth=1.6, linestyle="--", label=r"$K\to\infty$")
    ax.set(title=rf"uniform keys, $\beta$ = {SHOWN_BETA:g}: lines exact", xlabel="(p − ½) / K")
    ax.set(ylabel=r"$K\,\lambda_p$, nats per step")
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
        title=f"uniform keys, K = {SHOWN_SIZE}: lines exact", xlabel=r"$\beta$", ylabel=r"$\lambda_p$, nats per step"
    )
    ax.set(ylim=(-1.5, 0.06))
    ax.legend(frameon=False, loc="lower left")


def _plot_kinds(ax, results):
    places = np.arange(1, SHOWN_SIZE + 1)
    for kind, (colour, marker), shift in zip(KINDS, KIND_STYLES, (-0.24, -0.08, 0.08, 0.24), strict=True):
        result = results[kind]
        _plot_points(ax, places + shift, result.exponents, result.standard_error, colour, marker, KINDS[kind])
        ax.plot(places + shift, result.exact, "_", color="0.1", markersize=17, markeredgewidth=2)
    ax.plot([], [], "_", color="0.1", markersize=17, markeredgewidth=2, label="exact")
    ax.set(title=f"K = {SHOWN_SIZE}, β = {SHOWN_BETA:g}: all sums are ln(1 − β)", xlabel="p", xticks=places)
    ax.set(ylabel=r"$\lambda_p$, nats per step")
    ax.legend(frameon=False, loc="lower left", title="keys", alignment="left")


def _plot_points(ax, places, values, errors, colour, marker, label):
    style = {"color": colour, "fmt": marker, "markersize": 7, "capsize": 3, "elinewidth": 1.6}
    ax.errorbar(places, values, 2 * errors, label=label, **style)
