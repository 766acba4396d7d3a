"""The routes without a hand derivation: reverse mode through the scan, forward sensitivities, every (t, k) term."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt.gradients.adjoint import add_initial
from jaxbptt.gradients.bidirectional import autodiff_both, route_both
from jaxbptt.gradients.diagnosis import require_finite_gradient, require_finite_result
from jaxbptt.gradients.forward import ForwardPass, Problem, add_penalty, run_forward, take_problem
from jaxbptt.jacobians.structured import Structured, row_mover
from jaxbptt.models._bidirectional import BidirectionalModel
from jaxbptt.models.model import Model, read, reduction_weight, step_losses
from jaxbptt.partials import MISSING_RULE, both_missing, jacobian, step_partials
from jaxbptt.trajectories import Trajectory, flatten_steps, run_steps
from jaxbptt.types import Inputs, LossAndGrads, Params, Scalar, State, States, Targets


def autodiff(
    model: Model | BidirectionalModel, params: Params, inputs: Inputs, targets: Targets, *, initial: State | None = None
) -> LossAndGrads:
    """dC/dθ by reverse-mode differentiation of the whole unrolled computation: the reference for the other routes.

    Args:
      model: f, g, L and the reduction; or a `models.bidirectional` model (of one layer, except here and in `bptt`).
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      initial: h_0 as a constant; None: `model.initial_state(params)`, whose gradient is part of dC/dθ.

    Returns:
      (C scalar, dC/dθ shaped like params).

    Raises:
      TypeError: a model without its functions; a leaf that is no array; params that are not real floats of one dtype;
        an input, target or state of another dtype; a loss that is no real float.
      ValueError: structures or shapes that do not fit the model or each other; a loss that is no scalar; T = 0;
        outside jit, NaN or inf in params, inputs, a state, a loss or the gradient, with its first step and, for the
        gradient, its cause.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # h = 1, 2, 4, 8
      >>> loss, grads = gradients.autodiff(model, w, inputs, targets)
      >>> float(loss), float(grads)  # ½ Σ h_t², Σ h_t dh_t/dw = 2·1 + 4·4 + 8·12
      (42.5, 114.0)
    """
    if isinstance(model, BidirectionalModel):
        return autodiff_both(model, params, inputs, targets, initial)
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, _ = problem

    def total(params):
        loss, losses = sum_losses(model, params, inputs, targets, initial)
        return loss, (loss, losses)

    try:
        (_, (loss, losses)), grads = jax.value_and_grad(total, has_aux=True)(params)
    except MISSING_RULE as missing:
        flat, unravel = ravel_pytree(params)
        forward = jax.jacfwd(lambda flat: total(unravel(flat)), has_aux=True)
        gradient, (loss, losses) = both_missing(missing, lambda: forward(flat))
        grads = unravel(gradient)
    require_finite_result(model, problem, losses, grads)
    return loss, grads


def sum_losses(
    model: Model, params: Params, inputs: Inputs, targets: Targets, initial: State | None = None
) -> tuple[Scalar, Float[Array, " time"]]:
    """(C, L_1 … L_T) by the step, the readout and the loss alone, of arguments that are checked already."""
    steps = run_steps(model, params, inputs, initial)
    losses = step_losses(model, params, steps.states, targets, inputs=inputs, previous=steps.previous)
    loss = jnp.sum(losses) * reduction_weight(model, len(losses), losses.dtype)
    return loss if model.penalty is None else loss + model.penalty(params), losses


def forward_sensitivity(
    model: Model | BidirectionalModel, params: Params, inputs: Inputs, targets: Targets, *, initial: State | None = None
) -> LossAndGrads:
    """dC/dθ = Σ_t [A_tᵀ (∂⁺o_t/∂⁺h_t)ᵀ ∂C/∂o_t + (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t],  A_t = ∂⁺h_t/∂⁺θ + J_t A_{t−1},  A_0 = ∂h_0/∂θ.

    A [N, |θ|] is carried forward in time: 2N²|θ| flops per step, and memory that does not grow with T. Both partials
    come from automatic differentiation of one step, never from the hand derivation.

    Args:
      model: as in `autodiff`.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, as in `autodiff` (if given, A_0 = 0).

    Returns:
      (C scalar, dC/dθ shaped like params).

    Raises:
      TypeError, ValueError: as `autodiff`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # h = 1, 2, 4, 8
      >>> loss, grads = gradients.forward_sensitivity(model, w, inputs, targets)  # A = 0, 1, 4, 12
      >>> float(loss), float(grads)
      (42.5, 114.0)

    Reference: Williams & Zipser (1989), Neural Computation 1; S3.4 (A_t).
    """
    if isinstance(model, BidirectionalModel):
        return route_both(forward_sensitivity, model, params, inputs, targets, initial)
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, length = problem
    theta, unravel_params = ravel_pytree(params)
    flat_state, unravel_state = ravel_pytree(model.initial_state(params) if initial is None else initial)
    weight = reduction_weight(model, length, theta.dtype)

    def step(theta, h, x):
        return ravel_pytree(model.step(unravel_params(theta), unravel_state(h), x))[0]

    def step_loss(theta, h, previous, x, target):
        output = read(model, unravel_params(theta), unravel_state(h), x, unravel_state(previous))
        return weight * model.loss(output, target)

    def body(carry, x_and_target):
        h, sensitivity, gradient = carry
        x, target = x_and_target
        direct, transition = jacobian(step, theta, h, x, argnums=(0, 1), prefer="reverse")
        new, pushed = step(theta, h, x), direct + transition @ sensitivity
        differentiate = jax.value_and_grad(step_loss, argnums=(0, 1, 2))
        loss, (readout_gradient, local, early) = differentiate(theta, new, h, x, target)
        gradient = gradient + readout_gradient + local @ pushed
        if model.reads == "state, x, previous":
            gradient = gradient + early @ sensitivity
        return (new, pushed, gradient), loss

    if initial is None:
        sensitivity = jax.jacrev(lambda theta: ravel_pytree(model.initial_state(unravel_params(theta)))[0])(theta)
    else:
        sensitivity = jnp.zeros((flat_state.size, theta.size), theta.dtype)
    carry = (flat_state, sensitivity, jnp.zeros_like(theta))
    (_, _, gradient), losses = jax.lax.scan(body, carry, (inputs, targets))
    loss, grads = add_penalty(model, params, jnp.sum(losses), unravel_params(gradient))
    require_finite_result(model, problem, losses, grads)
    return loss, grads


def double_sum(
    model: Model | BidirectionalModel, params: Params, inputs: Inputs, targets: Targets, *, initial: State | None = None
) -> LossAndGrads:
    """dC/dθ = Σ_t Σ_{k≤t} (∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t + the readout's direct part + the terms of h_0.

    Every (t, k) term is formed before it is added: T²|θ|/2 numbers, T|θ| of them at a time. The Jacobians come from
    jacrev and the direct partials from a vjp of one step, never from the hand derivation.

    Args:
      model: as in `autodiff`.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, as in `autodiff`.

    Returns:
      (C scalar, dC/dθ shaped like params).

    Raises:
      TypeError, ValueError: as `autodiff`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # h = 1, 2, 4, 8
      >>> loss, grads = gradients.double_sum(model, w, inputs, targets)  # 2 + (8 + 8) + (32 + 32 + 32)
      >>> float(loss), float(grads)
      (42.5, 114.0)

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063, eq. 3 to 5; S4.9.
    """
    if isinstance(model, BidirectionalModel):
        return route_both(double_sum, model, params, inputs, targets, initial)
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, _ = problem
    run = run_forward(model, params, inputs, targets, initial)
    grads = sum_terms(model, problem, run, automatic_jacobians(model, params, run.trajectory))
    require_finite_gradient(model, problem, grads)
    return run.loss, grads


def sum_terms(model: Model, problem: Problem, run: ForwardPass, jacobians: Float[Array, "time state state"]) -> Params:
    """The double sum from a forward pass and the J_t of its steps."""
    trajectory, _, local, direct, early = run
    unravel = ravel_pytree(trajectory.initial)[1]
    partials = step_partials(model, source="automatic")

    def add_terms(gradient, state, x, cotangents):
        terms = jax.vmap(lambda row: partials.pull_params(problem.params, state, x, unravel(row)))(cotangents)
        return jax.tree.map(lambda total, term: total + jnp.sum(term, axis=0), gradient, terms), None

    grads, _, carried = scan_terms(add_terms, direct, trajectory, jacobians, local, early)
    initial_adjoint = unravel(jnp.sum(carried, axis=0))
    return add_initial(model, problem.params, grads, initial_adjoint) if problem.initial is None else grads


def automatic_jacobians(model: Model, params: Params, trajectory: Trajectory) -> Float[Array, "time state state"]:
    """J_t of every step by jacrev (or jacfwd, where there is no reverse rule), never by the hand derivation."""

    def at(state, x):
        flat, unravel = ravel_pytree(state)
        return jacobian(lambda h: ravel_pytree(model.step(params, unravel(h), x))[0], flat, prefer="reverse")

    return jax.vmap(at)(trajectory.previous, trajectory.inputs)


def scan_terms(
    visit: Callable[..., tuple[Any, Any]],
    carry: Any,
    trajectory: Trajectory,
    jacobians: Float[Array, "time state state"] | Structured,
    local: States,
    early: States | None = None,
) -> tuple[Any, Any, Float[Array, "rows state"]]:
    """For k = T … 1, `visit(carry, h_{k−1}, x_k, V_k)`, V_k [T, N] with row t = (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t.

    Rows t < k are zero. One product [T, N] @ [N, N] per step moves every row one step back: V_{k−1} = V_k J_k, and
    where o_k reads h_{k−1}, row k gains ∂C/∂h_{k−1}|o_k (`early`).

    Returns (carry, the second results of visit [T, ...], V_0).
    """

    own = flatten_steps(local)
    before = None if early is None else flatten_steps(early)

    def body(scanned, step):
        carry, cotangents = scanned
        k, state, x, jacobian, row, row_before = step
        cotangents = cotangents.at[k].set(row)
        carry, result = visit(carry, state, x, cotangents)
        moved = move(cotangents, jacobian)
        return (carry, moved if row_before is None else moved.at[k].add(row_before)), result

    factors, move = row_mover(jacobians)
    steps = (jnp.arange(len(own)), trajectory.previous, trajectory.inputs, factors, own, before)
    (carry, cotangents), results = jax.lax.scan(body, (carry, jnp.zeros_like(own)), steps, reverse=True)
    return carry, results, cotangents
