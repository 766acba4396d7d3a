"""States too large for one device: leading singular values of nets whose weights are cut by rows."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbptt.sharded._spans import require_shares, take_axis
from jaxbptt.spectra.matrix_free import LeadingSVD
from jaxbptt.spectra.matrix_free import leading_singular_values as of_one_device
from jaxbptt.trajectories import Trajectory, take_trajectory
from jaxbptt.types import Key, Params, Recurrence, Scalar, Unrolled


def row_shardings(params: Params, *, mesh: Mesh, state: str = "state") -> Any:
    """Where each leaf of θ goes for `leading_singular_values`: cut by its first axis, or on every device.

    Args:
      params: θ, arrays or shapes (`jax.eval_shape(cell.init, key)`).
      mesh: `jax.make_mesh((D,), ("state",))`.
      state: the mesh axis over which the entries of the state are cut.

    Returns:
      A pytree of `NamedSharding` shaped like params: by rows where the first axis is a multiple of D, else replicated.

    Raises:
      TypeError, ValueError: a mesh that is none; an axis that it lacks.

    Example:
      >>> import jax
      >>> from jaxbptt import cells, sharded
      >>> mesh, cell = jax.make_mesh((jax.device_count(),), ("state",)), cells.elman(1, 8 * jax.device_count())
      >>> places = sharded.row_shardings(jax.eval_shape(cell.init, jax.random.key(0)), mesh=mesh)
      >>> params = jax.jit(cell.init, out_shardings=places)(jax.random.key(0))  # no device ever holds all of w_hh
      >>> params.w_hh.addressable_shards[0].data.shape[0]
      8
    """
    axis, automatic = take_axis(mesh, state, "state"), Mesh(mesh.devices, mesh.axis_names)

    def place(leaf):
        if not hasattr(leaf, "shape"):
            raise TypeError(f"params: got {type(leaf).__name__}, expected arrays or their shapes")
        by_rows = len(leaf.shape) > 0 and leaf.shape[0] % axis.size == 0
        return NamedSharding(automatic, PartitionSpec(state) if by_rows else PartitionSpec())

    return jax.tree.map(place, params)


def leading_singular_values(
    cell: Recurrence,
    params: Params,
    trajectory: Unrolled,
    *,
    k: int,
    key: Key,
    mesh: Mesh,
    state: str = "state",
    start: int = 0,
    stop: int | None = None,
    oversampling: int = 16,
    tolerance: float | Scalar = 1e-3,
    max_rounds: int = 8,
) -> LeadingSVD:
    """The k largest σ_i(dh_stop/dh_start) as `spectra.leading_singular_values`, the state cut over devices.

    The program is that of one device, from products with the step alone (jvp and vjp), partitioned by XLA: with W
    [N, N] cut by rows, a product W v gathers v, N p numbers (p = k + oversampling), a product Wᵀ u adds up as many, and
    an orthonormalisation adds up p². Memory of a device: 1/D of θ and of the trajectory, and a few [N, p].
    Compile it.

    Args:
      cell: Cell or Model; only its step is used.
      params: θ, laid out by `row_shardings`.
      trajectory: from `trajectories.unroll` on these params; every leaf of a state has a first axis that is a multiple
        of D.
      mesh, state: as in `row_shardings`.
      k, key, start, stop, oversampling, tolerance, max_rounds: as in `spectra.leading_singular_values`.

    Returns:
      LeadingSVD; `left` and `right` are cut over the devices by rows.

    Raises:
      TypeError, ValueError: as `spectra.leading_singular_values`; a mesh that is none; an axis that it lacks; a state
        that cannot be cut over it; a mesh set with explicit axes, by which the program is not partitioned.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, sharded, trajectories
      >>> mesh = jax.make_mesh((jax.device_count(),), ("state",))
      >>> cell = cells.from_step(lambda a, h, x: a * h, jnp.ones_like)  # J = diag(a)
      >>> a = jnp.linspace(0.1, 0.9, 8 * jax.device_count())
      >>> a = jax.device_put(a, sharded.row_shardings(a, mesh=mesh))
      >>> steps, options = trajectories.unroll(cell, a, jnp.zeros(10)), {"k": 1, "key": jax.random.key(0), "mesh": mesh}
      >>> found = jax.jit(lambda *at: sharded.leading_singular_values(cell, *at, **options))(a, steps)
      >>> round(float(found.log_sigma[0]), 3)  # 10 ln 0.9
      -1.054

    Reference: Halko, Martinsson & Tropp (2011), SIAM Review 53, algorithm 4.4.
    """
    axis, automatic = take_axis(mesh, state, "state"), Mesh(mesh.devices, mesh.axis_names)

    def cut(leaf, before):
        if leaf.ndim <= before:
            raise ValueError(f"trajectory: got a scalar in the state, expected a multiple of {axis.size} entries")
        require_shares("trajectory", "N", leaf.shape[before], axis)
        spec = PartitionSpec(*(None,) * before, state)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(automatic, spec))

    if AxisType.Explicit in getattr(jax.sharding.get_abstract_mesh(), "axis_types", ()):
        raise ValueError("mesh: got one set with explicit axes, expected none set, or axis_types of AxisType.Auto")
    params, trajectory, _ = take_trajectory(cell, params, trajectory)
    trajectory = Trajectory(
        jax.tree.map(lambda leaf: cut(leaf, 0), trajectory.initial),
        trajectory.inputs,
        jax.tree.map(lambda leaf: cut(leaf, 1), trajectory.states),
    )
    found = of_one_device(
        cell,
        params,
        trajectory,
        k=k,
        start=start,
        stop=stop,
        key=key,
        oversampling=oversampling,
        tolerance=tolerance,
        max_rounds=max_rounds,
    )
    return found._replace(left=cut(found.left, 0), right=cut(found.right, 0))
