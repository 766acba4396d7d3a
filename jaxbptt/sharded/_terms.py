"""The (t, k) table of one long sequence over several devices, all of it or the rows of some losses."""

import functools
import operator
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from jaxbptt.gradients.diagnosis import require_finite_gradient
from jaxbptt.gradients.forward import read_out, take_problem
from jaxbptt.jacobians.structured import moving_jacobians, row_mover
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.sharded._place import place
from jaxbptt.sharded._spans import cut, on_devices
from jaxbptt.sharded._trajectory import run_span
from jaxbptt.terms import GradientTerms, join_norms, leaf_norms
from jaxbptt.trajectories import flatten_steps
from jaxbptt.trajectories._calls import start_of
from jaxbptt.types import Inputs, Params, State, Targets


class TermRows(NamedTuple):
    """Rows of the (t, k) table: of R losses, columns k = 1 … T.

    Attributes:
      norms: [R, T], over all leaves; 0 for k > t.
      by_leaf: the same of every leaf of θ, shaped like params.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import models, sharded
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> mesh = jax.make_mesh((jax.device_count(),), ("time",))
      >>> inputs = jnp.zeros(4 * jax.device_count()).at[0].set(1.0)
      >>> rows = sharded.gradient_terms(model, jnp.array(2.0), inputs, jnp.zeros_like(inputs), mesh=mesh, losses=(3, 4))
      >>> rows.norms.sum().item()  # of the loss at t = 4
      96.0
    """

    norms: Float[Array, "losses time"]
    by_leaf: Any


@overload
def gradient_terms(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    mesh: Mesh,
    time: str = ...,
    losses: None = ...,
    initial: State | None = ...,
) -> GradientTerms: ...
@overload
def gradient_terms(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    mesh: Mesh,
    time: str = ...,
    losses: tuple[int, int],
    initial: State | None = ...,
) -> TermRows: ...
def gradient_terms(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    mesh: Mesh,
    time: str = "time",
    losses: tuple[int, int] | None = None,
    initial: State | None = None,
) -> GradientTerms | TermRows:
    """‖(∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t‖ as `terms.gradient_terms`, each device the columns k of its own steps.

    Every span pulls the cotangents of its losses back through its own steps, then hands them to the device before it,
    and takes those of the device after it: D rounds of T/D dependent steps, D hops of R N numbers, R the losses of a
    span. Memory of a device: T²/D numbers a leaf for the whole table, R T/D for some losses, and its J_t.

    Args:
      model, params, inputs, targets, mesh, time, initial: as in `bptt`; a model of one sequence.
      losses: (first, last), static ints, 0 ≤ first < last ≤ T: of the losses t = first + 1 … last alone, which lie in
        one span; None: of all.

    Returns:
      GradientTerms, its tables [T, T]; with `losses`, TermRows of [last − first, T]. Cut over the devices by columns.

    Raises:
      TypeError, ValueError: as `bptt`; losses that are no two such ints, or lie in several spans; a batched model.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import models, sharded
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> mesh = jax.make_mesh((jax.device_count(),), ("time",))
      >>> inputs = jnp.zeros(4 * jax.device_count()).at[0].set(1.0)
      >>> data = jnp.array(2.0), inputs, jnp.zeros_like(inputs)
      >>> table = sharded.gradient_terms(model, *data, mesh=mesh, losses=(2, 4))
      >>> print(table.norms[:, :4].astype(int))  # rows t = 3, 4, columns k: h_{k−1} 2^(t−k) h_t, with h = 1, 2, 4, 8
      [[ 0  8  8  0]
       [ 0 32 32 32]]

    Reference: S4.9 (the double sum).
    """
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, length = problem
    if model.batch is not None:
        raise ValueError(f"model: got a batch of {model.batch}, expected a model of one sequence")
    at = place(model, mesh, time, None, length)
    axis, steps = at.time, length // at.time.size
    owner, begin, rows = _take_losses(losses, length, steps)
    first = start_of(model, params, initial)
    unravel = ravel_pytree(first)[1]

    def on_one(params, first, inputs, targets):
        span = run_span(at, params, first, inputs, at.shape(params, first, inputs), "auto")
        _, local, _, early = read_out(model, params, span, targets, length)
        local = flatten_steps(local)
        before = jnp.zeros_like(local) if early is None else flatten_steps(early)
        chain, move = row_mover(moving_jacobians(model, params, span))
        pull = step_partials(model).pull_params
        mine = jnp.asarray(True) if owner is None else axis.index() == owner

        def measure(state, x, cotangent):
            pulled = jax.tree.map(lambda leaf: leaf[None], pull(params, state, x, unravel(cotangent)))
            return jax.tree.map(lambda norm: norm[0], leaf_norms(pulled))

        def through_span(cotangents, own):
            """(cotangents before this span; norms [k, row]), where its own losses enter if `own`."""

            def back(cotangents, step):
                index, state, x, factor, row, row_before = step
                enters = own & (jnp.arange(rows) == index - begin)[:, None]
                cotangents = jnp.where(enters, row, cotangents)
                norms = jax.vmap(lambda cotangent: measure(state, x, cotangent))(cotangents)
                return move(cotangents, factor) + jnp.where(enters, row_before, 0), norms

            read = jnp.arange(steps), span.previous, inputs, chain, local, before
            return jax.lax.scan(back, cotangents, read, reverse=True)

        def put(number, table, norms):
            """Round r at device d is of the losses of device d + r."""
            of = axis.index() + number
            if owner is not None:
                return jnp.where(of == owner, norms.T, table)
            there = jnp.minimum(of, axis.size - 1) * steps
            kept = jax.lax.dynamic_slice_in_dim(table, there, steps)
            return jax.lax.dynamic_update_slice_in_dim(table, jnp.where(of < axis.size, norms.T, kept), there, axis=0)

        def visit(carry, number):
            cotangents, tables = carry
            moved, norms = through_span(cotangents, mine & (number == 0))
            return (axis.hop(moved, 1, reverse=True), jax.tree.map(functools.partial(put, number), tables, norms)), None

        nothing = jnp.zeros((rows, local.shape[1]), local.dtype)
        shapes = jax.eval_shape(through_span, nothing, mine)[1]
        height = rows if owner is not None else length
        tables = jax.tree.map(lambda leaf: jnp.zeros((height, steps), leaf.dtype), shapes)
        return jax.lax.scan(visit, (nothing, tables), jnp.arange(axis.size))[0][1]

    arguments = PartitionSpec(), at.states, at.data, at.data
    by_leaf = on_devices(on_one, mesh, arguments, cut(1, time))(params, first, inputs, targets)
    require_finite_gradient(model, problem, by_leaf)
    kind = GradientTerms if losses is None else TermRows
    return kind(join_norms(by_leaf), by_leaf)


def _take_losses(losses, length, steps):
    """(the device that holds them, None: all; the first within its span; how many a device has)."""
    if losses is None:
        return None, 0, steps
    is_index = lambda number: hasattr(number, "__index__") and not isinstance(number, bool)
    if not (isinstance(losses, tuple) and len(losses) == 2 and all(map(is_index, losses))):
        raise TypeError(f"losses: got {losses}, expected two static ints (first, last)")
    first, last = map(operator.index, losses)
    if not 0 <= first < last <= length:
        raise ValueError(f"losses: got {losses}, expected 0 ≤ first < last ≤ T = {length}")
    owner = first // steps
    if (last - 1) // steps != owner:
        raise ValueError(f"losses: got {losses}, which lie in several spans of {steps} steps, expected them in one")
    return owner, first - owner * steps, last - first
