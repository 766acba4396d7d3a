"""The known slips of a derivation of one step, computed: what each would give for this cell at these points."""

import itertools
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt._jaxprs.gates import Rows
from jaxbptt._jaxprs.sites import StepProgram
from jaxbptt.derivations.compiled import map_many
from jaxbptt.derivations.kinds import join
from jaxbptt.derivations.matching import PAIR, SINGLE, Batch
from jaxbptt.derivations.rewrite import evaluate
from jaxbptt.derivations.variants import (
    TRUE,
    Names,
    Variant,
    describe_rows,
    gate_letter,
    name_places,
    pairs,
    stack,
    step_variants,
)
from jaxbptt.partials import jacobian, vjp
from jaxbptt.trajectories import flatten_steps
from jaxbptt.types import Input, Params, State, States, Step

AT_ONCE = 64  # variants in memory
MOST_PAIRS = 10_000
MOST_WORK = 4e8  # pairs · steps · cotangents · |θ|


class Points(NamedTuple):
    """S steps of a trajectory at which slips are compared."""

    states: States  # h_{t−1}, leading S
    xs: Any
    others: States  # h_t
    cotangents: Any  # leading [S, C]


def partials(step: Step, params: Params, state: State, x: Input, cotangents: Any) -> dict:
    """The pieces at one step: J [N, N]; per cotangent (leading [C]) the pullbacks to params' leaves, state and x."""
    flat, unravel = ravel_pytree(state)
    flat_step = lambda h: ravel_pytree(step(params, unravel(h), x))[0]
    return {"state_jacobian": jacobian(flat_step, flat), **pullbacks(step, params, state, x, cotangents)}


def pullbacks(step: Step, params: Params, state: State, x: Input, cotangents: Any) -> dict:
    """The pieces of the pullback, per cotangent (leading [C])."""
    leaves, structure = jax.tree.flatten(x)
    floating = [i for i, leaf in enumerate(leaves) if _validation.is_float(leaf)]

    def of_floats(at):
        filled = dict(zip(floating, at[2], strict=True))
        x = jax.tree.unflatten(structure, [filled.get(i, leaf) for i, leaf in enumerate(leaves)])
        return step(at[0], at[1], x)

    pull = jax.vmap(vjp(of_floats, (params, state, [leaves[i] for i in floating]))[1])
    of_params, of_state, of_x = pull(cotangents)
    return name_pieces(of_params, of_state, of_x, jax.tree.leaves(cotangents)[0].shape[0])


def name_pieces(of_params: Any, of_state: Any, of_x: Any, count: int) -> dict:
    """Pullbacks as {"params.<leaf>": …, "previous_state": [C, N], "input": [C, M]}, without pieces of no entries."""
    pieces = named_leaves(of_params)
    for name, tree in (("previous_state", of_state), ("input", of_x)):
        rows = [jnp.reshape(leaf, (count, -1)) for leaf in jax.tree.leaves(tree)]
        if rows:
            pieces[name] = jnp.concatenate(rows, axis=1)
    return {name: piece for name, piece in pieces.items() if piece.size}


def require_structure(name: str, tree: Any, like: Any) -> None:
    """Raise unless `tree` has the structure of `like`."""
    got: Any = jax.tree.structure(tree)
    expected: Any = jax.tree.structure(like)
    if got != expected:
        raise ValueError(f"{name}: got structure {got}, expected {expected}")


def named_leaves(tree: Any) -> dict[str, Any]:
    """{"params.<leaf>": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_validation.leaf_name("params", path): leaf for path, leaf in leaves}


def local_batches(program: StepProgram, key: Hashable, params: Params, at: Points) -> Iterator[Batch]:
    """What the slips give for every piece, batch by batch, [R, S, ...]: single slips, then pairs."""
    first = jax.tree.map(lambda leaf: leaf[0], at.states)
    names = name_places(program, params, first)
    variants = step_variants(program, names)
    flat = np.asarray(jax.vmap(flatten_steps)(at.cotangents), np.float64)
    true = _evaluate(program, key, params, at, [TRUE])
    yield multiply(true)
    yield Batch([("transposed_jacobian", "as a whole")], _turn(true, flat))
    yield from exchange_rows(program, params, names, true)
    common: list[Variant] = []
    for start in range(1, len(variants), AT_ONCE):
        chosen = variants[start : start + AT_ONCE]
        pieces = _evaluate(program, key, params, at, chosen)
        # If no path is left, no particular one was dropped.
        kept = [k for k in range(len(chosen)) if np.any(pieces["state_jacobian"][k])]
        yield _batch(chosen, kept, pieces, SINGLE)
        common += [chosen[k] for k in kept if chosen[k].common]
        for variant, plain in zip(chosen, pieces["state_jacobian"], strict=True):
            if variant.slip == "missing_activation_derivative":
                swapped = reverse_factors(true["state_jacobian"][0], plain)
                if swapped is not None:
                    value = {"state_jacobian": swapped[None], "previous_state": _pull_all(swapped[None], flat)}
                    yield Batch([("reversed_product", "W diag(φ') for diag(φ') W")], value)
    turned = "transposed_jacobian"
    for start in range(0, len(common), AT_ONCE):
        chosen = [variant for variant in common[start : start + AT_ONCE] if variant.slip != turned]
        labels = [(join(variant.slip or "", turned), f"{variant.note}; as a whole") for variant in chosen]
        yield Batch(labels, _turn(_evaluate(program, key, params, at, chosen), flat), PAIR)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    most = int(min(MOST_PAIRS, MOST_WORK / (flat.shape[0] * flat.shape[1] * size)))
    both = pairs(common)[:most]
    for start in range(0, len(both), AT_ONCE):
        chosen = both[start : start + AT_ONCE]
        yield _batch(chosen, list(range(len(chosen))), _evaluate(program, key, params, at, chosen), PAIR)


def exchange_rows(program: StepProgram, params: Params, names: Names, true: dict[str, np.ndarray]) -> Iterator[Batch]:
    """Two gates' blocks of rows exchanged in the gradient of a stacked leaf; `true` has leading [1, S]."""
    leaves = jax.tree.leaves(params)
    cuts = sorted({(rows.stop - rows.start, rows.total) for rows in program.rows if rows is not None})
    for size, total in cuts:
        if total % size or not size:
            continue
        stacked = {
            number: axis
            for number, leaf in enumerate(leaves)
            for axis, length in reversed(list(enumerate(leaf.shape)))
            if length == total
        }
        for first, second in itertools.combinations(range(total // size), 2):
            order = np.arange(total).reshape(-1, size)
            order[[first, second]] = order[[second, first]]
            values = {}
            for number, axis in stacked.items():
                value = true[names.leaves[number]]
                axis += value.ndim - leaves[number].ndim
                values[names.leaves[number]] = np.take(value, order.ravel(), axis=axis)
            if values:
                number = next(iter(stacked))
                blocks = [Rows(k * size, (k + 1) * size, total, number) for k in (first, second)]
                letters = [gate_letter(rows, params) for rows in blocks]
                called = [
                    f"the rows of gate {letter}" if letter else describe_rows(rows, names.leaves)
                    for letter, rows in zip(letters, blocks, strict=True)
                ]
                yield Batch([("swapped_gates", f"{called[0]} and {called[1]}")], values)


def multiply(true: dict[str, np.ndarray]) -> Batch:
    """The true pieces, each leading [1, S], times −1, 2 and 1/2."""
    factors = {"sign": -1, "double": 2, "half": 0.5}
    labels = [(slip, "") for slip in factors]
    return Batch(labels, {name: np.concatenate([f * value for f in factors.values()]) for name, value in true.items()})


def reverse_factors(jacobian: np.ndarray, plain: np.ndarray) -> np.ndarray | None:
    """W diag(d) where J = diag(d) W and `plain` is W, [..., N, N]; None where J is not such a product."""
    norms = np.sum(plain * plain, axis=-1)
    slopes = np.sum(jacobian * plain, axis=-1) / np.where(norms, norms, 1)
    scale = np.max(np.abs(jacobian), initial=0)
    if not np.max(np.abs(jacobian - slopes[..., None] * plain), initial=0) <= 1e-5 * scale:
        return None
    return plain * slopes[..., None, :]


def _evaluate(
    program: StepProgram, key: Hashable, params: Params, at: Points, variants: list[Variant]
) -> dict[str, np.ndarray]:
    """Every piece of every variant, [R, S, ...] in float64."""

    def body(shared, row):
        params, points = shared
        return jax.vmap(lambda *at: one(params, row, *at))(*points)

    def one(params, row, state, x, other, cotangents):
        coefficients, shift = row
        pick = lambda here, there: jax.tree.map(lambda a, b: jnp.where(shift, a, b), here, there)
        start, elsewhere = pick(other, state), pick(state, other)
        step = lambda params, state, x: evaluate(program, coefficients, params, state, x, elsewhere)
        return partials(step, params, start, x, cotangents)

    rows = stack(program, variants, params)
    pieces = map_many(key and ("partials", key), body, (params, tuple(at)), rows)
    return {name: np.asarray(piece, np.float64) for name, piece in pieces.items()}


def _batch(variants, kept, pieces, stage):
    labels = [(variants[k].slip or "", variants[k].note) for k in kept]
    return Batch(labels, {name: piece[kept] for name, piece in pieces.items()}, stage)


def _turn(pieces: dict[str, np.ndarray], flat: np.ndarray) -> dict[str, np.ndarray]:
    """J transposed, as such and in the pullback, and square weights' cotangents transposed; [R, S, ...]."""
    turned = {name: np.swapaxes(piece, -1, -2) for name, piece in pieces.items() if _is_square_weight(name, piece)}
    turned["state_jacobian"] = np.swapaxes(pieces["state_jacobian"], -1, -2)
    turned["previous_state"] = _pull_all(turned["state_jacobian"], flat)
    return turned


def _pull_all(jacobians: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Jᵀ cotangent, [R, S, C, N]."""
    return np.einsum("rsji,scj->rsci", jacobians, flat)


def _is_square_weight(name, piece):
    return name.startswith("params") and piece.ndim == 5 and piece.shape[-1] == piece.shape[-2]
