"""Cosines between online estimates and the exact gradient, over windows of steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt.models import step_losses
from jaxbptt.trajectories import unroll

from . import rules
from .tasks import Task, step_gradients


def measure_cosines(task: Task, config: Any, keys: jax.Array, states: dict, windows: list[int]) -> Callable:
    """The function, compiled, of params (leaves [D, ...]) that gives (cosine [R, D, W], mean_cosine [R, D, W],
    cosine_all [R, D]) of every rule.

    Args:
      task: its model and data.
      config: sequences, updates, length and keys.
      keys: [D] of the trainings.
      states: by rule, the state before step 1.
      windows: W numbers of steps, the last T.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.model.init, keys[0]).cell))
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])

    def exact_steps(params, inputs, targets):
        def losses(params):
            return step_losses(task.model, params, unroll(task.model, params, inputs).states, targets)

        return flat(jax.jacrev(losses)(params))

    def compare(rule, params, data, signs, exact):
        steps = partial(step_gradients, rules.RULES[rule], states[rule])
        estimates = jax.vmap(lambda *one: flat(steps(params, *one)))(*data, signs)
        each = [cosine_by_window(estimates[..., :size], exact[..., :size], window) for window in windows]
        means = [part.mean(axis=0, keepdims=True)[..., :size] for part in (estimates, exact)]
        mean = [cosine_by_window(*means, window) for window in windows]
        return jnp.stack(each), jnp.stack(mean), cosine_by_window(estimates, exact, config.length)

    def measure(params, key):
        draws = jax.random.split(jax.random.fold_in(key, config.updates), (2, config.sequences))
        data = jax.vmap(task.draw)(draws[0])
        whole = data, draws[1], jax.vmap(partial(exact_steps, params))(*data)
        first = jax.tree.map(lambda leaf: leaf[:1], whole)  # RTRL is N times the others' price
        rows = [compare(rule, params, *(first if rule == rules.EXACT else whole)) for rule in rules.RULES]
        return tuple(jnp.stack(column) for column in zip(*rows, strict=True))

    jitted = jax.jit(jax.vmap(measure, out_axes=1))
    return lambda params: jitted(params, keys)


def cosine_by_window(estimate: jax.Array, exact: jax.Array, window: int) -> jax.Array:
    """Mean cosine of the sums over blocks of `window` steps, of [S, T, P] each; a block whose sum is 0 is left out."""
    count = estimate.shape[1] // window
    sums = lambda steps: steps[:, : count * window].reshape(len(steps), count, window, -1).sum(axis=2)
    a, b = sums(estimate), sums(exact)
    return jnp.nanmean(jnp.sum(a * b, axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)))
