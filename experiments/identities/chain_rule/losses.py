"""What each loss sends to θ, and how the gradient of their sum is put together.

The recurrence of dC/dh_t is in `adjoint_recurrence`, the scalar examples and what follows from them in
`scalar_examples`.
"""

import jax.numpy as jnp

from experiments.identities import instances
from experiments.identities.derivatives import sensitivities, state_pairs, total_outputs
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import THETAS

UNITS = [{"problem": instances.unit(theta), "t": t} for theta in THETAS for t in (1, 2, 3)]


def losses_only_at(problem, *steps):
    """The same net, its targets met at all other steps, so that their losses carry no gradient."""
    kept = jnp.isin(jnp.arange(1, problem.length + 1), jnp.array(steps))
    return problem._replace(targets=jnp.where(kept[:, None], problem.targets, problem.outputs))


@identity(
    "S1.2",
    "fails",
    r"\frac{\partial C}{\partial\theta}=\frac{\partial}{\partial\theta}\sum L_t=1",
    "the gradient of the summed losses in θ is 1",
    correct="dC/dθ = Σ_t dL_t/dθ; the 1 is ∂⁺C/∂⁺L_t (S0.2)",
    correct_latex=r"\frac{dC}{d\theta}=\sum_{t=1}^{T}\frac{dL_t}{d\theta},\quad\frac{\partial C}{\partial L_t}=1",
    general=lambda key: {"problem": instances.shared_net(key)},
    smallest=[{"problem": instances.unit(theta)} for theta in THETAS],
    counterexample="unit problem, θ = 2: written 1, true 48",
)
def gradient_is_one(problem):
    truth = problem.flat_gradient("bptt")
    return Claim(jnp.full_like(truth, problem.weight), truth, jnp.sum(problem.total_losses, axis=0))


@identity(
    "S1.3",
    "conditional",
    r"\frac{\partial C}{\partial\theta}=\frac{\partial C}{\partial L_t}\frac{\partial L_t}{\partial\theta}"
    r"=1\times\frac{\partial L_t}{\partial\theta}",
    "the gradient of C in θ is that of the loss of one step",
    correct="with Σ_t; without it only if no other loss depends on θ to first order",
    correct_latex=r"\frac{dL_s}{d\theta}=0\ (s\neq t),"
    r"\quad\mathrm{else}\ \frac{dC}{d\theta}=\sum_{t=1}^{T}\frac{\partial C}{\partial L_t}\frac{dL_t}{d\theta}",
    general=lambda key, satisfied: {
        "problem": losses_only_at(instances.shared_net(key), 3) if satisfied else instances.shared_net(key),
        "t": 3,
    },
    smallest=UNITS,
    counterexample="unit problem, θ = 2, t = 3: written 32, true 48",
)
def one_loss_for_all(problem, t):
    losses = problem.total_losses
    return Claim(problem.weight * losses[t - 1], problem.flat_gradient("bptt"), jnp.sum(losses, axis=0))


@identity(
    "S1.4",
    "holds",
    r"\frac{\partial L_t}{\partial\theta}=\frac{\partial L_t}{\partial o_t}\frac{\partial o_t}{\partial\theta}",
    "each loss reaches θ through its output, whose total derivative contains that of h_t",
    general=lambda key: {"problem": instances.shared_net(key)},
)
def loss_through_output(problem):
    outputs = problem.output_params + problem.output_state @ problem.total_params
    return Claim(jnp.einsum("to,top->tp", problem.loss_output, outputs), problem.total_losses)


@identity(
    "S1.5",
    "holds",
    r"h_t\to o_t,\quad h_t\to h_{t+1}\to o_{t+1}",
    "h_t feeds o_t and h_{t+1}, which feeds o_{t+1}: it reaches its own output and all later ones, no earlier one",
    general=lambda key: {"problem": instances.shared_net(key)},
)
def dependency_of_outputs(problem):
    measured = jnp.moveaxis(sensitivities(problem)[0].state, 2, 1)  # do_s/dh_t, [T, T, O, N]
    arrows = jnp.einsum("son,stnm->stom", problem.output_state, state_pairs(problem.jacobians))
    reaches = jnp.tril(jnp.ones((problem.length,) * 2, bool))
    return Claim((reaches, arrows), (jnp.any(measured != 0, axis=(2, 3)), measured))


@identity(
    "S1.7",
    "fails",
    r"\frac{\partial C}{\partial\theta}=\frac{\partial L_t}{\partial\theta}="
    r"\frac{\partial L_t}{\partial h_{t+1}}\frac{\partial h_{t+1}}{\partial\theta}+"
    r"\frac{\partial L_t}{\partial o_t}\frac{\partial o_t}{\partial\theta}",
    "the gradient of C in θ is L_t by h_{t+1} plus L_t by o_t",
    correct="dC/dθ = Σ_t [(dC/dh_t) ∂⁺h_t/∂⁺θ + (∂C/∂o_t) ∂⁺o_t/∂⁺θ]: total on the loss side, direct at the parameter",
    correct_latex=r"\frac{dC}{d\theta}=\sum_{t=1}^{T}\left[\frac{dC}{dh_t}\frac{\partial^{+}h_t}{\partial^{+}\theta}"
    r"+\frac{\partial C}{\partial o_t}\frac{\partial^{+}o_t}{\partial^{+}\theta}\right]",
    general=lambda key: {"problem": instances.shared_net(key), "t": 3},
    smallest=UNITS,
    counterexample="unit problem, θ = 2: written 4, 12, 32 for t = 1, 2, 3, true 48 = (14·1 + 6·2 + 2·4) + (2 + 4 + 8)",
)
def gradient_from_one_step(problem, t):
    outputs = problem.loss_output[t - 1] @ total_outputs(problem)[t - 1]
    later = 0.0  # no h_{t+1} at t = T
    if t < problem.length:
        later = sensitivities(problem)[1].state[t - 1, t] @ problem.total_params[t]
    recurrent = jnp.einsum("tn,tnp->p", problem.adjoints, problem.direct_params)
    readout = problem.weight * jnp.einsum("to,top->p", problem.loss_output, problem.output_params)
    return Claim(later + outputs, problem.flat_gradient(), recurrent + readout)


@identity(
    "S1.20",
    "holds",
    r"\frac{\partial C}{\partial\theta}=\frac{\partial L_1}{\partial\theta}+\cdots+\frac{\partial L_t}{\partial\theta}"
    r"+\cdots+\frac{\partial L_T}{\partial\theta}",
    "the gradient of C in θ is the sum of the losses' gradients",
    general=lambda key: {"problem": instances.shared_net(key)},
)
def sum_of_losses(problem):
    return Claim(jnp.sum(problem.total_losses, axis=0), problem.flat_gradient("double_sum"))


@identity(
    "S1.21",
    "holds",
    r"\frac{\partial L^t}{\partial\theta}=\frac{\partial L^t}{\partial o^t}\frac{\partial o^t}{\partial\theta}",
    "the gradient of a loss in θ is its derivative in o_t times the total derivative of o_t in θ",
    general=lambda key: {"problem": instances.shared_net(key)},
)
def loss_times_total_output(problem):
    written = problem.weight * jnp.einsum("to,top->p", problem.loss_output, total_outputs(problem))
    return Claim(written, problem.flat_gradient("forward_sensitivity"))


def _loss_by_two_paths(problem, t):
    """(∂L_t/∂o_t) {∂⁺g/∂⁺θ + (∂⁺g/∂⁺h) dh_t/dθ}."""
    carried = problem.output_state[t - 1] @ problem.total_params[t - 1]
    return problem.loss_output[t - 1] @ (problem.output_params[t - 1] + carried)


@identity(
    "S1.22",
    "fails",
    r"\frac{\partial L^t}{\partial\theta}=\frac{\partial L^t}{\partial o^t}\left\{\frac{\partial}{\partial\theta}"
    r"g(h^t,\theta)\times\frac{\partial h^t}{\partial\theta}\right\}",
    "the derivative of o_t in θ is g's own derivative in θ times that of h_t",
    correct="a sum of two paths: ∂⁺g/∂⁺θ + (∂⁺g/∂⁺h) dh_t/dθ",
    correct_latex=r"\frac{dL^t}{d\theta}="
    r"\frac{\partial L^t}{\partial o^t}\left\{\frac{\partial^{+}}{\partial^{+}\theta}g(h^t,\theta)"
    r"+\frac{\partial^{+}g}{\partial^{+}h^t}\frac{dh^t}{d\theta}\right\}",
    general=lambda key: {"problem": instances.shared_net(key), "t": 3},
    smallest=UNITS,
    counterexample="unit problem, θ = 2: written 2, 16, 96, true 4, 12, 32 for t = 1, 2, 3",
)
def product_for_sum(problem, t):
    written = problem.loss_output[t - 1] @ (problem.output_params[t - 1] * problem.total_params[t - 1])
    return Claim(written, problem.total_losses[t - 1], _loss_by_two_paths(problem, t))


@identity(
    "S1.23",
    "fails",
    r"\frac{\partial L_t}{\partial\theta}=\frac{\partial L_t}{\partial o}\frac{\partial g}{\partial\theta}"
    r"\frac{\partial}{\partial\theta}f(h^{t-1},x,\theta)",
    "the derivative of o_t in θ is g's own derivative in θ times f's own",
    correct="∂⁺g/∂⁺θ + (∂⁺g/∂⁺h) dh_t/dθ, with h_{t−1} in f depending on θ too",
    correct_latex=r"\frac{dL_t}{d\theta}="
    r"\frac{\partial L_t}{\partial o}\left\{\frac{\partial^{+}g}{\partial^{+}\theta}"
    r"+\frac{\partial^{+}g}{\partial^{+}h^t}\frac{d}{d\theta}f(h^{t-1},x,\theta)\right\}",
    general=lambda key: {"problem": instances.shared_net(key), "t": 3},
    smallest=[{"problem": instances.unit(theta), "t": t} for theta, t in ((3.0, 3), (0.7, 3), (2.0, 1), (2.0, 2))],
    counterexample="unit problem, θ = 3, t = 3: written 243, true 108; θ = 2, t = 1, 2: written 2, 8, true 4, 12, and "
    "at θ = 2, t = 3 both are 32 by accident",
)
def product_of_direct_partials(problem, t):
    written = problem.loss_output[t - 1] @ (problem.output_params[t - 1] * problem.direct_params[t - 1])
    return Claim(written, problem.total_losses[t - 1], _loss_by_two_paths(problem, t))


@identity(
    "S1.25",
    "conditional",
    r"\frac{\partial L^t}{\partial\theta}=\frac{\partial L^t}{\partial o^t}\frac{\partial}{\partial\theta}"
    r"f(h^t(\theta),\theta)=D_{g}L^t",
    "the gradient of a loss in θ is its derivative in o_t times that of f(h_t(θ), θ), which is D_g L_t",
    correct="f must be g, and the factor do_t/dθ stays: D_g L_t alone is only ∂L_t/∂o_t",
    correct_latex=r"\frac{dL^t}{d\theta}="
    r"\frac{\partial L^t}{\partial o^t}\frac{d}{d\theta}g(h^t(\theta),\theta)=D_{g}L^t\,\frac{do^t}{d\theta}",
    general=lambda key, satisfied: {
        "problem": instances.shared_net(key),
        "t": 3,
        "outer": "g" if satisfied else "f",
    },
    smallest=[{"problem": instances.unit(theta), "t": 3, "outer": "dropped"} for theta in THETAS],
    counterexample="unit problem, θ = 2, t = 3: D_g L = 1, true 1 · 32 (f and g are the same function there)",
)
def derivative_of_composed_output(problem, t, outer):
    written = problem.loss_output[t - 1]
    if outer == "g":
        written = written @ total_outputs(problem)[t - 1]
    elif outer == "f":
        written = written @ problem.total_params[t]  # f(h_t(θ), θ) is h_{t+1}
    return Claim(written, problem.total_losses[t - 1], _loss_by_two_paths(problem, t))
