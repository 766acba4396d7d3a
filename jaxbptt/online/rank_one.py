"""UORO: dh_t/dθ kept as one rank-one product, unbiased by random signs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt.online.active import Active, active_leaves
from jaxbptt.online.rule import Method, Rule, make_rule
from jaxbptt.online.scales import balance


class RankOne(NamedTuple):
    """dh_t/dθ ≈ state ⊗ theta."""

    state: jax.Array  # [N] h̃
    theta: jax.Array  # [P] θ̃


class Plan(NamedTuple):
    active: Active
    num_state: int


def uoro() -> Rule:
    """h̃_t = ρ₀ J_t h̃_{t−1} + ρ₁ ν_t,  θ̃_t = θ̃_{t−1}/ρ₀ + (∂⁺h_t/∂⁺θ)ᵀ ν_t/ρ₁,  E[h̃_t ⊗ θ̃_t] = dh_t/dθ.

    ν ∈ {−1, 1}^N, ρ₀ = √(‖θ̃‖/‖J h̃‖), ρ₁ = √(‖(∂⁺h/∂⁺θ)ᵀ ν‖/‖ν‖); the same draw at h_0 with (∂h_0/∂θ)ᵀ ν. The gradient
    is ⟨∂L/∂h, h̃⟩ θ̃. A product that is zero is dropped.

    State: h̃ [N], θ̃ [P], a key, P the number of params that the step reads; a jvp and a vjp of the step and about 9P
    flops. Any cell.

    Returns:
      Rule. Unbiased at fixed params; the variance grows with N and with the memory.

    Reference: Tallec & Ollivier (2017), arXiv:1702.05043.
    """
    return make_rule(METHOD, _plan)


def _plan(model, params, x, constant_start):
    hidden = jax.eval_shape(model.initial_state, params)
    return Plan(active_leaves(model, params, x, constant_start), sum(leaf.size for leaf in jax.tree.leaves(hidden)))


def _start(plan, initial_state, params, signs):
    hidden, pull = jax.vjp(lambda theta: initial_state(plan.active.unravel(params, theta)), plan.active.ravel(params))
    theta = pull(ravel_pytree(hidden)[1](signs))[0]
    scale, inverse = balance(theta, signs)
    return RankOne(scale * signs, inverse * theta)


def _advance(plan, model, params, hidden, x, sensitivity, signs):
    unravel = ravel_pytree(hidden)[1]
    tangent = unravel(sensitivity.state)
    new, pushed = jax.jvp(lambda hidden: model.step(params, hidden, x), (hidden,), (tangent,))
    through_theta = jax.vjp(
        lambda theta: model.step(plan.active.unravel(params, theta), hidden, x), plan.active.ravel(params)
    )[1]
    carried, direct = ravel_pytree(pushed)[0], through_theta(unravel(signs))[0]
    rho_0, inverse_0 = balance(sensitivity.theta, carried)
    rho_1, inverse_1 = balance(direct, signs)
    state = rho_0 * carried + rho_1 * signs
    theta = inverse_0 * sensitivity.theta + inverse_1 * direct
    return new, RankOne(state, theta)


def _contract(plan, params, sensitivity, local):
    return plan.active.expand(params, jnp.vdot(local, sensitivity.state) * sensitivity.theta)


def _flops(plan):
    return 9 * plan.active.size + 6 * plan.num_state


METHOD = Method(_start, _advance, _contract, _flops, num_signs=lambda plan: plan.num_state)
