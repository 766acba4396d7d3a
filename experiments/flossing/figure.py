"""The figure of the flossing experiment: spectra of the starts, training, successes, and what they cost."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import claims, files

from .summary import NAMES, SOLVED, outcomes_of, starts_of
from .training import LONGER

COLOURS = {"plain": "#555555", "orthogonal": "#e69f00", "critical": "#009e73", "before": "#0072b2", "during": "#cc79a7"}
STARTS = {  # of Spectra: label, colour, marker
    "plain": ("Gaussian, as drawn", COLOURS["plain"], "o"),
    "orthogonal": ("orthogonal", COLOURS["orthogonal"], "s"),
    "critical": ("orthogonal, weak input", COLOURS["critical"], "^"),
    "flossed": ("Gaussian, flossed", COLOURS["before"], "D"),
}
SHORT = {
    "plain": "plain",
    "plain, longer": f"plain, {LONGER} ×\nthe updates",
    "orthogonal": "orthogonal",
    "orthogonal, longer": f"orthogonal, {LONGER} ×\nthe updates",
    "critical": "orthogonal,\nweak input",
    "before": "flossed\nbefore",
    "during": "flossed before\nand during",
}


def plot(results: dict[str, Any], path: Path) -> None:
    """Above: exponents and singular values of the starts, successes. Below: accuracy and exponents in training."""
    from matplotlib.figure import Figure

    training, spectra = results["training"], results["spectra"]
    figure = Figure(figsize=(15.5, 11.8), layout="constrained")
    figure.suptitle(_title(training), fontsize=16.5, fontweight="bold")
    above, below = figure.subfigures(2, 1)
    exponents, singular, successes = above.subplots(1, 3, width_ratios=(1.1, 1.1, 0.8))
    accuracy, size = below.subplots(1, 2)
    _plot_exponents(exponents, spectra)
    _plot_singular(singular, spectra)
    _plot_successes(successes, training)
    _plot_accuracy(accuracy, training)
    _plot_size(size, training)
    for ax in (exponents, singular, successes, accuracy, size):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=12)
        ax.xaxis.label.set_size(13)
        ax.yaxis.label.set_size(13)
    below.supxlabel(_caption(results), fontsize=12, x=0.01, ha="left", color="0.25")
    files.write_figure(path, figure, dpi=110)


def _title(training):
    found = outcomes_of(training)
    share = lambda arm: f"{found[arm].solved} of {found[arm].keys}"
    return (
        f"Delayed XOR: {share('before')} nets flossed before training learn it, {share('plain')} plain ones"
        f" ({share('plain, longer')} in {LONGER} × the updates),\n{share('orthogonal')} orthogonal ones, and"
        f" {share('critical')} orthogonal ones with weak inputs, not flossed"
    )


def _caption(results):
    training, cost, k = results["training"], results["cost"], results["spectra"].exponents.shape[2]
    keys, n, d = training.accuracy.shape[2], int(training.hidden), int(training.delay)
    time, flops = (float(values[0] / values[1]) for values in (cost.seconds, cost.flops))
    rates = " and ".join(f"{rate:g}" for rate in training.rates)
    return (
        f"Vanilla tanh nets of N = {n}, delay d = {d}, sequences of T = {2 * d}; {keys} keys an arm; the k = {k}"
        " leading exponents are flossed (Engelken 2023). Lines: means over keys;\nbands: quartiles of keys; bars: exact"
        f" 95 % intervals (Clopper–Pearson). Solved: {SOLVED:.0%} of held-out answers right. Each arm at its best rate"
        f" of {rates}.\nAn update of flossing takes {time:.1f} times the processor time of one of training"
        f" ({flops:.1f} times the flops). Weak input: input weights of a tenth."
    )


def _plot_exponents(ax, spectra):
    for values, name in zip(spectra.exponents, map(str, spectra.starts), strict=True):
        _plot_band(ax, values, STARTS[name])
    ax.axhline(0, color="0.3", linewidth=1.2, linestyle=":")
    ax.set(xlabel="index i", ylabel=r"exponent $\lambda_i$, nats per step")
    ax.set_title("exponents at the start of training", fontsize=14, fontweight="bold")
    ax.legend(frameon=False, fontsize=12, loc="lower left")


def _plot_singular(ax, spectra):
    starts = starts_of(spectra)
    for values, name in zip(spectra.log_singular, map(str, spectra.starts), strict=True):
        _, colour, marker = STARTS[name]
        condition = np.mean(starts[name]["log_condition"])
        text = rf"$\ln\,\sigma_1/\sigma_k$ = {condition:.0f}"
        _plot_band(ax, values / np.log(10), (text, colour, marker))
    ax.set(xlabel="index i", ylabel=r"$\log_{10}\,\sigma_i$ of $dh_T/dh_{T-d}$")
    ax.set_title("gradients across the delay", fontsize=14, fontweight="bold")
    ax.legend(frameon=False, fontsize=12, loc="lower left")


def _plot_band(ax, values, style):
    label, colour, marker = style
    index = np.arange(1, values.shape[1] + 1)
    low, high = np.quantile(values, (0.25, 0.75), axis=0)
    ax.fill_between(index, low, high, color=colour, alpha=0.25, linewidth=0)
    ax.plot(index, np.mean(values, axis=0), color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)


def _plot_successes(ax, training):
    found = outcomes_of(training)
    for row, name in enumerate(SHORT):
        outcome, colour = found[name], COLOURS[name.split(",")[0]]
        share = claims.share_interval(outcome.solved, outcome.keys)
        longer = name.endswith("longer")
        face = {"facecolor": "white", "edgecolor": colour, "linewidth": 2} if longer else {"facecolor": colour}
        ax.barh(-row, 100 * share.value, height=0.62, **face)
        ax.plot([100 * share.low, 100 * share.high], [-row, -row], color="black", linewidth=2)
        for end in (share.low, share.high):
            ax.plot([100 * end] * 2, [-row - 0.12, -row + 0.12], color="black", linewidth=2)
        ax.text(103, -row, f"{outcome.solved}/{outcome.keys}", va="center", fontsize=12)
    ax.set_yticks(-np.arange(len(SHORT)), list(SHORT.values()))
    ax.set(xlim=(0, 100), xlabel="nets that solve the task, %")
    ax.set_title("successes at the end", fontsize=14, fontweight="bold")


def _plot_accuracy(ax, training):
    _plot_curves(ax, training, 100 * training.accuracy)
    ax.axhline(100 * SOLVED, color="0.3", linestyle=":", linewidth=1.4)
    ax.axhline(50, color="0.6", linestyle=":", linewidth=1.4)
    ax.set(xlabel="updates, of flossing and of training", ylabel="right answers, %", ylim=(44, 103))
    ax.set_title("held-out accuracy (dotted: solved, chance)", fontsize=14, fontweight="bold")
    ax.legend(frameon=False, fontsize=12, loc="upper left", bbox_to_anchor=(0.5, 0.86))


def _plot_size(ax, training):
    _plot_curves(ax, training, training.size)
    ax.set(
        xlabel="updates, of flossing and of training", ylabel=r"$(\frac{1}{k}\sum_i \lambda_i^2)^{1/2}$, nats per step"
    )
    ax.set_title("root mean square of the exponents (dots: flossing)", fontsize=14, fontweight="bold")
    ax.set_ylim(bottom=0)


def _plot_curves(ax, training, values):
    found = outcomes_of(training)
    for a, arm in enumerate(map(str, training.arms)):
        rate = list(training.rates).index(found[arm].rate)
        chosen = values[a, rate]  # [D, E]
        ended = int(np.sum(~np.isnan(training.accuracy[a, rate, 0])))
        updates, chosen = training.updates[:ended], chosen[:, :ended]
        low, high = np.nanquantile(chosen, (0.25, 0.75), axis=0)
        ax.fill_between(updates, low, high, color=COLOURS[arm], alpha=0.18, linewidth=0)
        mean = np.nanmean(chosen, axis=0)
        ax.plot(updates, mean, color=COLOURS[arm], linewidth=2.4, label=f"{NAMES[arm]}, rate {found[arm].rate:g}")
        flossed = np.flatnonzero(training.flossed[a, :ended])
        ax.plot(updates[flossed], mean[flossed], "o", color=COLOURS[arm], markersize=6)
    ax.axvline(float(training.budget), color="0.5", linewidth=1.4)
    ax.text(
        float(training.budget) * 1.01, 0.02, "the budget", transform=ax.get_xaxis_transform(), fontsize=12, color="0.35"
    )
