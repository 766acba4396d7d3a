"""States of one long sequence over several devices."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxbptt import _validation
from jaxbptt.sharded._maps import Shape
from jaxbptt.sharded._place import UNROLL_METHODS, Place, find_start, is_affine, place
from jaxbptt.sharded._spans import cut, on_devices
from jaxbptt.trajectories import Trajectory, run_steps, take_call
from jaxbptt.trajectories._calls import start_of
from jaxbptt.types import Inputs, Params, Recurrence, State


def unroll(
    cell: Recurrence,
    params: Params,
    inputs: Inputs,
    *,
    mesh: Mesh,
    time: str = "time",
    initial: State | None = None,
    method: str = "auto",
) -> Trajectory:
    """h_t = f(h_{t−1}, x_t, θ) as `trajectories.unroll`, each device its own steps.

    "sequential": the state is relayed from span to span, then all spans run once more at once: (D − 1) L + L dependent
    steps of L = T/D, D − 1 hops of one state. "parallel", of cells that are affine in h: 3 L dependent steps and
    ⌈log₂ D⌉ + 1 hops of one map; NaN where the maps have lost half the digits (steps that undo their own growth).
    Memory of a device: 1/D of the inputs and states.

    Args:
      cell: Cell or Model; of a batch, all its sequences on each device.
      params, inputs, initial: as in `trajectories.unroll`.
      mesh, time: as in `bptt`.
      method: "sequential", "parallel", or "auto": parallel where the derivation says that the cell is affine.

    Returns:
      Trajectory; inputs and states are cut over the devices.

    Raises:
      TypeError, ValueError: as `trajectories.unroll`; "parallel" of a cell that is not known to be affine; a mesh or T
        that do not fit, as in `bptt`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, sharded
      >>> cell = cells.from_step(lambda a, h, x: a * h + x, jnp.zeros_like)
      >>> mesh = jax.make_mesh((jax.device_count(),), ("time",))
      >>> steps = sharded.unroll(cell, jnp.asarray(0.5), jnp.ones(3 * jax.device_count()), mesh=mesh)
      >>> steps.states[:3].tolist()
      [1.0, 1.5, 1.75]
    """
    _validation.require_choice("method", method, UNROLL_METHODS)
    params, inputs, initial, length = take_call(cell, params, inputs, initial)
    at = place(cell, mesh, time, None, length)
    if method == "parallel" and not is_affine(at.single):
        raise ValueError(
            "cell: got one that is not known to be affine in its state, expected a derivation with"
            " BlockParts(affine=True), or method='sequential'"
        )
    first = start_of(cell, params, initial)

    def on_one(params, first, inputs):
        return run_span(at, params, first, inputs, at.shape(params, first, inputs), method).states

    states = on_devices(on_one, mesh, (PartitionSpec(), at.states, at.data), cut(0, time))(params, first, inputs)
    _validation.require_states(states, first)
    return Trajectory(first, inputs, states)


def run_span(at: Place, params: Params, first: State, inputs: Inputs, shape: Shape, method: str) -> Trajectory:
    skip = lambda state: jax.lax.scan(lambda state, x: (at.model.step(params, state, x), None), state, inputs)[0]
    start, agrees = find_start(at, params, first, inputs, shape, method, skip)
    steps = run_steps(at.model, params, inputs, start)
    known = agrees(jax.tree.map(lambda leaf: leaf[-1], steps.states))
    return jax.tree.map(lambda leaf: jnp.where(known, leaf, jnp.nan), steps._replace(inputs=None))._replace(
        inputs=inputs
    )
