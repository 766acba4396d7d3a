"""UORO: dh_t/dθ kept as one rank-one product, unbiased by random signs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt.online.active import Active, active_leaves
from jaxbptt.online.method import Method
from jaxbptt.online.rule import Rule, make_rule
from jaxbptt.online.scales import balance
from jaxbptt.partials import step_partials, vjp


class RankOne(NamedTuple):
    """dh_t/dθ ≈ state ⊗ theta."""

    state: jax.Array  # [N] h̃
    theta: jax.Array  # [P] θ̃


class Plan(NamedTuple):
    active: Active
    num_state: int


def uoro() -> Rule:
    """h̃_t = ρ₀ J_t h̃_{t−1} + ρ₁ ν_t,  θ̃_t = θ̃_{t−1}/ρ₀ + (∂⁺h_t/∂⁺θ)ᵀ ν_t/ρ₁,  E[h̃_t ⊗ θ̃_t] = dh_t/dθ.

    ν ∈ {−1, 1}^N are random signs, ρ₀ = √(‖θ̃‖/‖J h̃‖), ρ₁ = √(‖(∂⁺h/∂⁺θ)ᵀ ν‖/‖ν‖). h_0 starts in the same way with
    (∂h_0/∂θ)ᵀ ν. The gradient is ⟨∂L/∂h, h̃⟩ θ̃. A product that is zero is dropped.

    State: h̃ [N], θ̃ [P] and a key, where P counts the entries of params that the step reads. Cost per step: a jvp, a
    vjp and about 9P flops. Works for any cell.

    Returns:
      Rule. Unbiased at fixed params; the variance grows with N and with the length of the memory.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import models, online
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # dC/dw = 114
      >>> estimate = lambda key: online.run(online.uoro(), model, w, inputs, targets, key=key)[1]
      >>> estimates = jax.vmap(estimate)(jax.random.split(jax.random.key(0), 1000))
      >>> bool(estimates.std() > 10), bool(abs(estimates.mean() - 114) < 10)  # each is wrong, their mean is not
      (True, True)

    Reference: Tallec & Ollivier (2017), arXiv:1702.05043.
    """
    return make_rule(METHOD, _plan)


def _plan(model, params, x, constant_start):
    state = jax.eval_shape(model.initial_state, params)
    return Plan(active_leaves(model, params, x, constant_start), sum(leaf.size for leaf in jax.tree.leaves(state)))


def _start(plan, initial_state, params, signs):
    state, pull = vjp(lambda theta: initial_state(plan.active.unravel(params, theta)), plan.active.ravel(params))
    theta = pull(ravel_pytree(state)[1](signs))
    scale, inverse = balance(theta, signs)
    return RankOne(scale * signs, inverse * theta)


def _advance(plan, model, params, state, x, sensitivity, signs):
    unravel = ravel_pytree(state)[1]
    tangent = unravel(sensitivity.state)
    new, pushed = step_partials(model).push_state(params, state, x, tangent)
    theta = plan.active.ravel(params)
    pull = vjp(lambda theta: model.step(plan.active.unravel(params, theta), state, x), theta)[1]
    carried, direct = ravel_pytree(pushed)[0], pull(unravel(signs))
    rho_0, inverse_0 = balance(sensitivity.theta, carried)
    rho_1, inverse_1 = balance(direct, signs)
    theta = inverse_0 * sensitivity.theta + inverse_1 * direct
    return new, RankOne(rho_0 * carried + rho_1 * signs, theta)


def _contract(plan, params, sensitivity, local):
    return plan.active.expand(params, jnp.vdot(local, sensitivity.state) * sensitivity.theta)


def _flops(plan):
    return 9 * plan.active.size + 6 * plan.num_state


METHOD = Method(_start, _advance, _contract, _flops, num_signs=lambda plan: plan.num_state)
