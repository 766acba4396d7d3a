"""Tasks that need memory: what is shown, what is asked and when, and what an answer without memory costs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.cells import Cell
from jaxbptt.models import Model, Weighted, read, sequence_model, softmax_cross_entropy, squared_error, weighted
from jaxbptt.trajectories import unroll

CLOSE = 0.1  # an answer to the adding task counts as right within this


class Task(NamedTuple):
    """Data and loss; any cell can be asked."""

    num_inputs: int
    num_outputs: int
    draw: Callable[[jax.Array], tuple[Any, Any]]  # key -> (inputs [T, M], targets, leading T)
    loss: Callable  # (output, target) -> L_t
    unit: str  # of the loss
    weight: Any = None  # [T] of L_t, numpy; None: every step counts alike
    memoryless: float = np.nan  # mean loss of the best answer from x_t alone, where known
    draw_held_out: Callable | None = None  # draw for the final losses, where its data is finite


def make_model(task: Task, cell: Cell) -> Model:
    """The cell with a linear readout, C the mean over the steps that are asked."""
    model = sequence_model(cell, task.num_outputs, loss=task.loss, reduction="mean")
    return model if task.weight is None else weighted(model)


def length_of(task: Task) -> int:
    """T."""
    return jax.eval_shape(task.draw, jax.random.key(0))[0].shape[0]


def draw_batch(task: Task, key: jax.Array, size: int, *, held_out: bool = False) -> tuple[Any, Any]:
    """(inputs [B, T, M], targets as `make_model` takes them, leading [B, T])."""
    draw = (held_out and task.draw_held_out) or task.draw
    inputs, targets = jax.vmap(draw)(jax.random.split(key, size))
    if task.weight is None:
        return inputs, targets
    weight = jnp.asarray(task.weight, jnp.result_type(float))
    return inputs, Weighted(targets, jnp.broadcast_to(weight, (size, *weight.shape)))


def score(task: Task, model: Model, params: Any, inputs: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
    """(mean loss, share of right answers) of one sequence, over the steps that are asked."""
    weight = jnp.ones(len(inputs), jnp.result_type(float))
    if task.weight is not None:
        targets, weight = targets
    trajectory = unroll(model, params, inputs)
    outputs = jax.vmap(lambda *step: read(model, params, *step))(
        trajectory.states, trajectory.inputs, trajectory.previous
    )
    losses = jax.vmap(task.loss)(outputs, targets)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        right = jnp.argmax(outputs, axis=-1).astype(targets.dtype) == targets
    else:
        right = jnp.max(jnp.abs(outputs - targets), axis=-1) < CLOSE
    mean = lambda values: jnp.sum(values.astype(losses.dtype) * weight) / jnp.sum(weight)
    return mean(losses), mean(right)


def delayed_copy(length: int, delay: int, symbols: int = 4) -> Task:
    """At every step the symbol of `delay` steps ago; before there is one, symbol 0."""

    def draw(key):
        seen = jax.random.randint(key, (length,), 0, symbols, jnp.int32)
        return one_hot(seen, symbols), _delayed(seen, delay)

    return Task(symbols, symbols, draw, softmax_cross_entropy, "nats")


def copy_memory(delay: int, items: int = 10, symbols: int = 8) -> Task:
    """`items` symbols, a blank for `delay` steps, a sign to recall, then the symbols again (Arjovsky et al. 2016).

    T = delay + 2 items, the sign at the last step before the recall; only the recall is asked. Without memory an
    answer costs ln(symbols) for every symbol of it.
    """
    length = delay + 2 * items

    def draw(key):
        shown = jax.random.randint(key, (items,), 0, symbols, jnp.int32)
        blank = jnp.full(length, symbols, jnp.int32)
        inputs = blank.at[:items].set(shown).at[length - items - 1].set(symbols + 1)
        return one_hot(inputs, symbols + 2), jnp.zeros(length, jnp.int32).at[-items:].set(shown)

    weight = np.r_[np.zeros(length - items), np.ones(items)]
    return Task(symbols + 2, symbols, draw, softmax_cross_entropy, "nats", weight, float(np.log(symbols)))


def delayed_xor(length: int, delay: int) -> Task:
    """Two signs a step; at every step whether those of `delay` steps ago differ. Half of blind answers are right."""

    def draw(key):
        bits = jax.random.randint(key, (length, 2), 0, 2, jnp.int32)
        return (2 * bits - 1).astype(jnp.result_type(float)), _delayed(bits[:, 0] ^ bits[:, 1], delay)

    return Task(2, 2, draw, softmax_cross_entropy, "nats", _from(delay, length), float(np.log(2)))


def temporal_xor(length: int, delay: int) -> Task:
    """One bit a step; at every step whether the bits of `delay` and of `delay`/2 steps ago differ (Engelken 2023).

    The net must hold all bits of the last `delay` steps. Without them half of the answers are right.
    """

    def draw(key):
        bits = jax.random.randint(key, (length, 1), 0, 2, jnp.int32)
        return bits.astype(jnp.result_type(float)), _delayed(bits[:, 0], delay) ^ _delayed(bits[:, 0], delay // 2)

    return Task(1, 2, draw, softmax_cross_entropy, "nats", _from(delay, length), float(np.log(2)))


def adding(length: int, *, at_every_step: bool = False) -> Task:
    """The sum of the two marked ones of T numbers in [0, 1), asked at the end, or at every step the sum so far.

    The best constant answer, 1, costs ½ · 1/6 (Hochreiter & Schmidhuber 1997).
    """

    def draw(key):
        value_key, *mark_keys = jax.random.split(key, 3)
        values, half = jax.random.uniform(value_key, (length,)), length // 2
        spans = ((0, half), (half, length))
        marked = [jax.random.randint(k, (), *span, jnp.int32) for k, span in zip(mark_keys, spans, strict=True)]
        marks = one_hot(jnp.stack(marked), length).sum(axis=0)
        return jnp.stack((values, marks), axis=1), jnp.cumsum(values * marks)[:, None]

    last = np.zeros(length)
    last[-1] = 1
    asked = (None, np.nan) if at_every_step else (last, 1 / 12)
    return Task(2, 1, draw, squared_error, "½ error²", *asked)


def next_symbol(symbols: Any, size: int, length: int, kept_back: int = 10) -> Task:
    """The next symbol of a text [S] of an alphabet of `size`; its last `kept_back`-th is for the final losses only.

    Without memory, from the present symbol alone: the entropy of a symbol given the one before it.
    """
    held_back = len(symbols) // kept_back

    def windows_of(part):
        def draw(key):
            start = jax.random.randint(key, (), 0, len(part) - length, jnp.int32)
            window = jax.lax.dynamic_slice_in_dim(part, start, length + 1)
            return one_hot(window[:-1], size), window[1:]

        return draw

    read_part, kept = windows_of(jnp.asarray(symbols[:-held_back])), windows_of(jnp.asarray(symbols[-held_back:]))
    pairs = np.zeros((size, size))
    np.add.at(pairs, (symbols[:-1], symbols[1:]), 1 / (len(symbols) - 1))
    known = pairs > 0
    entropy = -float(np.sum(pairs[known] * np.log((pairs / pairs.sum(axis=1, keepdims=True).clip(1e-300))[known])))
    return Task(size, size, read_part, softmax_cross_entropy, "nats", None, entropy, kept)


def digits() -> Task:
    """8 × 8 images of digits, a pixel a step, T = 64; asked at the end (scikit-learn's, the last fifth held out).

    Raises:
      ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("task: digits need scikit-learn: pip install scikit-learn") from None
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels[:, :, None] / 16
    length, held_out = pixels.shape[1], len(pixels) // 5

    def draws_of(part):
        images, classes = jnp.asarray(pixels[part], jnp.result_type(float)), jnp.asarray(labels[part], jnp.int32)

        def draw(key):
            chosen = jax.random.randint(key, (), 0, len(images), jnp.int32)
            return images[chosen], jnp.broadcast_to(classes[chosen], (length,))

        return draw

    last = np.zeros(length)
    last[-1] = 1
    seen, kept = draws_of(slice(None, -held_out)), draws_of(slice(-held_out, None))
    return Task(1, 10, seen, softmax_cross_entropy, "nats", last, float(np.log(10)), kept)


def one_hot(indices: Any, size: int) -> jax.Array:
    """[..., size] of indices [...], JAX's default float."""
    return jax.nn.one_hot(indices, size, dtype=jnp.result_type(float))


def _delayed(values, delay):
    return jnp.concatenate((jnp.zeros_like(values[:delay]), values))[: len(values)]


def _from(delay, length):
    weight = np.ones(length)
    weight[:delay] = 0
    return weight
