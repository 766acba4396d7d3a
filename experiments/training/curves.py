"""Training of one net over rates and keys, with `monitor` beside its loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import descent, tasks
from jaxbptt import monitor
from jaxbptt.cells import Cell
from jaxbptt.jacobians import step_jacobians
from jaxbptt.models import batched
from jaxbptt.spectra import log_singular_values
from jaxbptt.trajectories import unroll

from . import clipping
from .arms import CLIPPINGS

RATES = (0.001, 0.003, 0.01)  # of AdamW; every net gets its best
OPTIMISER = clipping.make_optimiser(1e-4)
BATCHES = 8  # over which a clipped gradient is averaged for its bias
HELD_OUT = 64  # sequences that choose the rate, and as many more that the losses are of
SEEN = ("reach_50", "reach_90", "lambda_1", "lambda_1_error")
SEEN += ("log_sigma_max", "log_sigma_max_error")


class Curves(NamedTuple):
    """One net on one task. E records, the first before training; D keys. All but `tuning` at the best rate.

    What `monitor` saw is of one batch for norms, of its first sequence for the rest.
    """

    rates: np.ndarray  # [R]
    tuning: np.ndarray  # [E, R, D] mean loss of the sequences that choose the rate
    rate: np.ndarray  # the best
    updates: np.ndarray  # [E] done
    memoryless: np.ndarray  # loss of the best answer without memory; NaN: not known
    loss: np.ndarray  # [E, D] of the others
    accuracy: np.ndarray  # [E, D] share of right answers, of the same
    gradient_norm: np.ndarray  # [E, D] ‖dC/dθ‖ of a batch
    clipped_norm: np.ndarray  # [E, D] what the clipping of the training leaves of it
    reach_50: np.ndarray  # [E, D] steps
    reach_90: np.ndarray  # [E, D] steps
    lambda_1: np.ndarray  # [E, D] nats per step
    lambda_1_error: np.ndarray
    log_sigma_max: np.ndarray  # [E, D] nats, of dh_T/dh_0
    log_sigma_max_error: np.ndarray
    log_sigma: np.ndarray  # [2, D, N] nats, of dh_T/dh_0 of one sequence, before and after training; NaN: rounding
    cosine: np.ndarray  # [E, D, kinds of clipping] of the mean clipped gradient to the mean exact one; or empty
    shrinkage: np.ndarray  # [E, D, kinds of clipping] of its norm


class Compiled(NamedTuple):
    """What all nets of one step share on one task: they differ in weights alone."""

    task: tasks.Task
    trainers: dict[str, Callable]  # by kind of clipping
    look: Callable  # params [R, D] -> {name: [R, D]}
    look_at_clipping: Callable  # params [D] -> {name: [D, kinds]}
    chain: Callable  # params [D] -> J_t [D, T, N, N]


def compile_step(task: tasks.Task, cell: Cell, config: Any, key: jax.Array) -> Compiled:
    """Of this cell on this task, looked at on sequences drawn by `key`; each function is compiled when first called."""
    model, batch = tasks.make_model(task, cell), config.batch
    tuning, losses, watched = (
        tasks.draw_batch(task, key, size, held_out=True)
        for key, size in zip(jax.random.split(key, 3), (HELD_OUT, HELD_OUT, BATCHES * batch), strict=True)
    )
    in_batches = jax.tree.map(lambda leaf: leaf.reshape(BATCHES, batch, *leaf.shape[1:]), watched)
    steps_first = jax.tree.map(lambda leaf: jnp.moveaxis(leaf[0], 0, 1), in_batches)

    def score(params, data):
        return jax.tree.map(jnp.mean, jax.vmap(lambda *one: tasks.score(task, model, params, *one))(*data))

    def look(params):
        loss, accuracy = score(params, losses)
        seen = monitor(batched(model, batch), params, *steps_first)
        found = {"tuning": score(params, tuning)[0], "loss": loss, "accuracy": accuracy}
        return found | {name: seen[name] for name in SEEN} | {"gradient_norm": seen["gradient_norm"] / batch}

    def chain(params):
        inputs = jax.tree.map(lambda leaf: leaf[0], watched[0])
        return step_jacobians(model, params, unroll(model, params, inputs))

    def trainer(route):
        gradient = lambda params, key: route(params, *tasks.draw_batch(task, key, batch))
        return descent.make_trainer(gradient, lambda params: (), config.updates // config.records, optimiser=OPTIMISER)

    return Compiled(
        task,
        {kind: trainer(route) for kind, route in clipping.make_gradients(model, batch).items()},
        jax.jit(jax.vmap(jax.vmap(look))),
        jax.jit(jax.vmap(lambda params: clipping.measure_bias(model, params, in_batches))),
        jax.jit(jax.vmap(chain)),
    )


def train(
    compiled: Compiled, params: Any, keys: jax.Array, clipped: str, config: Any, *, with_bias: bool = False
) -> Curves:
    """The nets that start at params (leaves [D, …]), by AdamW with the gradient clipped in this way.

    Args:
      compiled: their step on their task.
      params: of every key.
      keys: [D] of the batches.
      clipped: one of `arms.CLIPPINGS`.
      config: the experiment's.
      with_bias: whether cosine and shrinkage are measured.
    """
    every = config.updates // config.records
    state = descent.begin(params, len(RATES), OPTIMISER)
    choose, rates = lambda i, state: compiled.trainers[clipped], jnp.asarray(RATES, jnp.result_type(float))
    followed = descent.follow(choose, state, rates, keys, records=config.records, every=every)
    along = [state[0], *(params for (params, _), _ in followed)]
    found = jax.tree.map(lambda *leaves: np.stack(leaves), *map(compiled.look, along))  # [E, R, D]
    best = int(descent.find_best_rates(found["tuning"][-1]))
    along = [jax.tree.map(lambda leaf: leaf[best], params) for params in along]
    at_best = {name: value[:, best] for name, value in found.items()}
    norm = at_best["gradient_norm"]
    clipping = {"clipped_norm": np.minimum(norm, descent.CLIP), "cosine": norm[..., :0], "shrinkage": norm[..., :0]}
    if with_bias:
        clipping = jax.tree.map(lambda *leaves: np.stack(leaves), *map(compiled.look_at_clipping, along))
        clipping["clipped_norm"] = clipping["clipped_norm"][..., CLIPPINGS.index(clipped)]
    return Curves(
        rates=np.array(RATES),
        tuning=found["tuning"],
        rate=np.array(RATES[best]),
        updates=every * np.arange(config.records + 1),
        memoryless=np.array(compiled.task.memoryless),
        log_sigma=np.stack([np.asarray(_singular_values(compiled.chain(params))) for params in (along[0], along[-1])]),
        **{name: at_best[name] for name in ("loss", "accuracy", "gradient_norm", *SEEN)},
        **clipping,
    )


@jax.jit
def _singular_values(chains):
    """ln σ [D, N] of chains [D, T, N, N]: compiled once for every net of that N."""
    return jax.lax.map(lambda chain: log_singular_values(chain, errors=True).log_sigma[-1], chains)
