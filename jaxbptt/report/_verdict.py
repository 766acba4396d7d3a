"""What the numbers say, in sentences."""

import math
from typing import Any

ROUTES = {
    "bptt": "backpropagation through time",
    "forward_sensitivity": "forward sensitivities",
    "double_sum": "the double sum over (t, k)",
    "directional": "forward mode along random directions",
    "double_sum_directional": "the double sum along random directions",
    "state_jacobian": "the state Jacobian in closed form",
    "differences": "central differences of C",
}
FIELDS = {
    "log_sigma": "singular values",
    "log_sigma_error": "errors of the singular values",
    "exponents": "Lyapunov exponents",
    "norms": "the (t, k) table",
    "profile": "the lag profile",
    "log_saliency": "the input saliency",
}


def in_words(summary: dict[str, Any]) -> list[str]:
    """Short sentences, the proof first."""
    return [
        *_proof(summary),
        *_scope(summary),
        *_growth(summary),
        *_values(summary),
        *_reach(summary),
        *_missing(summary),
    ]


def _proof(s):
    routes = [name for name in s["routes"] if name != "state_jacobian"]
    named = _listed([ROUTES[name] for name in routes])
    if s["proved"]:
        said = (
            f"Gradient proved: {len(routes) + 1} routes agree to {s['worst_relative_error']:.0e} on every leaf"
            f" (autodiff, {named}; {s['dtype']})"
        )
        off = s["confirmed_by_differences"]
        sentences = [f"{said}{'' if math.isnan(off) else f', and central differences of C to {off:.0e}'}."]
    else:
        wrong = [f"{ROUTES[name]} (by {s['routes'][name]:.0e}, worst in {at})" for name, at in s["wrong"].items()]
        sentences = [
            f"Gradient NOT proved: of what was compared, these differ from automatic differentiation by more than"
            f" {s['bound']:.0e}: {_listed(wrong)}."
        ]
    if s["left_out"]:
        named = [f"{ROUTES[name]} ({why})" for name, why in s["left_out"].items()]
        sentences.append(f"Left out, as it would take long: {_listed(named)}.")
    if "differences" in s["wrong"]:
        sentences.append("All routes may share a rule that is wrong: a custom_vjp or a stop_gradient in the model.")
    if not s["proved"] and {"bptt", "state_jacobian"} & set(s["wrong"]):
        sentences.append("What follows is measured without the hand derivation.")
    return sentences


def _scope(s):
    sentences = []
    if s["sequences"] is not None:
        measured = s["measured_sequences"]
        which = f"all {measured}" if measured == s["sequences"] else f"{measured} of {s['sequences']}"
        sentences.append(f"Numbers are medians over {which} sequences.")
    if s["stretch"] is not None and s["stretch"] != [0, s["steps"]]:
        start, stop = s["stretch"]
        sentences.append(
            f"Singular values and exponents are of steps {start + 1} to {stop}, the longest stretch without a reset."
        )
    if s["leading_only"]:
        sentences.append(
            f"Only the leading singular values are given, from products with the step: N = {s['state_entries']}."
        )
    return sentences


def _growth(s):
    rate, trend = s["rate_per_step"], s["trend"]
    if trend == "unknown":
        return ["How σ_1 grows is not known."]
    stretch = s["stretch"][1] - s["stretch"][0]
    leaves = s["leaves_float32_at"]
    if leaves <= stretch:
        when = f"it leaves float32 by step {leaves:.0f}"
    elif trend == "stable":
        when = f"it stays in float32 over {_steps(stretch)}"
    else:
        when = f"it would leave float32 at step {leaves:.0f}"
    if math.isinf(rate):
        return [f"{_capital(trend)}: σ_1(dh_t/dh_0) is exactly zero at the end; {when}."]
    name = "doubling time" if rate > 0 else "half-life"
    life = "" if trend == "stable" else f", {name} {_steps(s['half_life'])}"
    between = _between(s, "rate_per_step", "+.4f")
    return [f"{_capital(trend)}: σ_1(dh_t/dh_0) changes by {rate:+.4f} nats per step{between}{life}; {when}."]


def _values(s):
    sentences = []
    if not math.isnan(s["lambda_1"]):
        known = not math.isnan(s["lambda_1_error"])
        error, note = (f" ± {s['lambda_1_error']:.4f}", "") if known else ("", " (too few steps for an error)")
        sentences.append(f"The largest Lyapunov exponent is {s['lambda_1']:+.4f}{error} nats per step{note}.")
    if s["values_unknown"] > 0:
        total = s["values_given"] + s["values_unknown"]
        sentences.append(
            f"{s['values_unknown']:.0f} of {total:.0f} singular values at the end are not known (NaN):"
            f" rounding in {s['dtype']} may have changed them."
        )
    return sentences


def _reach(s):
    if s["zero_gradient"]:
        return ["The gradient is exactly zero."]
    sentences = []
    for field, said in (("reach", "90 % of the gradient comes from"), ("saliency_reach", "Losses feel inputs:")):
        lags = s[field]
        if lags is None:
            continue
        between = _between(s, f"{field} 0.9", ".0f")
        rest = f"50 %: {_number(lags['0.5'])}, 99 %: {_number(lags['0.99'])}"
        if field == "reach":
            sentences.append(f"{said} at most {_steps(lags['0.9'])} back{between} ({rest}).")
        else:
            sentences.append(f"{said} 90 % of the sensitivity lies within {_steps(lags['0.9'])}{between} ({rest}).")
    if s["lags"] is not None and s["lags"] < s["steps"]:
        sentences.append(f"Sums by lag end at lag {s['lags'] - 1}: shares are of what lies within it.")
    return sentences


def _missing(s):
    reasons: dict[str, list[str]] = {}
    for field, why in s["missing"].items():
        reasons.setdefault(why, []).append(FIELDS[field])
    return [f"Not computed: {_listed(fields)} ({why})." for why, fields in reasons.items()]


def _between(s, name, form):
    if "spread" not in s:
        return ""
    low, high = s["spread"][name]
    return f" (half of the sequences: {low:{form}} to {high:{form}})"


def _steps(count):
    return f"{_number(count)} step{'s' * (count != 1)}"


def _number(count):
    return f"{count:.0f}" if float(count).is_integer() else f"{count:.1f}"


def _listed(words):
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _capital(words):
    return words[:1].upper() + words[1:]
