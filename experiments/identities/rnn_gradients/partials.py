"""Partials of f, g and L, and the gradient as their product.

Derivatives between states are in `state_jacobians`, powers and eigenvectors in `linear_recurrence`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp

from experiments.identities import instances
from experiments.identities.derivatives import total_outputs, total_states
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import THETAS, N, O
from jaxbptt import gradients, models

ALL = slice(None)
OF_READOUT = slice(-(O * N + O), None)  # the columns of θ that only g has: w_yh, b_y
OF_CELL = slice(0, -(O * N + O))  # those that only f has


def last_loss_only(problem):
    """The same with every target but the last met exactly: squared error then has ∂L_t/∂o_t = 0 for t < T."""
    return problem._replace(targets=problem.outputs.at[-1].set(problem.targets[-1]))


def labelled(problem, key):
    """The same with cross-entropy and integer labels."""
    labels = jax.random.randint(key, (problem.length,), 0, O)
    return problem._replace(model=problem.model._replace(loss=models.softmax_cross_entropy), targets=labels)


@functools.partial(jax.jit, static_argnums=0)
def _cost(model, params, inputs, targets, initial):
    return gradients.autodiff(model, params, inputs, targets, initial=initial)[0]


@functools.cache
def _with_loss_offsets(model):
    return model._replace(loss=lambda output, target: model.loss(output, target[0]) + target[1])


def through_states(problem, states_in_params):
    """(∂⁺g/∂⁺h_t) ∂h_t/∂θ, [T, O, P], whichever ∂h_t/∂θ [T, N, P] is given."""
    return problem.output_state @ states_in_params


def pulled_to_cost(problem, outputs_in_params):
    """(∂C/∂L_t) (∂⁺L_t/∂⁺o_t) ∂o_t/∂θ for every t, [T, P]."""
    return problem.weight * jnp.einsum("to,top->tp", problem.loss_output, outputs_in_params)


def left_to_right(*factors):
    """The matrix product in the order written, flat; None where the shapes do not chain."""
    if any(left.shape[1] != right.shape[0] for left, right in itertools.pairwise(factors)):
        return None
    return functools.reduce(jnp.matmul, factors).ravel()


def derivative_or_none(function, argument):
    try:
        return jax.grad(function)(argument)
    except TypeError:  # an integer argument
        return None


@identity(
    "S0.2",
    "conditional",
    r"\frac{\partial C}{\partial L_t}=\frac{\partial}{\partial L_t}(L_1+\ldots+L_t+\ldots)=1",
    "each step's loss enters the total with derivative one",
    correct="for the sum, with L_1 … L_T as independent coordinates; 1/T for the mean",
    correct_latex=r"C=\sum_{t=1}^{T}L_t:\ \frac{\partial C}{\partial L_t}=1,"
    r"\quad C=\frac{1}{T}\sum_{t=1}^{T}L_t:\ \frac{\partial C}{\partial L_t}=\frac{1}{T}",
    general=lambda key, satisfied: {"problem": instances.net(key, reduction="sum" if satisfied else "mean")},
    smallest=[{"problem": instances.net(jax.random.key(0), reduction="mean", length=3)}],
    counterexample="mean over T = 3: 1/3 each, not 1",
)
def cost_in_losses(problem):
    def cost(offsets):
        return _cost(_with_loss_offsets(problem.model), *problem[1:3], (problem.targets, offsets), problem.initial)

    measured = jax.grad(cost)(jnp.zeros(problem.length))
    return Claim(jnp.ones(problem.length), measured, jnp.full(problem.length, problem.weight))


@identity(
    "S0.3",
    "holds",
    r"\frac{\partial L_t}{\partial o_t}=\frac{\partial}{\partial o_t}L(o_t,y_t)",
    "the loss of step t depends on its output in one way only",
    general=lambda key: {"problem": instances.net(key)},
)
def loss_in_output(problem):
    # b_y is added to o_t and to nothing else, so the total dL_t/db_y is the total dL_t/do_t.
    return Claim(problem.loss_output, problem.total_losses[:, -O:])


@identity(
    "S0.4",
    "conditional",
    r"\frac{\partial L_t}{\partial y_t}=\frac{\partial}{\partial y_t}L(o_t,y_t)",
    "the loss of step t has a derivative in its target",
    correct="for a real target; an integer label has none",
    correct_latex=r"y_t\in\mathbb{R}^{O}",
    general=lambda key, satisfied: {
        "problem": instances.net(key) if satisfied else labelled(instances.net(key), key),
    },
    smallest=[{"problem": labelled(instances.net(jax.random.key(0), length=1), jax.random.key(0))}],
    counterexample="cross-entropy, T = 1, an integer label: jax.grad raises TypeError (½(o − y)² at o = 2, y = 5: 3)",
)
def loss_in_target(problem):
    outputs, targets = problem.outputs, problem.targets
    partial = derivative_or_none(lambda y: jnp.sum(jax.vmap(problem.model.loss)(outputs, y)), targets)
    total = derivative_or_none(lambda y: _cost(*problem[:3], y, problem.initial) / problem.weight, targets)
    real = jnp.issubdtype(targets.dtype, jnp.floating)
    return Claim((True, partial), (total is not None, total), (real, partial))


@identity(
    "S0.5",
    "conditional",
    r"\frac{\partial o_t}{\partial\theta}=\frac{\partial}{\partial\theta}g(h_t,\theta)",
    "the derivative of the output in θ is that of g in its own θ",
    correct="for a θ that f does not use; else do_t/dθ = ∂⁺g/∂⁺θ + (∂⁺g/∂⁺h) dh_t/dθ",
    correct_latex=r"\frac{\partial^{+}f}{\partial^{+}\theta}=0,\quad\mathrm{else}\ \frac{do_t}{d\theta}="
    r"\frac{\partial^{+}g}{\partial^{+}\theta}+\frac{\partial^{+}g}{\partial^{+}h_t}\,\frac{dh_t}{d\theta}",
    general=lambda key, satisfied: (
        {"problem": instances.net(key), "columns": OF_READOUT}
        if satisfied
        else {"problem": instances.shared_net(key), "columns": ALL}
    ),
    smallest=[{"problem": instances.unit(theta), "columns": ALL} for theta in THETAS],
    counterexample="unit problem, t = 3: direct 8, total 32",
)
def output_in_params(problem, columns):
    direct = problem.output_params
    corrected = direct + through_states(problem, problem.total_params)
    return Claim(*(each[..., columns] for each in (direct, total_outputs(problem), corrected)))


@identity(
    "S0.9",
    "conditional",
    r"\frac{\partial h_t}{\partial\theta}=\frac{\partial}{\partial\theta}f(h_{t-1},x,\theta)",
    "the derivative of h_t in θ is the derivative of f in its own θ",
    correct="where h_{t−1} does not depend on θ (t = 1, constant h_0); else it is the direct partial alone, and "
    "dh_t/dθ = ∂⁺f/∂⁺θ + J_t dh_{t−1}/dθ",
    correct_latex=r"\frac{dh_{t-1}}{d\theta}=0,\quad\mathrm{else}\ \frac{dh_t}{d\theta}="
    r"\frac{\partial^{+}f}{\partial^{+}\theta}+\frac{\partial^{+}f}{\partial^{+}h_{t-1}}\,\frac{dh_{t-1}}{d\theta}",
    general=lambda key, satisfied: {"problem": instances.net(key), "t": 1 if satisfied else 4, "rate": 0.0},
    smallest=[
        *({"problem": instances.unit(theta), "t": 3, "rate": 0.0} for theta in THETAS),
        {"problem": instances.unit(), "t": 1, "rate": 1.0},
    ],
    counterexample="unit problem, t = 3: direct 4, total 12; t = 1 with dh_0/dθ = 1: direct 1, total 3",
)
def direct_and_total_state(problem, t, rate):
    direct = problem.direct_params
    first = jnp.full_like(direct[0], rate)  # dh_0/dθ
    total = jnp.concatenate((first[None], total_states(problem, first)))
    corrected = direct[t - 1] + problem.jacobians[t - 1] @ total[t - 1]
    return Claim(direct[t - 1], total[t], corrected)


@identity(
    "S0.10",
    "holds",
    r"\frac{\partial C}{\partial\theta}=\frac{\partial}{\partial\theta}\sum_{t=1}^{T}L(g(h_t,\theta),y_t)",
    "unrolled in time, the gradient of the sum is the sum of the losses' total gradients",
    general=lambda key: {"problem": instances.shared_net(key)},
)
def unrolled_gradient(problem):
    return Claim(jnp.sum(problem.total_losses, axis=0), problem.flat_gradient("bptt"))


@identity(
    "S0.11",
    "conditional",
    r"\frac{\partial C}{\partial\theta}=\frac{\partial L_t}{\partial\theta}\,\frac{\partial C}{\partial L_t}",
    "the gradient is one step's total loss gradient times the derivative of C in that loss",
    correct="where L_t alone has a gradient; else summed over t, with total dL_t/dθ",
    correct_latex=r"\frac{dL_s}{d\theta}=0\ (s\neq t),"
    r"\quad\mathrm{else}\ \frac{dC}{d\theta}=\sum_{t=1}^{T}\frac{dL_t}{d\theta}\,\frac{\partial C}{\partial L_t}",
    general=lambda key, satisfied: {
        "problem": last_loss_only(instances.net(key)) if satisfied else instances.net(key),
    },
    smallest=[{"problem": instances.unit(theta)} for theta in THETAS],
    counterexample="unit problem: the last term alone 32, the sum 48",
)
def gradient_from_one_loss(problem):
    each = problem.weight * problem.total_losses
    return Claim(each[-1], problem.flat_gradient("bptt"), jnp.sum(each, axis=0))


@identity(
    "S0.12",
    "holds",
    r"\frac{\partial h_t}{\partial\theta}\in\frac{\partial o_t}{\partial\theta}",
    "the θ of h_t and the θ of g both reach o_t: do_t/dθ = ∂⁺g/∂⁺θ + (∂⁺g/∂⁺h) dh_t/dθ (unit problem: 34 + 14 = 48)",
    general=lambda key: {"problem": instances.shared_net(key)},
)
def output_by_two_ways(problem):
    both = problem.output_params + through_states(problem, problem.total_params)
    gradient = jnp.sum(pulled_to_cost(problem, both), axis=0)
    return Claim((both, gradient), (total_outputs(problem), problem.flat_gradient("bptt")))


@identity(
    "S0.13",
    "conditional",
    r"\frac{\partial C}{\partial\theta}=\frac{\partial o_t}{\partial\theta}\,\frac{\partial L_t}{\partial o_t}"
    r"\,\frac{\partial C}{\partial L_t}",
    "the gradient is one product of total output, loss and cost derivatives, multiplied left to right",
    correct="where L_t alone has a gradient, in denominator layout; else summed over t, and in numerator layout the "
    "order is reversed",
    correct_latex=r"\frac{dL_s}{d\theta}=0\ (s\neq t),"
    r"\quad\mathrm{else}\ \frac{dC}{d\theta}=\sum_{t=1}^{T}\frac{do_t}{d\theta}\,"
    r"\frac{\partial L_t}{\partial o_t}\,\frac{\partial C}{\partial L_t}\ (\mathrm{denominator\ layout}),"
    r"\quad\frac{dC}{d\theta}=\sum_{t=1}^{T}\frac{\partial C}{\partial L_t}\,"
    r"\frac{\partial L_t}{\partial o_t}\,\frac{do_t}{d\theta}\ (\mathrm{numerator\ layout})",
    general=lambda key, satisfied: {
        "problem": last_loss_only(instances.net(key)) if satisfied else instances.net(key),
        "denominator": True,
    },
    smallest=[
        *({"problem": instances.unit(theta), "denominator": True} for theta in THETAS),
        {"problem": last_loss_only(instances.net(jax.random.key(0))), "denominator": False},
    ],
    counterexample=f"unit problem: 32, true 48; numerator layout: [{O}, P] times [1, {O}] does not chain",
)
def gradient_from_one_output(problem, denominator):
    pairs, weight = (
        zip(problem.loss_output[:, None], total_outputs(problem), strict=True),
        jnp.full((1, 1), problem.weight),
    )
    in_order = [(weight, *pair) for pair in pairs]  # in numerator layout
    if denominator:
        in_order = [tuple(factor.T for factor in factors[::-1]) for factors in in_order]
    written = left_to_right(*(in_order[-1] if denominator else in_order[-1][::-1]))
    return Claim(written, problem.flat_gradient("bptt"), sum(left_to_right(*factors) for factors in in_order))


@identity(
    "S0.14",
    "conditional",
    r"\frac{\partial C}{\partial\theta}=\frac{\partial h_t}{\partial\theta}\,\frac{\partial o_t}{\partial h_t}"
    r"\,\frac{\partial L_t}{\partial o_t}\,\frac{\partial C}{\partial L_t}",
    "the gradient is one step's product, with the total dh_t/dθ, and goes through h_t alone",
    correct="where L_t alone has a gradient, and for a θ that g does not use; else summed over t, with ∂⁺g/∂⁺θ beside "
    "the way through h_t",
    correct_latex=r"\frac{dL_s}{d\theta}=0\ (s\neq t),\ \frac{\partial^{+}g}{\partial^{+}\theta}=0,"
    r"\quad\mathrm{else}\ \frac{dC}{d\theta}=\sum_{t=1}^{T}"
    r"\left(\frac{dh_t}{d\theta}\,\frac{\partial^{+}g}{\partial^{+}h_t}+\frac{\partial^{+}g}{\partial^{+}\theta}"
    r"\right)\frac{\partial L_t}{\partial o_t}\,\frac{\partial C}{\partial L_t}",
    general=lambda key, satisfied: (
        {"problem": last_loss_only(instances.net(key)), "columns": OF_CELL}
        if satisfied
        else {"problem": instances.shared_net(key), "columns": ALL}
    ),
    smallest=[
        *({"problem": instances.unit(theta), "columns": ALL} for theta in THETAS),
        {"problem": last_loss_only(instances.net(jax.random.key(0))), "columns": ALL},
        {"problem": instances.net(jax.random.key(0)), "columns": OF_CELL},
    ],
    counterexample="unit problem, t = 3: 24, summed over t 34, true 48",
)
def gradient_through_states(problem, columns):
    each = pulled_to_cost(problem, through_states(problem, problem.total_params))
    corrected = jnp.sum(each + pulled_to_cost(problem, problem.output_params), axis=0)
    return Claim(*(flat[columns] for flat in (each[-1], problem.flat_gradient("bptt"), corrected)))


@identity(
    "S0.34",
    "conditional",
    r"\frac{\partial C}{\partial\theta}=\frac{\partial f}{\partial\theta}\,\frac{\partial g}{\partial f}"
    r"\,\frac{\partial L_t}{\partial g}\,\frac{\partial C}{\partial L_t}",
    "the gradient is one product of direct partials along f, g, L",
    correct="for T = 1 and a θ that g does not use; else Σ_t [λ_tᵀ ∂⁺f/∂⁺θ + (∂C/∂o_t) ∂⁺g/∂⁺θ]",
    correct_latex=r"T=1,\ \frac{\partial^{+}g}{\partial^{+}\theta}=0,\quad"
    r"\mathrm{else}\ \frac{dC}{d\theta}=\sum_{t=1}^{T}\left[\frac{\partial^{+}f}{\partial^{+}\theta}\,\frac{dC}{dh_t}"
    r"+\frac{\partial^{+}g}{\partial^{+}\theta}\,\frac{\partial C}{\partial o_t}\right]",
    general=lambda key, satisfied: (
        {"problem": instances.net(key, length=1), "columns": OF_CELL}
        if satisfied
        else {"problem": instances.shared_net(key), "columns": ALL}
    ),
    smallest=[{"problem": instances.unit(theta), "columns": ALL} for theta in THETAS],
    counterexample="unit problem: the term of t = 3 gives 8, all three 14, true 48",
)
def gradient_from_direct_partials(problem, columns):
    direct = problem.direct_params
    written = pulled_to_cost(problem, through_states(problem, direct))[-1]
    by_readout = jnp.sum(pulled_to_cost(problem, problem.output_params), axis=0)
    corrected = jnp.einsum("tn,tnp->p", problem.adjoints, direct) + by_readout
    return Claim(*(each[columns] for each in (written, problem.flat_gradient(), corrected)))
