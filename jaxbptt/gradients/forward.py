"""The forward pass of a gradient: trajectory, loss, and what the readout passes back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.models.model import Model, reduction_weight, step_losses
from jaxbptt.trajectories import Trajectory, run_steps, shapes_of_one_step, take_call
from jaxbptt.types import Inputs, Params, Scalar, State, States, Targets


class Problem(NamedTuple):
    """What a gradient was asked of, checked, as JAX's arrays."""

    params: Params
    inputs: Inputs
    targets: Targets
    initial: State | None  # None: initial_state(params)
    length: int  # T


class ForwardPass(NamedTuple):
    """All that λ and the gradient of θ need from it."""

    trajectory: Trajectory
    loss: Scalar  # C
    local: States  # ∂C/∂h_t through o_t alone, pytree [T, ...]
    direct: Params  # Σ_t (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t


class ReadOut(NamedTuple):
    """The losses of K steps and what their readouts pass back."""

    losses: Float[Array, " steps"]  # ∂C/∂L_t · L_t
    local: States  # ∂C/∂h_t|o_t, pytree [K, ...]
    direct: Params  # Σ_t (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t over the K steps


def take_problem(
    model: Model, params: Params, inputs: Inputs, targets: Targets, initial: State | None = None
) -> Problem:
    """The arguments of a route, as JAX's arrays; raise unless they fit the model and each other."""
    _validation.require_functions("model", model, ("initial_state", "step", "readout", "loss"))
    _validation.require_choice("model.reduction", model.reduction, ("sum", "mean"))
    params, inputs, initial, length = take_call(model, params, inputs, initial)
    targets = _validation.as_arrays("targets", targets)
    _validation.require_time_axis("targets", targets, length)
    state = jax.eval_shape(model.initial_state, params)
    _validation.require_loss(model.readout, model.loss, params, state, shapes_of_one_step(targets))
    return Problem(params, inputs, targets, initial, length)


def run_forward(
    model: Model, params: Params, inputs: Inputs, targets: Targets, initial: State | None = None
) -> ForwardPass:
    """Unroll, read out, and differentiate the readout, of arguments that are checked already."""
    trajectory = run_steps(model, params, inputs, initial)
    length = jax.tree.leaves(inputs)[0].shape[0]
    losses, local, direct = read_out(model, params, trajectory.states, targets, length)
    require_finite_losses(model, params, trajectory.states, targets, losses)
    return ForwardPass(trajectory, jnp.sum(losses), local, direct)


def require_finite_losses(model: Model, params: Params, states: States, targets: Targets, losses: jax.Array) -> None:
    """Raise, naming the first bad step, if concrete losses [T] hold NaN or inf; a class out of range is named too."""
    try:
        _validation.require_finite_steps("losses", losses)
    except ValueError as error:
        t = int(np.argmin(np.isfinite(losses)))
        state, target = jax.tree.map(lambda leaf: leaf[t], (states, targets))
        output = model.readout(params, state)
        is_class = isinstance(target, jax.Array) and jnp.issubdtype(target.dtype, jnp.integer) and target.shape == ()
        if is_class and isinstance(output, jax.Array) and output.ndim == 1 and not 0 <= target < len(output):
            raise ValueError(f"{error} (targets: got class {target}, expected 0 … {len(output) - 1})") from error
        raise


def read_out(model: Model, params: Params, states: States, targets: Targets, length: int) -> ReadOut:
    """The losses of K of the T = `length` steps, and what their readouts pass back."""

    def total(params, states):
        losses = step_losses(model, params, states, targets)
        losses = losses * reduction_weight(model, length, losses.dtype)
        return jnp.sum(losses), losses

    (_, losses), (direct, local) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, states)
    return ReadOut(losses, local, direct)
