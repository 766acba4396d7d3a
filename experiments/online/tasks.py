"""The four tasks of the online experiment: models, data, and training by any gradient or rule."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import descent, tasks
from jaxbptt import cells
from jaxbptt.models import Model, sequence_model

TASKS = {"copy": "nats", "delayed-xor": "nats", "adding": "½ error²", "text": "nats"}  # unit of the loss
DELAY = 3  # steps, of copy and delayed XOR
RATES = (0.002, 0.006)  # of Adam; every rule gets its best
HELD_OUT = 64  # sequences of the final losses


class Task(NamedTuple):
    """A model with the loss L_t at every step, and its data."""

    model: Model  # reduction "sum"
    draw: Callable[[jax.Array], tuple[Any, Any]]  # key -> (inputs [T, M], targets, leading T)
    draw_held_out: Callable[[jax.Array], tuple[Any, Any]]  # the same for the final losses


def make_tasks(hidden: int, length: int, gain: float, symbols: Any, size: int) -> dict[str, Task]:
    """Those of `experiments.tasks` with a loss at every step; copy and XOR, before there is anything to recall: of 0.

    Args:
      hidden: N of the Elman net.
      length: T ≥ 2.
      gain: of its recurrent weights.
      symbols: [S] of the text.
      size: M of its alphabet.
    """
    posed = {
        "copy": tasks.delayed_copy(length, DELAY),
        "delayed-xor": tasks.delayed_xor(length, DELAY),
        "adding": tasks.adding(length, at_every_step=True),
        "text": tasks.next_symbol(symbols, size, length),
    }

    def model(task):
        cell = cells.elman(task.num_inputs, hidden, recurrent=cells.gaussian(gain))
        return sequence_model(cell, task.num_outputs, loss=task.loss)

    return {name: Task(model(task), task.draw, task.draw_held_out or task.draw) for name, task in posed.items()}


def train(task: Task, config: Any, keys: jax.Array, params: Any, gradient: Callable) -> tuple[Any, list, Any]:
    """Training at every rate, from params that lead with the keys [D].

    Args:
      task: what is learned.
      config: updates, records, batch, length and seed.
      keys: [D]
      params: leaves [D, ...]
      gradient: (params, inputs, targets, key) -> dC/dθ of one sequence.

    Returns:
      (losses at the start [R, D], params at every record, leaves [R, D, ...], final losses [R, D]).
    """
    every = config.updates // config.records

    def mean_gradient(params, key):
        draws = jax.random.split(key, (2, config.batch))
        grads = jax.vmap(gradient, in_axes=(None, 0, 0, 0))(params, *jax.vmap(task.draw)(draws[0]), draws[1])
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0) / config.length, grads)

    def held_out(params):
        draws = jax.random.split(jax.random.key(config.seed + 1), HELD_OUT)
        return jnp.mean(jax.vmap(lambda key: descent.mean_loss(task.model, params, *task.draw_held_out(key)))(draws))

    trainer = descent.make_trainer(mean_gradient, held_out, every)
    state = descent.begin(params, len(RATES))
    start = np.asarray(jax.jit(jax.vmap(jax.vmap(held_out)))(state[0]))
    rates = jnp.asarray(RATES, start.dtype)
    records = descent.follow(lambda i, state: trainer, state, rates, keys, records=config.records, every=every)
    states, losses = zip(*records, strict=True)
    return start, [state[0], *(params for params, _ in states)], losses[-1]


def step_gradients(rule: Any, state: Any, params: Any, inputs: Any, targets: Any, key: jax.Array) -> Any:
    """g_1 … g_T at fixed params, a pytree with leading T."""
    if state.key is not None:
        state = dataclasses.replace(state, key=key)

    def body(state, step):
        state, _, grads = rule.update(params, state, *step)
        return state, grads

    return jax.lax.scan(body, state, (inputs, targets))[1]


def estimate(rule: Any, state: Any, *call: Any) -> Any:
    """Σ g_t."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), step_gradients(rule, state, *call))
