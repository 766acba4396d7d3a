"""The forward pass of a gradient: trajectory, loss, and what the readout passes back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.models.model import Model, reduction_weight, step_losses
from jaxbptt.trajectories import Trajectory, unroll
from jaxbptt.types import Inputs, Params, Scalar, State, States, Targets


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


def run_forward(
    model: Model, params: Params, inputs: Inputs, targets: Targets, initial: State | None = None
) -> ForwardPass:
    """Unroll, read out, and differentiate the readout."""
    trajectory = unroll(model, params, inputs, initial=initial)
    length = _validation.require_time_axis("inputs", inputs)
    _validation.require_time_axis("targets", targets, length)
    losses, local, direct = read_out(model, params, trajectory.states, targets, length)
    _validation.require_finite_steps("losses", losses)
    return ForwardPass(trajectory, jnp.sum(losses), local, direct)


def read_out(model: Model, params: Params, states: States, targets: Targets, length: int) -> ReadOut:
    """The losses of K of the T = `length` steps, and what their readouts pass back."""

    def total(params, states):
        losses = step_losses(model, params, states, targets)
        losses = losses * reduction_weight(model, length, losses.dtype)
        return jnp.sum(losses), losses

    (_, losses), (direct, local) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, states)
    return ReadOut(losses, local, direct)
