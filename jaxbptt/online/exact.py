"""Real-time recurrent learning: A_t = dh_t/dθ itself, carried forward in time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt.models.model import Model
from jaxbptt.online import preactivations
from jaxbptt.online.active import Active, active_leaves, reads_at_start
from jaxbptt.online.method import Method
from jaxbptt.online.preactivations import NotFactored, Preactivations
from jaxbptt.online.rule import Rule, make_rule
from jaxbptt.partials import jacobian, step_partials
from jaxbptt.types import Input, Params


class Block(NamedTuple):
    """Columns of A: the pre-activations `rows`, times the parts `segments` of v that all of them read."""

    rows: tuple[int, ...]
    segments: tuple[int, ...]


class BlockPlan(NamedTuple):
    """A [N, P] whose direct term fills a few runs of columns in each row."""

    form: Preactivations
    blocks: tuple[Block, ...]


class DensePlan(NamedTuple):
    """A [N, P] for a step whose structure is not known."""

    active: Active
    num_state: int


def rtrl() -> Rule:
    """A_t = J_t A_{t−1} + ∂⁺h_t/∂⁺θ,  A_0 = ∂h_0/∂θ,  g_t = A_tᵀ ∂L_t/∂h_t: exact real-time recurrent learning.

    State: A [N, P], where P counts the entries of params that the step reads. Cost: 2N²P flops per step, one matrix
    product. With a factored derivation (all built-in cells) the direct term touches only its own entries, N·(N+M+1) for
    an Elman net; any other cell, or an h_0 that depends on params, adds a dense [N, P]. The key is not used.

    Returns:
      Rule; at fixed params its summed gradient equals `gradients.bptt`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, online
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # A = 0, 1, 4, 12
      >>> float(online.run(online.rtrl(), model, w, inputs, targets)[1])  # 2 A_2 + 4 A_3 + 8 A_4
      114.0

    Reference: Williams & Zipser (1989), Neural Computation 1; S3.4 (A_t).
    """
    return make_rule(METHOD, make_plan)


def make_plan(model: Model, params: Params, x: Input, constant_start: bool) -> BlockPlan | DensePlan:
    """A BlockPlan where the step allows it, else a DensePlan."""
    state = jax.eval_shape(model.initial_state, params)
    form = preactivations.find(model, params, x)
    if isinstance(form, NotFactored) or (any(reads_at_start(model, params)) and not constant_start):
        return DensePlan(active_leaves(model, params, x, constant_start), sum(s.size for s in jax.tree.leaves(state)))
    readers = [form.readers(segment) for segment in range(len(form.lengths))]
    rows = dict.fromkeys(readers)
    blocks = (Block(r, tuple(s for s, readers_of_s in enumerate(readers) if readers_of_s == r)) for r in rows)
    return BlockPlan(form, tuple(blocks))


def _start(plan, initial_state, params, signs):
    theta = plan.active.ravel(params) if isinstance(plan, DensePlan) else jax.tree.leaves(params)[0]
    if isinstance(plan, BlockPlan):
        return jnp.zeros((plan.form.num_state, _num_columns(plan)), theta.dtype)
    return jacobian(
        lambda theta: ravel_pytree(initial_state(plan.active.unravel(params, theta)))[0], theta, prefer="reverse"
    )


def _advance(plan, model, params, state, x, sensitivity, signs):
    flat, unravel = ravel_pytree(state)
    if isinstance(plan, DensePlan):

        def step(theta, flat):
            return ravel_pytree(model.step(plan.active.unravel(params, theta), unravel(flat), x))[0]

        theta = plan.active.ravel(params)
        direct, transition = jacobian(step, theta, flat, argnums=(0, 1), prefer="reverse")
        return unravel(step(theta, flat)), transition @ sensitivity + direct
    local = preactivations.evaluate(plan.form, model, params, state, x)
    new, transition = step_partials(model).value_and_jacobian(params, state, x)
    sensitivity = transition @ sensitivity
    start = 0
    for block in plan.blocks:
        v = jnp.concatenate([local.right[s] for s in block.segments])
        sensitivity = _add_runs(plan.form, block, sensitivity, local.left, v, start)
        start += len(block.rows) * v.size
    return new, sensitivity


def _add_runs(form, block, sensitivity, left, v, start):
    """sensitivity[n, run of z] += left(n, z) v in place: one windowed scatter, no second [N, P]."""
    position = {z: i for i, z in enumerate(block.rows)}
    chosen = [i for i, (_, z) in enumerate(form.entries) if z in position]
    corners = np.array([(n, start + position[z] * v.size) for n, z in (form.entries[i] for i in chosen)], np.int32)
    return jax.lax.scatter_add(
        sensitivity,
        corners,
        left[np.array(chosen)][:, None] * v[None, :],
        jax.lax.ScatterDimensionNumbers((1,), (0,), (0, 1)),
        indices_are_sorted=True,
        unique_indices=True,
        mode="promise_in_bounds",
    )


def _contract(plan, params, sensitivity, local):
    gradient = local @ sensitivity
    if isinstance(plan, DensePlan):
        return plan.active.expand(params, gradient)
    start = 0
    pieces: dict[int, Any] = {}
    for block in plan.blocks:
        ends = np.cumsum([plan.form.lengths[s] for s in block.segments])
        size = len(block.rows) * int(ends[-1])
        parts = jnp.split(gradient[start : start + size].reshape(len(block.rows), -1), ends[:-1], axis=1)
        pieces |= {segment: (block.rows, part) for segment, part in zip(block.segments, parts, strict=True)}
        start += size
    return plan.form.gather(params, pieces)


def _flops(plan):
    num_state = plan.num_state if isinstance(plan, DensePlan) else plan.form.num_state
    columns = plan.active.size if isinstance(plan, DensePlan) else _num_columns(plan)
    return 2 * num_state * num_state * columns + 2 * num_state * columns


def _num_columns(plan):
    return sum(len(block.rows) * sum(plan.form.lengths[s] for s in block.segments) for block in plan.blocks)


METHOD = Method(_start, _advance, _contract, _flops)
