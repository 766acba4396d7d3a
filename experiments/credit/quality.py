"""Of every gradient at fixed params: cosine to the exact one, bias, spread; and how far back the exact one reaches."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import gradients, terms, truncation
from jaxbptt.models import Model

from .training import METHODS, READOUT

DRAWS = 64  # of the signs of a rule that draws any


class Quality(NamedTuple):
    """M methods, of the cell's params alone (the readout's gradient is exact by all of them); norms over the exact."""

    cosine: jax.Array  # [M] of one draw, their mean
    bias: jax.Array  # [M] ‖E ĝ − g‖; of drawn signs from the mean of the draws, less their own noise
    spread: jax.Array  # [M] √E‖ĝ − E ĝ‖²
    profile: jax.Array  # [T] share of the terms' norms by lag t − k
    immediate_error: jax.Array  # of "immediate" against windows of one step, an identity
    rtrl_error: jax.Array  # of RTRL against BPTT, an identity


def make_quality(model: Model, params: Any, state: jax.Array):
    """(params, state h, inputs [T, 1], targets, key) -> Quality; params and state given here: any, for patterns."""
    rules = {name: method.rule for name, method in METHODS.items() if method.rule is not None and name != READOUT}
    starts = {name: rule.init(model, params, initial=state, key=jax.random.key(0)) for name, rule in rules.items()}
    of_cell = lambda grads: ravel_pytree(grads.cell)[0]

    def measure(params, state, inputs, targets, key):
        windowed = lambda window: truncation.windowed(model, params, inputs, targets, initial=state, window=window)[1]

        def estimate(name, key):
            if name == READOUT:
                return jnp.zeros_like(exact)
            if name not in rules:
                return of_cell(windowed(METHODS[name].window))
            start = dataclasses.replace(starts[name], model_state=state)
            if start.key is not None:
                start = dataclasses.replace(start, key=key)

            def update(carry, step):
                memory, total = carry
                memory, _, grads = rules[name].update(params, memory, *step)
                return (memory, total + of_cell(grads)), None

            return jax.lax.scan(update, (start, jnp.zeros_like(exact)), (inputs, targets))[0][1]

        exact = of_cell(gradients.bptt(model, params, inputs, targets, initial=state)[1])
        rows, found = [], {}
        for name in METHODS:
            draws = DRAWS if name in starts and starts[name].key is not None else 1
            found[name] = jax.vmap(lambda key, name=name: estimate(name, key))(jax.random.split(key, draws))
            rows.append(_compare(found[name], exact))
        table = terms.gradient_terms(model, params, inputs, targets, initial=state).profile()
        error = lambda name, expected: jnp.linalg.norm(found[name][0] - expected) / jnp.linalg.norm(expected)
        columns = (jnp.stack(column) for column in zip(*rows, strict=True))
        identities = error("immediate", of_cell(windowed(1))), error("RTRL", exact)
        return Quality(*columns, table / jnp.sum(table), *identities)

    return measure


def _compare(drawn, exact):
    """(cosine, bias, spread) of estimates [K, P]."""
    norm, count = jnp.linalg.norm(exact), len(drawn)
    cosine = jnp.mean(drawn @ exact / (jnp.linalg.norm(drawn, axis=1) * norm))
    mean = jnp.mean(drawn, axis=0, keepdims=True)
    variance = jnp.sum((drawn - mean) ** 2) / max(count - 1, 1)
    squared = jnp.sum((mean[0] - exact) ** 2) - variance / count
    return cosine, jnp.sqrt(jnp.maximum(squared, 0)) / norm, jnp.sqrt(variance) / norm
