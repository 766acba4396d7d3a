"""What the truncation experiment found, in numbers and words."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import harness, text
from experiments.claims import Claim, as_numbers, in_words, mean_interval
from experiments.descent import find_best_rates

MUCH = 0.05  # nats per symbol: a loss lower by less is not much better
RANDOMISED = ("randomised", "randomised_wide")
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
    return harness.Summary([*text.take_alphabet(results)[0], *numbers["verdict"]], numbers)


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
    claims = make_claims(final)
    return {**summary, "claims": as_numbers(claims), "verdict": [*_in_words(summary), *in_words(claims)]}


def make_claims(final: dict[str, np.ndarray]) -> list[Claim]:
    """The remark of Dive into Deep Learning 9.7, and whether randomised truncation is worse, of final losses [K]."""
    claims = []
    for name in RANDOMISED:
        found = mean_interval(final[name] - final["carried"])
        number = f"{NAMES[name]}, less regular, nats per symbol, paired over keys"
        remark = f"{NAMES[name]}: does not work much better than regular truncation (by less than {MUCH} nats)"
        claims.append(Claim(remark, number, found, -MUCH))
        claims.append(Claim(f"{NAMES[name]}: works worse than regular truncation", number, found, 0))
    return claims


def _paired(differences):
    """Mean, its t interval, and in how many keys it is above 0; a training that failed counts as worse."""
    found = mean_interval(differences)
    return {"mean": found.value, "interval": [found.low, found.high], "worse": int(np.sum(~(differences <= 0)))}


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


def compare(final: dict[str, np.ndarray]) -> str:
    """What the interval allows to say of randomised beside regular, at equal reach."""
    found = mean_interval(final["randomised"] - final["carried"])
    if found.low > 0:
        return "worse than"
    return "better than" if found.high < 0 else f"better or worse ({found.keys} keys cannot tell) than"


def _in_words(summary):
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
    for name in RANDOMISED:
        paired = summary["methods"][name]["less_carried"]
        low, high = paired["interval"]
        lines.append(
            f"{NAMES[name]}, less regular: {paired['mean']:+.4f} ({low:+.4f} to {high:+.4f}, 95 % t interval) nats per"
            f" symbol, worse with {paired['worse']} keys"
        )
    by_rate = ", ".join(f"{mean:+.3f} at {rate}" for rate, mean in summary["randomised_less_carried_by_rate"].items())
    lines.append(f"{NAMES['randomised']}, less regular, both at one rate: {by_rate}")
    return lines
