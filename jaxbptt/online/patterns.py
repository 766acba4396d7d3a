"""Which entries of dh_t/dθ can differ from zero: read at random points, then extended over a number of steps."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt.models.model import Model
from jaxbptt.online.active import Active
from jaxbptt.online.points import random_points
from jaxbptt.partials import jacobian
from jaxbptt.types import Input, Params


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
    transition: np.ndarray  # [N, N] bool, of J_t or of the matrix that replaces it
    direct: np.ndarray  # [N, P] bool, of ∂⁺h_t/∂⁺θ
    start: np.ndarray  # [N, P] bool, of ∂h_0/∂θ (no entry where h_0 is given)


def find_patterns(
    model: Model, params: Params, x: Input, active: Active, transition: Callable, constant_start: bool
) -> Patterns:
    """Entries that are not zero at random points: normal states, inputs and params, but zero where `params` are zero.

    So a connection is absent if its weight is exactly zero in `params`, or if the step masks it.
    """
    if not all(map(_validation.is_concrete, jax.tree.leaves(params))):
        raise TypeError(
            "params: got tracers, expected numbers (the pattern is read from their zeros; init outside jit)"
        )

    leaves, structure = jax.tree.flatten(params)
    occupied = tuple(Constant(np.asarray(leaf) != 0) for leaf in leaves)
    inputs, inputs_structure = jax.tree.flatten(x)
    for leaf in inputs:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"x: got {leaf.dtype}, expected floats (a pattern is drawn over them; one-hot a class)")
    shapes = tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in inputs)
    dtype = np.dtype(leaves[0].dtype)
    patterns = _draw_patterns(model, structure, occupied, dtype, inputs_structure, shapes, active, transition)
    return patterns._replace(start=patterns.start & (not constant_start))


@functools.lru_cache(maxsize=64)
def _draw_patterns(model, structure, occupied, dtype, inputs_structure, shapes, active, transition):
    mask = jax.tree.unflatten(structure, [leaf.array.astype(dtype) for leaf in occupied])
    x = jax.tree.unflatten(inputs_structure, [jax.ShapeDtypeStruct(*shape) for shape in shapes])

    def read(point):
        drawn, state, step_x = point
        drawn = jax.tree.map(jnp.multiply, mask, drawn)
        theta = active.ravel(drawn)

        def step(theta):
            return ravel_pytree(model.step(active.unravel(drawn, theta), state, step_x))[0]

        def start(theta):
            return ravel_pytree(model.initial_state(active.unravel(drawn, theta)))[0]

        return (
            transition(model, drawn, state, step_x) != 0,
            jacobian(step, theta, prefer="reverse") != 0,
            jacobian(start, theta, prefer="reverse") != 0,
        )

    with jax.ensure_compile_time_eval():
        found = jax.lax.map(read, random_points(model, mask, x))
        return Patterns(*(np.any(np.asarray(leaf), axis=0) for leaf in found))


def reach(transition: np.ndarray, pattern: np.ndarray, steps: int) -> np.ndarray:
    """The entries [N, P] that `pattern` reaches in at most that many products with `transition` [N, N]."""
    wide = transition.astype(np.float32)
    for _ in range(steps):
        further = pattern | (wide @ pattern.astype(np.float32) > 0)
        if np.array_equal(further, pattern):
            break
        pattern = further
    return pattern


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
