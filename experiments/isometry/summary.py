"""What the isometry experiment found: distances from theory, spreads beside updates, claims, and what is exact."""

from typing import Any

import numpy as np
import scipy.stats

from experiments import claims, harness

from . import starts, theory
from .chains import SMALL, distances
from .training import count_updates, pick_rates, tell_reached

FARTHEST = 4.0  # standard errors
SAME = 1e-12
LAW_AT = 16  # t of the claims on laws
SPREAD_AT = 32  # t of the spreads: the record nearest to the length of the trained sequences
DISTANT = 0.05  # of a distribution: the largest Kolmogorov distance that passes for the same law
TWICE = float(np.log(2))


def summarise(results: dict[str, Any], config: Any) -> harness.Summary:
    """Laws, initialisations, claims and the exact facts."""
    products, spectra, exact, training = (results[name] for name in ("products", "spectra", "exact", "training"))
    far, away = distances(products).mean(axis=1), farthest(products)
    lines = ["Kolmogorov distance from the Fuss–Catalan law, mean over keys:"]
    for kind, row in zip(("independent", "shared W"), far, strict=True):
        said = ", ".join(f"{distance:.3f} at t = {step}" for distance, step in zip(row, products.steps, strict=True))
        lines.append(f"  {kind:11} {said}")
    best, updates, stated = pick_rates(training), pick_updates(training), state_claims(results)
    spread, distance = spreads(spectra)
    lines.append(
        f"ln σ of dh_t/dh_0 at t = {SPREAD_AT}: mean, spread, distance from isometry; updates to half the loss"
    )
    nets = {}
    for i, name in enumerate(map(str, spectra.starts)):
        interval = claims.mean_interval(np.log(updates[i]))
        mean = float(spectra.log_values[i, :, at_step(spectra, SPREAD_AT)].mean())
        reached = int(np.sum(tell_reached(training)[i, best[i]]))
        typical, rate = float(np.exp(interval.value)), float(training.rates[best[i]])
        nets[name] = {
            "mean": mean,
            "spread": spread[i].tolist(),
            "distance": distance[i].tolist(),
            "updates": updates[i].tolist(),
            "reached": reached,
            "rate": rate,
        }
        lines.append(
            f"  {name:20} {mean:7.2f}, {spread[i].mean():6.2f}, {distance[i].mean():6.2f};"
            f" {typical:4.0f} updates, {reached} of {len(updates[i])} keys, rate {rate:g}"
        )
    lines += claims.in_words(stated)
    wrong = {name: float(value) for name, value in exact._asdict().items()} | {
        "determinant": determinant_error(products)
    }
    lines.append(
        f"exact: {len(away)} moments and means, the farthest {max(away):.1f} standard errors off; relative or per step,"
        f" orthogonal {wrong['orthogonal']:.0e}, GRU at rest {wrong['gated']:.0e},"
        f" determinants {wrong['determinant']:.0e}"
    )
    met = max(away) <= FARTHEST and all(value <= SAME for value in wrong.values())  # a NaN is not met
    numbers = {
        "distances": far.tolist(),
        "starts": nets,
        "claims": claims.as_numbers(stated),
        "farthest": float(max(away)),
        "exact": wrong,
    }
    return harness.Summary(lines, numbers, int(not met))


def at_step(result: Any, step: int) -> int:
    """Index of the record at t."""
    return int(np.flatnonzero(result.steps == step)[0])


def farthest(products: Any) -> np.ndarray:
    """Distances of what has an exact mean at every N, in standard errors; the trace of W² is 1 + 2/N², not 1."""
    first, second = np.ones_like(products.moments[0, 0]), theory.second_moments(SMALL, products.moments.shape[-1])
    known = [(0, 0, first), (0, 1, second), (1, 0, np.array([1, 1 + 2 / SMALL**2])), (1, 1, second[:1])]
    off = [
        (products.moments[kind, power, : len(exact)] - exact) / products.moment_errors[kind, power, : len(exact)]
        for kind, power, exact in known
    ]
    mean, variance = theory.log_determinant(products.log_values.shape[-1])
    sums = products.log_values[0].sum(axis=-1).mean(axis=0)
    error = np.sqrt(products.steps * variance / products.log_values.shape[1])
    return np.abs(np.concatenate([*off, (sums - products.steps * mean) / error]))


def determinant_error(products: Any) -> float:
    """Largest difference of Σ ln σ(W^t) and t ln|det W|, over Σ |ln σ|."""
    found, expected = products.log_values[1], products.determinants[:, None] * products.steps
    return float(np.max(np.abs(found.sum(axis=-1) - expected) / np.abs(found).sum(axis=-1)))


def spreads(spectra: Any) -> tuple[np.ndarray, np.ndarray]:
    """([I, K] standard deviation, [I, K] root mean square) of ln σ over the singular values, at SPREAD_AT."""
    values = spectra.log_values[:, :, at_step(spectra, SPREAD_AT)]
    return values.std(axis=-1), np.sqrt(np.mean(values**2, axis=-1))


def pick_updates(training: Any) -> np.ndarray:
    """[I, D] at each initialisation's best rate."""
    best = pick_rates(training)
    return count_updates(training)[np.arange(len(best)), best]


def compare_updates(training: Any, slow: str, fast: str) -> np.ndarray:
    """[D] ln of the ratio of updates, slow over fast; NaN where neither reached the loss, which decides nothing."""
    at = [list(training.starts).index(name) for name in (slow, fast)]
    slower, faster = np.log(pick_updates(training)[at])
    reached = tell_reached(training)[at, pick_rates(training)[at]]
    return np.where(reached.any(axis=0), slower - faster, np.nan)


def relative_variances(spectra: Any, name: str) -> np.ndarray:
    """[K] Var σ²/(E σ²)² over the singular values at LAW_AT."""
    squares = np.exp(2 * spectra.log_values[list(spectra.starts).index(name), :, at_step(spectra, LAW_AT)])
    return squares.var(axis=-1) / squares.mean(axis=-1) ** 2


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; NaN where one of them is the same throughout."""
    ranks = [scipy.stats.rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    norms = np.linalg.norm(ranks, axis=1)
    return float(ranks[0] @ ranks[1] / norms.prod()) if norms.all() else np.nan


def state_claims(results: dict[str, Any]) -> list[claims.Claim]:
    """The hypotheses of the experiment's docstring, each with its number."""
    products, spectra, training = results["products"], results["spectra"], results["training"]
    updates = pick_updates(training).T
    spread, distance = (values.mean(axis=1) for values in spreads(spectra))
    order = lambda measure: claims.mean_interval([rank_correlation(measure, row) for row in updates])
    kurtosis = theory.mean_field(starts.CRITICAL, starts.DRIVE).kurtosis
    predicted = theory.relative_variance(LAW_AT, kurtosis, orthogonal=True)
    ratio = "ln of the ratio of updates to half the memoryless loss"
    return [
        claims.Claim(
            "The singular values of W^t follow the law of a product of t independent matrices",
            f"Kolmogorov distance from the Fuss–Catalan law at t = {LAW_AT}",
            claims.mean_interval(distances(products)[1, :, at_step(products, LAW_AT)]),
            high=DISTANT,
        ),
        claims.Claim(
            "Orthogonal tanh nets at the critical gain spread as the mean field of independent layers says",
            f"Var σ²/(E σ²)² at t = {LAW_AT}, over the predicted {predicted:.3f}",
            claims.mean_interval(relative_variances(spectra, starts.ORTHOGONAL) / predicted),
            0.9,
            1.1,
        ),
        claims.Claim(
            "Orthogonal nets learn in at most half the updates of Gaussian ones, both critical",
            ratio,
            claims.mean_interval(compare_updates(training, starts.GAUSSIAN, starts.ORTHOGONAL)),
            TWICE,
        ),
        claims.Claim(
            "A GRU with critical gates learns in at most half the updates of a default one",
            ratio,
            claims.mean_interval(compare_updates(training, starts.DEFAULT, starts.GATED)),
            TWICE,
        ),
        claims.Claim(
            "The spread of ln σ orders the initialisations by their updates",
            "Spearman's correlation over initialisations",
            order(spread),
            0.5,
        ),
        claims.Claim(
            "The distance from isometry orders the initialisations by their updates",
            "Spearman's correlation over initialisations",
            order(distance),
            0.5,
        ),
    ]
