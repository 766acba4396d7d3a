"""Training many nets side by side, over learning rates and keys: the same data and start for every rate."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbptt.models import Model, step_losses
from jaxbptt.trajectories import unroll

CLIP = 1.0  # of the norm of an update's gradient, as the d2l book trains
ADAM = optax.chain(optax.clip_by_global_norm(CLIP), optax.scale_by_adam())


def begin(params: Any, count: int, optimiser: optax.GradientTransformation = ADAM) -> tuple[Any, Any]:
    """(params, moments) of `count` rates [R] for params that lead with the keys [D]; leaves lead with [R, D]."""
    state = params, jax.vmap(optimiser.init)(params)
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, axis=0), state)


def make_trainer(
    gradient: Callable,
    evaluate: Callable,
    every: int,
    schedule: Callable | None = None,
    optimiser: optax.GradientTransformation = ADAM,
) -> Callable:
    """The trainer (state, rates [R], keys [D], done) -> (state, found, [R, D, ...]) of `every` updates, compiled.

    Args:
      gradient: (params, key) -> the mean gradient of an update; each update of each training has a key of its own.
      evaluate: (params) -> the loss after the last of these updates, or any tree of arrays.
      every: updates a call.
      schedule: (step, dtype) -> what the rate is multiplied by at that update; 1 unless given.
      optimiser: what is done to the gradient before it is multiplied by −rate; the one `begin` was given.
    """

    def advance(state, rate, key, done):
        def update(state, step):
            params, moments = state
            moved, moments = optimiser.update(gradient(params, jax.random.fold_in(key, step)), moments, params)
            now = rate if schedule is None else rate * schedule(step, rate.dtype)
            return (jax.tree.map(lambda leaf, move: leaf - now * move, params, moved), moments), None

        state = jax.lax.scan(update, state, done + jnp.arange(every))[0]
        return state, evaluate(state[0])

    over_keys = jax.vmap(advance, in_axes=(0, None, 0, None))
    return jax.jit(jax.vmap(over_keys, in_axes=(0, 0, None, None)))


def follow(
    choose: Callable, state: Any, rates: jax.Array, keys: jax.Array, *, records: int, every: int
) -> Iterator[tuple[Any, Any]]:
    """(state, found [R, D, ...]) at each record; choose(i, state) is the trainer of the `every` updates to record i."""
    for i in range(records):
        state, found = choose(i, state)(state, rates, keys, i * every)
        yield state, jax.tree.map(np.asarray, found)


def fall_to_zero(updates: int) -> Callable:
    """The schedule that falls from 1 to 0 along half a cosine, over all updates."""
    return lambda step, dtype: (1 + jnp.cos(step.astype(dtype) * (np.pi / updates))) / 2


def mean_loss(model: Model, params: Any, inputs: Any, targets: Any) -> jax.Array:
    """The mean over t of L_t, the state carried through the sequence."""
    return jnp.mean(step_losses(model, params, unroll(model, params, inputs).states, targets))


def find_best_rates(losses: np.ndarray) -> np.ndarray:
    """Index of the rate with the least mean final loss, [...] of losses [..., R, D]; one that failed is never it."""
    return np.argmin(np.mean(np.where(np.isfinite(losses), losses, np.inf), axis=-1), axis=-1)
