"""The figure of the forcing experiment: growth of the gradient, forecasts, and the nets left to themselves."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import captions, claims, files

from . import nets
from .growth import REGIMES
from .summary import pick_errors
from .training import CERTAIN, INTERVALS, METHODS, NONE, PREDICTED, SHARES

LOWEST = -1.5  # of the axis of exponents, in λ₁ of the data
SHARE_NAMES = {1.0: "α*", 0.5: "½α*", 0.25: "¼α*"}
COLOURS = {"free": "#D55E00", "long": "#56B4E9", "predicted": "#0072B2", "α*": "#009E73"}
MARKERS = ("o", "s", "D", "^")
CAPTION = """\
Lorenz system, all coordinates seen every {dt:g} time units (1/λ₁ = {one} samples, ln 2/λ₁ = {two}); shallow \
piecewise-linear net with a state of three; {keys} keys (weights, windows).
Left: nets trained with τ = {two}, mean over {starts} orbits each; dashed: the slope λ₁ of these nets, by the \
toolkit's exponents. Left, middle: means over keys, bars and
bands 95 % (Student's t). Right: medians over keys. Small dots: single keys. Errors: root mean square of a test set, \
at the rate that a validation set chooses.
α* = 1 − 1/σ, σ the largest singular value of a step's Jacobian, at the data (left: on the forced orbit). Filled: the \
predicted τ = ln 2/λ₁ and α*."""


def plot(results: dict[str, Any], path: Path) -> None:
    """Left the gradient over the horizon; then errors and exponents over τ, and beside them those of α."""
    from matplotlib.figure import Figure

    training, growth = results["training"], results["growth"]
    figure = Figure(figsize=(14, 7.6), layout="constrained")
    figure.suptitle(
        "Teacher forcing on a chaotic target: growth of the gradient, forecasts, and the trained nets left free",
        fontsize=17,
    )
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.15, 1.15))
    _plot_growth(left, growth)
    errors = pick_errors(training)
    _plot_methods(middle, errors, claims.mean_interval)
    middle.axhline(1, color="0.45", linewidth=1.5, linestyle=":")
    middle.text(-0.4, 1, "the data's mean as forecast", color="0.35", fontsize=11, va="bottom", ha="left")
    middle.set(yscale="log", ylabel="error 1/λ₁ ahead (standard deviations of the data)")
    middle.set_title("training: forecasts", fontweight="bold")
    _set_plain_ticks(middle, errors)
    exponents = training.exponents / nets.RATE
    _plot_methods(right, exponents, _median)
    right.axhline(1, color="0.1", linewidth=1.5, linestyle="--")
    right.set(ylabel="λ₁ of the trained net / λ₁ of the data", ylim=(LOWEST, max(1.6, np.nanmax(exponents) + 0.1)))
    right.set_title("the trained nets left to themselves", fontweight="bold")
    if hidden := int(np.sum(~(exponents >= LOWEST))):
        note = f"{hidden} nets below {LOWEST:g} or unbounded"
        right.text(0.02, 0.02, note, transform=right.transAxes, color="0.35", fontsize=11)
    for ax in (left, middle, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=11.5)
        ax.xaxis.label.set_size(13)
        ax.yaxis.label.set_size(13)
        ax.title.set_size(14)
    keys, starts = growth.log_norms.shape[1], int(growth.orbits)
    said = CAPTION.format(dt=nets.STEP, one=nets.LYAPUNOV_TIME, two=nets.PREDICTABLE, keys=keys, starts=starts)
    captions.add_caption(figure, said, 11.5)
    files.write_figure(path, figure, dpi=110)


def _plot_growth(ax, growth):
    """ln ‖dL_T/dθ‖ over T in Lyapunov times, each regime beside its name at the right."""
    times = growth.horizons / nets.LYAPUNOV_TIME
    lines = zip(REGIMES, growth.log_norms, ("free", "long", "predicted", "α*"), MARKERS, strict=True)
    for regime, norms, colour, marker in lines:
        intervals = [claims.mean_interval(column) for column in norms.T]
        style = {"color": COLOURS[colour], "marker": marker, "linewidth": 2, "markersize": 7}
        label = f"{regime}, mean α = {growth.strengths.mean():.2f}" if regime == "α*" else regime
        ax.plot(times, [interval.value for interval in intervals], label=label.replace("free", "not forced"), **style)
        low, high = ([getattr(interval, side) for interval in intervals] for side in ("low", "high"))
        ax.fill_between(times, low, high, color=COLOURS[colour], alpha=0.2, linewidth=0)
    end = growth.log_norms[0].mean(axis=0)[-1]
    line = end + growth.exponents.mean() * (growth.horizons - growth.horizons[-1])
    ax.plot(times, line, "--", color="0.1", linewidth=1.8, label="slope λ₁")
    ax.set(xlabel=f"horizon T (Lyapunov times, {nets.LYAPUNOV_TIME} samples each)", ylabel="ln ‖dL$_T$/dθ‖ (nats)")
    ax.set_title("the gradient of a loss at step T", fontweight="bold")
    ax.legend(frameon=False, fontsize=11.5, loc="upper left")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.25 * (high - low))


def _median(values):
    """Without bars: exponents of nets that did not learn have no bound."""
    middle = float(np.nanmedian(values))
    return claims.Interval(middle, middle, middle, len(values))


def _plot_methods(ax, values, pool):
    """Values [P, D] of the methods: τ on the left, α on the right."""
    places = [*range(len(INTERVALS) + 1), *(len(INTERVALS) + 1.6 + 1.3 * np.arange(len(SHARES)))]
    for at, name, row in zip(places, METHODS, values, strict=True):
        colour = COLOURS["free"] if name == NONE else COLOURS["predicted"] if at < len(INTERVALS) else COLOURS["α*"]
        interval = pool(row)
        ax.plot(at + np.linspace(-0.22, 0.22, len(row)), row, "o", color=colour, markersize=3.5, alpha=0.5)
        bars = np.nan_to_num([[interval.value - interval.low], [interval.high - interval.value]])
        filled = colour if name in (PREDICTED, CERTAIN) else "white"
        style = {"markersize": 9, "markerfacecolor": filled, "markeredgewidth": 2, "elinewidth": 2.2, "capsize": 4}
        ax.errorbar([at], [interval.value], bars, fmt="D", color=colour, **style)
    ax.set_xticks(places, [*map(str, INTERVALS), "none", *(SHARE_NAMES[share] for share in SHARES)])
    ax.axvline(len(INTERVALS) + 0.8, color="0.75", linewidth=1)
    ax.set_xlabel("forced every τ samples                  strength α")


def _set_plain_ticks(ax, values):
    low, high = np.nanmin(values) * 0.85, max(1.75, min(np.nanmax(values), 12.0) * 1.15)
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0, 10.0) if low <= tick <= high]
    ax.set_ylim(low, high)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
