"""What the credit experiment found: recoveries, losses, the claims and their verdicts."""

from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from experiments import claims, harness
from experiments.descent import find_best_rates

from .training import METHODS, READOUT

PUBLISHED = {"sine": 1.02, "Lorenz": 1.13, "50 ahead": 1.79}  # recovery of immediate + RMSprop over RTRL's
MATCH, LOSS_MATCH = 0.95, 1.05  # what "match" allows
STALE = 0.05  # recovery that a stale trace may have with SGD
BLIND = 0.95  # of the memoryless loss
CREDIT = 0.9  # share of the gradient's terms that a task's reach holds
TOLERANCE = 2e-3  # of the identities, in float32
OUT_OF_REACH = (READOUT, "immediate", "TBPTT")


PAPER = tuple(PUBLISHED)
TASKS_OF_CREDIT = (*PAPER, "copy 10")


class Score(NamedTuple):
    """Every method and optimiser at its rate, [M, O, D]."""

    rates: np.ndarray  # [M, O]
    before: np.ndarray  # loss in the last half of the steps before the change
    late: np.ndarray  # loss in the last quarter of those after it
    recovery: np.ndarray


def choose_rates(curve: np.ndarray) -> np.ndarray:
    """[M, O] of curves [M, O, R, D, B]: the rate of the least loss over the last half before the change."""
    return find_best_rates(_before(curve))


def score(outcome: Any, chosen: np.ndarray | None = None) -> Score:
    """The trainings at the chosen rates, by default those of `choose_rates`."""
    chosen = choose_rates(outcome.curve) if chosen is None else chosen
    take = lambda values: np.take_along_axis(values, chosen[:, :, None, None, None], axis=2)[:, :, 0].astype(float)
    curve, frozen = take(outcome.curve), take(outcome.frozen)
    quarter = frozen.shape[-1] // 4
    late, still = curve[..., -quarter:].mean(axis=-1), frozen[..., -quarter:].mean(axis=-1)
    recovery = 1 - np.where(np.isfinite(late), late, np.inf) / still
    return Score(outcome.rates[chosen], _before(curve), late, np.where(recovery > 0, recovery, 0))


def _before(curve):
    half = curve.shape[-1] // 2
    return curve[..., half // 2 : half].mean(axis=-1)


def ratio_interval(above: Any, below: Any) -> claims.Interval:
    """The ratio of two means over the same keys [K], with Fieller's interval: all ρ that t cannot tell from
    mean(above − ρ below) = 0.

    Unbounded where the mean below cannot be told from 0.

    Reference: Fieller (1954), Journal of the Royal Statistical Society B 16.
    """
    above, below = np.asarray(above, float), np.asarray(below, float)
    keys = len(above)
    with np.errstate(all="ignore"):
        value = float(np.mean(above) / np.mean(below))
    if not np.isfinite([above, below]).all():
        return claims.Interval(value, np.nan, np.nan, keys)
    t = scipy.stats.t.ppf((1 + claims.LEVEL) / 2, keys - 1)
    products = np.outer(*2 * [[above.mean(), below.mean()]]) - t**2 * np.cov(above, below) / keys
    curvature, root = products[1, 1], products[0, 1] ** 2 - products[0, 0] * products[1, 1]
    if curvature <= 0:
        return claims.Interval(value, -np.inf, np.inf, keys)
    ends = (products[0, 1] + np.array([-1, 1]) * np.sqrt(max(root, 0))) / curvature
    return claims.Interval(value, float(ends[0]), float(ends[1]), keys)


def loss_ratio_interval(above: Any, below: Any) -> claims.Interval:
    """exp of the mean over keys of ln(above / below), with Student's t interval."""
    found = claims.mean_interval(np.log(np.asarray(above, float) / np.asarray(below, float)))
    value, low, high = np.exp(found[:3])
    return claims.Interval(float(value), float(low), float(high), found.keys)


def summarise(results: dict[str, Any], config: Any) -> harness.Summary:
    """The table of every task, the claims, the identities."""
    scores = {name: score(outcome) for name, outcome in results.items()}
    stated = make_claims(results, scores)
    worst = max(float(np.max(outcome.errors)) for outcome in results.values())
    broken = not worst < TOLERANCE
    lines = [line for name, outcome in results.items() for line in _table(name, outcome, scores[name])]
    lines += claims.in_words(stated) + _say_rates(results, scores)
    lines.append(
        f"identities at fixed params, immediate = windows of one step and RTRL = BPTT: off by {worst:.1g} of the norm"
        + (f", more than {TOLERANCE:g}" if broken else "")
    )
    numbers = {
        "claims": claims.as_numbers(stated),
        "identities": worst,
        "tasks": {name: _numbers(outcome, scores[name]) for name, outcome in results.items()},
    }
    return harness.Summary(lines, numbers, int(broken))


def make_claims(results: dict[str, Any], scores: dict[str, Score]) -> list[claims.Claim]:
    """The hypotheses of the experiment's docstring, in its order."""
    first = next(iter(results.values()))
    methods, optimisers = list(map(str, first.methods)), list(map(str, first.optimisers))
    place = lambda method, by: (methods.index(method), optimisers.index(by))
    at = lambda field, task, method, by="RMSprop": getattr(scores[task], field)[place(method, by)]
    recovered = lambda *call: at("recovery", *call)
    stated = []

    def where_recovered(task, found, method="RTRL"):
        """The interval, unknown where the one that is compared with cannot be told from no recovery."""
        some = claims.mean_interval(recovered(task, method)).low > 0
        return found if some else found._replace(low=np.nan, high=np.nan)

    for task in TASKS_OF_CREDIT:
        published = f"; published {PUBLISHED[task]}" if task in PUBLISHED else ""
        over = ratio_interval(recovered(task, "immediate"), recovered(task, "RTRL"))
        hypothesis = f"{task}: immediate derivatives match or exceed RTRL, both by RMSprop"
        stated.append(claims.Claim(hypothesis, f"recovery over RTRL's{published}", over, low=MATCH))
        over = loss_ratio_interval(at("late", task, "immediate"), at("late", task, "RTRL"))
        stated.append(
            claims.Claim(
                hypothesis + ", in losses",
                "loss after the change over RTRL's",
                where_recovered(task, over),
                high=LOSS_MATCH,
            )
        )
    for task in PAPER:
        less = claims.mean_interval(recovered(task, "immediate") - recovered(task, "immediate", "SGD"))
        hypothesis = f"{task}: immediate derivatives need an optimiser that normalises"
        stated.append(
            claims.Claim(
                hypothesis, "recovery by RMSprop less that by SGD", where_recovered(task, less, "immediate"), low=0
            )
        )
    by_sgd = where_recovered("sine", claims.mean_interval(recovered("sine", "RFLO", "SGD")))
    stated.append(
        claims.Claim("sine: a stale trace does not recover by SGD", "recovery; published 0", by_sgd, high=STALE)
    )
    over = ratio_interval(recovered("sine", "RFLO", "Adam"), recovered("sine", "immediate", "Adam"))
    hypothesis = "sine: a stale trace recovers at most half by Adam"
    stated.append(
        claims.Claim(hypothesis, "recovery over that of immediate derivatives; published .18", over, high=0.5)
    )
    shares = scores["copy 50"].late / results["copy 50"].memoryless
    rows = [methods.index(name) for name in OUT_OF_REACH]
    means = np.where(np.isfinite(shares), shares, np.inf).mean(axis=-1)[rows]
    row, by = np.unravel_index(np.argmin(means), means.shape)
    least = claims.mean_interval(shares[rows[row], by])
    hypothesis = "copy 50: what carries no credit over 50 steps does not answer"
    best = f"least loss over the memoryless, {methods[rows[row]]} + {optimisers[by]}"
    stated.append(claims.Claim(hypothesis, best, least, low=BLIND))
    for task in TASKS_OF_CREDIT:
        over = ratio_interval(recovered(task, READOUT), recovered(task, "RTRL"))
        hypothesis = f"{task}: the task tests credit, a readout that learns alone recovers less than RTRL"
        stated.append(claims.Claim(hypothesis, "recovery over RTRL's, both by RMSprop", over, high=0.95))
    return stated


def reach(profile: np.ndarray) -> np.ndarray:
    """The fewest steps back, the present one included, with CREDIT of the terms' norms, [D] of profiles [D, T]."""
    return 1 + np.argmax(np.cumsum(profile, axis=-1) >= CREDIT, axis=-1)


def _table(name, outcome, found):
    lines = [
        f"{name}: {CREDIT:.0%} of the credit within {np.mean(reach(outcome.profile)):.0f} steps; a memoryless answer"
        f" costs {np.mean(outcome.memoryless):.3g}",
        f"  {'gradient':14} {'its reach':14} recovery by {', '.join(outcome.optimisers)} | loss after the change"
        " | cosine, bias, spread",
    ]
    for m, method in enumerate(map(str, outcome.methods)):
        recoveries = " ".join(f"{value:7.2f}" for value in found.recovery[m].mean(axis=-1))
        losses = " ".join(f"{value:7.2g}" for value in found.late[m].mean(axis=-1))
        quality = " ".join(f"{np.mean(values[m]):7.2g}" for values in (outcome.cosine, outcome.bias, outcome.spread))
        lines.append(f"  {method:14} {METHODS[method].reach:14} {recoveries} | {losses} | {quality}")
    return lines


def _say_rates(results, scores):
    """How much the choice of rates decides: the ratios at other rates, and where the grid of rates ended too early."""
    ratios, ends, choices = [], [], 0
    for name, outcome in results.items():
        methods, by = list(map(str, outcome.methods)), list(map(str, outcome.optimisers)).index("RMSprop")
        if name in TASKS_OF_CREDIT:
            recovery = score(outcome, _best_of_whole_run(outcome)).recovery[:, by].mean(axis=-1)
            with np.errstate(all="ignore"):  # nobody may recover
                ratio = recovery[methods.index("immediate")] / recovery[methods.index("RTRL")]
            ratios.append(f"{name} {ratio:.3g}")
        at_end = np.isin(scores[name].rates, outcome.rates[[0, -1]])
        choices += at_end.size
        ends += [f"{methods[m]} + {outcome.optimisers[o]} ({name})" for m, o in np.argwhere(at_end)]
    return [
        "recovery over RTRL's at the rates of the least loss over the whole run: " + ", ".join(ratios),
        f"{len(ends)} of {choices} rates are an end of the grid" + ": " * bool(ends) + ", ".join(ends),
    ]


def _best_of_whole_run(outcome):
    return find_best_rates(outcome.curve.mean(axis=-1))


def _numbers(outcome, found):
    """Of every method and optimiser rate, losses and recovery with their intervals; of its gradient cosine and bias."""
    over_rates = score(outcome, _best_of_whole_run(outcome))
    rows = {}
    for m, method in enumerate(map(str, outcome.methods)):
        by = {
            optimiser: {
                "rate": float(found.rates[m, o]),
                "before": claims.mean_interval(found.before[m, o])._asdict(),
                "late": claims.mean_interval(found.late[m, o])._asdict(),
                "recovery": claims.mean_interval(found.recovery[m, o])._asdict(),
                "recovery_at_the_rate_of_the_least_loss_of_the_whole_run": float(over_rates.recovery[m, o].mean()),
            }
            for o, optimiser in enumerate(map(str, outcome.optimisers))
        }
        quality = {field: float(np.mean(getattr(outcome, field)[m])) for field in ("cosine", "bias", "spread")}
        rows[method] = quality | {"optimisers": by}
    reached = reach(outcome.profile)
    return {"memoryless": float(np.mean(outcome.memoryless)), "reach": reached.tolist(), "methods": rows}
