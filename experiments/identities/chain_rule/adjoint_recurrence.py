"""The two paths out of h_t, by o_t and by h_{t+1}, and the recurrence of dC/dh_t they give.

Gradients in h_t are rows, so that dC/dh_t = ∇_oL ∇_hg + (dC/dh_{t+1}) J_{t+1} reads as the note writes it. Where the
note stops after two losses is in `two_losses`.
"""

import functools

import jax
import jax.numpy as jnp

from experiments.identities import instances
from experiments.identities.derivatives import sensitivities, via_output
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import THETAS
from jaxbptt import cells, models

from .losses import losses_only_at


def chain(a, b, c, length):
    """h_t = a h_{t−1}, h_0 = 1, o_t = b h_t, L_t = c o_t."""
    steps = jnp.zeros(length), jnp.full(length, c)
    return instances.Problem(_chain_model(jnp.positive), jnp.array([a, b]), *steps, jnp.ones(()))


def curved_chain(key, length=instances.T):
    """h_t = tanh(a h_{t−1} + x_t), o_t = tanh(b h_t), L_t = c_t o_t, all numbers drawn."""
    keys = jax.random.split(key, 4)
    inputs, targets = 0.3 * jax.random.normal(keys[0], (length,)), jax.random.normal(keys[1], (length,))
    params = jax.random.uniform(keys[2], (2,), minval=0.6, maxval=1.6)
    return instances.Problem(_chain_model(jnp.tanh), params, inputs, targets, jax.random.normal(keys[3]))


@functools.cache
def _chain_model(activation):
    cell = cells.from_step(lambda params, h, x: activation(params[0] * h + x), lambda params: jnp.zeros(()))
    readout = lambda params, h: activation(params[1] * h)
    return models.Model(cell.init, cell.initial_state, cell.step, readout, lambda output, weight: weight * output)


def state_gradient(problem):
    """dC/dh_t, [T, N], by autodiff: a nudge on h_t and all that follows."""
    return problem.weight * jnp.sum(sensitivities(problem)[1].state, axis=0)


def _net_at_step(key):
    return {"problem": instances.shared_net(key), "t": 2}


@identity(
    "S1.6",
    "conditional",
    r"\frac{\partial L_t}{\partial h_t}=\frac{\partial L_t}{\partial h_{t+1}}\frac{\partial h_{t+1}}{\partial h_t}"
    r"+\frac{\partial L_t}{\partial o_t}\frac{\partial o_t}{\partial h_t}",
    "the gradient that reaches h_t is that of L_t by h_{t+1} plus that of L_t by o_t",
    correct="with C (or the losses from t on) for L_t; for L_t alone the first term is 0, because L_t cannot see "
    "h_{t+1}, and the gradient reaching h_t is missed unless no later loss depends on it",
    correct_latex=r"\frac{dL_s}{dh_t}=0\ (s>t),\quad\mathrm{else}\ \frac{dC}{dh_t}=\frac{dC}{dh_{t+1}}"
    r"\frac{\partial h_{t+1}}{\partial h_t}+\frac{\partial L_t}{\partial o_t}\frac{\partial o_t}{\partial h_t}",
    general=lambda key, satisfied: {
        "problem": losses_only_at(instances.shared_net(key), 1, 2, 3) if satisfied else instances.shared_net(key),
        "t": 3,
    },
    smallest=[{"problem": instances.scalar(a, 3), "t": 2} for a in THETAS],
    counterexample="h_t = 2h_{t−1}, o = h, t = T − 1: dL_t/dh_t = 1, dC/dh_t = 3",
)
def one_loss_as_recurrence(problem, t):
    here, jacobian = via_output(problem)[t - 1], problem.jacobians[t]
    written = sensitivities(problem)[1].state[t - 1, t] @ jacobian + here
    corrected = problem.adjoints[t] @ jacobian + problem.weight * here
    return Claim(written, state_gradient(problem)[t - 1], corrected)


@identity(
    "S1.9",
    "fails",
    r"\frac{\partial C}{\partial L^t}=1,\quad\frac{\partial C}{\partial o^t}="
    r"\frac{\partial C}{\partial h^t}\frac{\partial h^t}{\partial o^t}=\frac{\partial L^t}{\partial o^t}",
    "with ∂C/∂L_t = 1 (S0.2), the gradient in o_t is that in h_t times the derivative of h_t in o_t",
    correct="h_t is upstream of o_t: ∂C/∂o_t = (∂C/∂L_t)(∂L_t/∂o_t)",
    correct_latex=r"\frac{\partial C}{\partial L^t}=1,\quad\frac{\partial C}{\partial o^t}="
    r"\frac{\partial C}{\partial L^t}\frac{\partial L^t}{\partial o^t}=\frac{\partial L^t}{\partial o^t}",
    general=_net_at_step,
    smallest=[{"problem": instances.scalar(a, 2), "t": 1} for a in THETAS],
    counterexample="h_t = 2h_{t−1}, o = h, T = 2, t = 1: written 3, true 1",
)
def output_gradient_by_state(problem, t):
    # ∂h/∂o can only mean the inverse of ∂⁺o/∂⁺h.
    written = jnp.linalg.solve(problem.output_state[t - 1].T, problem.adjoints[t - 1])
    truth = problem.weight * jnp.sum(sensitivities(problem)[1].output, axis=0)[t - 1]
    return Claim(written, truth, problem.weight * problem.loss_output[t - 1])


@identity(
    "S1.10",
    "holds",
    r"\frac{\partial C}{\partial h^t}=\frac{\partial C}{\partial o^t}\frac{\partial o^t}{\partial h^t}"
    r"+\frac{\partial C}{\partial h^{t+1}}\frac{\partial h^{t+1}}{\partial h^t}",
    "the gradient in h_t is the part by o_t plus the part by h_{t+1}, at every step, the second 0 at T",
    general=lambda key: {"problem": instances.shared_net(key)},
    smallest=[
        {"problem": problem} for theta in THETAS for problem in (instances.unit(theta), instances.scalar(theta, 3))
    ],
    counterexample="14 = 2 + 2 · 6 on the unit problem, 7 = 1 + 2 · 3 with o = h (an output fed back as input "
    "needs the total dC/do_t)",
)
def adjoint_recurrence(problem):
    onward = jnp.einsum("tn,tnm->tm", problem.adjoints[1:], problem.jacobians[1:])
    written = (problem.weight * via_output(problem)).at[:-1].add(onward)
    return Claim(written, state_gradient(problem))


@identity(
    "S1.13",
    "holds",
    r"\frac{\partial C}{\partial h^t}=\nabla_{o}L\,\nabla_{h}g+\cdots",
    "the gradient in h_t is ∇_o L ∇_h g plus what all later losses send back",
    general=lambda key: {"problem": instances.shared_net(key)},
)
def local_term_and_the_rest(problem):
    losses = sensitivities(problem)[1].state  # dL_s/dh_t, [T, T, N]
    later = jnp.tril(jnp.ones((problem.length,) * 2), -1)
    return Claim(via_output(problem) + jnp.einsum("st,stn->tn", later, losses), problem.adjoints)


@identity(
    "S1.14",
    "holds",
    r"\frac{\partial C}{\partial h^t}=\left(\frac{\partial C}{\partial h^t}\right)_{o^t}"
    r"+\left(\frac{\partial C}{\partial h^t}\right)_{h^{t+1}}",
    "the gradient in h_t is the part through o_t plus the part through h_{t+1}; with the subscript held fixed instead, "
    "the two parts only change names",
    general=lambda key: {"problem": instances.shared_net(key)},
)
def through_output_and_next_state(problem):
    losses = sensitivities(problem)[1]
    return Claim(jnp.sum(losses.read, axis=0) + jnp.sum(losses.carried, axis=0), problem.adjoints)


def _shifted_recurrence(problem, t):
    """∇_oL ∇_hg at t plus (dC/dh_{t+1}) J_{t+1}, or nothing at T."""
    here = problem.weight * via_output(problem)[t - 1]
    return here + problem.adjoints[t] @ problem.jacobians[t] if t < problem.length else here


@identity(
    "S1.17",
    "fails",
    r"\frac{\partial C}{\partial h^t}=\nabla_{o}L+\nabla_{h}g"
    r"+\frac{\partial C}{\partial L^{t+1}}\frac{\partial h^{t+1}}{\partial h^t}",
    "the gradient in h_t is ∇_o L plus ∇_h g plus (∂C/∂L_{t+1}) J_{t+1} (scalars; else the shapes differ)",
    correct="∇_o L · ∇_h g + (dC/dh_{t+1}) J_{t+1}: a product, and the whole gradient in h_{t+1}, not the 1 of L_{t+1}",
    correct_latex=r"\frac{\partial C}{\partial h^t}=\nabla_{o}L\,\nabla_{h}g"
    r"+\frac{\partial C}{\partial h^{t+1}}\frac{\partial h^{t+1}}{\partial h^t}",
    general=lambda key: {"problem": curved_chain(key), "t": 2},
    smallest=[{"problem": chain(a, 5.0, 3.0, 2), "t": 1} for a in THETAS],
    counterexample="L = 3o, o = 5h, h_{t+1} = 2h_t, t = T − 1: written 3 + 5 + 2 = 10, true 45",
)
def plus_for_product(problem, t):
    slope = problem.loss_output[t - 1] + problem.output_state[t - 1, :, 0]
    written = slope + problem.weight * problem.jacobians[t, :, 0]
    return Claim(written, state_gradient(problem)[t - 1], _shifted_recurrence(problem, t))


@identity(
    "S1.18",
    "fails",
    r"\frac{\partial C}{\partial h^{t+1}}=\nabla L\,\nabla g"
    r"+\frac{\partial C}{\partial h^{t+1}}\frac{\partial h^{t+1}}{\partial h^t}",
    "the gradient in h_{t+1} solves x = ∇L ∇g + x J_{t+1}",
    correct="the left side is dC/dh_t, or every index on the right is one later",
    correct_latex=r"\frac{\partial C}{\partial h^{t}}=\nabla L_{t}\nabla g_{t}"
    r"+\frac{\partial C}{\partial h^{t+1}}\frac{\partial h^{t+1}}{\partial h^{t}},"
    r"\quad\frac{\partial C}{\partial h^{t+1}}=\nabla L_{t+1}\nabla g_{t+1}"
    r"+\frac{\partial C}{\partial h^{t+2}}\frac{\partial h^{t+2}}{\partial h^{t+1}}",
    general=_net_at_step,
    smallest=[{"problem": chain(a, 5.0, 3.0, 2), "t": 1} for a in THETAS],
    counterexample="x = 15 + 2x gives −15; true 15 at t + 1 = T (and 45 at t)",
)
def fixed_point_for_recurrence(problem, t):
    jacobian = problem.jacobians[t]
    here = problem.weight * via_output(problem)[t - 1]
    written = jnp.linalg.solve(jnp.eye(len(jacobian)) - jacobian.T, here)
    # Both sides are the one x; in truth the right side is dC/dh_t, and the left dC/dh_{t+1}.
    truth = state_gradient(problem)[t - 1 : t + 1]
    corrected = jnp.stack([_shifted_recurrence(problem, t), _shifted_recurrence(problem, t + 1)])
    return Claim(jnp.stack([written, written]), truth, corrected)


def _nested(problem, t, later):
    """Twice the recurrence from t, everything inside the braces `later` steps on."""
    here = problem.weight * via_output(problem)
    inner = here[t - 1 + later] + problem.adjoints[t + later] @ problem.jacobians[t + later]
    return here[t - 1] + inner @ problem.jacobians[t]


@identity(
    "S1.19",
    "conditional",
    r"\frac{\partial C}{\partial h_{t}}=\nabla_{o}L\,\nabla_{h}g+\frac{\partial h_{t+1}}{\partial h_{t}}"
    r"\left\{\nabla_{o}L_{t+1}\nabla_{h}g_{t+1}+\frac{\partial C}{\partial h_{t+2}}"
    r"\frac{\partial h_{t+2}}{\partial h_{t+1}}\right\}",
    "the recurrence put into itself once, as Horner's rule",
    correct="juxtaposition is a product and each index inside the braces is one later than outside",
    correct_latex=r"\frac{\partial C}{\partial h_{t}}=\nabla_{o}L_{t}\nabla_{h}g_{t}"
    r"+\left\{\nabla_{o}L_{t+1}\nabla_{h}g_{t+1}+\frac{\partial C}{\partial h_{t+2}}"
    r"\frac{\partial h_{t+2}}{\partial h_{t+1}}\right\}\frac{\partial h_{t+1}}{\partial h_{t}}",
    general=lambda key, satisfied: {**_net_at_step(key), "later": int(satisfied)},
    smallest=[{"problem": instances.scalar(a, 3), "t": 1, "later": 0} for a in THETAS],
    counterexample="h_t = 2h_{t−1}, o = h, T = 3, t = 1: 1 + 2(1 + 2 · 1) = 7; the same index inside "
    "gives 1 + 2(1 + 2 · 3) = 15",
)
def horner_rule(problem, t, later):
    return Claim(_nested(problem, t, later), state_gradient(problem)[t - 1], _nested(problem, t, later=1))
