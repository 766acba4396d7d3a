"""Bias and spread of one sequence's gradient under every scheme, and what each costs."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import gradients, truncation
from jaxbptt.models import Model

from . import schemes
from .windows import make_pairs


class Errors(NamedTuple):
    """Of the gradient of the cell's parameters on one sequence, over the rms norm of the exact one; rms over sequences.

    Cost: steps back a loss, the mean over t of the number of steps k that L_t is carried back to.
    """

    windows: np.ndarray  # [W] K
    window_cost: np.ndarray  # [W]
    carried: np.ndarray  # [W] bias, the state carried across
    zero_state: np.ndarray  # [W] bias, every window from h_0 = 0
    lags: np.ndarray  # [L]
    lag_cost: np.ndarray  # [L]
    lag: np.ndarray  # [L] bias
    keeps: np.ndarray  # [P] π
    random_cost: np.ndarray  # [P]
    spread: np.ndarray  # [P] rms about the mean of the draws
    mean_error: np.ndarray  # [P] of the mean of the draws: spread / √draws when there is no bias
    text_spread: np.ndarray  # scalar: the exact gradients about their mean over the sequences


def measure_errors(model: Model, params: Any, config: Any, windows: Any, progress: Callable) -> Errors:
    """Of every scheme on every sequence of `windows` [S, T + 1]; config: length, draws and seed."""
    inputs, targets = make_pairs(windows, model.num_inputs, params.readout.b_y.dtype)
    progress("bias of the deterministic schemes")
    exact = _map_over(inputs, targets, lambda *pair: _flatten(gradients.bptt(model, params, *pair)[1]))
    unit = _rms(exact)
    regular, by_lag = _measure_bias(model, params, config.length, inputs, targets, exact)
    progress(f"spread over {config.draws} draws of the cuts")
    at_random = _measure_spread(model, params, config, inputs, targets, exact)
    return Errors(*regular, *by_lag, *at_random, np.asarray(_rms(exact - exact.mean(axis=0)) / unit))


def _measure_bias(model, params, length, inputs, targets, exact):
    """The first seven fields of Errors in two parts, windows and lags."""
    sizes, lags = ([size for size in sizes if size < length] for sizes in (schemes.WINDOWS, schemes.LAGS))
    tables = [truncation.window_weights(length, size) for size in sizes]
    tables += [truncation.sliding_weights(length, 1, lag) for lag in lags]

    def by_tables(x, y):
        by_table = lambda table: _flatten(truncation.weighted_gradient(model, params, x, y, table)[1])
        return jax.vmap(by_table)(jnp.stack(tables))

    def reset(window, x, y):
        return _flatten(truncation.windowed(model, params, x, y, window=window, carry_state=False)[1])

    kept, unit = _map_over(inputs, targets, by_tables), _rms(exact)
    bias = np.array([_rms(kept[:, i] - exact) / unit for i in range(len(tables))])
    cost = np.array([schemes.count_steps_back(table) for table in tables])
    zero_state = [_rms(_map_over(inputs, targets, partial(reset, size)) - exact) / unit for size in sizes]
    regular = np.array(sizes), cost[: len(sizes)], bias[: len(sizes)], np.array(zero_state)
    return regular, (np.array(lags), cost[len(sizes) :], bias[len(sizes) :])


def _measure_spread(model, params, config, inputs, targets, exact):
    """The four fields of Errors that the draws of the cuts give."""
    keeps, spread, mean_error = 1 - 1 / np.array(schemes.MEAN_LENGTHS), [], []
    keys, unit = jax.random.split(jax.random.key(config.seed + 2), (len(inputs), config.draws)), _rms(exact)

    def one(keep, x, y, key):
        return _flatten(truncation.randomised(model, params, x, y, keep=keep, key=key)[1])

    draw = jax.jit(jax.vmap(one, in_axes=(None, None, None, 0)))
    for keep in keeps:
        drawn = np.stack([draw(keep, *sequence) for sequence in zip(inputs, targets, keys, strict=True)])
        mean = drawn.mean(axis=1)  # of [S, draws, |θ|]
        spread.append(_rms(drawn - mean[:, None]) * np.sqrt(config.draws / (config.draws - 1)) / unit)
        mean_error.append(_rms(mean - exact) / unit)
    return keeps, schemes.expected_steps_back(keeps, config.length), np.array(spread), np.array(mean_error)


def _map_over(inputs, targets, route):
    """[S, ...], one sequence at a time: each holds all its tables."""
    return np.asarray(jax.jit(lambda data: jax.lax.map(lambda one: route(*one), data))((inputs, targets)))


def _flatten(grads):
    """The gradient of the cell's parameters as one vector."""
    return ravel_pytree(grads.cell)[0]


def _rms(vectors):
    return float(np.sqrt(np.mean(np.sum(np.square(vectors), axis=-1))))
