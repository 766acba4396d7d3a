"""What the bounds of a chain allowed, what happened, and what an assembled product has lost, in sentences."""

from typing import Any

import numpy as np

from jaxbptt import _validation

NEAR_ONE = 1e-9  # nats
HELD = 1.0  # nats: a norm that changes by at most this has neither vanished nor exploded


def describe(found: Any) -> list[str]:
    """Sentences about the `Bounds` of one chain."""
    if not all(_validation.is_concrete(field) for field in found):
        raise TypeError("bounds: got traced arrays, expected concrete ones (call diagnosis outside jit)")
    if np.ndim(found.log_norm) != 1:
        raise ValueError(f"log_norm: got shape {list(np.shape(found.log_norm))}, expected [T] (one chain)")
    if np.isnan(found.log_norm).any():
        return ["The norms are not known (NaN in the Jacobians, or a chain that undoes its own expansion)."]
    digits = -np.log10(np.finfo(found.log_norm.dtype).eps)
    found = type(found)(*(np.asarray(field, np.float64) for field in found))
    lines = [_what_happened(found.log_norm), *_transient(found.log_norm)]
    if not np.isnan(found.log_gamma_sigma):
        lines += _what_the_weight_says(found, digits)
    return [*lines, _looseness(found), _what_a_product_loses(found, digits)]


def _what_happened(log_norm):
    """By ln‖dh_T/dh_0‖ over the whole span; what the second half did is a sentence part of its own."""
    length, end = len(log_norm), log_norm[-1]
    if end == -np.inf:
        return f"The gradient vanished exactly: dh_t/dh_0 = 0 from t = {np.argmin(log_norm) + 1} on."
    half = length // 2
    change = end - (log_norm[half - 1] if half else 0)
    verdict = "neither vanished nor exploded" if abs(end) <= HELD else "vanished" if end < 0 else "exploded"
    course = "it held" if abs(change) <= HELD else "it shrank" if change < 0 else "it grew"
    return (
        f"The gradient {verdict}: ‖dh_T/dh_0‖ = {_number(end)} at T = {length}; over the second half {course}, "
        f"{change / (length - half):+.3g} nats a step."
    )


def _transient(log_norm):
    """The highest and the lowest norm on the way, where both the start, ‖I‖ = 1, and the end are far from it."""
    peak, low, end = int(np.argmax(log_norm)), int(np.argmin(log_norm)), log_norm[-1]
    lines = []
    if log_norm[peak] > max(0, end) + HELD:
        reached = f"‖dh_t/dh_0‖ reached {_number(log_norm[peak])} at t = {peak + 1}"
        fall = "" if end == -np.inf else f", {log_norm[peak] - end:.3g} nats above its end"
        lines.append(f"Transient growth: {reached}{fall}.")
    if log_norm[low] < min(0, end) - HELD:
        fell = f"‖dh_t/dh_0‖ fell to {_number(log_norm[low])} at t = {low + 1}"
        lines.append(f"Transient decay: {fell}, {end - log_norm[low]:.3g} nats below its end.")
    return lines


def _what_the_weight_says(found, digits):
    log_sigma, log_radius, steps = found.log_gamma_sigma, found.log_gamma_radius, np.diff(found.log_step_norms)
    steps = np.concatenate((found.log_step_norms[:1], steps))
    even = max(NEAR_ONE, 1e3 * 10.0**-digits)  # logs that rounding may have moved from 0; ρ moves further
    sigma = f"γ·σ_max(W) = {_number(log_sigma)}"
    rounding = 1e-5 * max(1, np.abs(found.log_step_norms[np.isfinite(found.log_step_norms)]).max(initial=0))
    if np.nanmax(steps) > log_sigma + rounding:
        t = int(np.nanargmax(steps)) + 1
        return [
            f"{sigma} bounds nothing here: ‖J_{t}‖ = {_number(steps[t - 1])} exceeds it, so the Jacobians are not "
            "diag(φ') W with |φ'| ≤ γ (wrong weight or slope)."
        ]
    grew, end = np.max(found.log_norm) > even * len(steps), found.log_norm[-1]
    if log_sigma < -even:
        lines = [
            f"{sigma} < 1, sufficient for vanishing: every dh_t/dh_k shrinks by at least {-log_sigma:.3g} nats a step."
        ]
    elif log_sigma > even:
        failed = " (here it shrank)" if end < -HELD else ""
        lines = [f"{sigma} > 1, necessary for exploding but not sufficient: it may shrink all the same{failed}."]
    else:
        lines = ["γ·σ_max(W) = 1: no norm exceeds 1, so nothing can explode; whether it vanishes is open."]
    radius = f"γ·ρ(W) = {_number(log_radius)}"
    if log_radius < -even and grew:
        t = int(np.argmax(found.log_norm)) + 1
        lines.append(f"{radius} < 1 is no bound: ‖dh_{t}/dh_0‖ = {_number(found.log_norm[t - 1])} exceeds 1.")
    elif log_radius > even**0.5 and end < -HELD:
        lines.append(f"{radius} > 1 is no bound from below: the gradient shrank.")
    else:
        lines.append(f"{radius} is no bound, whatever it suggests here.")
    return lines


def _looseness(found):
    length, end = len(found.log_norm), found.log_norm[-1]
    if end == -np.inf:
        return f"Π‖J_t‖ = {_number(found.log_step_norms[-1])} where the truth is 0."
    gap = max(0, found.log_step_norms[-1] - end)
    weight = np.maximum(0, length * found.log_gamma_sigma - end)  # NaN without W
    by_weight = "" if np.isnan(weight) else f", (γ σ_max(W))^T {weight:.3g} ({weight / length:.3g} a step)"
    return f"At T, Π‖J_t‖ is {gap:.3g} nats above the truth ({gap / length:.3g} a step){by_weight}."


def _what_a_product_loses(found, digits):
    if np.isnan(found.log_condition):
        return (
            "The condition of dh_T/dh_0 is not known: its smallest singular value is lost in rounding (singular steps,"
            " or a chain that undoes its own expansion)."
        )
    if found.log_condition == np.inf:
        return "dh_T/dh_0 is singular: its smallest singular value is exactly 0."
    lost = max(0, found.log_condition) / np.log(10)
    kept = f"about {lost:.1f} of {digits:.1f} digits" if lost < digits else f"all {digits:.1f} digits"
    return (
        f"ln σ_1 − ln σ_N = {found.log_condition:.4g} at T: an assembled product has lost {kept} of its smallest "
        "singular value."
    )


def _number(log):
    """e^log as text, at any magnitude."""
    if log == -np.inf:
        return "0"
    if NEAR_ONE < abs(log) < 5e-4:
        return f"1{log:+.1g}"  # four digits would say 1, and "1 < 1" is no sentence
    return f"{np.exp(log):.4g}" if abs(log) < 12 else f"10^{log / np.log(10):.1f}"


def describe_exponents(found: Any) -> list[str]:
    """Sentences about the `LyapunovExponents` of one chain: what is NaN or may be off, and why."""
    if not all(_validation.is_concrete(field) for field in found):
        raise TypeError("exponents: got traced arrays, expected concrete ones (call notes outside jit)")
    if np.ndim(found.exponents) != 1:
        raise ValueError(f"exponents: got shape {list(np.shape(found.exponents))}, expected [k] (one chain)")
    found = type(found)(*(np.asarray(field) for field in found))
    off, numbered = np.isnan(found.exponents), [f"{i + 1}" for i in range(len(found.exponents))]
    name = lambda which: ("exponents " if sum(which) > 1 else "exponent ") + ", ".join(np.compress(which, numbered))
    if np.isnan(found.rounding_error).any():
        return ["No exponent is known: NaN in the Jacobians, or a fixed interval that is too long."]
    lines = []
    if off.any():
        worst = found.rounding_error[off].max()
        much = "mixed directions up" if worst == np.inf else f"changed them by about {worst:.2g} nats per step"
        lines.append(
            f"NaN for {name(off)}: rounding {much} (a chain that undoes its own expansion, or singular steps)."
        )
    short = ~off & np.isnan(found.standard_error)
    if short.any():
        time = found.correlation_time[short].max()
        reason = "too few samples" if np.isnan(time) else f"growth is correlated over about {time:.3g} steps"
        lines.append(f"No standard error for {name(short)}: {reason}, and the chain is too short to tell.")
    turning = found.warm_up_error > np.maximum(found.standard_error, np.finfo(found.exponents.dtype).eps ** 0.5)
    if turning.any():
        lines.append(
            f"The warm-up is too short for {name(turning)}: directions that were still turning may leave"
            f" {found.warm_up_error[turning].max():.2g} nats per step, more than the standard error."
        )
    return lines
