"""The figure of the isometry experiment: laws of singular values, their spread over time, and training beside it."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, claims, files

from . import starts, theory
from .summary import SPREAD_AT, at_step, distances, pick_updates, spreads
from .training import pick_rates, tell_reached

COLOURS = dict(
    zip(starts.STARTS, ("#D55E00", "#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#8c8c8c", "#009E73"), strict=True)
)
MARKERS = dict(zip(starts.STARTS, "osv^DXP", strict=True))
SHOWN = (16, 32, 64)  # t
TIME_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7")
LOWEST = -4.0  # of the axis of ln σ / t
CAPTION = """\
Top: N = {size}, {keys} keys, histograms of all singular values. Left: W^t of one Gaussian W; black: the Fuss–Catalan \
law of order t (Alexeev et al. 2010). Right: nets driven by
random symbols; green dashed: the law of (z I + (1 − z) Q)^t, Q orthogonal; blue dashed: an orthogonal linear net, \
σ = 1. Bottom: N = {hidden}, {trainings} keys (weights, batches), copying over
{steps} steps by BPTT and Adam, the best of {rates} rates each; means over keys (of updates: geometric), bands and \
bars 95 % (Student's t). Stated loss: half of ln {symbols}, the
loss without memory; a net that does not reach it counts with all its updates (hollow: with no key)."""


def plot(results: dict[str, Any], path: Path) -> None:
    """Above densities of ln σ beside theory; below the loss over updates, and updates over the spread."""
    from matplotlib.figure import Figure

    products, spectra, training = (results[name] for name in ("products", "spectra", "training"))
    figure = Figure(figsize=(14, 11.5), layout="constrained")
    counts = dict(zip(map(str, training.starts), np.log(pick_updates(training)).mean(axis=1), strict=True))
    ratio = np.exp(counts[starts.GAUSSIAN] - counts[starts.ORTHOGONAL])
    said = "Dynamical isometry: singular values at the start beside theory; orthogonal nets need"
    figure.suptitle(f"{said} {1 / ratio:.2g} of the updates of Gaussian ones", fontsize=16)
    (left, right), (losses, updates) = figure.subplots(2, 2)
    _plot_law(left, products)
    _plot_starts(right, spectra)
    _plot_losses(losses, training)
    _plot_updates(updates, spectra, training)
    for ax in (left, right, losses, updates):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=11.5)
        ax.xaxis.label.set_size(13)
        ax.yaxis.label.set_size(13)
        ax.title.set_size(14)
    said = CAPTION.format(
        size=products.log_values.shape[-1],
        keys=products.log_values.shape[1],
        hidden=int(training.hidden),
        trainings=training.losses.shape[2],
        steps=starts.MEMORY,
        rates=len(training.rates),
        symbols=round(float(np.exp(2 * training.stated))),
    )
    captions.add_caption(figure, said, 11.5)
    files.write_figure(path, figure, dpi=110)


def _plot_law(ax, products):
    """ln σ / t of the powers of one matrix, so that all orders share an axis."""
    far = distances(products)[1].mean(axis=0)
    bins = np.linspace(LOWEST, 0.6, 60)
    shown = [step for step in SHOWN if step in products.steps]
    for step, colour in zip(shown, TIME_COLOURS, strict=False):
        at = at_step(products, step)
        label = f"t = {step}, distance {far[at]:.3f}"
        values = products.log_values[1, :, at].ravel() / step
        ax.hist(values, bins, density=True, histtype="step", color=colour, linewidth=2.2, label=label)
        points, density, _ = theory.fuss_catalan_law(step)
        ax.plot(points / step, density * step, color="0.1", linewidth=1.4)
    ax.set(xlim=(LOWEST, 0.6), xlabel="ln σ / t (nats per step)", ylabel="density")
    ax.set_title("W$^t$, one Gaussian W: the law of products", fontweight="bold")
    ax.legend(frameon=False, fontsize=11.5, loc="upper left", title="Kolmogorov distance from the law")


def _plot_starts(ax, spectra):
    """The narrow initialisations in full, what is beyond the axis told by its mean and spread."""
    at, low, high = at_step(spectra, SPREAD_AT), -8.0, 2.0
    bins = np.linspace(low, high, 101)
    rows = {name: spectra.log_values[i, :, at].ravel() for i, name in enumerate(map(str, spectra.starts))}
    for name in (starts.GAUSSIAN, "orthogonal, ordered", starts.ORTHOGONAL, starts.GATED):
        row, style = rows[name], {"color": COLOURS[name], "linewidth": 2.2, "label": name}
        beyond = float(np.mean(row < low))
        if beyond > 0.01:
            style["label"] += f"\n({100 * beyond:.0f} % farther left)"
        weights = np.full(row.size, 1 / (row.size * (bins[1] - bins[0])))
        ax.hist(row, bins, weights=weights, histtype="step", **style)
    points, density, _ = theory.gated_law(starts.KEEP, SPREAD_AT)
    ax.plot(points, density, "--", color="#004d38", linewidth=1.8)
    ax.axvline(0, color=COLOURS[starts.ORTHOGONAL], linestyle="--", linewidth=1.5)
    ax.set(xlim=(low, high), yscale="log", ylim=(1e-3, 20), xlabel="ln σ (nats)", ylabel="density")
    ax.set_title(f"nets at their start, t = {SPREAD_AT}", fontweight="bold")
    ax.legend(frameon=False, fontsize=11.5, loc="center left", bbox_to_anchor=(1, 0.5))


def _plot_losses(ax, training):
    best = pick_rates(training)
    for i, name in enumerate(map(str, training.starts)):
        intervals = [claims.mean_interval(column) for column in training.losses[i, best[i]].T]
        middle, low, high = (np.array([getattr(one, part) for one in intervals]) for part in ("value", "low", "high"))
        ax.plot(training.updates, middle, color=COLOURS[name], linewidth=2, label=name)
        ax.fill_between(training.updates, np.maximum(low, 1e-4), high, color=COLOURS[name], alpha=0.18, linewidth=0)
    ax.axhline(training.stated, color="0.2", linestyle=":", linewidth=1.5)
    ax.text(training.updates[-1], training.stated * 0.97, "stated loss", fontsize=11, ha="right", va="top", color="0.2")
    ax.set(xscale="log", ylim=(0, 2.4 * training.stated), xlabel="updates", ylabel="loss (nats a symbol)")
    ax.set_title("training", fontweight="bold")


def _plot_updates(ax, spectra, training):
    spread, counts = spreads(spectra)[0], pick_updates(training)
    best = pick_rates(training)
    for i, name in enumerate(map(str, spectra.starts)):
        interval = claims.mean_interval(np.log(counts[i]))
        middle, low, high = np.exp([interval.value, interval.low, interval.high])
        reached = tell_reached(training)[i, best[i]].any()
        across = claims.mean_interval(spread[i])
        style = {"color": COLOURS[name], "fmt": MARKERS[name], "markersize": 10, "elinewidth": 2, "capsize": 4}
        face = COLOURS[name] if reached else "white"
        sides = [[across.value - max(across.low, across.value / 3)], [across.high - across.value]]
        bars = [[middle - low], [high - middle]]
        ax.errorbar([across.value], [middle], bars, np.abs(sides), markerfacecolor=face, label=name, **style)
    ax.set_ylim(0.6 * counts.min(), 1.6 * counts.max())
    ax.set(xscale="log", yscale="log", xlabel=f"spread of ln σ at t = {SPREAD_AT} (standard deviation, nats)")
    ax.set(ylabel="updates to the stated loss")
    ax.set_title("spread and speed", fontweight="bold")
    ax.legend(frameon=False, fontsize=11.5, loc="center left", bbox_to_anchor=(1, 0.5), title="initialisation")
