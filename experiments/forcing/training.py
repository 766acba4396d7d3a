"""Training at every strength of forcing at once, on the same weights and windows, at every rate."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import descent
from jaxbptt import gradients, spectra
from jaxbptt.cells import Cell
from jaxbptt.trajectories import unroll

from . import nets

RATES = (0.03, 0.01, 0.003)  # of Adam at the start; it falls to 0 along a cosine; every method gets its best
RECORDS = 20  # of the errors; before each the strengths that follow the net are measured again
INTERVALS = (1, 5, nets.PREDICTABLE, nets.LYAPUNOV_TIME, 2 * nets.LYAPUNOV_TIME, 4 * nets.LYAPUNOV_TIME)  # τ, samples
SHARES = (1.0, 0.5, 0.25)  # of α = 1 − 1/σ̃
NONE = "none"
METHODS = (*(f"τ = {tau}" for tau in INTERVALS), NONE, *(f"{share:g} α*" for share in SHARES))
PREDICTED, CERTAIN, TOO_LATE = f"τ = {nets.PREDICTABLE}", "1 α*", f"τ = {4 * nets.LYAPUNOV_TIME}"
FARTHEST = 10.0  # standard deviations: a forecast farther off, or not finite, counts as this
APART = 8  # samples between the starts of forecasts
MEASURED = 512  # samples of the data on which σ̃ is measured
FREE = 4000  # steps of a trained net left to itself, after FREE / 4 of transient


class Trained(NamedTuple):
    """What `descent` moves. C does not depend on the strength through the data alone: its gradient is stopped."""

    net: nets.NetParams
    strength: Any  # [T] α_t


class Training(NamedTuple):
    """P methods, R rates, D keys (the same weights and windows for every method), E records."""

    methods: np.ndarray  # [P] names
    rates: np.ndarray  # [R]
    updates: np.ndarray  # [E]
    chosen_by: np.ndarray  # [P, R, D, E] root mean square error of forecasts over one Lyapunov time, validation data
    errors: np.ndarray  # [P, R, D, E] the same of the test data, which chooses nothing
    strength: np.ndarray  # [P, R, D] the last α_t, mean over t
    exponents: np.ndarray  # [P, D] λ_1 of the net of the best rate, left to itself, nats per sample
    exponent_errors: np.ndarray  # [P, D] its standard error


def train_all(config: Any, data: Any, keys: jax.Array, progress: Callable) -> tuple[Training, nets.NetParams]:
    """(Training, the nets of the predicted τ at its best rate, leaves lead with D); data: three parts [S, 3]."""
    free, every = nets.shallow(config.hidden), config.updates // RECORDS
    count, rates = len(METHODS), jnp.asarray(RATES, jnp.float32)
    net = jax.tree.map(lambda leaf: jnp.tile(leaf, (count, *[1] * (leaf.ndim - 1))), jax.vmap(free.init)(keys))
    strength = np.repeat(_fixed_strengths(config.length), len(keys), axis=0)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), Trained(net, strength))
    train, validation, test = (jnp.asarray(part, jnp.float32) for part in data)
    trainer = descent.make_trainer(
        partial(_gradient, free, config, train),
        lambda params: tuple(forecast_error(free, params.net, part) for part in (validation, test)),
        every,
        descent.fall_to_zero(every * RECORDS),
    )
    refresh = jax.jit(partial(_refresh, free, train[:MEASURED], len(keys)))

    def advance(i, state):
        progress(f"training, {i * every} of {every * RECORDS} updates")
        return lambda state, *rest: trainer((refresh(state[0]), state[1]), *rest)

    begin, tiled = descent.begin(params, len(rates)), jnp.tile(keys, count)
    states, errors = zip(*descent.follow(advance, begin, rates, tiled, records=RECORDS, every=every), strict=True)
    chosen_by, errors = (_by_method(np.stack(column, axis=-1), count) for column in zip(*errors, strict=True))
    final = states[-1][0]
    best = descent.find_best_rates(chosen_by[..., -1])
    picked = jax.tree.map(lambda leaf: _by_method(np.asarray(leaf), count)[np.arange(count), best], final)
    progress("exponents of the trained nets")
    exponents = measure_exponents(free, picked.net, data[-1][0])
    updates = every * np.arange(1, RECORDS + 1)
    strength = _by_method(np.asarray(final.strength), count).mean(axis=-1)
    result = Training(np.array(METHODS), np.array(RATES), updates, chosen_by, errors, strength, *exponents)
    predicted = jax.tree.map(lambda leaf: leaf[METHODS.index(PREDICTED)].astype(float), picked.net)
    return result, predicted


def _fixed_strengths(length):
    """[P, T]; of those that follow the net only the first step, which every method starts from the data."""
    intervals = (*INTERVALS, length, *[length] * len(SHARES))
    return np.stack([nets.force_every(interval, length) for interval in intervals])


def _refresh(free, data, num_keys, params):
    """α = share (1 − 1/σ̃) of the nets as they are now, for the methods that follow them."""
    first, shares = num_keys * (len(METHODS) - len(SHARES)), jnp.repeat(jnp.asarray(SHARES, data.dtype), num_keys)
    followers = jax.tree.map(lambda leaf: leaf[:, first:], params.net)
    measure = jax.vmap(jax.vmap(lambda net: nets.strength_at_data(free, net, data)))
    alpha = shares[None] * measure(followers)
    return params._replace(strength=params.strength.at[:, first:].set(alpha[..., None]))


def _gradient(free, config, samples, params, key):
    """The mean of the batch's gradients by BPTT."""
    starts = jax.random.randint(key, (config.batch,), 0, len(samples) - config.length, jnp.int32)
    windows = samples[starts[:, None] + jnp.arange(config.length + 1)[None]]
    model = nets.forced_model(free)

    def each(window):
        inputs = nets.Forcing(window[:-1], params.strength)
        return gradients.bptt(model, params.net, inputs, window[1:], initial=window[0])[1]

    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(each)(windows))
    return Trained(mean, jnp.zeros_like(params.strength))


def forecast_error(free: Cell, net: nets.NetParams, samples: jax.Array) -> jax.Array:
    """Root mean square over starts and coordinates of the error after one Lyapunov time, in standard deviations."""
    ahead = nets.LYAPUNOV_TIME
    starts = jnp.arange(0, len(samples) - ahead, APART)
    nothing = jnp.zeros((ahead, 0), samples.dtype)
    reached = jax.vmap(lambda start: unroll(free, net, nothing, initial=start).states[-1])(samples[starts])
    miss = jnp.nan_to_num(reached - samples[starts + ahead], nan=FARTHEST)
    return jnp.sqrt(jnp.mean(jnp.clip(miss, -FARTHEST, FARTHEST) ** 2))


def measure_exponents(free: Cell, net: nets.NetParams, start: Any) -> tuple[np.ndarray, np.ndarray]:
    """λ_1 and its standard error of every net [P, D], in float64; NaN where it leaves for infinity."""
    nothing = jnp.zeros((FREE + FREE // 4, 0))

    def measure(net):
        found = spectra.stream_exponents(free, net, nothing, initial=jnp.asarray(start), transient=FREE // 4, k=1)
        return found.exponents[0], found.standard_error[0]

    flat = jax.tree.map(lambda leaf: jnp.asarray(leaf.reshape(-1, *leaf.shape[2:]), float), net)
    shape = net.a.shape[:2]
    return tuple(np.asarray(part).reshape(shape) for part in jax.jit(lambda net: jax.lax.map(measure, net))(flat))


def _by_method(leaf, count):
    """[P, R, D, ...] of [R, P · D, ...]."""
    return leaf.reshape(leaf.shape[0], count, -1, *leaf.shape[2:]).swapaxes(0, 1)
