"""A derivation called at every step of a trajectory, for several cotangents."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt._jaxprs.text import key_of_program
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import factored_pullback
from jaxbptt.derivations.compiled import map_rows
from jaxbptt.derivations.linearity import add_multiples
from jaxbptt.derivations.step_slips import named_leaves, require_structure
from jaxbptt.trajectories import Trajectory
from jaxbptt.types import Params

JACOBIAN, ADVANCE = "state_jacobian", "advance"


class Run(NamedTuple):
    """A trajectory at which a derivation is checked."""

    params: Params
    trajectory: Trajectory
    cotangents: Any  # leading [T, C]
    key: Hashable  # tells the step's programs from others


def call_derivation(derivation: Derivation, run: Run) -> dict[str, np.ndarray | str]:
    """{piece: [T, N, N], or [T, C + 3, ...] with what `add_multiples` adds; or what is wrong with its shape}.

    All steps in one program if the derivation is written in JAX; else one after another.
    """
    rows = (run.trajectory.previous, run.trajectory.inputs, add_multiples(run.cotangents))
    shapes: dict[str, tuple[int, ...]] = {}

    def at_step(params, row):
        state, x, cotangents = row
        one = jax.tree.map(lambda leaf: leaf[0], cotangents)
        shapes.update({name: shape for name, (_, shape) in _pull(derivation, (params, state, x), one, jnp).items()})
        pull = lambda cotangent: _values(_pull(derivation, (params, state, x), cotangent, jnp))
        jacobian = {JACOBIAN: jnp.asarray(derivation.state_jacobian(params, state, x))}
        return {**jacobian, **jax.vmap(pull)(cotangents), **_advance(derivation, params, state, x)}

    key = key_of_program(derivation, at_step, run.params, jax.tree.map(lambda leaf: leaf[0], rows))
    if key is None:
        return _call_one_by_one(derivation, run.params, rows)
    found = map_rows(("derivation", key), at_step, run.params, rows)
    names = [JACOBIAN, *shapes, *([ADVANCE] if ADVANCE in found else [])]
    result: dict[str, np.ndarray | str] = {name: np.asarray(found[name], np.float64) for name in names}
    size = sum(leaf.size for leaf in jax.tree.leaves(run.trajectory.initial))
    for name, shape in {**shapes, JACOBIAN: (size, size)}.items():
        got = found[name].shape[1 if name == JACOBIAN else 2 :]
        if got != tuple(shape):
            result[name] = _misshapen(got, shape)
    return result


def _call_one_by_one(derivation: Derivation, params: Params, rows: Any) -> dict[str, np.ndarray | str]:
    length, count = jax.tree.leaves(rows[2])[0].shape[:2]
    values: dict[str, list[np.ndarray]] = {}
    wrong: dict[str, str] = {}

    def collect(name, value, like):
        value = np.asarray(value, np.float64)
        values.setdefault(name, []).append(value)
        if value.shape != tuple(like):
            wrong.setdefault(name, _misshapen(value.shape, like))

    for t in range(length):
        state, x, cotangents = jax.tree.map(lambda leaf, t=t: leaf[t], rows)
        size = sum(leaf.size for leaf in jax.tree.leaves(state))
        collect(JACOBIAN, derivation.state_jacobian(params, state, x), (size, size))
        for c in range(count):
            cotangent = jax.tree.map(lambda leaf, c=c: leaf[c], cotangents)
            for name, (value, shape) in _pull(derivation, (params, state, x), cotangent, np).items():
                collect(name, value, shape)
        for name, value in _advance(derivation, params, state, x).items():
            collect(name, value, value.shape)
    result: dict[str, np.ndarray | str] = {}
    for name, each in values.items():
        leading = (length, count) if len(each) > length else (length,)
        result[name] = wrong.get(name) or np.stack(each).reshape(*leading, *each[0].shape)
    return result


def _advance(derivation, params, state, x):
    """{"advance": the state that a factored pullback advances to, [1, N]}; {} of any other pullback."""
    pullback = factored_pullback(derivation)
    if pullback is None:
        return {}
    return {ADVANCE: ravel_pytree(pullback.advance(params, state, pullback.drive(params, x))[0])[0][None]}


def _pull(derivation, params_state_x, cotangent, numpy):
    """{piece: (value, expected shape)} of one call of the pullback; numpy: the module to join arrays with."""
    pulled = derivation.pullback(*params_state_x, cotangent)
    if not isinstance(pulled, tuple) or len(pulled) != 3:
        raise ValueError(f"pullback: got {type(pulled).__name__}, expected (params, state, x) cotangents")
    found = {}
    for name, tree, like in zip(("params", "previous_state", "input"), pulled, params_state_x, strict=True):
        if name == "input" and not any(map(_validation.is_float, jax.tree.leaves(like))):
            continue  # inputs such as classes have no derivative
        require_structure(f"pullback's {name}", tree, like)
        found.update(_pairs(name, tree, like, numpy))
    return found


def _pairs(name, tree, like, numpy):
    """{piece: (value, expected shape)}: params leaf by leaf, a state or an input as one vector."""
    if name == "params":
        shapes = named_leaves(like)
        return {piece: (numpy.asarray(leaf), shapes[piece].shape) for piece, leaf in named_leaves(tree).items()}
    leaves = [
        (numpy.asarray(leaf), target)
        for leaf, target in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
        if _validation.is_float(target)
    ]
    wrong = [(leaf, target.shape) for leaf, target in leaves if leaf.shape != target.shape]
    if wrong or not leaves:
        return {name: wrong[0]} if wrong else {}
    vector = numpy.concatenate([leaf.ravel() for leaf, _ in leaves])
    return {name: (vector, vector.shape)}


def _values(pairs):
    return {name: value for name, (value, _) in pairs.items()}


def _misshapen(got, expected):
    return f"has shape {list(got)}, expected {list(expected)}"
