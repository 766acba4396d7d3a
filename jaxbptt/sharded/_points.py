"""The points of a sweep over several devices."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from jaxbptt import _validation
from jaxbptt.sharded._spans import cut, on_devices, require_shares, take_axis

T = TypeVar("T")


def map_points(function: Callable[[Any], T], points: Any, *, mesh: Mesh, axis: str = "points") -> T:
    """function(point) of every point, each device its share, one after the other: one program, nothing is exchanged.

    Args:
      function: of one point; traced.
      points: pytree with leading P on every leaf.
      mesh: `jax.make_mesh((D,), ("points",))`.
      axis: the mesh axis over which points are cut; P is a multiple of its devices.

    Returns:
      What function returns with leading P, cut over the devices. Memory of a device: its share, and that of one point.

    Raises:
      TypeError, ValueError: a mesh that is none; an axis that it lacks; points without a common leading axis; P that is
        no multiple of D.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import sharded
      >>> mesh = jax.make_mesh((jax.device_count(),), ("points",))
      >>> gains = jnp.arange(2.0 * jax.device_count())
      >>> sharded.map_points(lambda gain: gain**2, gains, mesh=mesh)[:2].tolist()
      [0.0, 1.0]
    """
    if not callable(function):
        raise TypeError(f"function: got {type(function).__name__}, expected a function of one point")
    points = _validation.as_arrays("points", points)
    shapes = [leaf.shape for leaf in jax.tree.leaves(points)]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise ValueError(f"points: got leaves of shapes {shapes}, expected one leading axis for all")
    require_shares("points", "P", shapes[0][0], take_axis(mesh, axis, "axis"))
    return on_devices(lambda share: jax.lax.map(function, share), mesh, (cut(0, axis),), cut(0, axis))(points)
