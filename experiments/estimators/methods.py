"""Every way to a gradient that the toolkit has, and what each claims to give."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from jaxbptt import gradients, online, perturbation, truncation

EXACT, UNBIASED, BIASED = "exact", "unbiased", "biased"
WINDOW = 8  # K of the windows
PASSES, RATE = 60, 0.01  # over the sequence, in which the synthetic gradients are learned by Adam
CLIP = 0.02  # of the norm of λ
SMALL = 1e-4  # σ of what is perturbed by a finite amount: the bias of order σ² does not show


class Method(NamedTuple):
    """One estimator of dC/dθ."""

    claim: str  # EXACT, UNBIASED or BIASED
    estimate: Callable[..., Any]  # (model, params, inputs, targets, *, initial) -> (loss, grads); random: key, too
    random: bool = False


def make_methods(model: Any, params: Any, inputs: jax.Array, targets: jax.Array) -> dict[str, Method]:
    """By name. The synthetic gradients are learned before, on this very sequence."""
    by_rule = partial(partial, online.run)
    strategies = partial(partial, perturbation.evolution_strategies, window=WINDOW, scale=SMALL)
    weights = learn_synthetic(model, params, inputs, targets)
    return {
        "autodiff": Method(EXACT, gradients.autodiff),
        "bptt": Method(EXACT, gradients.bptt),
        "forward sensitivity": Method(EXACT, gradients.forward_sensitivity),
        "double sum": Method(EXACT, gradients.double_sum),
        "RTRL": Method(EXACT, by_rule(online.rtrl())),
        "SnAp-2 of a dense net": Method(EXACT, by_rule(online.snap(2))),
        "random cuts, keep 0.9": Method(UNBIASED, partial(truncation.randomised, keep=0.9), True),
        "UORO": Method(UNBIASED, by_rule(online.uoro()), True),
        "KF-RTRL": Method(UNBIASED, by_rule(online.kf_rtrl()), True),
        "reverse KF-RTRL": Method(UNBIASED, by_rule(online.reverse_kf_rtrl()), True),
        "Kronecker sum, r = 4": Method(UNBIASED, by_rule(online.ok_rtrl(4)), True),
        "forward gradient": Method(UNBIASED, perturbation.forward_gradient, True),
        "node perturbation": Method(UNBIASED, perturbation.node_perturbation, True),
        f"PES, K = {WINDOW}": Method(UNBIASED, strategies(), True),
        f"window, K = {WINDOW}": Method(BIASED, partial(truncation.windowed, window=WINDOW)),
        f"TBPTT({WINDOW // 2}, {WINDOW})": Method(
            BIASED, partial(truncation.sliding, stride=WINDOW // 2, num_lags=WINDOW)
        ),
        f"lags below {WINDOW}": Method(BIASED, partial(truncation.lag, num_lags=WINDOW)),
        f"synthetic, K = {WINDOW}": Method(BIASED, partial(truncation.bootstrapped, window=WINDOW, weights=weights)),
        "clipped λ": Method(BIASED, partial(gradients.bptt, clip_adjoint=CLIP)),
        "sketched RTRL, r = 4": Method(BIASED, by_rule(online.sketched_rtrl(4))),
        "SnAp-1": Method(BIASED, by_rule(online.snap(1))),
        "RFLO, leak 0.7": Method(BIASED, by_rule(online.rflo(leak=0.7))),
        "e-prop, random feedback": Method(BIASED, by_rule(online.eprop("random")), True),
        "KeRNL": Method(BIASED, by_rule(online.kernl(rate=0.01, timescale=4.0)), True),
        "immediate": Method(BIASED, by_rule(online.immediate())),
        "immediate, decay 0.7": Method(BIASED, by_rule(online.immediate(decay=0.7))),
        f"truncated ES, K = {WINDOW}": Method(BIASED, strategies(persistent=False), True),
    }


def learn_synthetic(model: Any, params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """D of the synthetic gradients, learned at fixed params."""
    rule = truncation.synthetic_gradients(optax.adam(RATE))
    cut = lambda leaf: leaf.reshape(-1, WINDOW, *leaf.shape[1:])
    start = rule.init(model, params)

    def once(state, _):
        begin = dataclasses.replace(state, model_state=start.model_state, at_start=start.at_start)
        update = lambda state, window: (rule.update(params, state, *window)[0], None)
        state, _ = jax.lax.scan(update, begin, (cut(inputs)[:-1], cut(targets)[:-1]))
        last = (leaf[-1] for leaf in (cut(inputs), cut(targets)))
        return rule.update(params, state, *last, last=True)[0], None

    return jax.jit(lambda: jax.lax.scan(once, start, length=PASSES)[0].weights)()
