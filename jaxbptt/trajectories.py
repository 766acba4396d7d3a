"""The forward pass: one scan that keeps every state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.types import Inputs, Params, Recurrence, State, States

__all__ = ["Trajectory", "flatten_steps", "unroll"]


class Trajectory(NamedTuple):
    """The states h_0 … h_T and the inputs x_1 … x_T."""

    initial: State  # h_0, pytree [...]
    inputs: Inputs  # x_1 … x_T, pytree [T, ...]
    states: States  # h_1 … h_T, pytree [T, ...]

    @property
    def previous(self) -> States:
        """h_0 … h_{T−1}, pytree [T, ...]: the state before each step."""
        return jax.tree.map(lambda first, rest: jnp.concatenate((first[None], rest[:-1])), self.initial, self.states)


def unroll(cell: Recurrence, params: Params, inputs: Inputs, *, initial: State | None = None) -> Trajectory:
    """h_t = f(h_{t−1}, x_t, θ) for t = 1 … T, by one `lax.scan`.

    Args:
      cell: Cell or Model.
      params: θ, with the structure that `cell.init` draws; float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] of the dtype of params for a cell with known M; else any pytree with leading T.
      initial: h_0, shaped like `cell.initial_state(params)`; None: that state.

    Returns:
      Trajectory(initial, inputs, states [T, ...]).

    Raises:
      TypeError, ValueError: params, inputs or initial of wrong structure, shape or dtype; T = 0; a step that changes
        the structure, shapes or dtypes of the state; outside jit, NaN or inf in a state, with its first step.
    """
    require_call(cell, params, inputs, initial)
    initial = cell.initial_state(params) if initial is None else initial
    initial = jax.tree.map(jnp.asarray, initial)

    def body(state, x):
        state = cell.step(params, state, x)
        return state, state

    _, states = jax.lax.scan(body, initial, inputs)
    _validation.require_finite_steps("states", states)
    return Trajectory(initial, inputs, states)


def flatten_steps(states: States) -> Float[Array, "time state"]:
    """The flattened states of all steps as rows; an LSTM's C comes first, then h.

    Args:
      states: pytree with leading T, such as `Trajectory.states`.

    Returns:
      [T, N], of the dtype of states.
    """
    return jax.vmap(lambda state: ravel_pytree(state)[0])(states)


def require_call(cell: Recurrence, params: Params, inputs: Inputs, initial: State | None) -> int:
    """Raise unless (params, inputs, initial) fit the cell; return T."""
    dtype = _validation.require_params(params)
    _validation.require_like_init(params, cell.init)
    length = _validation.require_inputs(inputs, cell.num_inputs, dtype)
    own = jax.eval_shape(cell.initial_state, params)
    _validation.require_state("initial_state(params)", own, own)
    if initial is not None:
        _validation.require_state("initial", initial, own)
    _validation.require_step(cell.step, params, own, inputs)
    return length
