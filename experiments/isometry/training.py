"""Training from every initialisation on a task that needs memory, at every rate."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import descent, tasks
from jaxbptt import gradients

from . import starts

RATES = (0.01, 0.003, 0.001)  # of Adam, constant; every initialisation gets its best
HELD_OUT = 64  # sequences that the losses are measured on
EVERY = 5  # updates between records
STATED = 0.5  # of the memoryless loss: what is to be reached
ITEMS, SYMBOLS = 4, 4
TASK = tasks.copy_memory(starts.MEMORY - 2 * ITEMS, ITEMS, SYMBOLS)


class Training(NamedTuple):
    """I initialisations, R rates, D keys (the same batches for every initialisation), E records."""

    starts: np.ndarray  # [I] names
    rates: np.ndarray  # [R]
    updates: np.ndarray  # [E]
    losses: np.ndarray  # [I, R, D, E] held-out nats per symbol asked
    stated: np.ndarray  # [] the loss to be reached
    hidden: np.ndarray  # [] N


def train_all(config: Any, key: jax.Array, progress: Callable) -> Training:
    """Of nets of `hidden` units, in float32."""
    records, rows = config.updates // EVERY, []
    init_key, batch_key, held_out_key = jax.random.split(key, 3)
    keys, batch_keys = (jax.random.split(key, config.trainings) for key in (init_key, batch_key))
    rates, held_out = jnp.asarray(RATES, jnp.float32), _narrow(tasks.draw_batch(TASK, held_out_key, HELD_OUT))
    for kind in starts.KINDS:
        progress(f"training, {', '.join(kind)}")
        models = [tasks.make_model(TASK, starts.STARTS[name](TASK.num_inputs, config.hidden)) for name in kind]
        gradient, evaluate = (partial(part, models[0], config, held_out) for part in (_gradient, _evaluate))
        trainer = descent.make_trainer(gradient, evaluate, EVERY)
        params = jax.tree.map(
            lambda *leaves: jnp.concatenate(leaves), *(jax.vmap(model.init)(keys) for model in models)
        )
        begin, tiled = descent.begin(_narrow(params), len(rates)), jnp.tile(batch_keys, len(kind))
        found = descent.follow(lambda i, state, f=trainer: f, begin, rates, tiled, records=records, every=EVERY)
        losses = np.stack([losses for _, losses in found], axis=-1)
        rows += list(losses.reshape(len(rates), len(kind), len(keys), records).swapaxes(0, 1))
    updates, stated = EVERY * np.arange(1, records + 1), np.array(STATED * TASK.memoryless)
    return Training(
        np.array(list(starts.STARTS)), np.array(RATES), updates, np.stack(rows), stated, np.array(config.hidden)
    )


def _gradient(model, config, held_out, params, key):
    """The mean of a batch's gradients by BPTT."""
    batch = _narrow(tasks.draw_batch(TASK, key, config.batch))
    each = jax.vmap(partial(gradients.bptt, model, params))(*batch)[1]
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)


def _evaluate(model, config, held_out, params):
    return jnp.mean(jax.vmap(partial(tasks.score, TASK, model, params))(*held_out)[0])


def _narrow(tree):
    """Floats of a tree as float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf, tree)


def count_updates(training: Training) -> np.ndarray:
    """[I, R, D] updates to the first record at or below the stated loss; the last one's where there is none."""
    first = training.updates[np.argmax(training.losses <= training.stated, axis=-1)]
    return np.where(tell_reached(training), first, training.updates[-1])


def tell_reached(training: Training) -> np.ndarray:
    """[I, R, D] whether the stated loss was reached by a net that did not diverge later."""
    return (training.losses <= training.stated).any(axis=-1) & np.isfinite(training.losses[..., -1])


def pick_rates(training: Training) -> np.ndarray:
    """[I] the rate with the fewest updates in the mean of ln over keys, then with the least last loss."""
    logs, last = np.log(count_updates(training)).mean(axis=-1), training.losses[..., -1].mean(axis=-1)
    return np.array([min(range(len(row)), key=lambda r: (row[r], end[r])) for row, end in zip(logs, last, strict=True)])
