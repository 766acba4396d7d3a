"""S1: chain-rule bookkeeping (001_719220d52c62b28b): what each loss sends to θ. The recurrence of dC/dh_t is in
`s1_paths`, the scalar examples and what follows from them in `s1_scalar`.

The note takes C = Σ_t L_t and writes ∂ for total and direct derivatives alike; it is scalar in style, so a product of
two derivatives in θ is read entry by entry.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from experiments.identities import instances
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import THETAS
from jaxbptt import jacobians, trajectories

UNITS = [{"problem": instances.unit(theta), "t": t} for theta in THETAS for t in (1, 2, 3)]


class Nudges(NamedTuple):
    """Where a small change enters; as a result of `sensitivities`, the derivatives to it, step t on axis −2."""

    state: jax.Array  # [T, N] on h_t, every use of it
    carried: jax.Array  # [T, N] on the copy of h_t that h_{t+1} reads
    read: jax.Array  # [T, N] on the copy of h_t that o_t reads
    output: jax.Array  # [T, O] on o_t


@functools.partial(jax.jit, static_argnums=0)
def sensitivities(model, params, inputs, targets, initial):
    """(do_s [T, O, …], dL_s [T, …]) to each nudge, total, by jacrev through the whole unroll."""
    flat, unravel = ravel_pytree(initial)

    def shift(state, by):
        return unravel(ravel_pytree(state)[0] + by)

    def step(params, h, x):
        x, carried, state = x
        return shift(model.step(params, shift(h, carried), x), state)

    nudged_model = model._replace(step=step, derivation=None, num_inputs=None)

    def run(nudges):
        carried = jnp.concatenate((jnp.zeros((1, flat.size)), nudges.carried[:-1]))  # step t + 1 reads h_t
        states = trajectories.unroll(nudged_model, params, (inputs, carried, nudges.state), initial=initial).states
        outputs = jax.vmap(lambda h, by: model.readout(params, shift(h, by)))(states, nudges.read)
        outputs += nudges.output.reshape(outputs.shape)
        return outputs.reshape(len(inputs), -1), jax.vmap(model.loss)(outputs, targets)

    num_outputs = jax.eval_shape(model.readout, params, initial).size
    none = jnp.zeros((len(inputs), flat.size))
    return jax.jacrev(run)(Nudges(none, none, none, jnp.zeros((len(inputs), num_outputs))))


@functools.partial(jax.jit, static_argnums=0)
def total_outputs(model, params, inputs, targets, initial):
    """do_t/dθ, [T, O, P], by jacfwd through the whole unroll."""
    theta, unravel = ravel_pytree(params)

    def outputs(theta):
        params = unravel(theta)
        states = trajectories.unroll(model, params, inputs, initial=initial).states
        return jax.vmap(lambda h: model.readout(params, h).ravel())(states)

    return jax.jacfwd(outputs)(theta)


@jax.jit
def state_pairs(steps):
    """dh_s/dh_t at [s−1, t−1], [T, T, N, N], the identity for s = t and zero for s < t."""
    length, size = steps.shape[:2]
    times, zero = range(1, length + 1), jnp.zeros((size, size))
    return jnp.array([[jacobians.product(steps, t, s) if s >= t else zero for t in times] for s in times])


def via_output(problem):
    """(∂L_t/∂o_t)(∂⁺o_t/∂⁺h_t), [T, N]."""
    return jnp.einsum("to,ton->tn", problem.loss_output, problem.output_state)


def losses_only_at(problem, *steps):
    """The same net, its targets met at all other steps, so that their losses carry no gradient."""
    kept = jnp.isin(jnp.arange(1, problem.length + 1), jnp.array(steps))
    return problem._replace(targets=jnp.where(kept[:, None], problem.targets, problem.outputs))


@identity(
    "S1.2",
    "fails",
    r"\frac{\partial C}{\partial\theta}=\frac{\partial}{\partial\theta}\sum L_t=1",
    "the gradient of the summed losses in θ is 1",
    correct="dC/dθ = Σ_t dL_t/dθ; the 1 is ∂⁺C/∂⁺L_t",
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
    measured = jnp.moveaxis(sensitivities(*problem)[0].state, 2, 1)  # do_s/dh_t, [T, T, O, N]
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
    general=lambda key: {"problem": instances.shared_net(key), "t": 3},
    smallest=UNITS,
    counterexample="unit problem, θ = 2: written 4, 12, 32 for t = 1, 2, 3, true 48 = (14·1 + 6·2 + 2·4) + (2 + 4 + 8)",
)
def gradient_from_one_step(problem, t):
    outputs = problem.loss_output[t - 1] @ total_outputs(*problem)[t - 1]
    later = 0.0  # no h_{t+1} at t = T
    if t < problem.length:
        later = sensitivities(*problem)[1].state[t - 1, t] @ problem.total_params[t]
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
    written = problem.weight * jnp.einsum("to,top->p", problem.loss_output, total_outputs(*problem))
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
        written = written @ total_outputs(*problem)[t - 1]
    elif outer == "f":
        written = written @ problem.total_params[t]  # f(h_t(θ), θ) is h_{t+1}
    return Claim(written, problem.total_losses[t - 1], _loss_by_two_paths(problem, t))
