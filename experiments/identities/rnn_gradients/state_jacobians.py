"""What one step passes on, and derivatives between states, dh_t/dh_i, measured by kicks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.identities import instances
from experiments.identities.derivatives import between, outputs_in_states, states_in_states
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import THETAS, T
from jaxbptt import cells, models, trajectories


@functools.cache
def _recurrence_model(num_inputs, size, activation):
    if activation is None:
        cell = cells.linear(num_inputs, size)
    else:
        cell = cells.elman(num_inputs, size, activation=activation)
    return models.sequence_model(cell, size, loss=lambda output, target: output @ target)


def recurrence(w_hh, w_hx=None, *, initial=None, activation=None, length=T):
    """h_t = φ(W_hh h_{t−1} + W_hx x_t) with o_t = h_t and L_t = o_tᵀ y_t; x_t and y_t ones, h_0 ones unless given."""
    w_hh = jnp.asarray(w_hh, float)
    size = len(w_hh)
    w_hx = jnp.zeros((size, 0)) if w_hx is None else jnp.asarray(w_hx, float)
    params = models.SequenceParams(
        cells.ElmanParams(w_hx, w_hh, jnp.zeros(size)), models.Readout(jnp.eye(size), jnp.zeros(size))
    )
    model = _recurrence_model(w_hx.shape[1], size, activation)
    initial = jnp.ones(size) if initial is None else jnp.asarray(initial, float)
    return instances.Problem(model, params, jnp.ones((length, w_hx.shape[1])), jnp.ones((length, size)), initial)


@functools.cache
def _fed_back_model(model, gain):
    def step(params, state, x):
        return model.step(params, state, x + gain * model.readout(params, state))

    return model._replace(step=step, derivation=None)


@functools.partial(jax.jit, static_argnums=0)
def _state_in_fed_input(model, params, inputs, initial, fed):
    def states(x):
        return trajectories.unroll(model, params, inputs + fed[:, None] * x[None, :], initial=initial).states

    return jax.jacfwd(states)(jnp.zeros(inputs.shape[1]))


def partials_by_column(function, argument):
    """[∂f_i/∂x_j]: column j is the derivative along e_j."""
    basis = jnp.eye(argument.size)
    return jnp.stack([jax.jvp(function, (argument,), (direction,))[1] for direction in basis], axis=1)


@identity(
    "S0.6",
    "holds",
    r"\frac{\partial o_t}{\partial h_t}=\frac{\partial}{\partial h_t}g(h_t,\theta)",
    "the output depends on its state in one way only",
    general=lambda key: {"problem": instances.shared_net(key)},
)
def output_in_state(problem):
    steps = jnp.arange(problem.length)
    return Claim(problem.output_state, outputs_in_states(problem)[steps, steps])


@identity(
    "S0.7",
    "conditional",
    r"\frac{\partial h_t}{\partial h_{t-1}}=\frac{\partial}{\partial h_{t-1}}f(h_{t-1},x,\theta)",
    "the derivative of h_t in h_{t−1} is the derivative of f in its state",
    correct="where x_t does not itself depend on h_{t−1}; else add (∂⁺f/∂⁺x) dx_t/dh_{t−1}",
    correct_latex=r"\frac{dx_t}{dh_{t-1}}=0,\quad\mathrm{else}\ \frac{dh_t}{dh_{t-1}}="
    r"\frac{\partial^{+}f}{\partial^{+}h_{t-1}}+\frac{\partial^{+}f}{\partial^{+}x_t}\,\frac{dx_t}{dh_{t-1}}",
    general=lambda key, satisfied: {"problem": instances.net(key), "feedback": 0.0 if satisfied else 1.0},
    smallest=[{"problem": recurrence([[theta]], [[1.0]]), "feedback": 1.0} for theta in THETAS],
    counterexample="h_t = 2 h_{t−1} + o_{t−1} with o = h: direct 2, total 3",
)
def state_in_previous_state(problem, feedback):
    model = problem.model
    closed = problem._replace(model=_fed_back_model(model, feedback))
    outputs = jax.vmap(lambda state: model.readout(problem.params, state))(closed.previous)
    opened = problem._replace(inputs=problem.inputs + feedback * outputs)  # what f was fed in the closed loop
    through_input = feedback * opened.direct_inputs[1:] @ opened.output_state[:-1]
    later = jnp.arange(1, problem.length)
    total = states_in_states(closed)[later, later - 1]
    return Claim(opened.jacobians[1:], total, opened.jacobians[1:] + through_input)


@identity(
    "S0.8",
    "conditional",
    r"\frac{\partial h_t}{\partial x}=\frac{\partial}{\partial x}f(h_{t-1},x,\theta)",
    "the derivative of h_t in the input x is the derivative of f in its input",
    correct="for the x_t of that step; for one x fed at every step, Σ_{s≤t} (dh_t/dh_s) ∂⁺h_s/∂⁺x_s",
    correct_latex=r"x=x_t,\quad\mathrm{else\ with}\ x\ \mathrm{at\ every\ step}\ \frac{dh_t}{dx}="
    r"\sum_{s=1}^{t}\frac{dh_t}{dh_s}\,\frac{\partial^{+}h_s}{\partial^{+}x_s}",
    general=lambda key, satisfied: {
        "problem": instances.net(key),
        "t": 4,
        "fed": jnp.eye(T)[3] if satisfied else jnp.ones(T),
    },
    smallest=[{"problem": recurrence([[theta]], [[3.0]]), "t": 3, "fed": jnp.ones(T)} for theta in THETAS],
    counterexample="h_t = 2 h_{t−1} + 3x, t = 3: direct 3, total 21",
)
def state_in_input(problem, t, fed):
    direct = problem.direct_inputs
    total = _state_in_fed_input(problem.model, problem.params, problem.inputs, problem.initial, fed)
    corrected = jnp.zeros_like(direct[0])
    for s in range(t):
        corrected = problem.jacobians[s] @ corrected + fed[s] * direct[s]
    return Claim(direct[t - 1], total[t - 1], corrected)


@identity(
    "S0.15",
    "holds",
    r"h_{t+1}=f(h_t,x_{t+1},\theta)=f(f(h_{t-1},x_t,\theta),x_{t+1},\theta)",
    "two steps are f applied to f",
    general=lambda key: {"problem": instances.net(key)},
)
def two_steps(problem):
    step, params, inputs = problem.model.step, problem.params, problem.inputs
    twice = jax.vmap(lambda state, x, later: step(params, step(params, state, x), later))
    return Claim(twice(problem.previous[:-1], inputs[:-1], inputs[1:]), problem.states[1:])


@identity(
    "S0.16",
    "fails",
    r"\frac{\partial h_t}{\partial h_i}=\frac{\partial}{\partial h_i}f(h_t,x,\theta)",
    "the derivative of h_t in h_i is that of f at h_t",
    correct="f is taken at h_{t−1}; at h_t it is dh_{t+1}/dh_i",
    correct_latex=r"\frac{dh_t}{dh_i}="
    r"\frac{d}{dh_i}f(h_{t-1},x,\theta)=\frac{\partial^{+}f}{\partial^{+}h_{t-1}}\,\frac{dh_{t-1}}{dh_i}",
    general=lambda key: {"problem": instances.net(key), "i": 2, "t": 4},
    smallest=[{"problem": instances.scalar(theta, 5), "i": 1, "t": 4} for theta in THETAS],
    counterexample="h_t = 2 h_{t−1}, t − i = 3: written 16, true 8",
)
def state_argument_one_late(problem, i, t):
    written = problem.jacobians[t] @ problem.product(i, t)  # index t is J_{t+1} = ∂⁺f/∂⁺h at h_t
    corrected = problem.jacobians[t - 1] @ problem.product(i, t - 1)
    return Claim((written, written), (between(problem, i, t), between(problem, i, t + 1)), (corrected, written))


@identity(
    "S0.17",
    "holds",
    r"\frac{\partial h_{10}}{\partial h_7}=\frac{\partial h_{10}}{\partial h_9}\,\frac{\partial h_9}{\partial h_8}"
    r"\,\frac{\partial h_8}{\partial h_7}",
    "t − i Jacobians, the latest on the left",
    general=lambda key: {"problem": instances.net(key, length=10)},
)
def three_factors(problem):
    step = problem.jacobians
    truth = between(problem, 7, 10)
    return Claim((step[9] @ step[8] @ step[7], problem.product(7, 10)), (truth, truth))


@identity(
    "S0.18",
    "fails",
    r"\frac{\partial h_t}{\partial h_i}=\frac{\partial h_t}{\partial h_{t-1}}\cdots\frac{\partial h_1}{\partial x}",
    "the chain from h_t to h_i ends in the derivative of h_1 in x",
    correct="its last factor is ∂⁺h_{i+1}/∂⁺h_i; as written it is dh_t/dx_1",
    correct_latex=r"\frac{\partial h_t}{\partial h_i}="
    r"\frac{\partial h_t}{\partial h_{t-1}}\cdots\frac{\partial h_{i+1}}{\partial h_i}",
    general=lambda key: {
        "problem": recurrence(instances.matrix(key), instances.matrix(jax.random.fold_in(key, 1)), activation=jnp.tanh),
        "i": 1,
        "t": 4,
    },
    smallest=[{"problem": recurrence([[theta]], [[3.0]]), "i": 1, "t": 3} for theta in THETAS],
    counterexample="h_t = 2 h_{t−1} + 3 x_t: dh_3/dh_1 = 4, written 12",
)
def chain_that_ends_in_x(problem, i, t):
    written, first = problem.product(1, t) @ problem.direct_inputs[0], jnp.eye(problem.length)[0]
    in_first = _state_in_fed_input(problem.model, problem.params, problem.inputs, problem.initial, first)[t - 1]
    return Claim((written, written), (between(problem, i, t), in_first), (problem.product(i, t), written))


@identity(
    "S0.19",
    "fails",
    r"\frac{\partial h_t}{\partial h_i}=\frac{\partial}{\partial h_i}f(h_{t-1},x,\theta)"
    r"\,\frac{\partial h_{t-1}}{\partial h_i}",
    "the derivative of f in h_i, times that of h_{t−1} in h_i",
    correct="(∂⁺f/∂⁺h_{t−1}) dh_{t−1}/dh_i: ∂f/∂h_i has the chain rule in it already",
    correct_latex=r"\frac{dh_t}{dh_i}="
    r"\frac{\partial^{+}}{\partial^{+}h_{t-1}}f(h_{t-1},x,\theta)\,\frac{dh_{t-1}}{dh_i}",
    general=lambda key: {"problem": instances.net(key), "i": 2, "t": 5},
    smallest=[{"problem": instances.scalar(theta, 5), "i": 1, "t": 3} for theta in THETAS],
    counterexample="h_t = 2 h_{t−1}, t − i = 2: written 8, true 4",
)
def chain_rule_twice(problem, i, t):
    before = problem.product(i, t - 1)
    return Claim(problem.product(i, t) @ before, between(problem, i, t), problem.jacobians[t - 1] @ before)


@identity(
    "S0.22",
    "conditional",
    r"\frac{\partial h_t}{\partial h_{t-1}}\,q_i=\lambda_i\,q_i",
    "the Jacobian of a step has a basis of real orthonormal eigenvectors to name",
    correct="for a symmetric Jacobian; any other has its singular vectors",
    correct_latex=r"J_t^{\top}=J_t,\quad J_t=\frac{\partial h_t}{\partial h_{t-1}}",
    general=lambda key, satisfied: {
        "problem": recurrence(instances.matrix(key) + instances.matrix(key).T) if satisfied else instances.net(key),
    },
    smallest=[{"problem": recurrence([[0.0, -1.0], [1.0, 0.0]])}],
    counterexample="rotation [[0, −1], [1, 0]]: eigenvalues ±i",
)
def named_eigenvectors(problem):
    steps = np.asarray(problem.jacobians)
    q = np.linalg.eig(steps)[1]
    real_orthonormal = np.allclose(q.imag, 0) and np.allclose(q.mT @ q, np.eye(steps.shape[1]))
    return Claim(True, real_orthonormal, np.allclose(steps, steps.mT))


@identity(
    "S0.28",
    "holds",
    r"J_f=\left(\frac{\partial f_i}{\partial x_j}\right),\quad i=1,\ldots,m,\ j=1,\ldots,n",
    "the Jacobian is m × n, row i the derivatives of f_i",
    general=lambda key: {"problem": instances.net(key)},
)
def jacobian_by_entries(problem):
    model, params, x, state = problem.model, problem.params, problem.inputs[1], problem.states[0]
    in_state = partials_by_column(lambda state: model.step(params, state, x), state)
    in_input = partials_by_column(lambda x: model.step(params, state, x), x)
    return Claim((in_state, in_input), (problem.jacobians[1], problem.direct_inputs[1]))


@identity(
    "S0.32",
    "holds",
    r"\frac{\partial h_t}{\partial h_k}=D_t W\,D_{t-1}W\cdots D_{k+1}W",
    "the exercise left blank, for h_t = φ(W h_{t−1} + U x_t): the product of D_i W with D_i = diag(φ')",
    general=lambda key: {"problem": instances.net(key), "k": 1, "t": 5},
)
def jacobian_of_the_exercise(problem, k, t):
    w = problem.params.cell.w_hh
    factors = [jnp.diag(1 - problem.states[i - 1] ** 2) @ w for i in range(t, k, -1)]  # tanh' = 1 − h²
    truth = between(problem, k, t)
    return Claim((functools.reduce(jnp.matmul, factors), problem.product(k, t)), (truth, truth))
