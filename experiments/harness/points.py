"""The points of a sweep as one compiled function over a mesh: every device computes one point of a round.

A sweep of P points on D devices takes ⌈P/D⌉ rounds of one and the same program. It has no collective: points do not
depend on each other. Per device it holds what one point takes; per round each device is sent its point's arguments, and
its results are gathered once, by the process alone from its own devices or by one all-gather where there are several.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from . import hosts

AXIS = "points"


class Traced(NamedTuple):
    """One point. Those of the same `stages` (the same objects), their arguments of the same shapes, share programs."""

    stages: tuple[Callable[[Any], Any], ...]  # pure, traced: arguments -> a pytree of arrays -> …; a program each
    arguments: Any  # a pytree of arrays
    finish: Callable[[Any], Any] = lambda result: result  # on the host, of the result as NumPy arrays


def make_rounds(todo: Mapping[str, Traced], devices: int) -> list[tuple[str, ...]]:
    """Names of the points, at most one for each device, those of a round of the same stages."""
    groups = groupby(todo, key=lambda name: todo[name].stages)
    return [names for _, group in groups for names in _in_batches(list(group), devices)]


def describe_idle(rounds: Sequence[Sequence[str]], devices: int) -> str:
    """In words, where the last round of the same stages leaves devices without a point of their own; else ""."""
    count, places = sum(map(len, rounds)), devices * len(rounds)
    if count == places:
        return ""
    rounds_of, idle = ("1 round" if len(rounds) == 1 else f"{len(rounds)} rounds"), places - count
    return f"{count} point{'s' * (count > 1)} on {devices} devices: {rounds_of}, {idle} place{'s' * (idle > 1)} idle"


def spread(function: Callable[[Any], Any], mesh: Mesh) -> Callable[[Any], Any]:
    """The compiled function of D points, one a device: every leaf of arguments and results is [D, ...]."""

    def compute(arguments):
        result = function(jax.tree.map(lambda leaf: leaf[0], arguments))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], result)

    over = PartitionSpec(AXIS)
    # What a scan inside begins with need not vary over the points, as its type would have to say.
    return jax.jit(jax.shard_map(compute, mesh=mesh, in_specs=over, out_specs=over, check_vma=False))


class Rounds:
    """Computes the points of a round; every stage is compiled once."""

    def __init__(self, group: hosts.Group):
        self._mesh, self._programs = Mesh(np.array(group.find_devices()), (AXIS,)), {}

    def compute(self, points: Sequence[Traced]) -> list[Any]:
        """Results on the host, finished. Idle places compute the last point again."""
        count = self._mesh.size
        filled = [point.arguments for point in points] + [points[-1].arguments] * (count - len(points))
        stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(jnp.asarray(leaf)) for leaf in leaves]), *filled)
        result = jax.tree.map(self._place, stacked)
        for stage in points[0].stages:
            if stage not in self._programs:
                self._programs[stage] = spread(stage, self._mesh)
            result = self._programs[stage](result)
        every = hosts.gather(result)
        return [point.finish(jax.tree.map(lambda leaf, i=i: leaf[i], every)) for i, point in enumerate(points)]

    def _place(self, leaf):
        sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def _in_batches(names, size):
    return [tuple(names[i : i + size]) for i in range(0, len(names), size)]
