"""The forward pass: one scan, every state kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import checks


class Trajectory(NamedTuple):
    """h_0 … h_T and the inputs that drove them."""

    initial: Any  # h_0, pytree [...]
    inputs: Any  # x_1 … x_T, pytree [T, ...]
    states: Any  # h_1 … h_T, pytree [T, ...]

    @property
    def previous(self) -> Any:
        """h_0 … h_{T−1}, pytree [T, ...]: what each step started from."""
        return jax.tree.map(lambda first, rest: jnp.concatenate((first[None], rest[:-1])), self.initial, self.states)


def unroll(cell: Any, params: Any, inputs: Any, *, initial: Any = None) -> Trajectory:
    """h_t = f(θ, h_{t−1}, x_t) for t = 1 … T, by one `lax.scan`.

    Args:
      cell: Cell or Model.
      params: as its `init` draws them; float leaves of one dtype.
      inputs: [T, M] for a cell that knows M, of the dtype of params; else any pytree with leading T.
      initial: h_0, shaped like `cell.initial_state(params)`, which it replaces.

    Returns:
      Trajectory(initial, inputs, states [T, ...]).

    Raises:
      TypeError, ValueError: params, inputs or initial of wrong structure, shape or dtype; T = 0; a step that changes
        its state's structure, shapes or dtypes; outside jit, a state that is not finite, with its step.
    """
    require_call(cell, params, inputs, initial)
    initial = cell.initial_state(params) if initial is None else initial
    initial = jax.tree.map(jnp.asarray, initial)

    def body(state, x):
        state = cell.step(params, state, x)
        return state, state

    _, states = jax.lax.scan(body, initial, inputs)
    checks.require_finite_steps("states", states)
    return Trajectory(initial, inputs, states)


def require_call(cell: Any, params: Any, inputs: Any, initial: Any) -> int:
    """Raise unless (params, inputs, initial) fit the cell; return T."""
    dtype = checks.require_params(params)
    checks.require_like_init(params, cell.init)
    length = checks.require_inputs(inputs, cell.num_inputs, dtype)
    own = jax.eval_shape(cell.initial_state, params)
    checks.require_state("initial_state(params)", own, own)
    if initial is not None:
        checks.require_state("initial", initial, own)
    checks.require_step(cell.step, params, own, inputs)
    return length
