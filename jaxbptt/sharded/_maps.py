"""What a span does to a state (backwards: to a cotangent), v -> A v + b: found by probing, joined by hops."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt.cells.structure import BlockParts, DiagonalLowRank, dtype_of, gather_copies, scatter_copies
from jaxbptt.partials import step_partials
from jaxbptt.sharded._spans import Axis, scan_devices, select
from jaxbptt.types import Input, Params, Recurrence, State


class Shape(NamedTuple):
    """Which entries of A can differ from zero: B blocks [n, n], each on m copies; or their diagonals."""

    place: np.ndarray  # [B, n, m] (complex: [B, n, 2m]), as in `BlockParts`
    dtype: Any  # of the entries of A
    diagonal: bool
    batch: int | None  # sequences side by side

    @property
    def probes(self) -> int:
        """Products with A that tell all of it."""
        return 1 if self.diagonal else self.place.shape[1]


class SpanMap(NamedTuple):
    """v -> A v + b on the copies [..., B, n, m] of a flattened state."""

    matrix: jax.Array  # [..., B, n, n], or the diagonals [..., B, n]
    offset: jax.Array  # [..., B, n, m]


def shape_of(single: Recurrence, params: Params, state: State, x: Input, batch: int | None) -> Shape:
    """By what the derivation of one sequence's step knows; one block of N entries where it knows nothing."""
    partials = step_partials(single)
    flat = ravel_pytree(state)[0]
    if not isinstance(partials.parts, BlockParts):
        return Shape(np.arange(flat.size).reshape(1, -1, 1), flat.dtype, False, batch)
    form = lambda params, state, x: partials.parts.form(params, partials.residuals(params, state, x))
    core = jax.eval_shape(form, params, state, x)
    diagonal = isinstance(core, DiagonalLowRank) and not core.left.shape[-1]
    return Shape(np.asarray(partials.parts.place), dtype_of(core), diagonal, batch)


def probe(linear: Callable[[State], State], offset: State, like: State, shape: Shape) -> SpanMap:
    """The map from its linear part, a function of a state (of B side by side), and its value at zero.

    One product for each row of a block, all blocks and copies at once.
    """
    rows = shape.place.shape[1]
    units = jnp.ones((1, rows), shape.dtype) if shape.diagonal else jnp.eye(rows, dtype=shape.dtype)
    images = jax.vmap(lambda unit: _gather(linear(_first_copies(unit, like, shape)), shape)[..., 0])(units)
    matrix = images[0] if shape.diagonal else jnp.moveaxis(images, 0, -1)
    return SpanMap(matrix, _gather(offset, shape))


def join(earlier: SpanMap, later: SpanMap) -> SpanMap:
    """`later` after `earlier`."""
    if later.matrix.ndim < later.offset.ndim:
        return SpanMap(later.matrix * earlier.matrix, later.matrix[..., None] * earlier.offset + later.offset)
    return SpanMap(later.matrix @ earlier.matrix, later.matrix @ earlier.offset + later.offset)


def apply(span: SpanMap, state: State, shape: Shape) -> State:
    """A v + b."""
    copies = _gather(state, shape)
    carried = span.matrix[..., None] * copies if shape.diagonal else span.matrix @ copies
    return _scatter(carried + span.offset, state, shape)


def start_of_span(span: SpanMap, first: State, shape: Shape, axis: Axis, *, reverse: bool = False) -> State:
    """What this device's span starts from, where the first one starts from `first`: ⌈log₂ D⌉ + 1 hops of one map."""
    _, before = scan_devices(join, span, axis, reverse=reverse)
    return select(axis.place(reverse) > 0, apply(before, first, shape), first)


def _first_copies(unit, like, shape):
    """The state whose first copies hold `unit` [n] in every block, in each of B sequences alike."""
    blocks, rows, copies = shape.place.shape
    copies = copies // 2 if jnp.issubdtype(shape.dtype, jnp.complexfloating) else copies
    values = jnp.zeros((blocks, rows, copies), shape.dtype).at[..., 0].set(unit[None])
    one = like if shape.batch is None else jax.tree.map(lambda leaf: leaf[0], like)
    state = ravel_pytree(one)[1](scatter_copies(values, shape.place))
    if shape.batch is None:
        return state
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (shape.batch, *leaf.shape)), state)


def _gather(state, shape):
    one = lambda state: gather_copies(ravel_pytree(state)[0], shape.place, shape.dtype)
    return one(state) if shape.batch is None else jax.vmap(one)(state)


def _scatter(copies, like, shape):
    one = lambda copies, like: ravel_pytree(like)[1](scatter_copies(copies, shape.place))
    return one(copies, like) if shape.batch is None else jax.vmap(one)(copies, like)
