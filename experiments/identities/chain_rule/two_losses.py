"""The gradient in h_t from the losses of t and t + 1 alone: the recurrence of `adjoint_recurrence` broken off."""

import jax.numpy as jnp

from experiments.identities import instances
from experiments.identities.derivatives import sensitivities, state_pairs, via_output
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import THETAS


def all_later_losses(problem, t):
    """Σ_{s≥t} (∂L_s/∂o_s)(∂⁺o_s/∂⁺h_s) dh_s/dh_t, every loss by its own product of Jacobians."""
    reached = jnp.einsum("sn,snm->sm", via_output(problem), state_pairs(problem.jacobians)[:, t - 1])
    return problem.weight * jnp.sum(reached, axis=0)


def _last_steps_or_earlier(key, satisfied):
    return {"problem": instances.shared_net(key), "t": instances.T - 1 if satisfied else 2}


def _mean_at_last_steps_or_earlier(key, satisfied):
    return {**_last_steps_or_earlier(key, satisfied), "problem": instances.net(key, reduction="mean")}


TWO_LOSSES = {
    "correct": "only for t ≥ T − 1; before that L_{t+2}, …, L_T are missing",
    "correct_latex": r"t\geq T-1,"
    r"\quad\mathrm{else}\ \frac{\partial C}{\partial h^t}=\sum_{s=t}^{T}\frac{\partial C}{\partial L^s}"
    r"\frac{\partial L^s}{\partial o^s}\frac{\partial o^s}{\partial h^s}\frac{\partial h^s}{\partial h^t}",
    "smallest": [{"problem": instances.scalar(a, 3), "t": 1} for a in THETAS],
    "counterexample": "h_t = 2h_{t−1}, o = h, T = 3, t = 1: written 3, true 7",
}


def _next_output(problem, t):
    """(∂L_{t+1}/∂o_{t+1}) do_{t+1}/dh_t, total."""
    return problem.loss_output[t] @ sensitivities(problem)[0].state[t, :, t - 1]


def _next_output_by_jacobian(problem, t):
    """(∂L_{t+1}/∂o_{t+1})(∂⁺o_{t+1}/∂⁺h_{t+1}) J_{t+1}."""
    return via_output(problem)[t] @ problem.product(t, t + 1)


@identity(
    "S1.11",
    "conditional",
    r"\frac{\partial C}{\partial h^t}=\frac{\partial C}{\partial L^t}\frac{\partial L^t}{\partial o^t}"
    r"\frac{\partial o^t}{\partial h^t}+\frac{\partial C}{\partial L^{t+1}}"
    r"\frac{\partial L^{t+1}}{\partial o^{t+1}}\frac{\partial o^{t+1}}{\partial h^t}",
    "the gradient in h_t is what L_t and L_{t+1} send back",
    general=_mean_at_last_steps_or_earlier,
    **TWO_LOSSES,
)
def two_losses_weighted(problem, t):
    written = problem.weight * via_output(problem)[t - 1] + problem.weight * _next_output(problem, t)
    return Claim(written, problem.adjoints[t - 1], all_later_losses(problem, t))


@identity(
    "S1.12",
    "conditional",
    r"\frac{\partial C}{\partial h^t}=\frac{\partial L^t}{\partial o^t}\frac{\partial o^t}{\partial h^t}"
    r"+\frac{\partial L^{t+1}}{\partial o^{t+1}}\frac{\partial o^{t+1}}{\partial h^t}",
    "the same with ∂C/∂L = 1, C the plain sum",
    general=_last_steps_or_earlier,
    **TWO_LOSSES,
)
def two_losses(problem, t):
    written = via_output(problem)[t - 1] + _next_output(problem, t)
    return Claim(written, problem.adjoints[t - 1], all_later_losses(problem, t))


@identity(
    "S1.15",
    "conditional",
    r"\frac{\partial C}{\partial h^t}=\frac{\partial C}{\partial L^t}\frac{\partial L^t}{\partial o^t}"
    r"\frac{\partial o^t}{\partial h^t}+\frac{\partial C}{\partial L^{t+1}}\frac{\partial L^{t+1}}{\partial o^{t+1}}"
    r"\frac{\partial o^{t+1}}{\partial h^{t+1}}\frac{\partial h^{t+1}}{\partial h^t}",
    "what L_t and L_{t+1} send back, the factor ∂h_{t+1}/∂h_t shown",
    general=_mean_at_last_steps_or_earlier,
    **TWO_LOSSES,
)
def two_losses_weighted_with_jacobian(problem, t):
    written = problem.weight * via_output(problem)[t - 1] + problem.weight * _next_output_by_jacobian(problem, t)
    return Claim(written, problem.adjoints[t - 1], all_later_losses(problem, t))


@identity(
    "S1.16",
    "conditional",
    r"\frac{\partial C}{\partial h^t}=1\times\nabla_{o}L\,\nabla_{h}g"
    r"+1\times\nabla_{o}L_{t+1}\nabla_{h^{t+1}}g_{t+1}\times\frac{\partial h^{t+1}}{\partial h^t}",
    "the same in gradients, ∇g_{t+1} taken in h_{t+1} (printed o^{t+1})",
    general=_last_steps_or_earlier,
    **TWO_LOSSES,
)
def two_losses_with_jacobian(problem, t):
    written = via_output(problem)[t - 1] + _next_output_by_jacobian(problem, t)
    return Claim(written, problem.adjoints[t - 1], all_later_losses(problem, t))
