"""The forward pass by Newton's method on all steps at once."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool

from jaxbptt import _validation
from jaxbptt.cells.structure import BlockParts, Core, form_steps
from jaxbptt.partials import Partials, step_partials
from jaxbptt.trajectories._affine import apply_steps, solve_recursion, solve_transposed
from jaxbptt.trajectories._calls import flatten_steps, states_before
from jaxbptt.types import Inputs, Integer, Params, Recurrence, Scalar, State, States

MOST_ITERATIONS = 100
ROUNDINGS = 16  # a residual of so many eps of the largest entry so far is rounding alone


class NewtonTrajectory(NamedTuple):
    """A Trajectory and how Newton's method found it; every function that takes a Trajectory takes it.

    Attributes:
      initial: h_0, pytree [...].
      inputs: x_1 … x_T, pytree [T, ...].
      states: h_1 … h_T, pytree [T, ...]; NaN from the first step on that is not settled.
      converged: bool [], whether every |h_t − f(h_{t−1}, x_t)| is rounding alone.
      iterations: int [], how many there were.
      residual: float [], max_t |h_t − f(h_{t−1}, x_t)| in the units of the state, also of the steps that are NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, trajectories
      >>> cell = cells.from_step(lambda a, h, x: jnp.tanh(a * h + x), jnp.zeros_like)
      >>> found = trajectories.unroll(cell, jnp.asarray(0.5), jnp.ones(8), method="newton")
      >>> bool(found.converged), float(found.residual) < 1e-6, int(found.iterations) <= 8
      (True, True, True)
    """

    initial: State
    inputs: Inputs
    states: States
    converged: Bool[Array, ""]
    iterations: Integer
    residual: Scalar

    @property
    def previous(self) -> States:
        """h_0 … h_{T−1}, pytree [T, ...]: the state before each step."""
        return states_before(self.initial, self.states)


class Found(NamedTuple):
    """Where the iteration ended."""

    states: States  # whatever came last
    settled: jax.Array  # [T] bool: this step and all before it are
    iterations: jax.Array
    residual: jax.Array


def run_newton(
    cell: Recurrence, params: Params, inputs: Inputs, initial: State, max_iterations: int | None
) -> NewtonTrajectory:
    """`unroll` by Newton's method, of arguments that are checked already."""
    length = jax.tree.leaves(inputs)[0].shape[0]
    most = min(length, MOST_ITERATIONS) if max_iterations is None else max_iterations
    found = _differentiable(cell, most)(params, inputs, initial)
    converged = found.settled[-1]

    def settle(leaf):
        # A product, not a choice: what is NaN has a NaN derivative as well.
        known = jnp.where(found.settled, 1, jnp.nan).astype(leaf.dtype)
        return leaf * known.reshape(length, *[1] * (leaf.ndim - 1))

    states = jax.tree.map(settle, found.states)
    if _validation.is_concrete(found.settled) and not converged:
        step = int(np.argmin(found.settled)) + 1
        warnings.warn(
            f"states: Newton's method did not converge in {int(found.iterations)} iterations (residual"
            f" {float(found.residual):.1e}): NaN from step t = {step} on; method='sequential' always works",
            RuntimeWarning,
            stacklevel=3,
        )
    return NewtonTrajectory(initial, inputs, states, converged, found.iterations, jax.lax.stop_gradient(found.residual))


def _differentiable(cell, most):
    """(params, inputs, h_0) -> Found, with the adjoint at the solution as its derivative: not that of the iteration."""
    partials = step_partials(cell)

    @jax.custom_vjp
    def solve(params, inputs, initial):
        return _iterate(cell, partials, params, inputs, initial, most)

    def forward(params, inputs, initial):
        found = solve(params, inputs, initial)
        return found, (params, inputs, initial, found.states)

    def backward(kept, cotangents):
        params, inputs, initial, states = kept
        unravel = ravel_pytree(initial)[1]
        previous = states_before(initial, states)
        core, place = _linearise(partials, params, previous, inputs)
        adjoints = solve_transposed(core, place, flatten_steps(cotangents.states))
        adjoints = jax.vmap(unravel)(adjoints)
        pulled = jax.vmap(partials.pull_input, in_axes=(None, 0, 0, 0))(params, previous, inputs, adjoints)
        first = jax.tree.map(lambda leaf: leaf[0], (inputs, adjoints))
        before = partials.pull_state(params, partials.residuals(params, initial, first[0]), first[1])
        return (
            partials.sum_params(params, previous, inputs, adjoints),
            jax.tree.map(_cotangent, inputs, pulled),
            before,
        )

    solve.defvjp(forward, backward)
    return solve


def _cotangent(leaf, pulled):
    return np.zeros(jnp.shape(leaf), jax.dtypes.float0) if pulled is None else pulled


def _iterate(cell, partials, params, inputs, initial, most):
    """h ← h + Δ, Δ_t = J_t Δ_{t−1} + f(h_{t−1}, x_t) − h_t, from h_t = h_0, until every residual is rounding.

    Where Δ leaves the float range, h_t ← f(h_{t−1}, x_t): step t is then right as soon as step t − 1 is.
    """
    flat, unravel = ravel_pytree(initial)
    length = jax.tree.leaves(inputs)[0].shape[0]
    eps = float(jnp.finfo(flat.dtype).eps)

    def values(states):
        previous = jax.vmap(unravel)(jnp.concatenate((flat[None], states[:-1])))
        return previous, flatten_steps(jax.vmap(lambda state, x: cell.step(params, state, x))(previous, inputs))

    def judge(states, new):
        """(which steps are settled, and all before them; the residual of each)."""
        residual = jnp.max(jnp.abs(new - states), axis=1, initial=0)
        largest = jnp.maximum(jnp.max(jnp.abs(states), axis=1, initial=0), jnp.max(jnp.abs(flat), initial=0))
        settled = residual <= ROUNDINGS * eps * jax.lax.cummax(largest)
        return jnp.cumprod(settled) > 0, residual

    def goes_on(carry):
        states, new, iterations = carry
        return ~judge(states, new)[0][-1] & (iterations < most)

    def body(carry):
        states, new, iterations = carry
        previous = jax.vmap(unravel)(jnp.concatenate((flat[None], states[:-1])))
        core, place = _linearise(partials, params, previous, inputs)
        change = solve_recursion(core, place, new - states, jnp.zeros_like(flat))
        # Not states + change: where nothing changes before step t, h_t is f(h_{t−1}, x_t) to the last bit.
        moved = new + apply_steps(core, place, jnp.concatenate((jnp.zeros_like(flat)[None], change[:-1])))
        finite = jnp.all(jnp.isfinite(moved), axis=1, keepdims=True)
        states = jnp.where(finite, moved, new)
        return states, values(states)[1], iterations + 1

    guess = jnp.broadcast_to(flat[None], (length, flat.size))
    states, new, iterations = jax.lax.while_loop(goes_on, body, (guess, values(guess)[1], jnp.asarray(0)))
    settled, residual = judge(states, new)
    return Found(jax.vmap(unravel)(states), settled, iterations, jnp.max(residual))


def _linearise(partials: Partials, params: Params, previous: States, inputs: Inputs) -> tuple[Core, np.ndarray]:
    """(the blocks of J_1 … J_T [T, B, ...], their place): one dense block where the cell does not know its own."""
    if isinstance(partials.parts, BlockParts):
        factors = jax.vmap(partials.residuals, in_axes=(None, 0, 0))(params, previous, inputs)
        length = jax.tree.leaves(inputs)[0].shape[0]
        return form_steps(partials.parts, params, factors, length), partials.parts.place
    jacobians: Any = jax.vmap(partials.jacobian, in_axes=(None, 0, 0))(params, previous, inputs)
    return jacobians[:, None], np.arange(jacobians.shape[1]).reshape(1, -1, 1)
