"""The four tasks of the online experiment: models, data, and training by any gradient or rule."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import text, training
from jaxbptt import cells
from jaxbptt.models import Model, sequence_model, softmax_cross_entropy, squared_error

TASKS = {"copy": "nats", "delayed XOR": "nats", "adding": "½ error²", "text": "nats"}  # unit of the loss
SYMBOLS = 4  # of the copy task
DELAY = 3  # steps, of copy and delayed XOR
RATES = (0.002, 0.006)  # of Adam; every rule gets its best
HELD_OUT = 64  # sequences of the final losses
KEPT_BACK = 10  # the last tenth of the text is for the final losses only


class Task(NamedTuple):
    """A model with the loss L_t at every step, and its data."""

    model: Model  # reduction "sum"
    draw: Callable[[jax.Array], tuple[Any, Any]]  # key -> (inputs [T, M], targets, leading T)
    draw_held_out: Callable[[jax.Array], tuple[Any, Any]]  # the same for the final losses


def make_tasks(hidden: int, length: int, gain: float, symbols: Any) -> dict[str, Task]:
    """Copy: the symbol of DELAY steps ago. XOR: of the two bits of DELAY steps ago. Before them: symbol 0, bits 0.

    Adding: at every step the sum, so far, of the two marked values. Text: the next symbol.

    Args:
      hidden: N of the Elman net.
      length: T ≥ 2.
      gain: of its recurrent weights.
      symbols: [S] of the text.
    """

    def model(num_inputs, num_outputs, loss):
        return sequence_model(cells.elman(num_inputs, hidden, recurrent=cells.gaussian(gain)), num_outputs, loss=loss)

    def one_hot(indices, size):
        return jax.nn.one_hot(indices, size, dtype=jnp.result_type(float))

    def delayed(values):
        return jnp.concatenate((jnp.zeros_like(values[:DELAY]), values))[:length]

    def copy(key):
        seen = jax.random.randint(key, (length,), 0, SYMBOLS, jnp.int32)
        return one_hot(seen, SYMBOLS), delayed(seen)

    def xor(key):
        bits = jax.random.randint(key, (length, 2), 0, 2, jnp.int32)
        return (2 * bits - 1).astype(jnp.result_type(float)), delayed(bits[:, 0] ^ bits[:, 1])

    def adding(key):
        value_key, *mark_keys = jax.random.split(key, 3)
        values, half = jax.random.uniform(value_key, (length,)), length // 2
        spans = ((0, half), (half, length))
        marked = [jax.random.randint(k, (), *span, jnp.int32) for k, span in zip(mark_keys, spans, strict=True)]
        marks = one_hot(jnp.stack(marked), length).sum(axis=0)
        return jnp.stack((values, marks), axis=1), jnp.cumsum(values * marks)[:, None]

    def windows_of(part):
        def draw(key):
            start = jax.random.randint(key, (), 0, len(part) - length, jnp.int32)
            window = jax.lax.dynamic_slice_in_dim(part, start, length + 1)
            return one_hot(window[:-1], size), window[1:]

        return draw

    size, held_back = len(text.ALPHABET), len(symbols) // KEPT_BACK
    read, kept = windows_of(jnp.asarray(symbols[:-held_back])), windows_of(jnp.asarray(symbols[-held_back:]))
    spell = model(size, size, softmax_cross_entropy)
    return {
        "copy": Task(model(SYMBOLS, SYMBOLS, softmax_cross_entropy), copy, copy),
        "delayed XOR": Task(model(2, 2, softmax_cross_entropy), xor, xor),
        "adding": Task(model(2, 1, squared_error), adding, adding),
        "text": Task(spell, read, kept),
    }


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
        return jnp.mean(jax.vmap(lambda key: training.mean_loss(task.model, params, *task.draw_held_out(key)))(draws))

    trainer = training.make_trainer(mean_gradient, held_out, every)
    state = training.begin(params, len(RATES))
    start = np.asarray(jax.jit(jax.vmap(jax.vmap(held_out)))(state[0]))
    rates = jnp.asarray(RATES, start.dtype)
    records = training.follow(lambda i, state: trainer, state, rates, keys, records=config.records, every=every)
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
