"""What the flossing experiment found: successes of every arm, the claims and their verdicts, the cost."""

from typing import Any, NamedTuple

import numpy as np

from experiments import claims, harness

from .training import LONGER

SOLVED = 0.95  # share of right answers from which a net has learned the task
CHANCE = 0.01  # p below which one arm succeeds more often than another
P = "p"  # the number of a claim that one arm succeeds more often
HALVED = 0.5  # the most that flossing may leave of the exponents, and of the log condition number
NAMES = {
    "plain": "plain",
    "orthogonal": "orthogonal",
    "critical": "orthogonal, weak input",
    "before": "flossed before",
    "during": "flossed before and during",
}


class Outcome(NamedTuple):
    """Of one arm after some updates, at its best rate."""

    rate: float
    solved: int
    keys: int
    accuracy: np.ndarray  # [D]


def best_outcome(training: Any, arm: str, updates: int) -> Outcome:
    """The rate with most successes, among equals that of the higher mean accuracy."""
    record = int(np.flatnonzero(training.updates == updates)[0])
    at_rates = training.accuracy[list(training.arms).index(arm), :, :, record]
    solved = np.sum(at_rates >= SOLVED, axis=1)
    best = int(np.lexsort((np.mean(at_rates, axis=1), solved))[-1])
    return Outcome(float(training.rates[best]), int(solved[best]), at_rates.shape[1], at_rates[best])


def outcomes_of(training: Any) -> dict[str, Outcome]:
    """Of every arm at the budget, and of those without flossing at the end ("plain, longer")."""
    budget, last = int(training.budget), int(training.updates[-1])
    found = {arm: best_outcome(training, arm, budget) for arm in map(str, training.arms)}
    return found | {f"{arm}, longer": best_outcome(training, arm, last) for arm in ("plain", "orthogonal")}


def starts_of(spectra: Any) -> dict[str, dict[str, np.ndarray]]:
    """Of every start, per key: √ mean λ_i² over the k exponents, and ln σ_1/σ_k."""
    return {
        str(name): {
            "size": np.sqrt(np.mean(exponents**2, axis=1)),
            "log_condition": log_singular[:, 0] - log_singular[:, -1],
        }
        for name, exponents, log_singular in zip(*spectra, strict=True)
    }


def compare(outcome: Outcome, other: Outcome) -> float:
    """p of Fisher's exact test that the first arm succeeds as much more often by chance."""
    return claims.more_often(outcome.solved, outcome.keys, other.solved, other.keys)


def make_claims(results: dict[str, Any]) -> list[claims.Claim]:
    """The seven of the module's docstring, in its order."""
    found, starts = outcomes_of(results["training"]), starts_of(results["spectra"])

    def more_often(arm, other, words):
        p, reverse = compare(found[arm], found[other]), compare(found[other], found[arm])
        known = p if min(p, reverse) <= CHANCE else np.nan
        return claims.Claim(words, P, claims.Interval(p, known, known, found[arm].keys), high=CHANCE)

    def halved(name, words, number):
        share = starts["flossed"][name] / starts["plain"][name]
        return claims.Claim(words, number, claims.mean_interval(share), high=HALVED)

    return [
        more_often(
            "before", "plain", "nets flossed before training learn it more often than plain ones, updates equal"
        ),
        more_often("before", "plain, longer", f"nets flossed before do so where plain ones get {LONGER} × the updates"),
        more_often(
            "before",
            "orthogonal",
            "nets flossed before do so more often than nets of orthogonal weights, updates equal",
        ),
        more_often(
            "before", "critical", "nets flossed before do so more often than nets that start critical, updates equal"
        ),
        more_often("during", "before", "flossing before and during training does better than before alone"),
        halved("size", "flossing at least halves √ mean λ² over the k exponents", "after over before"),
        halved("log_condition", "it at least halves ln σ_1/σ_k over the delay", "after over before"),
    ]


def summarise(results: dict[str, Any], config: Any) -> harness.Summary:
    """Arms, claims and cost, in words and numbers."""
    training, cost = results["training"], results["cost"]
    found, starts, stated = outcomes_of(training), starts_of(results["spectra"]), make_claims(results)
    lines, arms = [], {}
    for name, outcome in found.items():
        share = claims.share_interval(outcome.solved, outcome.keys)
        updates = int(training.updates[-1] if name.endswith("longer") else training.budget)
        label = NAMES[name.split(",")[0]]
        lines.append(
            f"{label:26} {updates} updates: {outcome.solved} of {outcome.keys} solve it ({share.low:.0%} to"
            f" {share.high:.0%}), mean accuracy {np.mean(outcome.accuracy):.3f}, best rate {outcome.rate:g}"
        )
        arms[name] = {"updates": updates, "rate": outcome.rate, "share": share._asdict()}
    for name, values in starts.items():
        size, condition = (float(np.mean(value)) for value in values.values())
        lines.append(f"start {name}: √ mean λ² {size:.3f} nats per step, ln σ_1/σ_k {condition:.1f} nats")
    ratio, flops = (float(values[0] / values[1]) for values in (cost.seconds, cost.flops))
    lines.append(
        f"an update of flossing costs {ratio:.1f} of training in processor time ({1e3 * cost.seconds[0]:.2f} ms a net),"
        f" {flops:.1f} in flops; {relative_time(training, ratio)}"
    )
    pairs = {
        f"{ours} over {other}": compare(found[ours], found[other])
        for ours in ("before", "during")
        for other in ("plain", "plain, longer", "orthogonal", "orthogonal, longer", "critical")
    }
    lines.append("p of Fisher's exact test: " + "; ".join(f"{pair} {p:.2g}" for pair, p in pairs.items()))
    for claim in stated:
        verdict, number = claims.in_words([claim])
        lines += [
            verdict,
            f"    p = {claim.found.value:.2g}; expected at most {CHANCE}" if claim.number == P else number,
        ]
    numbers = {
        "arms": arms,
        "starts": {name: {key: float(np.mean(v)) for key, v in values.items()} for name, values in starts.items()},
        "cost": {"seconds": cost.seconds.tolist(), "flops": cost.flops.tolist()},
        "p": pairs,
        "claims": claims.as_numbers(stated),
    }
    return harness.Summary(lines, numbers)


def relative_time(training: Any, ratio: float) -> str:
    """The time of the flossed arms and of the plain one followed for longer, in that of the budget's plain updates."""
    budget, shares = int(training.budget), []
    within = training.updates <= budget
    for arm in ("before", "during"):
        flossed = np.mean(training.flossed[list(training.arms).index(arm), within])
        shares.append(1 + flossed * (ratio - 1))
    return (
        f"all in all {shares[0]:.2f} times plain training (before), {shares[1]:.2f} (and during), where the"
        f" longer plain one takes {training.updates[-1] / budget:.2f}"
    )
