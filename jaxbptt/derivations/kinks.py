"""Kinks at the numbers a check visits: the check moves off them, and blames nobody for a choice made at one."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt._jaxprs.kinks import count_visits, find_kinks
from jaxbptt.derivations.compiled import map_rows
from jaxbptt.derivations.samples import Stream, normal_like
from jaxbptt.types import Inputs, Key, Params

SIZE = 1e-3  # of a move, relative to a leaf's root mean square


class Visit(NamedTuple):
    """Entries at which an operation is not differentiable."""

    name: str
    steps: tuple[int, ...]  # from 1
    entries: int

    def __str__(self) -> str:
        steps = ", ".join(map(str, self.steps))
        count = f"{self.entries} entries" if self.entries > 1 else "1 entry"
        return f"{self.name} is not differentiable at the argument visited at t = {steps}: {count}"


class Spot(NamedTuple):
    """Arguments at which to check."""

    params: Params
    inputs: Inputs
    visits: tuple[Visit, ...]  # kinks that are visited there
    notes: tuple[str, ...]


def move_off(find: Callable[[Params, Inputs], tuple[Visit, ...]], params: Params, inputs: Inputs, key: Key) -> Spot:
    """The arguments themselves if no kink is visited; else nearby ones: params moved, then inputs as well."""
    first = find(params, inputs)
    if not first:
        return Spot(params, inputs, (), ())
    moved = move(params, Stream(key, 4))
    notes = tuple(map(str, first))
    for what, near in (("params", inputs), ("params and inputs", move(inputs, Stream(key, 5)))):
        if not find(moved, near):
            return Spot(moved, near, (), (*notes, f"checked with {what} moved by {SIZE} of their size, off the kinks"))
    return Spot(params, inputs, first, notes)


def move(tree: Any, stream: Stream) -> Any:
    """Every float leaf moved by about `SIZE` of its root mean square."""

    def shift(leaf, noise):
        scale = np.sqrt(np.mean(np.square(np.asarray(leaf, np.float64)))) if leaf.size else 0
        return leaf + jnp.asarray(SIZE * (scale or 1), leaf.dtype) * noise

    leaves, structure = jax.tree.flatten(tree)
    floats = [leaf for leaf in leaves if _validation.is_float(leaf)]
    moved = iter(jax.tree.map(shift, floats, normal_like(stream, floats)))
    return jax.tree.unflatten(structure, [next(moved) if _validation.is_float(leaf) else leaf for leaf in leaves])


def find_visits(
    key: Hashable, function: Callable[..., Any], params: Params, states: Any, xs: Any, *, of_input: bool = False
) -> tuple[Visit, ...]:
    """Kinks of function(params, state, x) visited at states and xs with leading T."""
    kinks = find_kinks(function, params, *jax.tree.map(lambda leaf: leaf[0], (states, xs)), of_input=of_input)
    if kinks is None:
        return ()

    def body(shared, _):
        return jax.vmap(lambda state, x: count_visits(kinks, shared[0], state, x))(*shared[1:])

    counts = np.asarray(map_rows(key and ("kinks", key), body, (params, states, xs), np.zeros(1)))[0]  # [T, places]
    found: dict[str, np.ndarray] = {}
    for place, column in zip(kinks.places, counts.T, strict=True):
        found[place.name] = found.get(place.name, 0) + column
    return tuple(
        Visit(name, tuple(int(t) + 1 for t in np.flatnonzero(column)), int(np.sum(column)))
        for name, column in found.items()
        if np.any(column)
    )
