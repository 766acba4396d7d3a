"""Which earlier steps and inputs the losses depend on: the (t, k) tables, or sums by lag where tables are too large."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxbptt import _validation
from jaxbptt.partials import step_partials
from jaxbptt.report._problem import Subject
from jaxbptt.report._spectra import is_large
from jaxbptt.terms import gradient_terms, input_saliency
from jaxbptt.truncation.lags import lag_profile

QUANTILES = (0.5, 0.9, 0.99)
MOST_STEPS = 1024  # T of a table
MOST_PAIRS = 2**26  # entries of the tables of all sequences
MOST_LAGS = 256  # of a profile without its table
MOST_FACTORS = 2**27  # T·|θ| numbers that a profile holds for a step without a factored derivation
TABLE = "log_saliency"


class Tables(NamedTuple):
    """By sequence. None: see `missing`."""

    norms: Float[np.ndarray, "batch time time"] | None  # of the terms (t, k) of dC/dθ
    profile: Float[np.ndarray, "batch lags"] | None  # Σ_t of them by lag
    reach: Int[np.ndarray, "batch quantiles"] | None  # lags at QUANTILES
    log_saliency: Float[np.ndarray, "batch time time"] | None  # ln‖∂L_t/∂x_k‖
    log_saliency_profile: Float[np.ndarray, "batch time"] | None
    saliency_reach: Int[np.ndarray, "batch quantiles"] | None
    recall_density: Float[np.ndarray, "batch time"] | None
    missing: dict[str, str]  # field of an XRay -> why it is None


def measure_tables(subject: Subject) -> Tables:
    """Both tables, or the norms by lag."""
    length = subject.problem.length
    if is_large(subject):
        return _by_lag(subject, f"N = {subject.size}: only products with J_t are formed")
    if length > MOST_STEPS or length**2 * len(subject.chosen) > MOST_PAIRS:
        return _by_lag(subject, f"a table of {length} × {length} pairs is too large")
    leaves = jax.tree.leaves(subject.problem.inputs)
    floats = [leaf for leaf in leaves if _validation.is_float(leaf)]
    kinds = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    why = f"the inputs are {kinds}: they have no derivative" if not floats else "the inputs are empty"
    if not any(leaf.size for leaf in floats):
        return _of_pairs(subject, why)
    try:
        return _of_pairs(subject, None)
    except (TypeError, ValueError) as error:
        if not _validation.is_ours(error):
            raise
        return _of_pairs(subject, "the step has no derivative by its inputs")


def _of_pairs(subject, why):
    """Both tables; without that of the inputs, if there is a reason why not."""
    has_saliency = why is None

    def at(problem):
        params, *data, initial, _ = problem
        terms = gradient_terms(subject.model, params, *data, initial=initial)
        found = [terms.norms, terms.profile()]
        if has_saliency:
            # A hand derivation's cotangent of the input is no part of any gradient: nothing has proved it.
            model = subject.model._replace(derivation=None)
            felt = input_saliency(model, params, *data, initial=initial)
            found += [felt.log_norms, felt.profile(), felt.recall_density()]
        return found

    norms, profile, *felt = subject.measure(("tables", has_saliency), at)
    if not has_saliency:
        return Tables(norms, profile, _reach_of(profile), None, None, None, None, {TABLE: why})
    log_norms, log_profile, density = felt
    top = np.max(log_profile, axis=1, keepdims=True)
    shares = np.exp(log_profile - np.where(np.isfinite(top), top, 0))
    return Tables(norms, profile, _reach_of(profile), log_norms, log_profile, _reach_of(shares), density, {})


def _by_lag(subject, why):
    missing = {"norms": why, TABLE: why}
    length, number = subject.problem.length, subject.num_params
    lags = min(length, MOST_LAGS)
    if step_partials(subject.model).factored is None and length * number > MOST_FACTORS:
        missing["profile"] = f"its step has no factored derivation, and T·|θ| = {length * number:.0e} numbers"
        return Tables(None, None, None, None, None, None, None, missing)

    def at(problem):
        params, *data, initial, _ = problem
        return lag_profile(subject.model, params, *data, initial=initial, num_lags=lags).norms

    profile = subject.measure(("lags", lags), at)
    return Tables(None, profile, _reach_of(profile), None, None, None, None, missing)


def _reach_of(profile):
    """The least lags at which the cumulative profile [B, lags] has QUANTILES of the whole, [B, quantiles]."""
    shares = np.cumsum(profile, axis=1)[:, None]
    return np.argmax(shares >= np.array(QUANTILES)[:, None] * shares[:, :, -1:], axis=2)
