"""What the forcing experiment found: claims over keys, and whether what is exact is met."""

from typing import Any

import numpy as np

from experiments import claims, descent, harness

from . import nets
from .growth import REGIMES, SAME, SETTLED
from .training import CERTAIN, METHODS, NONE, PREDICTED, TOO_LATE

MARGIN = 0.1  # of λ_1 of the data
BETTER = (
    (f"Forcing at the predictability time ({PREDICTED}) trains better than none", NONE, PREDICTED),
    (f"It trains better than forcing too late ({TOO_LATE})", TOO_LATE, PREDICTED),
    ("It trains better than forcing at every step", METHODS[0], PREDICTED),
    ("Forcing with α = 1 − 1/σ_max trains better than none", NONE, CERTAIN),
)


def summarise(results: dict[str, Any], config: Any) -> harness.Summary:
    """Every method's errors, the claims with their verdicts, and the exact facts."""
    training, growth, identities = results["training"], results["growth"], results["identities"]
    errors, stated = pick_errors(training), state_claims(results)
    lines = ["forcing: error one Lyapunov time ahead (standard deviations); λ_1 of the free net over the data's"]
    best = descent.find_best_rates(training.chosen_by[..., -1])
    methods = {}
    for m, name in enumerate(METHODS):
        interval, ratio = claims.mean_interval(errors[m]), training.exponents[m] / nets.RATE
        strength, rate = float(training.strength[m, best[m]].mean()), float(training.rates[best[m]])
        methods[name] = {"error": interval._asdict(), "exponent": ratio.tolist(), "strength": strength, "rate": rate}
        lines.append(
            f"  {name:7} {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f}); λ_1 {np.mean(ratio):+.2f}"
            f" ({np.min(ratio):+.2f} to {np.max(ratio):+.2f}); mean α {strength:.2f}, rate {rate:g}"
        )
    slopes = dict(zip(REGIMES, (fit_slopes(growth) / nets.RATE).mean(axis=1).tolist(), strict=True))
    said = ", ".join(f"{name} {slope:+.3f}" for name, slope in slopes.items())
    lines.append(f"growth of ln ‖dL_T/dθ‖ over T, in λ_1 of the data: {said}; α* {growth.strengths.mean():.2f}")
    lines += claims.in_words(stated)
    exact = {name: float(np.max(value)) for name, value in identities._asdict().items()}
    lines.append(
        f"exact: chain under α {exact['chain']:.0e}, sparse forcing against truncation {exact['cut']:.0e} and"
        f" models.teacher_forcing {exact['teacher']:.0e}, relative; largest ln ‖dh_t/dh_k‖ at α* {exact['largest']:.1g}"
    )
    met = all(value <= SAME for value in exact.values())  # a NaN is not met
    numbers = {"methods": methods, "slopes": slopes, "claims": claims.as_numbers(stated), "exact": exact}
    return harness.Summary(lines, numbers, int(not met))


def pick_errors(training: Any) -> np.ndarray:
    """[P, D] of the test data at the end, at the rate that the validation data choose."""
    best = descent.find_best_rates(training.chosen_by[..., -1])
    return training.errors[np.arange(len(best)), best, :, -1]


def fit_slopes(growth: Any) -> np.ndarray:
    """[Q, D] nats per sample, least squares over the settled horizons."""
    settled = growth.horizons[SETTLED].astype(float)
    centred = settled - settled.mean()
    return growth.log_norms[..., SETTLED] @ centred / (centred @ centred)


def state_claims(results: dict[str, Any]) -> list[claims.Claim]:
    """The hypotheses of the experiment's docstring, each with its number; Student's t over keys."""
    training, growth = results["training"], results["growth"]
    slopes = dict(zip(REGIMES, fit_slopes(growth), strict=True))
    errors = dict(zip(METHODS, np.log(pick_errors(training)), strict=True))
    exponent = training.exponents[METHODS.index(PREDICTED)] / nets.RATE
    chaotic = np.all(growth.exponents > 0)  # else there is nothing that could grow
    excess = np.where(chaotic, (slopes["free"] - growth.exponents) / nets.RATE, np.nan)
    left = np.where(chaotic, slopes["α*"] / slopes["free"], np.nan)
    paired = lambda worse, better: claims.mean_interval(errors[worse] - errors[better])
    ratio = "ln of the ratio of their errors one Lyapunov time ahead"
    return [
        claims.Claim(
            "Without forcing the gradient of a net that learned a chaotic orbit grows at that net's λ_1",
            "slope of ln ‖dL_T/dθ‖ over T less λ_1 of the net, in λ_1 of the data",
            claims.mean_interval(excess),
            -MARGIN,
            MARGIN,
        ),
        claims.Claim(
            "With α = 1 − 1/σ_max at most a tenth of that growth is left",
            "slope of ln ‖dL_T/dθ‖ over T, over that without forcing",
            claims.mean_interval(left),
            high=MARGIN,
        ),
        *(claims.Claim(words, ratio, paired(worse, better), 0) for words, worse, better in BETTER),
        claims.Claim(
            f"The net trained with {PREDICTED}, left to itself, is as chaotic as the data",
            "its λ_1 over that of the data",
            claims.mean_interval(exponent),
            1 - MARGIN,
            1 + MARGIN,
        ),
    ]
