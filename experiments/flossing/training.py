"""The two kinds of update and the arms: how many of each kind, in which order, from which start."""

import functools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import descent, tasks
from jaxbptt import cells, gradients
from jaxbptt.jacobians import step_jacobians
from jaxbptt.models import Model
from jaxbptt.spectra import log_growth
from jaxbptt.trajectories import unroll

RATES = (1e-3, 3e-3)  # of Adam in training; every arm gets its best
FLOSS_RATE = 1e-3  # of Adam in flossing
HELD_OUT = 64  # sequences
QR_EVERY = 2  # steps, in flossing
WEAK_INPUT = 0.1  # what the input weights are multiplied by, so that an orthogonal net stays critical when it is driven
WARM_UP = 8  # steps that only turn Q to the chain's directions
LONGER = 2.5  # times the budget's updates that plain and orthogonal nets are followed for: longer than flossing takes


class Training(NamedTuple):
    """A arms, R rates, D keys (each key the same data in every arm), E records."""

    arms: np.ndarray  # [A] names
    hidden: np.ndarray  # scalar: N
    delay: np.ndarray  # scalar: d
    rates: np.ndarray  # [R]
    updates: np.ndarray  # [E] of either kind
    budget: np.ndarray  # scalar: updates of every arm; plain and orthogonal nets are followed for longer
    flossed: np.ndarray  # [A, E] whether the updates before a record were of flossing
    accuracy: np.ndarray  # [A, R, D, E] share of right answers on held-out sequences; NaN: the arm has ended
    size: np.ndarray  # [A, R, D, E] √ mean λ_i² over the k leading exponents, nats per step, of a held-out sequence


class Cost(NamedTuple):
    """Of one update of one net; the seconds are this run's, of the processor: they differ from run to run."""

    flops: np.ndarray  # [2] flossing, training
    seconds: np.ndarray  # [2] flossing, training


def make_task(config: Any) -> tasks.Task:
    return tasks.temporal_xor(2 * config.delay, config.delay)


def make_net(config: Any, scheme: Callable = cells.gaussian) -> Model:
    return tasks.make_model(make_task(config), cells.elman(1, config.hidden, recurrent=scheme(1.0)))


def leading_exponents(model: Model, params: Any, inputs: Any, k: int, every: int = 1) -> jax.Array:
    """The k leading λ_i [k] after the warm-up, in nats per step; differentiable. A QR of every product of `every` J_t.

    A direction that such a product has lost among the others in float32 is NaN, and has no gradient.
    """
    jacobians = step_jacobians(model, params, unroll(model, params, inputs))
    blocks = jacobians.reshape(-1, every, *jacobians.shape[1:])
    products = functools.reduce(lambda product, i: blocks[:, i] @ product, range(1, every), blocks[:, 0])
    return jnp.mean(log_growth(products, k=k)[WARM_UP // every :], axis=0) / every


def count_flops(config: Any) -> np.ndarray:
    """[2] of one update by flossing and by training, in leading order; a gradient costs three evaluations."""
    n, k, length = config.hidden, config.exponents, 2 * config.delay
    step = 2 * n * n
    qr = 4 * n * k * k - 4 * k**3 / 3  # R and Q, by Householder's reflections
    floss = step + (2 * n**3 * (QR_EVERY - 1) + step * k + qr) / QR_EVERY
    return np.array([3 * length * floss, 3 * length * step * config.batch])


@functools.cache
def make_trainers(config: Any) -> dict[str, Callable]:
    """{"floss", "train"}, as `descent.make_trainer` makes them; they evaluate nothing."""
    task, model = make_task(config), make_net(config)

    def learn(params, key):
        each = jax.vmap(partial(gradients.bptt, model, params))(*tasks.draw_batch(task, key, config.batch))[1]
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)

    def floss(params, key):
        inputs = task.draw(key)[0]
        exponents_of = lambda params: leading_exponents(model, params, inputs, config.exponents, QR_EVERY)
        return jax.grad(lambda params: jnp.mean(exponents_of(params) ** 2))(params)

    make = partial(descent.make_trainer, evaluate=lambda params: (), every=config.every)
    return {"floss": make(floss), "train": make(learn)}


@functools.cache
def make_evaluation(config: Any) -> Callable:
    """params [D, ...] -> [2, D]: the share of right answers and √ mean λ², on held-out sequences, compiled."""
    task, model = make_task(config), make_net(config)
    inputs, targets = tasks.draw_batch(task, jax.random.key(config.seed + 1), HELD_OUT)

    def evaluate(params):
        right = jax.vmap(partial(tasks.score, task, model, params))(inputs, targets)[1]
        exponents = leading_exponents(model, params, inputs[0], config.exponents)
        return jnp.stack((jnp.mean(right), jnp.sqrt(jnp.mean(exponents**2))))

    return jax.jit(jax.vmap(evaluate, out_axes=1))


def plan_arms(config: Any) -> dict[str, tuple[str, list[str]]]:
    """(the start, the kind of the updates to each later record) of every arm; a flossed start has cost its updates."""
    budget, first, again = (count // config.every for count in (config.updates, config.floss, config.again))
    stretch = ["train"] * (budget // 5)
    during = 2 * (stretch + ["floss"] * again)
    left, longer = budget - first, math.ceil(LONGER * budget)
    return {
        "plain": ("plain", ["train"] * longer),
        "orthogonal": ("orthogonal", ["train"] * longer),
        "critical": ("critical", ["train"] * budget),
        "before": ("flossed", ["train"] * left),
        "during": ("flossed", during + ["train"] * (left - len(during))),
    }


def train_all(config: Any, progress: Callable) -> tuple[Training, Cost, dict[str, Any]]:
    """(Training, Cost, {start: params [D, ...]})."""
    plans, clock = plan_arms(config), {"floss": [], "train": []}
    keys = jax.random.split(jax.random.key(config.seed), config.keys)
    follow = partial(_follow, make_trainers(config), make_evaluation(config), clock, keys, config.every)
    plain, orthogonal = (jax.vmap(make_net(config, scheme).init)(keys) for scheme in (cells.gaussian, cells.orthogonal))
    critical = orthogonal._replace(cell=orthogonal.cell._replace(w_hx=WEAK_INPUT * orthogonal.cell.w_hx))
    first = config.floss // config.every
    progress(f"flossing, {config.floss} updates")
    opening, flossed = follow(descent.begin(plain, 1), (FLOSS_RATE,), ["floss"] * first)
    starts = {"plain": plain, "orthogonal": orthogonal, "critical": critical}
    starts["flossed"] = jax.tree.map(lambda leaf: leaf[0], flossed)

    longest = max(first + len(plan) if start == "flossed" else len(plan) for start, plan in plans.values())
    found, kinds = np.full((2, len(plans), len(RATES), config.keys, longest), np.nan), np.zeros((len(plans), longest))
    for a, (arm, (start, plan)) in enumerate(plans.items()):
        progress(f"{arm}: {len(plan) * config.every} updates at {len(RATES)} rates, {config.keys} keys")
        begun = first if start == "flossed" else 0
        later, _ = follow(descent.begin(starts[start], len(RATES)), RATES, plan)
        found[:, a, ..., :begun] = opening[..., :begun]
        found[:, a, ..., begun : begun + len(plan)] = later
        kinds[a, : begun + len(plan)] = [kind == "floss" for kind in ["floss"] * begun + plan]
    updates = config.every * np.arange(1, longest + 1)
    sizes = np.array(config.hidden), np.array(config.delay)
    named, budget = np.array(list(plans)), np.array(config.updates)
    training = Training(named, *sizes, np.array(RATES), updates, budget, kinds > 0, *found)
    seconds = [float(np.median(clock[kind][1:] or clock[kind])) for kind in ("floss", "train")]
    return training, Cost(count_flops(config), np.array(seconds)), starts


def _follow(trainers, evaluate, clock, keys, every, state, rates, plan):
    """(what each record found [2, R, D, records], params [R, D, ...]); the moments begin anew with each kind."""
    records, rates = [], jnp.asarray(rates, jnp.float32)
    for i, kind in enumerate(plan):
        if i and plan[i - 1] != kind:
            state = state[0], jax.vmap(jax.vmap(descent.ADAM.init))(state[0])
        began = time.process_time()
        if kind == "floss":  # one rate of training at a time: one program serves before training and during it
            ours = jnp.full(1, FLOSS_RATE, jnp.float32)
            parts = [trainers[kind](part, ours, keys, i * every)[0] for part in _parts(state, len(rates))]
            state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        else:
            state = trainers[kind](state, rates, keys, i * every)[0]
        jax.block_until_ready(state)
        clock[kind].append((time.process_time() - began) / (every * len(rates) * len(keys)))
        found = [evaluate(jax.tree.map(lambda leaf: leaf[0], part)) for part in _parts(state[0], len(rates))]
        records.append(np.stack(found, axis=1))
    return np.stack(records, axis=-1), state[0]


def _parts(tree, count):
    """A tree [R, ...] as R trees [1, ...]."""
    return [jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], tree) for r in range(count)]
