"""J_t = ∂⁺h_t/∂⁺h_{t−1} for every step, and their ordered products dh_t/dh_k = J_t … J_{k+1}."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.cells.derivation import JacobianParts
from jaxbptt.trajectories import Trajectory


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params", "factors"), meta_fields=("parts",))
@dataclasses.dataclass(frozen=True)
class StructuredJacobians:
    """J_1 … J_T by their diagonals and blocks: T·O(N) numbers, multiplied without being put together.

    `product`, `prefix_products` and `lyapunov_exponents` take it in place of [T, N, N].
    """

    params: Any
    factors: Any  # pytree [T, ...], what a cotangent is multiplied by
    parts: JacobianParts

    def __len__(self) -> int:
        return jax.tree.leaves(self.factors)[0].shape[0]

    def at(self, factors: Any) -> Any:
        """The parts of one step, from its factors.

        Args:
          factors: those of one step.

        Returns:
          Pytree, as the derivation's `parts` take it.
        """
        return self.parts.form(self.params, factors)

    def dense(self, factors: Any) -> jax.Array:
        """J_t [N, N] of one step.

        Args:
          factors: those of one step.

        Returns:
          [N, N].
        """
        return self.parts.dense(self.at(factors))

    def assemble(self) -> jax.Array:
        """All of them.

        Returns:
          [T, N, N], as `step_jacobians`.
        """
        return jax.vmap(self.dense)(self.factors)


def step_jacobians(cell: Any, params: Any, trajectory: Trajectory, *, method: str = "auto") -> jax.Array:
    """J_t = ∂⁺f(h_{t−1}, x_t, θ)/∂⁺h_{t−1} at every step, on the flattened state (an LSTM's C first, then h).

    Args:
      cell: Cell or Model.
      params: its params.
      trajectory: from `unroll`.
      method: "closed" (the hand derivation), "forward" (jacfwd), "reverse" (jacrev), or "auto": closed if there is
        a derivation (2 to 10 times faster), else forward (N jvps share one evaluation; jacrev pays for it N times).

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
    _require_trajectory(cell, params, trajectory)

    def jacobian(state, x):
        if method in ("auto", "closed") and cell.derivation is not None:
            return cell.derivation.state_jacobian(params, state, x)
        flat, unravel = ravel_pytree(state)
        differentiate = jax.jacrev if method == "reverse" else jax.jacfwd
        return differentiate(lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0])(flat)

    jacobians = jax.vmap(jacobian)(trajectory.previous, trajectory.inputs)
    checks.require_finite_steps("jacobians", jacobians)
    return jacobians


def structured_jacobians(cell: Any, params: Any, trajectory: Trajectory) -> StructuredJacobians:
    """`step_jacobians` by diagonals and blocks, for a cell whose derivation names them (the built-in ones).

    Memory T·N instead of T·N²; a product of an LSTM's costs half the flops. Costs one forward pass over all steps.

    Args:
      cell: Cell or Model.
      params: its params.
      trajectory: from `unroll`.

    Returns:
      StructuredJacobians of T steps.

    Raises:
      TypeError, ValueError: a cell without such a derivation; params or trajectory not as stated; outside jit, numbers
        that are not finite, with their step.
    """
    if cell.derivation is None or cell.derivation.parts is None:
        raise ValueError("cell: got one without parts of its Jacobian, expected a derivation with them")
    _require_trajectory(cell, params, trajectory)
    pullback = cell.derivation.pullback
    factors = jax.vmap(pullback.factors, in_axes=(None, 0, 0))(params, trajectory.previous, trajectory.inputs)
    checks.require_finite_steps("factors", factors)
    return StructuredJacobians(params, factors, cell.derivation.parts)


def product(jacobians: jax.Array | StructuredJacobians, start: int, stop: int) -> jax.Array:
    """dh_stop/dh_start = J_stop J_{stop−1} … J_{start+1}, assembled in plain floats.

    Args:
      jacobians: [T, N, N], [t−1] is J_t; or structured.
      start, stop: static ints, 0 ≤ start ≤ stop ≤ T; equal ones give the identity.

    Returns:
      [N, N]. It overflows and loses small singular values as any assembled product does: see `log_singular_values`.

    Raises:
      TypeError, ValueError: jacobians or the span not as stated.

    Reference: S4.7.
    """
    steps, multiply, identity = _multiplication(jacobians)
    start, stop = checks.require_span(start, stop, len(jacobians))
    span = jax.tree.map(lambda leaf: leaf[start:stop], steps)
    return jax.lax.scan(lambda total, step: (multiply(step, total), None), identity, span)[0]


def prefix_products(jacobians: jax.Array | StructuredJacobians) -> jax.Array:
    """dh_t/dh_0 = J_t … J_1 for t = 1 … T, assembled in plain floats.

    Args:
      jacobians: [T, N, N], [t−1] is J_t; or structured.

    Returns:
      [T, N, N]; the same limits as `product`.

    Raises:
      TypeError, ValueError: jacobians not as stated.
    """
    steps, multiply, identity = _multiplication(jacobians)

    def body(total, step):
        total = multiply(step, total)
        return total, total

    return jax.lax.scan(body, identity, steps)[1]


def _multiplication(jacobians):
    """(what a scan reads, its (that, matrix) -> J_t matrix, the identity)."""
    if isinstance(jacobians, StructuredJacobians):
        one = jax.eval_shape(jacobians.dense, jax.tree.map(lambda leaf: leaf[0], jacobians.factors))
        multiply = lambda factors, matrix: jacobians.parts.left(jacobians.at(factors), matrix)  # noqa: E731
        return jacobians.factors, multiply, jnp.eye(one.shape[0], dtype=one.dtype)
    checks.require_jacobians(jacobians)
    return jacobians, jnp.matmul, jnp.eye(jacobians.shape[1], dtype=jacobians.dtype)


def _require_trajectory(cell, params, trajectory):
    checks.require_params(params)
    length = checks.require_time_axis("trajectory.states", trajectory.states)
    checks.require_time_axis("trajectory.inputs", trajectory.inputs, length)
    checks.require_state("trajectory.initial", trajectory.initial, jax.eval_shape(cell.initial_state, params))
