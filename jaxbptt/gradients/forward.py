"""The forward pass of a gradient: trajectory, loss, and what the readout passes back."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.models.model import Model, read, reduction_weight, step_losses
from jaxbptt.trajectories import Trajectory, run_steps, shapes_of_one_step, take_call
from jaxbptt.types import Inputs, LossAndGrads, Params, Scalar, State, States, Steps, Targets


class Problem(NamedTuple):
    """What a gradient was asked of, checked, as JAX's arrays."""

    params: Params
    inputs: Inputs
    targets: Targets  # with normalised weights, where the model has weights and takes their mean
    initial: State | None  # None: initial_state(params)
    length: int  # T


class Visited(Steps, Protocol):
    """Steps and the states that they lead to: a Trajectory, or an object like it."""

    @property
    def states(self) -> States:
        """h_1 … h_T, leaves [T, ...]."""
        ...


class ForwardPass(NamedTuple):
    """All that λ and the gradient of θ need from it."""

    trajectory: Trajectory
    loss: Scalar  # C
    local: States  # ∂C/∂h_t through o_t alone, pytree [T, ...]
    direct: Params  # Σ_t (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t, and the penalty's gradient
    early: States | None  # ∂C/∂h_{t−1} through o_t alone, pytree [T, ...]; None: no output reads h_{t−1}


class ReadOut(NamedTuple):
    """The losses of K steps and what their readouts pass back."""

    losses: Float[Array, " steps"]  # ∂C/∂L_t · L_t
    local: States  # ∂C/∂h_t|o_t, pytree [K, ...]
    direct: Params  # Σ_t (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t over the K steps
    early: States | None  # ∂C/∂h_{t−1}|o_t, pytree [K, ...], where outputs read h_{t−1}


def take_problem(
    model: Model, params: Params, inputs: Inputs, targets: Targets, initial: State | None = None
) -> Problem:
    """The arguments of a route, as JAX's arrays; raise unless they fit the model and each other."""
    _validation.require_functions("model", model, ("initial_state", "step", "readout", "loss"))
    _validation.require_choice("model.reduction", model.reduction, ("sum", "mean"))
    params, inputs, initial, length = take_call(model, params, inputs, initial)
    targets = _validation.as_arrays("targets", targets)
    _validation.require_time_axis("targets", targets, length)
    state, x = jax.eval_shape(model.initial_state, params), shapes_of_one_step(inputs)
    reader = lambda *seen: read(model, *seen)
    _validation.require_loss(reader, model.loss, params, state, x, shapes_of_one_step(targets))
    _validation.require_penalty(model.penalty, params)
    if model.reduction == "mean" and model.normalise is not None:
        targets = model.normalise(targets, jax.tree.leaves(params)[0].dtype if jax.tree.leaves(params) else None)
    return Problem(params, inputs, targets, initial, length)


def run_forward(
    model: Model, params: Params, inputs: Inputs, targets: Targets, initial: State | None = None
) -> ForwardPass:
    """Unroll, read out, and differentiate the readout, of arguments that are checked already."""
    trajectory = run_steps(model, params, inputs, initial)
    length = jax.tree.leaves(inputs)[0].shape[0]
    losses, local, direct, early = read_out(model, params, trajectory, targets, length)
    require_finite_losses(model, params, trajectory, targets, losses)
    loss, direct = add_penalty(model, params, jnp.sum(losses), direct)
    return ForwardPass(trajectory, loss, local, direct, early)


def add_penalty(model: Model, params: Params, loss: Scalar, grads: Params) -> LossAndGrads:
    """(C, dC/dθ) with the model's penalty, if it has one."""
    if model.penalty is None:
        return loss, grads
    penalty, gradient = jax.value_and_grad(model.penalty)(params)
    return loss + penalty, jax.tree.map(jnp.add, grads, gradient)


def join_early(local: States, early: States | None) -> tuple[States, State | None]:
    """(∂C/∂h_t through o_t and o_{t+1}, ∂C/∂h_0 through o_1) of steps 1 … K; None where no output reads h_{t−1}."""
    if early is None:
        return local, None
    shifted = jax.tree.map(lambda leaf: jnp.concatenate((leaf[1:], jnp.zeros_like(leaf[:1]))), early)
    return jax.tree.map(jnp.add, local, shifted), jax.tree.map(lambda leaf: leaf[0], early)


def require_finite_losses(model: Model, params: Params, steps: Visited, targets: Targets, losses: jax.Array) -> None:
    """Raise, naming the first bad step, if concrete losses [T] hold NaN or inf; a class out of range is named too."""
    try:
        _validation.require_finite_steps("losses", losses)
    except ValueError as error:
        t = int(np.argmin(np.isfinite(losses)))
        at = steps.states, steps.inputs, steps.previous, targets
        *seen, target = jax.tree.map(lambda leaf: leaf[t], at)
        output = read(model, params, *seen)
        is_class = isinstance(target, jax.Array) and jnp.issubdtype(target.dtype, jnp.integer) and target.shape == ()
        if is_class and isinstance(output, jax.Array) and output.ndim == 1 and not 0 <= target < len(output):
            raise ValueError(f"{error} (targets: got class {target}, expected 0 … {len(output) - 1})") from error
        raise


def read_out(model: Model, params: Params, steps: Visited, targets: Targets, length: int) -> ReadOut:
    """The losses of K of the T = `length` steps, and what their readouts pass back."""

    def total(params, states, previous):
        losses = step_losses(model, params, states, targets, inputs=steps.inputs, previous=previous)
        losses = losses * reduction_weight(model, length, losses.dtype)
        return jnp.sum(losses), losses

    reads_previous = model.reads == "state, x, previous"
    differentiate = jax.value_and_grad(total, argnums=(0, 1, 2) if reads_previous else (0, 1), has_aux=True)
    (_, losses), (direct, local, *early) = differentiate(params, steps.states, steps.previous)
    return ReadOut(losses, local, direct, early[0] if reads_previous else None)
