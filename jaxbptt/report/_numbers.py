"""The numbers of a verdict: of one sequence, or the medians of many with their quartiles."""

from typing import Any

import numpy as np

from jaxbptt.report._problem import Subject
from jaxbptt.report._proof import Proof
from jaxbptt.report._spectra import Spectra
from jaxbptt.report._tables import QUANTILES, Tables

STABLE = 1.0  # nats over all steps: σ_1 that changes by less has neither vanished nor exploded


def summarise(subject: Subject, proof: Proof, spectra: Spectra, tables: Tables) -> dict[str, Any]:
    """Plain numbers and words; every number of one sequence is a median where there are many."""
    each = [_of_sequence(b, proof, spectra, tables) for b in range(len(subject.chosen))]
    numbers = {name: _median([one[name] for one in each]) for name in each[0]}
    steps = 0 if spectra.stretch is None else spectra.stretch[1] - spectra.stretch[0]
    summary = {
        "loss": numbers.pop("loss"),
        "proved": bool(proof.worst <= proof.bound),
        "worst_relative_error": proof.worst,
        "bound": proof.bound,
        "routes": proof.routes,
        "wrong": proof.wrong,
        "confirmed_by_differences": proof.confirmed,
        "left_out": proof.left_out,
        "trend": _trend(numbers["rate_per_step"], steps),
        "half_life": float(np.log(2) / abs(numbers["rate_per_step"])) if numbers["rate_per_step"] else np.inf,
        **{name: numbers[name] for name in each[0] if "reach" not in name and name != "loss"},
        "reach": _lags(numbers, "reach") if tables.reach is not None else None,
        "saliency_reach": _lags(numbers, "saliency_reach") if tables.saliency_reach is not None else None,
        "lags": None if tables.profile is None else tables.profile.shape[1],
        "steps": subject.problem.length,
        "state_entries": subject.size,
        "parameters": subject.num_params,
        "sequences": subject.batch,
        "measured_sequences": len(subject.chosen),
        "dtype": str(subject.dtype),
        "stretch": None if spectra.stretch is None else list(spectra.stretch),
        "zero_gradient": tables.profile is not None and not np.any(tables.profile),
        "leading_only": spectra.log_sigma is not None and spectra.log_sigma.shape[2] < subject.size,
        "missing": {**spectra.missing, **tables.missing},
    }
    if subject.batch is not None:
        summary["spread"] = {name: _quartiles([one[name] for one in each]) for name in each[0]}
    return summary


def fit_growth(steps: np.ndarray, top: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) of ln σ_1 over the second half, by least squares (in the first half it still turns).

    Args:
      steps: [R] t of each record.
      top: [R] ln σ_1; NaN is left out.

    Returns:
      Nats per step and nats; (−inf, nan) once σ_1 is exactly zero, NaN where nothing is known.
    """
    known = ~np.isnan(top)
    steps, top = steps[known], top[known]
    if not len(top):
        return np.nan, np.nan
    if np.isneginf(top[-1]):
        return -np.inf, np.nan
    later = steps >= (steps[-1] + 1) // 2
    if later.sum() < 2:
        return float(top[-1] / steps[-1]), 0.0
    slope, intercept = np.polyfit(steps[later], top[later], 1)
    return float(slope), float(intercept)


def _of_sequence(b, proof, spectra, tables):
    rate = intercept = leaves = given = unknown = np.nan
    if spectra.log_sigma is not None:
        values = spectra.log_sigma[b]
        rate, intercept = fit_growth(spectra.steps, values[:, 0])
        leaves = _leaves_float32(spectra.steps, values[:, 0], rate)
        unknown = float(np.isnan(values[-1]).sum())
        given = values.shape[1] - unknown
    has_exponents = spectra.exponents is not None
    numbers = {
        "loss": float(proof.loss[b]),
        "rate_per_step": rate,
        "rate_intercept": intercept,
        "leaves_float32_at": leaves,
        "lambda_1": float(spectra.exponents[b, 0]) if has_exponents else np.nan,
        "lambda_1_error": float(spectra.standard_error[b, 0]) if has_exponents else np.nan,
        "values_given": given,
        "values_unknown": unknown,
    }
    for name, lags in (("reach", tables.reach), ("saliency_reach", tables.saliency_reach)):
        if lags is not None:
            numbers |= {f"{name} {quantile:g}": float(lag) for quantile, lag in zip(QUANTILES, lags[b], strict=True)}
    return numbers


def _leaves_float32(steps, top, rate):
    """The first recorded step at which σ_1 is no normal float32, or where `rate` takes it there."""
    limits = np.finfo(np.float32)
    tiny, huge = np.log(float(limits.tiny)), np.log(float(limits.max))
    outside = (top < tiny) | (top > huge)
    if outside.any():
        return float(steps[np.argmax(outside)])
    if not rate or np.isnan(rate):
        return np.nan if np.isnan(rate) else np.inf
    return float(steps[-1] + max(0.0, ((tiny if rate < 0 else huge) - top[-1]) / rate))


def _trend(rate, steps):
    if np.isnan(rate):
        return "unknown"
    return "stable" if abs(rate) * steps < STABLE else "vanishing" if rate < 0 else "exploding"


def _lags(numbers, name):
    return {f"{quantile:g}": _whole(numbers[f"{name} {quantile:g}"]) for quantile in QUANTILES}


def _whole(value):
    return int(value) if float(value).is_integer() else float(value)


def _median(values):
    return float(np.median(values))


def _quartiles(values):
    return [float(np.quantile(values, share, method="closest_observation")) for share in (0.25, 0.75)]
