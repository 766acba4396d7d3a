"""The forward pass of a gradient: trajectory, loss, and what the readout passes back."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.models import Model, reduction_weight, step_losses
from jaxbptt.trajectories import unroll


def run_forward(model: Model, params: Any, inputs: Any, targets: Any, initial: Any):
    """(trajectory, C, ∂C/∂h_t through o_t alone with leading T, Σ_t (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t): all that λ and θ need."""
    trajectory = unroll(model, params, inputs, initial=initial)
    length = checks.require_time_axis("inputs", inputs)
    checks.require_time_axis("targets", targets, length)
    losses, direct, local = read_out(model, params, trajectory.states, targets, length)
    checks.require_finite_steps("losses", losses)
    return trajectory, jnp.sum(losses), local, direct


def read_out(model: Model, params: Any, states: Any, targets: Any, length: int):
    """(∂C/∂L_t L_t [K], Σ_t (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t, ∂C/∂h_t|o_t) of K of the T = `length` steps."""

    def total(params, states):
        losses = step_losses(model, params, states, targets)
        losses = losses * reduction_weight(model, length, losses.dtype)
        return jnp.sum(losses), losses

    (_, losses), (direct, local) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, states)
    return losses, direct, local


def flatten_steps(tree: Any) -> jax.Array:
    """A state-shaped pytree with leading T as [T, N]."""
    return jax.vmap(lambda leaf: ravel_pytree(leaf)[0])(tree)
