"""Training by each scheme, on the same weights and batches, at every rate."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import descent
from jaxbptt import truncation
from jaxbptt.models import Model

from . import schemes
from .windows import SEQUENCES, draw_windows, make_pairs

RATES = (0.02, 0.035, 0.06, 0.1)  # of Adam at the start; it falls to 0 along a cosine; every method gets its best
RECORDS, MEASUREMENTS = 20, 4  # of the held-out loss, of the lag profile for the adaptive scheme
HELD_OUT = 64  # sequences of the last tenth of the text


class Trained(NamedTuple):
    """One method."""

    losses: np.ndarray  # [R, D, E]
    params: Any  # of the best rate and the first key


class Adapted(NamedTuple):
    """The adaptive scheme at one rate."""

    losses: np.ndarray  # [D, E]
    lags: np.ndarray  # [E]


class Training(NamedTuple):
    """M methods, R rates, D keys (the same weights and batches for every method), E records."""

    methods: np.ndarray  # [M] names; randomised: as many steps back as carried; randomised_wide: as long a mean window
    cost: np.ndarray  # [M] steps back a loss; of adaptive at its best rate
    rates: np.ndarray  # [R]
    updates: np.ndarray  # [E]
    losses: np.ndarray  # [M, R, D, E] held-out nats per symbol, the state carried through the sequence
    lags: np.ndarray  # [R, E] the adaptive scheme used


def train_all(model: Model, config: Any, text: Any, held_out: Any, progress: Any) -> tuple[Training, Any]:
    """(Training, the parameters that full BPTT found at its best rate, first key), of symbols [S] of two texts."""
    every = config.updates // RECORDS
    keys = jax.random.split(jax.random.key(config.seed), config.keys)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), jax.vmap(model.init)(keys))
    state, rates = descent.begin(params, len(RATES)), jnp.asarray(RATES, jnp.float32)
    make_trainer = partial(_make_trainer, model, config, text, held_out, every)
    follow = partial(descent.follow, keys=keys, records=RECORDS, every=every)

    def learn(route):
        trainer = make_trainer(route)
        states, records = zip(*follow(lambda i, state: trainer, state, rates), strict=True)
        best = int(descent.find_best_rates(records[-1]))
        return Trained(np.stack(records, axis=-1), jax.tree.map(lambda leaf: leaf[best, 0], states[-1][0]))

    trainer_of = cache(lambda lag: make_trainer(schemes.make_lag_route(lag)))
    choose_lags = jax.jit(jax.vmap(partial(_choose_lag, model, config, text)))

    def adapt(used, i, state):
        """The trainer of the updates to record i, by a lag that is long enough for every key; `used` keeps it."""
        used[i] = used[i - 1]
        if i % (RECORDS // MEASUREMENTS) == 0:
            wanted = np.max(choose_lags(jax.tree.map(lambda leaf: leaf[0], state[0]), keys))
            used[i] = min(next(lag for lag in schemes.LAGS if lag >= wanted), config.length)
        return trainer_of(int(used[i]))

    def learn_adaptively(r):
        used, alone = np.zeros(RECORDS, int), jax.tree.map(lambda leaf: leaf[r : r + 1], (state, rates))
        return Adapted(np.concatenate([loss for _, loss in follow(partial(adapt, used), *alone)]).T, used)

    routes = schemes.make_routes(config.window)
    todo = {f"training, {name}": partial(learn, route) for name, route in routes.items()}
    trained = progress.sweep(todo, Trained(0, params))
    todo = {f"training, adaptive, rate {rate:g}": partial(learn_adaptively, r) for r, rate in enumerate(RATES)}
    adapted = list(progress.sweep(todo, Adapted(*Adapted._fields)).values())
    losses = {name: point.losses for name, point in zip(routes, trained.values(), strict=True)}
    losses["adaptive"], used = (np.stack(column) for column in zip(*adapted, strict=True))

    stacked = np.stack(list(losses.values()))
    lags = used[descent.find_best_rates(stacked[-1, ..., -1])]
    cost = schemes.costs_of_routes(config.window, config.length)
    cost.append(np.mean([schemes.cost_of_lag(int(lag), config.length) for lag in lags]))
    names, updates = np.array(list(losses)), every * np.arange(1, RECORDS + 1)
    return Training(names, np.array(cost), np.array(RATES), updates, stacked, used), trained["training, full"].params


def _make_trainer(model, config, text, held_out, every, route):
    make = partial(make_pairs, size=model.num_inputs, dtype=jnp.float32)
    evaluated = make(draw_windows(held_out, jax.random.key(config.seed), HELD_OUT, config.length))

    def gradient(params, key):
        batch_key, cut_key = jax.random.split(key)
        batch = make(draw_windows(text, batch_key, config.batch, config.length))
        each = jax.vmap(partial(route, model, params))(*batch, jax.random.split(cut_key, config.batch))[1]
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)

    def evaluate(params):
        return jnp.mean(jax.vmap(partial(descent.mean_loss, model, params))(*evaluated))

    return descent.make_trainer(gradient, evaluate, every, descent.fall_to_zero(every * RECORDS))


def _choose_lag(model, config, text, params, key):
    """L for the tolerance, from the mean lag profile of SEQUENCES sequences."""
    windows = draw_windows(text, key, SEQUENCES, config.length)
    measure = partial(truncation.lag_profile, model, num_lags=min(schemes.LAGS[-1], config.length))
    profiles = jax.vmap(measure, in_axes=(None, 0, 0))(params, *make_pairs(windows, model.num_inputs, jnp.float32))
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), profiles)
    return truncation.choose_lag(mean.norms, config.tolerance, kept=mean.kept).num_lags
