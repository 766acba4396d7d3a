"""The forward pass: step by step, or in parallel over time."""

from typing import Literal, TypeAlias, get_args, overload

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt.cells.structure import BlockParts
from jaxbptt.partials import step_partials
from jaxbptt.trajectories._affine import solve_recursion
from jaxbptt.trajectories._calls import Trajectory, run_steps, start_of, take_call
from jaxbptt.trajectories._newton import NewtonTrajectory, run_newton
from jaxbptt.types import Inputs, Params, Recurrence, State

UnrollMethod: TypeAlias = Literal["sequential", "parallel", "newton"]


@overload
def unroll(
    cell: Recurrence,
    params: Params,
    inputs: Inputs,
    *,
    initial: State | None = ...,
    method: Literal["sequential", "parallel"] = ...,
    max_iterations: None = ...,
) -> Trajectory: ...
@overload
def unroll(
    cell: Recurrence,
    params: Params,
    inputs: Inputs,
    *,
    initial: State | None = ...,
    method: Literal["newton"],
    max_iterations: int | None = ...,
) -> NewtonTrajectory: ...
def unroll(
    cell: Recurrence,
    params: Params,
    inputs: Inputs,
    *,
    initial: State | None = None,
    method: UnrollMethod = "sequential",
    max_iterations: int | None = None,
) -> Trajectory | NewtonTrajectory:
    """h_t = f(h_{t−1}, x_t, θ) for t = 1 … T: by one `lax.scan`, or for all t at once.

    "parallel" is for cells whose derivation says that f is affine in h: h_t = J_t h_{t−1} + f(0, x_t), with the blocks
    of J_t from its parts. Diagonal and dense blocks take an associative scan, depth O(log T); diagonal + rank one
    chunks of 16 steps, each by one triangular system, and a scan over the chunks.

    "newton" is for any cell: h ← h + Δ with Δ_t = J_t Δ_{t−1} + f(h_{t−1}, x_t) − h_t, an iteration in depth O(log T),
    until |h_t − f(h_{t−1}, x_t)| is at most 16 eps of the largest entry of h_0 … h_t, for every t. Dense Jacobians cost
    T·N³ flops and T·N² numbers an iteration. The iterations do not grow with T where the largest Lyapunov exponent is
    well below zero, and grow with T near and above it (`spectra.newton_outlook`); T always suffice.
    Reverse-mode gradients are those of the solution, exactly: λ_t = ∂C/∂h_t|o_t + J_{t+1}ᵀ λ_{t+1}.

    Args:
      cell: Cell or Model.
      params: θ, with the structure that `cell.init` draws; float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] of the dtype of params for a cell with known M; else any pytree with leading T.
      initial: h_0, shaped like `cell.initial_state(params)`; None: that state.
      method: "sequential", "parallel" or "newton".
      max_iterations: of "newton", static; None: T, at most 100.

    Returns:
      Trajectory(initial, inputs, states [T, ...]); of "newton" a NewtonTrajectory, which has `converged`, `iterations`
      and `residual` as well, and NaN in place of the states from the first step on that is not settled (gradients
      through it are then NaN).

    Raises:
      TypeError, ValueError: params, inputs or initial of wrong structure, shape or dtype; T = 0; a step that changes
        the structure, shapes or dtypes of the state; outside jit, NaN or inf in a state, with its first step (but
        −inf is allowed where h_0 has it: log 0 in a recurrence in log space); "parallel" of a cell that is not known
        to be affine; max_iterations of another method than "newton".
      RuntimeWarning: outside jit, a "newton" that did not converge.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, trajectories
      >>> cell = cells.from_step(lambda a, h, x: a * h + x, jnp.zeros_like)
      >>> trajectories.unroll(cell, jnp.asarray(0.5), jnp.ones(3)).states.tolist()  # of a model, too
      [1.0, 1.5, 1.75]
      >>> trajectories.unroll(cell, jnp.asarray(0.5), jnp.ones(3), initial=jnp.asarray(2.0)).states.tolist()
      [2.0, 2.0, 2.0]

    Reference: Blelloch (1990), CMU-CS-90-190 (scan); Yang et al. (2024), arXiv:2406.06484 (rank one in chunks); Lim et
    al. (2024), arXiv:2309.12252, and Gonzalez et al. (2025), arXiv:2508.16817 (Newton).
    """
    _validation.require_choice("method", method, get_args(UnrollMethod))
    if max_iterations is not None:
        _validation.require_size("max_iterations", max_iterations)
        if method != "newton":
            raise ValueError(f"max_iterations: got {max_iterations} for method {method!r}, expected None or 'newton'")
    call = take_call(cell, params, inputs, initial)
    if method == "sequential":
        return run_steps(cell, call.params, call.inputs, call.initial)
    start = start_of(cell, call.params, call.initial)
    if method == "newton":
        return run_newton(cell, call.params, call.inputs, start, max_iterations)
    return _run_affine(cell, call.params, call.inputs, start)


def _run_affine(cell: Recurrence, params: Params, inputs: Inputs, initial: State) -> Trajectory:
    """The factors at a zero state give J_t, for it depends on no state; the step from there gives f(0, x_t)."""
    partials = step_partials(cell)
    parts, pullback = partials.parts, partials.factored
    if not isinstance(parts, BlockParts) or not parts.affine or pullback is None:
        raise ValueError(
            "cell: got one that is not known to be affine in its state, expected a derivation with"
            " BlockParts(affine=True), or method='newton'"
        )
    zero = jax.tree.map(jnp.zeros_like, initial)

    def at(x):
        new, kept = pullback.advance(params, zero, pullback.drive(params, x))
        return ravel_pytree(new)[0], parts.form(params, pullback.expand(zero, new, kept))

    flat, unravel = ravel_pytree(initial)
    offsets, core = jax.vmap(at)(inputs)
    states = jax.vmap(unravel)(solve_recursion(core, parts.place, offsets, flat))
    _validation.require_states(states, initial)
    return Trajectory(initial, inputs, states)
