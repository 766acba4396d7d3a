"""J_t = ∂⁺h_t/∂⁺h_{t−1} for every step, and their ordered products dh_t/dh_k = J_t … J_{k+1}."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.trajectories import Trajectory


def step_jacobians(cell: Any, params: Any, trajectory: Trajectory, *, method: str = "auto") -> jax.Array:
    """J_t = ∂⁺f(h_{t−1}, x_t, θ)/∂⁺h_{t−1} at every step, on the flattened state (an LSTM's C first, then h).

    Args:
      cell: Cell or Model.
      params: its params.
      trajectory: from `unroll`.
      method: "closed" (the hand derivation), "forward" (jacfwd), "reverse" (jacrev), or "auto": closed if there is
        a derivation, else forward.

    Returns:
      [T, N, N], row = output, column = input; [t−1] is J_t.

    Raises:
      TypeError, ValueError: an unknown method; "closed" without a derivation; params or trajectory not as stated;
        outside jit, numbers that are not finite, with their step.

    Reference: S0.28.
    """
    checks.require_choice("method", method, ("auto", "closed", "forward", "reverse"))
    if method == "closed" and cell.derivation is None:
        raise ValueError("method: got 'closed', expected 'forward' or 'reverse' (this cell has no derivation)")
    checks.require_params(params)
    length = checks.require_time_axis("trajectory.states", trajectory.states)
    checks.require_time_axis("trajectory.inputs", trajectory.inputs, length)
    checks.require_state("trajectory.initial", trajectory.initial, jax.eval_shape(cell.initial_state, params))

    def jacobian(state, x):
        if method in ("auto", "closed") and cell.derivation is not None:
            return cell.derivation.state_jacobian(params, state, x)
        flat, unravel = ravel_pytree(state)
        differentiate = jax.jacrev if method == "reverse" else jax.jacfwd
        return differentiate(lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0])(flat)

    jacobians = jax.vmap(jacobian)(trajectory.previous, trajectory.inputs)
    checks.require_finite_steps("jacobians", jacobians)
    return jacobians


def product(jacobians: jax.Array, start: int, stop: int) -> jax.Array:
    """dh_stop/dh_start = J_stop J_{stop−1} … J_{start+1}, assembled in plain floats.

    Args:
      jacobians: [T, N, N], [t−1] is J_t.
      start, stop: static ints, 0 ≤ start ≤ stop ≤ T; equal ones give the identity.

    Returns:
      [N, N]. It overflows and loses small singular values as any assembled product does: see `log_singular_values`.

    Raises:
      TypeError, ValueError: jacobians or the span not as stated.

    Reference: S4.7.
    """
    checks.require_jacobians(jacobians)
    start, stop = checks.require_span(start, stop, len(jacobians))
    identity = jnp.eye(jacobians.shape[1], dtype=jacobians.dtype)
    return jax.lax.scan(lambda total, jacobian: (jacobian @ total, None), identity, jacobians[start:stop])[0]


def prefix_products(jacobians: jax.Array) -> jax.Array:
    """dh_t/dh_0 = J_t … J_1 for t = 1 … T, assembled in plain floats.

    Args:
      jacobians: [T, N, N], [t−1] is J_t.

    Returns:
      [T, N, N]; the same limits as `product`.

    Raises:
      TypeError, ValueError: jacobians not as stated.
    """
    checks.require_jacobians(jacobians)

    def body(total, jacobian):
        total = jacobian @ total
        return total, total

    identity = jnp.eye(jacobians.shape[1], dtype=jacobians.dtype)
    return jax.lax.scan(body, identity, jacobians)[1]
