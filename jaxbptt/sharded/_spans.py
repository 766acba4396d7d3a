"""A sequence cut into one span of steps a device: what passes between neighbours, and scans over the devices."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbptt import _validation

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Axis:
    """D devices in a row, of which device d holds the d-th share."""

    name: str
    size: int  # D

    def index(self) -> jax.Array:
        """d, inside `on_devices`."""
        return jax.lax.axis_index(self.name).astype(jnp.result_type(int))

    def place(self, reverse: bool) -> jax.Array:
        """How many devices come before this one, from the first or from the last."""
        return self.size - 1 - self.index() if reverse else self.index()

    def hop(self, value: T, distance: int, reverse: bool = False) -> T:
        """What the device `distance` places before holds: one `ppermute`; zeros where there is none."""
        moves = [(d, d + distance) for d in range(self.size - distance)]
        moves = [(late, early) for early, late in moves] if reverse else moves
        return jax.lax.ppermute(value, self.name, moves)


def take_axis(mesh: Mesh, name: str, argument: str) -> Axis:
    """The axis of that name; raises unless the mesh has it."""
    _validation.require_type("mesh", mesh, Mesh, "a jax.sharding.Mesh, as jax.make_mesh makes one")
    if name not in mesh.axis_names:
        names = ", ".join(map(repr, mesh.axis_names))
        raise ValueError(f"{argument}: got {name!r}, expected an axis of the mesh: {names}")
    return Axis(name, mesh.shape[name])


def require_shares(argument: str, what: str, length: int, axis: Axis) -> int:
    """How much of `length` each device takes; raises unless all take the same."""
    if length % axis.size:
        below = length // axis.size * axis.size
        near = f"{below} or {below + axis.size}" if below else str(axis.size)
        raise ValueError(
            f"{argument}: got {what} = {length} on the {axis.size} devices of mesh axis {axis.name!r}, expected a"
            f" multiple of {axis.size}, such as {near}"
        )
    return length // axis.size


def on_devices(function: Callable[..., T], mesh: Mesh, arguments: Any, results: Any) -> Callable[..., T]:
    """`function` on every device's share of its arguments.

    What comes out as `PartitionSpec()` must be equal on all devices; scans begin from constants, which JAX's own check
    of that does not allow. The axes are taken as automatic ones, so that results can be used like any other array, but
    for a mesh that the caller has set: then they are of its kind, and so are the results.
    """
    mesh = _as_set(mesh)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=arguments, out_specs=results, check_vma=False)
    explicit = explicit_axes(mesh)
    if not explicit:
        return mapped

    def resharded(*given):
        def lay(spec, tree):
            place = NamedSharding(mesh, PartitionSpec(*(name if name in explicit else None for name in spec)))
            return jax.tree.map(lambda leaf: jax.reshard(leaf, place), tree)

        return mapped(*map(lay, arguments, given))

    return resharded


def explicit_axes(mesh: Mesh) -> tuple[str, ...]:
    """Those whose shardings are part of the types of arrays."""
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in pairs if kind == AxisType.Explicit)


def _as_set(mesh):
    """The mesh with axes of the kinds that the caller has set (`jax.set_mesh`); automatic ones where nothing is set."""
    context = jax.sharding.get_abstract_mesh()
    if context.empty:
        return Mesh(mesh.devices, mesh.axis_names)
    if (context.axis_names, context.axis_sizes) != (mesh.axis_names, mesh.axis_sizes):
        said = dict(mesh.shape), dict(context.shape)
        raise ValueError(f"mesh: got {said[0]}, expected the one that jax.set_mesh has set, {said[1]}")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=context.axis_types)


def cut(axis: int, *names: str | None) -> PartitionSpec:
    """Sharded over these mesh axes from array axis `axis` on."""
    return PartitionSpec(*(None,) * axis, *names)


def relay(run: Callable[[T], T], value: T, axis: Axis, *, reverse: bool = False) -> T:
    """What this device's span starts from, where the first one starts from `value`; `run` carries it over a span.

    One device after the other, the others wait: D − 1 hops of one value.
    """
    place = axis.place(reverse)

    def turn(at, carry):
        value, start = carry
        value = jax.lax.cond(place == at, run, lambda same: same, value)
        value = select(place == at + 1, axis.hop(value, 1, reverse), value)
        return value, select(place == at + 1, value, start)

    return jax.lax.fori_loop(0, axis.size - 1, turn, (value, value))[1]


def scan_devices(join: Callable[[T, T], T], value: T, axis: Axis, *, reverse: bool = False) -> tuple[T, T]:
    """(the values up to this device's, joined; those before it, of no meaning on the first).

    join(earlier, later), associative. By doubling: ⌈log₂ D⌉ + 1 hops of one value, and as many joins.

    Reference: Hillis & Steele (1986), Comm. ACM 29.
    """
    place, distance = axis.place(reverse), 1
    while distance < axis.size:
        before = axis.hop(value, distance, reverse)
        value = jax.lax.cond(place >= distance, join, lambda _, own: own, before, value)
        distance *= 2
    return value, axis.hop(value, 1, reverse)


def select(condition: jax.Array, new: T, old: T) -> T:
    """Leaf by leaf."""
    return jax.tree.map(lambda one, other: jnp.where(condition, one, other), new, old)
