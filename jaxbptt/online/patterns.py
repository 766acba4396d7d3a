"""Which entries of dh_t/dθ can differ from zero, at any input and state: read from the step's program at random points.

The program is read with all of its routes taken at once (`relax`), then the pattern is extended over a number of steps.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt._jaxprs.relaxation import relax
from jaxbptt.models.model import Model
from jaxbptt.online.active import Active
from jaxbptt.online.points import random_points
from jaxbptt.partials import jacobian
from jaxbptt.types import Input, Params

READINGS = 4  # one shows all, but for accidents of rounding


class Constant:
    """An array of a plan, which is hashed and compared by its numbers."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self._identity = (array.shape, array.dtype.str, array.tobytes())
        self._hash = hash(self._identity)

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        return isinstance(other, Constant) and self._identity == other._identity


class Patterns(NamedTuple):
    """Where entries can differ from zero."""

    transition: np.ndarray  # [N, N] bool, of J_t or of the matrix that replaces it
    direct: np.ndarray  # [N, P] bool, of ∂⁺h_t/∂⁺θ
    start: np.ndarray  # [N, P] bool, of ∂h_0/∂θ


class Kept(NamedTuple):
    """The entries of dh_t/dθ that a number of steps can reach, and what they rely on."""

    entries: np.ndarray  # [N, P] bool
    direct: np.ndarray  # [N, P] bool, the pattern of ∂⁺h_t/∂⁺θ
    barred: np.ndarray  # [N, N] bool: where an entry of J_t (or what replaces it) would reach more
    zeros: np.ndarray  # [P] bool: where θ is zero, and another number could lead to more


def find_kept(
    model: Model,
    params: Params,
    x: Input,
    active: Active,
    transition: Callable | None,
    constant_start: bool,
    steps: int | None,
) -> Kept:
    """What at most `steps` steps (None: any number) reach from the direct partial and, if it is one, from ∂h_0/∂θ.

    `transition` gives the matrix that replaces J_t. Zeros of `params` stay zero: a connection is absent if its weight
    is exactly zero, or if the step masks it.
    """
    if not all(map(_validation.is_concrete, jax.tree.leaves(params))):
        raise TypeError(
            "params: got tracers, expected numbers (the pattern is read from their zeros; init outside jit)"
        )

    leaves, structure = jax.tree.flatten(params)
    occupied = [np.asarray(leaf) != 0 for leaf in leaves]
    inputs, inputs_structure = jax.tree.flatten(jax.eval_shape(lambda x: x, x))
    avals = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in inputs)
    dtype = np.dtype(leaves[0].dtype)

    def read(*variants: Sequence[np.ndarray]) -> list[Kept]:
        masks = tuple(tuple(map(Constant, masks)) for masks in variants)
        found = _read_patterns(model, structure, masks, dtype, inputs_structure, avals, active, transition)
        return [_reach(one._replace(start=one.start & (not constant_start)), steps) for one in found]

    filled = lambda chosen: [np.full_like(m, True) if i in chosen else m for i, m in enumerate(occupied)]
    with_zeros = [i for i, mask in enumerate(occupied) if active.flags[i] and not mask.all()]
    kept, *others = read(occupied, filled(with_zeros)) if with_zeros else read(occupied)
    same = lambda one: np.array_equal(one.entries, kept.entries) and np.array_equal(one.direct, kept.direct)
    if all(map(same, others)):
        return kept
    # Zeros on which nothing relies, such as those of biases, may change: of each leaf alone, and of all such leaves.
    alone = read(*[filled([i]) for i in with_zeros])
    free = [i for i, one in zip(with_zeros, alone, strict=True) if same(one)]
    if not same(read(filled(free))[0]):
        free = []
    relied = [np.ravel(~mask & (i not in free)) for i, mask in enumerate(occupied) if active.flags[i]]
    return kept._replace(zeros=np.concatenate(relied))


@functools.lru_cache(maxsize=64)
def _read_patterns(model, structure, variants, dtype, inputs_structure, avals, active, transition):
    """Patterns for each of several sets of masks on the params."""
    params = structure.unflatten([jax.ShapeDtypeStruct(mask.array.shape, dtype) for mask in variants[0]])
    x = inputs_structure.unflatten(avals)
    state = jax.eval_shape(model.initial_state, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    masks = [np.stack(leaf) for leaf in zip(*[[mask.array for mask in masks] for masks in variants], strict=True)]
    try:
        with jax.ensure_compile_time_eval():
            found = _read_at_points(model, params, state, x, structure.unflatten(masks), active, transition)
            found = jax.tree.map(np.asarray, found)
    except Exception:  # a program that cannot be read: every entry may differ from zero
        every = np.ones((len(variants), size, size + active.size), bool)
        found = Patterns(every[:, :, :size], every[:, :, size:], every[:, :, size:])
    return [Patterns(*leaves) for leaves in zip(*found, strict=True)]


def _read_at_points(model, params, state, x, masks, active, transition):
    """Patterns with a leading axis, from masks with a leading axis: what differs from zero at any point."""
    theta = jax.eval_shape(active.ravel, params)
    flat = lambda tree: ravel_pytree(tree)[0]
    step = relax(lambda *at: flat(model.step(active.unravel(at[2], at[0]), at[1], at[3])), theta, state, params, x)
    start = relax(lambda theta, params: flat(model.initial_state(active.unravel(params, theta))), theta, params)
    instead = transition and relax(functools.partial(transition, model), params, state, x)

    def read(mask, point):
        phase, (drawn, state, x) = point
        drawn = jax.tree.map(lambda leaf, occupied: jnp.where(occupied, leaf, jnp.zeros_like(leaf)), drawn, mask)
        theta = active.ravel(drawn)
        h, unravel = ravel_pytree(state)
        new = lambda theta, h: step(phase, theta, unravel(h), drawn, x)
        if instead:
            direct, matrix = jacobian(new, theta, h, prefer="reverse"), instead(phase, drawn, state, x)
        else:
            direct, matrix = jacobian(new, theta, h, argnums=(0, 1), prefer="reverse")
        begun = jacobian(lambda theta: start(phase, theta, drawn), theta, prefer="reverse")
        return Patterns(matrix != 0, direct != 0, begun != 0)

    def read_all(mask):
        also = lambda seen, point: (jax.tree.map(jnp.logical_or, seen, read(mask, point)), None)
        shapes = jax.eval_shape(read, mask, jax.tree.map(lambda leaf: leaf[0], points))
        return jax.lax.scan(also, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), shapes), points)[0]

    phases = np.random.default_rng(1).uniform(0, 2 * np.pi, READINGS).astype(theta.dtype)
    points = (phases, jax.tree.map(lambda leaf: leaf[:READINGS], random_points(model, params, x)))
    return jax.lax.map(read_all, masks)


def _reach(patterns: Patterns, steps: int | None) -> Kept:
    """From the first entries on, through at most that many products with the transition."""
    wide = patterns.transition.astype(np.float32)
    advance = lambda entries: entries | (wide @ entries.astype(np.float32) > 0)
    leads_out = lambda entries, of: (
        (~of).astype(np.float32) @ entries.T.astype(np.float32) > 0
    )  # [i, j]: row j, of row i
    entries, barred = patterns.direct | patterns.start, np.zeros(wide.shape, bool)
    for _ in range(len(wide) if steps is None else steps):
        further = advance(entries)
        if np.array_equal(further, entries):
            break
        barred |= leads_out(entries, further)
        entries = further
    if steps != 0 and np.array_equal(advance(entries), entries):  # all that can be reached, in however many steps
        barred = leads_out(entries, entries)
    return Kept(entries, patterns.direct, barred, np.zeros(entries.shape[1], bool))


class Groups(NamedTuple):
    """Columns of a sparse [N, P] with the same kept rows, G sets of at most C columns with at most K rows; −1 pads."""

    rows: np.ndarray  # [G, K] int32
    columns: np.ndarray  # [G, C] int32


def group_columns(pattern: np.ndarray) -> Groups:
    """Cut the sets of columns with equal rows to one size, the one with the lowest price."""
    distinct, inverse = np.unique(pattern, axis=1, return_inverse=True)
    inverse = inverse.reshape(-1)
    sets = [(np.flatnonzero(rows), np.flatnonzero(inverse == i)) for i, rows in enumerate(distinct.T) if rows.any()]
    if not sets:
        return Groups(np.zeros((0, 0), np.int32), np.zeros((0, 0), np.int32))
    height = max(rows.size for rows, _ in sets)

    def price(width):  # numbers kept and, per set, the square of its rows read from the transition
        return sum(-(-columns.size // width) for _, columns in sets) * height * (width + height)

    width = min({columns.size for _, columns in sets}, key=price)
    pieces = [(rows, columns[i : i + width]) for rows, columns in sets for i in range(0, columns.size, width)]
    pad = lambda part, size: np.pad(part, (0, size - part.size), constant_values=-1)
    rows, columns = ([pad(piece[i], size) for piece in pieces] for i, size in ((0, height), (1, width)))
    return Groups(np.array(rows, np.int32), np.array(columns, np.int32))
