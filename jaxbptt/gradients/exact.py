"""The routes without a hand derivation: reverse mode through the scan, sensitivities forward, every (t, k) term."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.gradients.adjoint import add_initial
from jaxbptt.gradients.forward import flatten_steps, run_forward
from jaxbptt.jacobians import step_jacobians
from jaxbptt.models import Model, reduction_weight, step_losses
from jaxbptt.trajectories import Trajectory, require_call, unroll


def autodiff(model: Model, params: Any, inputs: Any, targets: Any, *, initial: Any = None):
    """dC/dθ by reverse-mode differentiation of the whole unrolled computation: the reference of the other routes.

    Args:
      model: f, g, L and the reduction.
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      initial: h_0, then a constant; None: `model.initial_state(params)`, whose gradient is part of dC/dθ.

    Returns:
      (C scalar, dC/dθ shaped like params).

    Raises:
      TypeError, ValueError: an argument of wrong structure, shape or dtype; outside jit, a state or loss that is not
        finite, with its step.
    """
    length = require_call(model, params, inputs, initial)
    checks.require_time_axis("targets", targets, length)

    def total(params):
        states = unroll(model, params, inputs, initial=initial).states
        losses = step_losses(model, params, states, targets)
        return jnp.sum(losses) * reduction_weight(model, length, losses.dtype), losses

    (loss, losses), grads = jax.value_and_grad(total, has_aux=True)(params)
    checks.require_finite_steps("losses", losses)
    return loss, grads


def forward_sensitivity(model: Model, params: Any, inputs: Any, targets: Any, *, initial: Any = None):
    """dC/dθ = Σ_t [A_tᵀ (∂⁺o_t/∂⁺h_t)ᵀ ∂C/∂o_t + (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t],  A_t = ∂⁺h_t/∂⁺θ + J_t A_{t−1},  A_0 = ∂h_0/∂θ.

    Carries A [N, |θ|] forward in time: 2N²|θ| flops a step and no memory in T. Both partials by automatic
    differentiation of one step, never by the hand derivation.

    Args:
      model: as `autodiff`.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, then a constant (A_0 = 0).

    Returns:
      (C scalar, dC/dθ shaped like params).

    Raises:
      TypeError, ValueError: as `autodiff`.

    Reference: Williams & Zipser (1989), Neural Computation 1; S3.4.
    """
    length = require_call(model, params, inputs, initial)
    checks.require_time_axis("targets", targets, length)
    theta, unravel_params = ravel_pytree(params)
    flat_state, unravel_state = ravel_pytree(model.initial_state(params) if initial is None else initial)
    weight = reduction_weight(model, length, theta.dtype)

    def step(theta, h, x):
        return ravel_pytree(model.step(unravel_params(theta), unravel_state(h), x))[0]

    def step_loss(theta, h, target):
        params = unravel_params(theta)
        return weight * model.loss(model.readout(params, unravel_state(h)), target)

    def body(carry, x_and_target):
        h, sensitivity, gradient = carry
        x, target = x_and_target
        direct, jacobian = jax.jacrev(step, argnums=(0, 1))(theta, h, x)
        h, sensitivity = step(theta, h, x), direct + jacobian @ sensitivity
        loss, (readout_gradient, local) = jax.value_and_grad(step_loss, argnums=(0, 1))(theta, h, target)
        return (h, sensitivity, gradient + readout_gradient + local @ sensitivity), loss

    if initial is None:
        sensitivity = jax.jacrev(lambda theta: ravel_pytree(model.initial_state(unravel_params(theta)))[0])(theta)
    else:
        sensitivity = jnp.zeros((flat_state.size, theta.size), theta.dtype)
    carry = (flat_state, sensitivity, jnp.zeros_like(theta))
    (_, _, gradient), losses = jax.lax.scan(body, carry, (inputs, targets))
    checks.require_finite_steps("losses", losses)
    return jnp.sum(losses), unravel_params(gradient)


def double_sum(model: Model, params: Any, inputs: Any, targets: Any, *, initial: Any = None):
    """dC/dθ = Σ_t Σ_{k≤t} (∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C_t/∂h_t + the readout's direct part + the terms of h_0.

    Every (t, k) term is formed before it is added: T²|θ|/2 numbers, T|θ| of them at a time. The Jacobians by jacrev,
    the direct partials by a vjp of one step, never by the hand derivation.

    Args:
      model: as `autodiff`.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, then a constant.

    Returns:
      (C scalar, dC/dθ shaped like params).

    Raises:
      TypeError, ValueError: as `autodiff`.

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063, eq. 3 to 5; S4.9.
    """
    trajectory, loss, local, direct = run_forward(model, params, inputs, targets, initial)
    unravel = ravel_pytree(trajectory.initial)[1]

    def add_terms(gradient, state, x, cotangents):
        pull = jax.vjp(lambda params: model.step(params, state, x), params)[1]
        terms = jax.vmap(lambda cotangent: pull(unravel(cotangent))[0])(cotangents)
        return jax.tree.map(lambda total, term: total + jnp.sum(term, axis=0), gradient, terms), None

    jacobians = step_jacobians(model, params, trajectory, method="reverse")
    grads, _, carried = scan_terms(add_terms, direct, trajectory, jacobians, flatten_steps(local))
    initial_adjoint = unravel(jnp.sum(carried, axis=0))
    return loss, add_initial(model, params, grads, initial_adjoint) if initial is None else grads


def scan_terms(
    visit: Any, carry: Any, trajectory: Trajectory, jacobians: jax.Array, local: jax.Array, later: Any = None
):
    """For k = T … 1, `visit(carry, h_{k−1}, x_k, V_k)`, V_k [T, N] with row t = (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t.

    Rows t < k are zero. One [T, N] @ [N, N] product a step moves every row one step back: V_{k−1} = V_k J_k. `later`
    [L, N]: V_T of the L steps after these, whose rows come behind these ones'.

    Returns (carry, the second results of visit [T, ...], V_0).
    """

    def body(scanned, step):
        carry, cotangents = scanned
        k, state, x, jacobian, row = step
        cotangents = cotangents.at[k].set(row)
        carry, result = visit(carry, state, x, cotangents)
        return (carry, cotangents @ jacobian), result

    steps = (jnp.arange(len(local)), trajectory.previous, trajectory.inputs, jacobians, local)
    rows = jnp.zeros_like(local) if later is None else jnp.concatenate((jnp.zeros_like(local), later))
    (carry, cotangents), results = jax.lax.scan(body, (carry, rows), steps, reverse=True)
    return carry, results, cotangents
