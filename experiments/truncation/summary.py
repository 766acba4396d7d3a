"""What the truncation experiment found, in numbers and words."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import harness
from experiments.descent import find_best_rates

CHANCE = 0.05  # a difference whose sign-test p is below this is one
NAMES = {
    "full": "full BPTT",
    "carried": "regular, state carried",
    "zero_state": "regular, state reset",
    "randomised": "randomised, as many steps back",
    "randomised_wide": "randomised, as long a mean window",
    "adaptive": "adaptive lag",
}


def summarise(results: dict[str, Any], config: Any) -> harness.Summary:
    """The verdict in numbers and words."""
    numbers = judge(results)
    return harness.Summary(numbers["verdict"], numbers)


def judge(results: dict[str, Any]) -> dict[str, Any]:
    """Every method at its best rate, differences paired over keys, bias at equal cost, and the verdict in words."""
    training, errors = results["training"], results["errors"]
    best, final = find_best_rates(training.losses[..., -1]), {}
    for m, name in enumerate(map(str, training.methods)):
        final[name] = training.losses[m, best[m], :, -1]
    methods = {
        name: {
            "rate": float(training.rates[best[m]]),
            "steps_back": float(training.cost[m]),
            "final_median": float(np.median(losses)),
            "final_10_90": np.quantile(losses, (0.1, 0.9)).tolist(),
            "less_full": _paired(losses - final["full"]),
            "less_carried": _paired(losses - final["carried"]),
        }
        for m, (name, losses) in enumerate(final.items())
    }
    cost = methods["carried"]["steps_back"]
    at_cost = {
        name: float(np.exp(np.interp(np.log(cost), np.log(costs), np.log(np.maximum(values, 1e-300)))))
        for name, costs, values in error_curves(errors)
    }
    summary = {
        "methods": methods,
        "errors_at_cost": {"steps_back": cost, **at_cost},
        "text_spread": float(errors.text_spread),
        "randomised_less_carried_by_rate": _by_rate(training),
        "adaptive_lags": training.lags[best[-1]].tolist(),
    }
    return {**summary, "verdict": _in_words(summary, len(final["full"]))}


def _paired(differences):
    """Mean, its standard error, how many are above 0, and how likely a split so uneven is by chance (sign test).

    A training that failed, at infinity, counts as worse.
    """
    keys, above = len(differences), int(np.sum(~(differences <= 0)))
    tail = sum(math.comb(keys, i) for i in range(min(above, keys - above) + 1)) / 2**keys
    return {
        "mean": float(np.mean(differences)),
        "standard_error": float(np.std(differences, ddof=1) / np.sqrt(keys)),
        "worse": above,
        "p": min(1.0, 2 * tail),
    }


def _by_rate(training):
    """Mean difference of the final losses at each rate, both methods at the same one."""
    named = dict(zip(map(str, training.methods), training.losses[..., -1], strict=True))
    means = np.mean(named["randomised"] - named["carried"], axis=1)
    return {f"{rate:g}": float(mean) for rate, mean in zip(training.rates, means, strict=True)}


def error_curves(errors: Any) -> Iterator[tuple]:
    """(scheme, cost, error) of every curve of bias or spread."""
    yield "carried", errors.window_cost, errors.carried
    yield "zero_state", errors.window_cost, errors.zero_state
    yield "adaptive", errors.lag_cost, errors.lag
    yield "randomised", errors.random_cost, errors.spread


def compare(paired: dict[str, Any], keys: int) -> str:
    """better, worse or neither, than chance allows."""
    if paired["p"] > CHANCE:
        return "no different beyond chance"
    return "worse" if 2 * paired["worse"] > keys else "better"


def _in_words(summary, keys):
    lines = []
    for name, entry in summary["methods"].items():
        low, high = entry["final_10_90"]
        line = f"{NAMES[name]:34} {entry['final_median']:.3f} nats per symbol held out ({low:.3f} to {high:.3f}),"
        line += f" {entry['steps_back']:.1f} steps back a loss, rate {entry['rate']:g}"
        lines.append(line)
    at = summary["errors_at_cost"]
    lines.append(
        f"at {at['steps_back']:.1f} steps back a loss, over the exact norm: bias {at['carried']:.2f} regular,"
        f" {at['zero_state']:.2f} with the state reset, {at['adaptive']:.2f} by lag; spread {at['randomised']:.2f}"
        f" randomised, without bias (from sequence to sequence: {summary['text_spread']:.2f})"
    )
    verdicts = []
    for name in ("randomised", "randomised_wide"):
        paired = summary["methods"][name]["less_carried"]
        verdicts.append(compare(paired, keys))
        lines.append(
            f"{NAMES[name]}, less regular: {paired['mean']:+.4f} ± {paired['standard_error']:.4f} nats per symbol,"
            f" worse with {paired['worse']} of {keys} keys (p = {paired['p']:.2g}): {verdicts[-1]}"
        )
    by_rate = ", ".join(f"{mean:+.3f} at {rate}" for rate, mean in summary["randomised_less_carried_by_rate"].items())
    lines.append(f"{NAMES['randomised']}, less regular, both at one rate: {by_rate}")
    holds = "better" not in verdicts
    lines.append(
        f'"does not work much better than regular truncation": {"holds" if holds else "does not hold"} here'
        + (", and it works worse" if set(verdicts) == {"worse"} else "")
    )
    return lines
