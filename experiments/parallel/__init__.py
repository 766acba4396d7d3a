"""Newton's method for the forward pass in parallel, and the adjoint carried forward in time: how many iterations, and
how far, beside what the exponents say before the run.

Hypotheses. Newton's method on all T steps at once takes a number of iterations that does not depend on T where
`newton_outlook` says that it pays, and never more than T. The adjoint carried forward, δ_{t+1} = J_{t+1}⁻ᵀ (δ_t −
∂l_t), is lost near t = ln(u/√(1−λ²))/ln λ in a scalar recurrence, near ln u/λ_N in a net, near ln u/(2λ_N − λ_1) if
δ_1 comes from a warm-up pass, and never where the loss stands at T alone. No horizon that the toolkit reports is too
late.
"""

from typing import Any

import numpy as np

from experiments import harness, options

from . import horizon, newton
from .figure import plot


@options.config
class Config:
    size: int = options.size(32, "units N of the tanh nets; 100 as published (2 min more)", least=2)
    iterations: int = options.size(100, "iterations after which Newton's method is stopped", least=100)
    slowest: float = options.choice(0.99, horizon.DECAYS, "the largest λ of the scalars (0.999: 40,000 steps)")
    seed: int = options.seed("seed of weights, inputs and losses")
    out: str = options.out("parallel")


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Any]:
    """ "newton", "scalar, λ, float" and "nets, start, float" (the caller enables x64)."""
    results: dict[str, Any] = {
        "newton": newton.measure_iterations(config.size, config.iterations, config.seed, progress)
    }
    for decay in (decay for decay in horizon.DECAYS if decay <= config.slowest):
        progress(f"the adjoint carried forward, λ = {decay:g}")
        for dtype in horizon.FLOATS:
            results[f"scalar, {decay:g}, {dtype}"] = horizon.measure_scalar(decay, dtype, config.seed)
    progress(f"the adjoint carried forward, {horizon.NETS} nets")
    return results | {f"nets, {name}": nets for name, nets in horizon.measure_nets(config.seed).items()}


def summarise(results: dict[str, Any], config: Config) -> harness.Summary:
    """Iterations beside the published ones, horizons beside the predicted ones; 1 where a law is not met."""
    of_newton = newton.judge_iterations(results["newton"])
    lines, judged = newton.in_words(results["newton"]), {"newton": of_newton}
    good = [newton.holds(of_newton)]
    change, off = (of_newton[f"largest_{what}_where_it_pays"] for what in ("change_with_T", "difference"))
    lines.append(
        f"  where it pays: {change} more or fewer iterations at ten times the steps, states off by {off:.0e} at most"
    )
    deviation = of_newton["largest_deviation_from_reference"]
    if deviation is not None:
        fewer = of_newton["fewer_than_the_reference"]
        few = f"; {fewer} published as above {newton.MANY} took fewer" if fewer else ""
        lines.append(f"  at most {deviation} iterations from the published ones{few}")
    lines.append(f"δ carried forward, {horizon.SEEDS} seeds: lost at t (first, median), predicted, horizon reported:")
    for name, found in results.items():
        if isinstance(found, horizon.Scalar):
            judged[name] = judge_scalar(found)
            good.append(judged[name]["holds"])
            lines.append("  " + scalar_in_words(name, judged[name]))
        elif isinstance(found, horizon.Nets):
            judged[name] = {key: value.tolist() for key, value in found._asdict().items()}
            good.append(not np.any(found.horizon > found.lost))  # NaN where there is none to judge
            lines.append("  " + nets_in_words(name, found))
    return harness.Summary(lines, judged, 0 if all(good) else 1)


def judge_scalar(found: horizon.Scalar) -> dict[str, Any]:
    """When rounding wins, and whether it is where theory and toolkit say."""
    off = float((np.median(found.lost) - found.predicted) * -np.log(found.decay))
    never = bool((found.end_horizon == found.length + 1).all() and found.end_error < 1)
    in_time = bool((found.horizon <= found.lost).all())
    return {
        "predicted": float(found.predicted),
        "first_lost": int(found.lost.min()),
        "median_lost": float(np.median(found.lost)),
        "median_horizon": float(np.median(found.horizon)),
        "nats_off": off,
        "horizon_in_time": in_time,
        "never_lost_with_a_loss_at_T_alone": never,
        "error_with_a_loss_at_T_alone": float(found.end_error),
        "holds": abs(off) <= horizon.WITHIN and in_time and never,
    }


def scalar_in_words(name: str, judged: dict[str, Any]) -> str:
    """One line of the report."""
    end = f"off by {judged['error_with_a_loss_at_T_alone']:.0e} with a loss at T alone"
    never = end if judged["never_lost_with_a_loss_at_T_alone"] else f"LOST, {end}"
    lost = f"{judged['first_lost']}, {judged['median_lost']:g}"
    return (
        f"{name + ':':24} {lost:12} predicted {judged['predicted']:5.0f}, horizon {judged['median_horizon']:g}; {never}"
    )


def nets_in_words(name: str, found: horizon.Nets) -> str:
    """One line of the report."""
    join = lambda numbers: ", ".join(f"{number:.0f}" for number in numbers)
    reported = "" if np.isnan(found.horizon).any() else f", horizon {join(found.horizon)}"
    what = "T" if "warm-up" in name else "t"
    return f"{name + ':':24} lost at {what} = {join(found.lost)}, predicted {join(found.predicted)}{reported}"


EXPERIMENT = harness.Experiment(
    name="parallel",
    purpose="Newton's iterations in parallel against λ_1, and how far the adjoint can be carried forward in time",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="55 s",
    alt={
        "figure.png": (
            "Left, the iterations of Newton's method over λ_1 for three lengths, the marks by what the outlook says: "
            "few and the same for all lengths where λ_1 is negative, more with T where it is not; below, bars of where "
            "the outlook says that it pays. Right, the relative error of an adjoint carried forward over the step, "
            "rising to 1 at the predicted step, later in float64 than in float32."
        ),
    },
)
