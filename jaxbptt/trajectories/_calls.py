"""What a recurrence is unrolled from and into, and the scan that does it step by step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.types import Inputs, Params, Recurrence, State, States, Unrolled


class Trajectory(NamedTuple):
    """The states h_0 … h_T and the inputs x_1 … x_T.

    Attributes:
      initial: h_0, pytree [...].
      inputs: x_1 … x_T, pytree [T, ...].
      states: h_1 … h_T, pytree [T, ...].

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, trajectories
      >>> cell = cells.from_step(lambda a, h, x: a * h + x, jnp.zeros_like)
      >>> trajectory = trajectories.unroll(cell, jnp.asarray(0.5), jnp.ones(3))
      >>> trajectory.states.tolist(), trajectory.previous.tolist()
      ([1.0, 1.5, 1.75], [0.0, 1.0, 1.5])
    """

    initial: State
    inputs: Inputs
    states: States

    @property
    def previous(self) -> States:
        """h_0 … h_{T−1}, pytree [T, ...]: the state before each step."""
        return states_before(self.initial, self.states)


def states_before(initial: State, states: States) -> States:
    """h_0 … h_{T−1} from h_0 and h_1 … h_T."""
    return jax.tree.map(lambda first, rest: jnp.concatenate((first[None], rest[:-1])), initial, states)


def flatten_steps(states: States) -> Float[Array, "time state"]:
    """The flattened states of all steps as rows; an LSTM's C comes first, then h.

    Args:
      states: pytree with leading T, such as `Trajectory.states`.

    Returns:
      [T, N], of the dtype of states.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, trajectories
      >>> states = cells.LSTMState(cell=jnp.ones((5, 2)), hidden=jnp.zeros((5, 2)))  # 5 steps
      >>> flat = trajectories.flatten_steps(states)
      >>> flat.shape, flat[0].tolist()
      ((5, 4), [1.0, 1.0, 0.0, 0.0])
    """
    return jax.vmap(lambda state: ravel_pytree(state)[0])(states)


class Call(NamedTuple):
    """What a function of one sequence was called with, checked, as JAX's arrays."""

    params: Params
    inputs: Inputs
    initial: State | None  # None: initial_state(params)
    length: int  # T


def run_steps(cell: Recurrence, params: Params, inputs: Inputs, initial: State | None) -> Trajectory:
    """`unroll` of arguments that are checked already."""
    initial = start_of(cell, params, initial)

    def body(state, x):
        state = cell.step(params, state, x)
        return state, state

    _, states = jax.lax.scan(body, initial, inputs)
    _validation.require_states(states, initial)
    return Trajectory(initial, inputs, states)


def start_of(cell: Recurrence, params: Params, initial: State | None) -> State:
    """h_0, the cell's own where none is given."""
    return jax.tree.map(jnp.asarray, cell.initial_state(params) if initial is None else initial)


def take_call(cell: Recurrence, params: Params, inputs: Inputs, initial: State | None = None) -> Call:
    """The arguments of a cell or model, as JAX's arrays; raise unless they fit together."""
    _validation.require_functions("cell", cell, ("initial_state", "step"))
    params, inputs = _validation.as_arrays("params", params), _validation.as_arrays("inputs", inputs)
    initial = _validation.as_arrays("initial", initial)
    dtype = _validation.require_params(params)
    _validation.require_like_init(params, cell.init)
    length = _validation.require_inputs(inputs, cell.num_inputs, dtype)
    own = _validation.require_initial_state(cell.initial_state, params, dtype)
    if initial is not None:
        _validation.require_state("initial", initial, own)
    _validation.require_step(cell.step, params, own, shapes_of_one_step(inputs))
    return Call(params, inputs, initial, length)


def take_trajectory(cell: Recurrence, params: Params, trajectory: Unrolled) -> tuple[Params, Trajectory, int]:
    """(params, trajectory, T), as JAX's arrays; raise unless they fit the cell and each other."""
    _validation.require_functions("cell", cell, ("initial_state", "step"))
    if not all(hasattr(trajectory, field) for field in Trajectory._fields):
        got = type(trajectory).__name__
        raise TypeError(f"trajectory: got {got}, expected a Trajectory: unroll(cell, params, inputs) makes one")
    params = _validation.as_arrays("params", params)
    trajectory = Trajectory(
        *(_validation.as_arrays(f"trajectory.{field}", getattr(trajectory, field)) for field in Trajectory._fields)
    )
    _validation.require_params(params)
    return params, trajectory, _validation.require_trajectory(cell, params, trajectory)


def shapes_of_one_step(tree: Any) -> Any:
    """The shapes and dtypes of x_t, from x_1 … x_T."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
