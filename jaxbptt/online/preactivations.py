"""θ through z = Θ v: the pre-activations z of a step and what Θ multiplies, read from its factored derivation.

Each leaf's cotangent has rank one, left ⊗ right. Rows of any leaves whose left parts always agree belong to one
pre-activation z; the different right parts, concatenated, are v. Elman: z [N], LSTM: z [4H], both with v = (x, h, 1).
The GRU's n reads x and h in two pre-activations (its reset gate is between them), so z = (r, z, n_x, n_h) [4H].
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt.cells.factored import Outer, is_outer
from jaxbptt.models.model import Model
from jaxbptt.online.colouring import colour_rows, seeds
from jaxbptt.online.points import POINTS, random_points
from jaxbptt.partials import step_partials, vjp
from jaxbptt.types import Input, Params, State


class NotFactored(NamedTuple):
    """A step whose params do not enter through z = Θ v, as far as can be seen."""

    reason: str


class LeafForm(NamedTuple):
    """The place of a leaf of params in Θ."""

    rows: tuple[int, ...]  # z of each row
    segment: int  # which part of v it multiplies


class Preactivations(NamedTuple):
    """The shape of z = Θ v; hashable."""

    num_state: int  # N
    num_rows: int  # Z, entries of z
    lengths: tuple[int, ...]  # of the parts of v
    leaves: tuple[LeafForm | None, ...]  # None: not read by the step
    representative: tuple[int, ...]  # of z: its first row among the rows of all leaves
    entries: tuple[tuple[int, int], ...]  # (n, z) where ∂⁺h_n/∂⁺z is not zero, sorted
    colours: tuple[int, ...]  # of n

    def readers(self, segment: int) -> tuple[int, ...]:
        """The z that multiply a part of v, sorted."""
        return tuple(sorted({z for leaf in self.leaves if leaf and leaf.segment == segment for z in leaf.rows}))

    def gather(self, params: Params, pieces: Any) -> Any:
        """Shaped like params, from {segment: (its z, matrix [z, length])}; zero where the step does not read."""
        leaves, structure = jax.tree.flatten(params)
        filled = []
        for leaf, form in zip(leaves, self.leaves, strict=True):
            if form is None:
                filled.append(jnp.zeros_like(leaf))
            else:
                zs, matrix = pieces[form.segment]
                rows = np.searchsorted(zs, form.rows)
                filled.append(matrix[rows].reshape(leaf.shape))
        return jax.tree.unflatten(structure, filled)


class Local(NamedTuple):
    """∂⁺h_t/∂⁺Θ at one step."""

    left: jax.Array  # [entries] ∂⁺h_n/∂⁺z
    right: tuple[jax.Array, ...]  # the parts of v


def evaluate(form: Preactivations, model: Model, params: Params, state: State, x: Input) -> Local:
    """The direct partial at one step, by one pullback for each colour of the rows of ∂⁺h/∂⁺z (Elman, GRU 1; LSTM 2)."""
    flat, unravel = ravel_pytree(state)
    colours = np.array(form.colours)
    pull = _factors_of(model, params, state, x)
    lefts = jax.vmap(lambda seed: _lefts(pull(unravel(seed)), form.leaves))(seeds(colours, flat.dtype))
    cotangents = jax.tree.leaves(pull(jax.tree.map(jnp.ones_like, state)), is_leaf=is_outer)
    right = {leaf.segment: _right(c) for c, leaf in zip(cotangents, form.leaves, strict=True) if leaf}
    n, z = np.array(form.entries).T
    return Local(lefts[colours[n], np.array(form.representative)[z]], tuple(right[s] for s in range(len(form.lengths))))


def find(model: Model, params: Params, x: Input) -> Preactivations | NotFactored:
    """The form of a model's step, or why it has none. `params` and `x` give shapes and dtypes only."""
    if model.batch is not None:
        return NotFactored("it is a batch of sequences")
    partials = step_partials(model)
    if partials.factored is None:
        known = "its step alone" if partials.source == "automatic" else "a pullback that is not factored"
        return NotFactored(f"this cell is known by {known}")
    if x is None:
        return NotFactored("num_inputs is None and no example x came")
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(x)):
        return NotFactored("its inputs are not floats")
    leaves, structure = jax.tree.flatten((params, x))
    return _find(model, structure, tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves))


@functools.lru_cache(maxsize=64)
def _find(model, structure, leaves):
    params, x = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    with jax.ensure_compile_time_eval():
        points = random_points(model, params, x)
        drawn = jax.lax.map(lambda point: _read(model, *point), points)
        units, seeded, ones, seed, expected = jax.tree.map(np.asarray, drawn)
    units, seeded, ones = (jax.tree.leaves(tree, is_leaf=is_outer) for tree in (units, seeded, ones))
    return _group(units, seeded, ones, seed, jax.tree.leaves(expected))


def _read(model, params, state, x):
    """Pulled unit cotangents (lefts [N, rows]), a pulled seed, pulled ones, the seed and its vjp through the step."""
    flat, unravel = ravel_pytree(state)
    seed = jnp.cos(jnp.arange(1, flat.size + 1, dtype=flat.dtype))  # no two rows alike
    pull = _factors_of(model, params, state, x)
    expected = vjp(lambda params: model.step(params, state, x), params)[1](unravel(seed))
    units = jax.vmap(lambda unit: pull(unravel(unit)))(jnp.eye(flat.size, dtype=flat.dtype))
    return units, pull(unravel(seed)), pull(jax.tree.map(jnp.ones_like, state)), seed, expected


def _group(units, seeded, ones, seed, expected):
    """From drawn cotangents of all leaves to a `Preactivations`, checked against the vjp of the step."""
    lefts: list[np.ndarray] = []
    found: list[tuple[range, int] | None] = []
    rights: list[np.ndarray] = []
    for unit, other, one in zip(units, seeded, ones, strict=True):
        if not isinstance(unit, Outer):
            if not np.any(unit):
                found.append(None)
                continue
            if unit.ndim != 3:  # [draws, N, rows]
                return NotFactored("a matrix of its params has no rank-one cotangent")
        elif not np.array_equal(other.right, one.right):
            return NotFactored("a weight's right factor depends on the cotangent")
        right = _right(one) if isinstance(one, Outer) else np.ones((POINTS, 1), one.dtype)
        segment = next(
            (i for i, r in enumerate(rights) if r.shape == right.shape and np.allclose(r, right)), len(rights)
        )
        if segment == len(rights):
            rights.append(np.asarray(right))
        left = unit.left if isinstance(unit, Outer) else unit
        start = sum(part.shape[-1] for part in lefts)
        lefts.append(np.asarray(left))
        found.append((range(start, start + left.shape[-1]), segment))
    if not lefts:
        return NotFactored("its step reads no params")
    left = np.concatenate(lefts, axis=-1)  # [draws, N, R]
    representative, z_of = _match_columns(left.reshape(-1, left.shape[-1]).astype(np.float64))
    pattern = np.any(left[..., representative] != 0, axis=0)
    if not pattern.any(axis=0).all():
        return NotFactored("a row of its weights never reached the state at random points")
    leaves = tuple(leaf and LeafForm(tuple(z_of[list(leaf[0])].tolist()), leaf[1]) for leaf in found)
    for leaf, gradient in zip(leaves, expected, strict=True):
        rebuilt = np.zeros_like(gradient)
        if leaf is not None:
            weights = np.einsum("dn,dnr->dr", seed, left[..., representative])[:, list(leaf.rows)]
            rebuilt = (weights[:, :, None] * rights[leaf.segment][:, None, :]).reshape(gradient.shape)
        tolerance = 1e3 * np.finfo(gradient.dtype).eps * max(np.abs(gradient).max(initial=0), 1)
        if not np.all(np.abs(rebuilt - gradient) <= tolerance):
            return NotFactored("its derivation's rank-one cotangents are not those of its step")
    return Preactivations(
        num_state=left.shape[1],
        num_rows=len(representative),
        lengths=tuple(right.shape[-1] for right in rights),
        leaves=leaves,
        representative=tuple(representative),
        entries=tuple((n, z) for n, z in np.argwhere(pattern).tolist()),
        colours=tuple(colour_rows(pattern).tolist()),
    )


def _match_columns(columns):
    """(first of each set of equal columns, the set of each column), equal up to rounding of float32."""
    squares = np.sum(columns**2, axis=0)
    distances = squares[:, None] + squares[None, :] - 2 * columns.T @ columns
    first = np.argmax(distances <= 1e-8 * squares[:, None], axis=1)
    representative = sorted(set(first.tolist()))
    return representative, np.searchsorted(representative, first)


def _factors_of(model, params, state, x):
    pullback = step_partials(model).factored
    assert pullback is not None
    factors = pullback.factors(params, state, x)
    return lambda cotangent: pullback.params(params, state, x, pullback.delta(factors, cotangent))


def _lefts(cotangents, leaves):
    cotangents = jax.tree.leaves(cotangents, is_leaf=is_outer)
    parts = [c.left if is_outer(c) else c for c, leaf in zip(cotangents, leaves, strict=True) if leaf]
    return jnp.concatenate(parts)


def _right(cotangent):
    return cotangent.right if is_outer(cotangent) else jnp.ones(1, cotangent.dtype)
