"""Where a problem lies, and what the span of each device starts from, forward and backward."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxbptt.cells.structure import BlockParts
from jaxbptt.gradients.adjoint import agree
from jaxbptt.gradients.backpropagation import PARALLEL_SIZE
from jaxbptt.models._batched import batched, single_of
from jaxbptt.partials import step_partials
from jaxbptt.sharded._maps import Shape, probe, shape_of, start_of_span
from jaxbptt.sharded._spans import Axis, cut, relay, require_shares, take_axis
from jaxbptt.types import AdjointMethod, Inputs, Params, State

Agrees: TypeAlias = Callable[[State], jax.Array]  # what a span has passed on -> whether to believe it, on all alike
UNROLL_METHODS = "auto", "sequential", "parallel"


class Place(NamedTuple):
    """Where a problem lies."""

    mesh: Mesh
    time: Axis
    batch: str | None  # the axis over which sequences are cut
    model: Any  # of the sequences of one device
    single: Any  # of one sequence

    @property
    def data(self) -> PartitionSpec:
        """Of inputs and targets [T, ...] or [T, B, ...]."""
        return cut(0, self.time.name, *(() if self.batch is None else (self.batch,)))

    @property
    def states(self) -> PartitionSpec:
        """Of one state, [...] or [B, ...]."""
        return PartitionSpec() if self.batch is None else cut(0, self.batch)

    def add_up(self, tree: Any) -> Any:
        """Σ over all devices."""
        return jax.lax.psum(tree, (self.time.name,) if self.batch is None else (self.time.name, self.batch))

    def shape(self, params: Params, state: State, inputs: Inputs) -> Shape:
        """Of the maps between states of this device's sequences."""
        size = getattr(self.model, "batch", None)
        one = (lambda leaf: leaf) if size is None else (lambda leaf: leaf[0])
        x = jax.tree.map(lambda leaf: one(leaf[0]), inputs)
        return shape_of(self.single, params, jax.tree.map(one, state), x, size)


def place(model: Any, mesh: Mesh, time: str, batch: str | None, length: int) -> Place:
    """Where a model's T steps, and its sequences, lie; raises unless mesh and sizes fit."""
    axis = take_axis(mesh, time, "time")
    require_shares("inputs", "T", length, axis)
    if batch is None:
        return Place(mesh, axis, None, model, getattr(model, "single", None) or model)
    if batch == time:
        raise ValueError(f"batch: got {batch!r}, expected another mesh axis than that of time")
    over = take_axis(mesh, batch, "batch")
    single = None if model.batch is None else single_of(model)
    if single is None:
        raise ValueError(f"model: got one without a batch for mesh axis {batch!r}, expected models.batched(model, B)")
    return Place(mesh, axis, batch, batched(single, require_shares("inputs", "B", model.batch, over)), single)


def is_affine(single: Any) -> bool:
    """Whether the derivation says that the step is affine in the state."""
    parts = step_partials(single).parts
    return isinstance(parts, BlockParts) and parts.affine


def find_start(
    at: Place, params: Params, first: State, inputs: Inputs, shape: Shape, method: str, skip: Callable[[State], State]
) -> tuple[State, Agrees]:
    """(the state that this span starts from; whether the spans end as the maps said); `skip` runs over the span."""
    if at.time.size == 1:
        return first, _always
    if method == "sequential" or not is_affine(at.single):
        return relay(skip, first, at.time), _always
    nothing = jax.tree.map(jnp.zeros_like, first)
    move = lambda tangent: jax.jvp(skip, (nothing,), (tangent,))[1]
    span = probe(move, skip(nothing), first, shape)
    start = start_of_span(span, first, shape, at.time)
    return start, _compare_with(at, start, reverse=False)


def find_later(
    at: Place, shape: Shape, like: State, adjoint: AdjointMethod, pull: Callable[..., State]
) -> tuple[State, Agrees]:
    """(μ after this device's span; whether the spans end as the maps said): `pull` takes μ over the span."""
    nothing = jax.tree.map(jnp.zeros_like, like)
    if at.time.size == 1:
        return nothing, _always
    if not _takes_parallel(adjoint, shape, at.time):
        return relay(pull, nothing, at.time, reverse=True), _always
    span = probe(functools.partial(pull, linear=True), pull(nothing), like, shape)
    later = start_of_span(span, nothing, shape, at.time, reverse=True)
    return later, _compare_with(at, later, reverse=True)


def _always(_: State) -> jax.Array:
    return jnp.asarray(True)


def _compare_with(at: Place, start: State, reverse: bool) -> Agrees:
    """Whether each span passes on what the next one started from, to half the digits: one hop of a state."""

    def agrees(passed):
        wrong = (at.time.place(reverse) > 0) & ~agree(at.time.hop(passed, 1, reverse), start)
        return at.add_up(wrong.astype(int)) == 0

    return agrees


def _takes_parallel(adjoint: AdjointMethod, shape: Shape, axis: Axis) -> bool:
    if adjoint != "auto":
        return adjoint == "parallel"
    return shape.probes < axis.size if jax.default_backend() == "cpu" else shape.probes <= PARALLEL_SIZE
