"""The figure of the credit experiment: recovery, the losses it hides, the gradients, and how far credit reaches."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from experiments import claims, files

from .summary import CREDIT, PAPER, PUBLISHED, make_claims, reach, score
from .training import METHODS, WHOLE

BY = {"SGD": ("#009E73", "s"), "RMSprop": ("#0072B2", "o"), "Adam": ("#D55E00", "^")}
TASKS = {"sine": "#CC79A7", "Lorenz": "#E69F00", "50 ahead": "#56B4E9", "copy 10": "#111111", "copy 50": "#999999"}
SMALL, TEXT = 13.5, 14.5


def plot(results: dict[str, Any], path: Path) -> None:
    """A column a task: recovery and losses by method and optimiser; below the gradients and the lag of the credit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 20), layout="constrained")
    scores = {name: score(outcome) for name, outcome in results.items()}
    first = next(iter(results.values()))
    stated = make_claims(results, scores)
    figure.suptitle(_title(stated), fontsize=20, fontweight="bold")
    figure.supxlabel(_caption(first), fontsize=SMALL, ha="left", x=0.012)
    above, below = figure.subfigures(2, 1, height_ratios=(2.1, 1))
    rows = above.subplots(2, len(results), sharey=True, squeeze=False)
    for axes, (name, outcome) in zip(rows.T, results.items(), strict=True):
        _plot_recovery(axes[0], name, outcome, scores[name], stated)
        _plot_losses(axes[1], outcome, scores[name])
    rows[0, -1].legend(loc="center right", fontsize=SMALL, frameon=False)
    axes = below.subplots(1, 3, width_ratios=(1, 1, 1.15))
    _plot_quality(axes[0], results, "cosine", "cosine to the exact gradient")
    _plot_quality(axes[1], results, "bias", "bias / norm of the exact gradient")
    _plot_credit(axes[2], results)
    for ax in (*rows.flat, *axes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=SMALL)
        ax.xaxis.label.set_size(TEXT)
        ax.yaxis.label.set_size(TEXT)
    files.write_figure(path, figure, dpi=100)


def _title(stated):
    """What the claims found of recovery over RTRL's, on the paper's tasks and where credit is asked."""
    matched = {_task(claim): claims.decide(claim) for claim in stated if _is_match(claim)}
    tested = {_task(claim): claims.decide(claim) for claim in stated if "tests credit" in claim.hypothesis}
    held = sum(matched[task] == "holds" for task in PAPER)
    alone = sum(tested[task] == "fails" for task in PAPER)
    asked = {"holds": "recover there, too", "fails": "do not recover"}.get(matched["copy 10"], "may or may not recover")
    return (
        f"Immediate derivatives match RTRL's recovery on {held} of {len(PAPER)} tasks like the published,\na readout"
        f" that learns alone matches it on {alone};\nwhere credit over 10 steps is asked, immediate derivatives {asked}"
    )


def _task(claim):
    return claim.hypothesis.split(":")[0]


def _subtitle(task, stated):
    """The paper's number and ours."""
    found = [claim.found for claim in stated if _is_match(claim) and _task(claim) == task]
    if not found:
        return "no claim of recovery\n\n"
    value, low, high, _ = found[0]
    published = f"published {PUBLISHED[task]:.2f}" if task in PUBLISHED else "not published"
    return f"immediate over RTRL:\n{value:.2f} ({low:.2f} to {high:.2f})\n{published}"


def _is_match(claim):
    return "match" in claim.hypothesis and "losses" not in claim.hypothesis


def _caption(outcome):
    keys, steps = outcome.memoryless.size, outcome.curve.shape[-1] * WHOLE
    words = (
        f"Elman net of N = {int(outcome.hidden)}, a stream of T = {steps} steps that changes at T/2; {keys} keys.",
        "Points: means over keys (losses: geometric), bars: 95 % intervals of Student's t; ratios: RMSprop both,",
        "Fieller's intervals. Recovery: 1 − (late loss: in the last quarter after the change) / (that of the same net",
        "frozen at the change), 0 where it got worse, at the rate of the least loss before the change. Dashed: RTRL +",
        "RMSprop. Dotted: the best affine answer from the present input alone. TBPTT and BPTT move the net once in 10",
        f"and 100 steps, the others at every step. Below: gradients of the cell over the first {WHOLE} steps after the",
        "change, at the params of RTRL + RMSprop; UORO's bias: of the mean of 64 draws; a readout alone has no cosine.",
    )
    return textwrap.fill(" ".join(words), 152)


def _places(outcome):
    return -np.arange(len(outcome.methods), dtype=float)


def _labels(outcome):
    return [f"{name}\n(reach: {METHODS[name].reach})" for name in map(str, outcome.methods)]


def _plot_recovery(ax, name, outcome, found, stated):
    for o in range(len(outcome.optimisers)):
        intervals = [claims.mean_interval(values) for values in found.recovery[:, o]]
        _draw(ax, outcome, o, intervals, (-0.2, 1.2))
    ax.axvline(_leader(outcome, found.recovery).mean(), color=BY["RMSprop"][0], linestyle="--", linewidth=1.5, zorder=0)
    ax.set(xlim=(-0.06, 1.1), xlabel="recovery")
    ax.set_title(_subtitle(name, stated), fontsize=SMALL)
    ax.text(0.5, 1.2, name, transform=ax.transAxes, ha="center", fontweight="bold", fontsize=18, color=TASKS[name])
    ax.set_yticks(_places(outcome), _labels(outcome))
    ax.set_ylim(0.6 - len(outcome.methods), 0.6)


def _plot_losses(ax, outcome, found):
    for o in range(len(outcome.optimisers)):
        with np.errstate(all="ignore"):
            intervals = [claims.Interval(*np.exp(claims.mean_interval(np.log(v))[:3]), 0) for v in found.late[:, o]]
        _draw(ax, outcome, o, intervals, (1e-9, 1e9))
    ax.axvline(np.exp(np.mean(np.log(_leader(outcome, found.late)))), **_line("--"))
    ax.axvline(outcome.memoryless.mean(), color="0.3", linestyle=":", linewidth=2, zorder=0)
    ax.set_xlabel("late loss (½ error²)")
    shown, blind = found.late[np.isfinite(found.late)], outcome.memoryless.mean()
    if np.median(shown) > blind / 2:  # nobody is orders of magnitude better than blind
        ax.set_xlim(0, 1.5 * blind)
    else:
        ax.set(xscale="log", xlim=(shown.min() / 2, 2 * max(blind, np.median(shown))))
    ax.set_yticks(_places(outcome), _labels(outcome))


def _line(style):
    return {"color": BY["RMSprop"][0], "linestyle": style, "linewidth": 1.5, "zorder": 0}


def _leader(outcome, values):
    return values[list(outcome.methods).index("RTRL"), list(outcome.optimisers).index("RMSprop")]


def _draw(ax, outcome, o, intervals, limits):
    colour, marker = BY[str(outcome.optimisers[o])]
    places = _places(outcome) + 0.24 * (1 - o)
    for place, found in zip(places, intervals, strict=True):
        if np.isfinite(found.low):
            ax.plot(np.clip((found.low, found.high), *limits), (place, place), color=colour, linewidth=2, alpha=0.6)
    values = [found.value for found in intervals]
    ax.plot(values, places, marker, color=colour, markersize=8, label=str(outcome.optimisers[o]))


def _plot_quality(ax, results, field, label):
    for i, (name, outcome) in enumerate(results.items()):
        places = _places(outcome) + 0.14 * (2 - i)
        for place, values in zip(places, getattr(outcome, field), strict=True):
            found = claims.mean_interval(values)
            if np.isfinite(found.value):
                ax.plot((found.low, found.high), (place, place), color=TASKS[name], linewidth=2, alpha=0.6)
                ax.plot(found.value, place, "o", color=TASKS[name], markersize=7)
    ax.set_yticks(_places(outcome), map(str, outcome.methods))
    ax.axvline(0, color="0.7", linewidth=1, zorder=0)
    ax.set(xlabel=label, ylim=(0.6 - len(outcome.methods), 0.6))


def _plot_credit(ax, results):
    for name, outcome in results.items():
        shares = np.cumsum(outcome.profile, axis=-1).mean(axis=0)
        reached = reach(outcome.profile).mean()
        label = f"{name}: {reached:.0f} steps"
        ax.plot(np.arange(1, len(shares) + 1), shares, color=TASKS[name], linewidth=2.6, label=label)
    ax.axhline(CREDIT, color="0.6", linewidth=1.2, zorder=0)
    ax.set(
        xscale="log", xlabel="steps back, the present one included", ylabel="share of the credit (norms of the terms)"
    )
    ax.set_ylim(0, 1.03)
    ax.set_xticks((1, 2, 5, 10, 20, 50, 100), (1, 2, 5, 10, 20, 50, 100))
    ax.minorticks_off()
    ax.legend(frameon=False, loc="lower right", fontsize=SMALL, title=f"{CREDIT:.0%} within", title_fontsize=SMALL)
