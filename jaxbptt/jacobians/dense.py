"""J_t = ∂⁺h_t/∂⁺h_{t−1} of every step, as matrices."""

from typing import Literal, TypeAlias, get_args

import jax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.partials import MISSING_RULE, step_partials
from jaxbptt.trajectories import take_trajectory
from jaxbptt.types import Params, Recurrence, Unrolled

JacobianMethod: TypeAlias = Literal["auto", "closed", "forward", "reverse"]


def step_jacobians(
    cell: Recurrence, params: Params, trajectory: Unrolled, *, method: JacobianMethod = "auto"
) -> Float[Array, "time state state"]:
    """J_t = dh_t/dh_{t-1} = ∂⁺f(h_{t-1}, x_t, θ)/∂⁺h_{t-1} at every step, on the flattened state (LSTM: C, then h).

    Args:
      cell: Cell or Model.
      params: θ.
      trajectory: from `unroll`.
      method: "closed" (the hand derivation), "forward" (jacfwd), "reverse" (jacrev), or "auto": closed if there is
        a derivation (2 to 10 times faster), else forward (N jvps share one evaluation; jacrev pays for it N times).

    Returns:
      [T, N, N], row = output, column = input, of the dtype of the state; [t−1] is J_t.

    Raises:
      TypeError, ValueError: an unknown method; "closed" without a derivation; params or trajectory that do not fit the
        cell; outside jit, NaN or inf, with its first step.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians, trajectories
      >>> cell = cells.elman(num_inputs=1, num_hidden=2, recurrent=cells.identity(0.5))
      >>> params = cell.init(jax.random.key(0))
      >>> trajectory = trajectories.unroll(cell, params, jnp.zeros((3, 1)))  # h = 0, φ' = 1: J_t = W_hh
      >>> jacobians.step_jacobians(cell, params, trajectory)[0].tolist()
      [[0.5, 0.0], [0.0, 0.5]]

    Reference: J_f = [∂f_i/∂x_j], row i the derivatives of f_i; S0.28.
    """
    _validation.require_choice("method", method, get_args(JacobianMethod))
    partials = step_partials(cell)
    if method == "closed" and partials.source == "automatic":
        raise ValueError("method: got 'closed', expected 'forward' or 'reverse' (this cell has no derivation)")
    params, trajectory, _ = take_trajectory(cell, params, trajectory)

    def at(state, x):
        if method in ("auto", "closed"):
            return partials.jacobian(params, state, x)
        flat, unravel = ravel_pytree(state)
        differentiate = jax.jacrev if method == "reverse" else jax.jacfwd
        try:
            return differentiate(lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0])(flat)
        except MISSING_RULE as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"method: got {method!r}, expected 'auto' (step has no such rule: {reason})") from error

    jacobians = jax.vmap(at)(trajectory.previous, trajectory.inputs)
    _validation.require_finite_steps("jacobians", jacobians)
    return jacobians
