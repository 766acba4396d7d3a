"""S3: slides of equations 9.7.1 to 9.7.16 (003_e5801c300151b42c), L = 1/T Σ_t l(o_t, y_t).

Equations 9.7.3 to 9.7.7 are about any cell, 9.7.11 to 9.7.16 about h_t = W_hx x_t + W_hh h_{t−1}, o_t = W_qh h_t,
without activation; those that other notes have too are computed in `perceptron_and_rnn.recurrent_net`.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import jacobians

from . import instances
from .derivatives import total_states
from .identity import Claim, identity
from .instances import THETAS
from .perceptron_and_rnn import recurrent_net


class Recurrence(NamedTuple):
    """a_t = b_t + c_t a_{t−1}; with b_t = ∂⁺h_t/∂⁺θ, c_t = J_t and a_0 = dh_0/dθ, a_t is dh_t/dθ."""

    direct: jax.Array  # b_t, [T, N, P]
    steps: jax.Array  # c_t, [T, N, N]
    first: jax.Array  # a_0, [N, P]

    def run(self):
        """a_1 … a_T, [T, N, P], one after the other."""
        a, all_steps = self.first, []
        for b, c in zip(self.direct, self.steps, strict=True):
            a = b + c @ a
            all_steps.append(a)
        return jnp.array(all_steps)

    def solved(self, order="descending"):
        """b_t + Σ_{i<t} (Π_{j=i+1}^t c_j) b_i for every t, as the slide has it: without a_0."""
        products = _step_pairs(jacobians.product, self.steps, order)
        return self.direct + jnp.einsum("tinm,imp->tnp", products[:, 1:], self.direct)

    def corrected(self):
        """The same, products descending, plus (Π_{j=1}^t c_j) a_0."""
        return self.solved() + _step_pairs(jacobians.product, self.steps, "descending")[:, 0] @ self.first


@functools.partial(jax.jit, static_argnums=(0, 2))
def _step_pairs(product, steps, order):
    """Π_{j=i+1}^t c_j at [t−1, i] for i < t, else zero, [T, T + 1, N, N]; descending c_t … c_{i+1} or ascending."""
    length, size, _ = steps.shape
    # Reversed order is that of the transposes, transposed.
    turn = (lambda matrix: matrix) if order == "descending" else (lambda matrix: jnp.swapaxes(matrix, -1, -2))
    zero = jnp.zeros((size, size))
    pair = lambda t, i: turn(product(turn(steps), i, t)) if i < t else zero
    return jnp.array([[pair(t, i) for i in range(length + 1)] for t in range(1, length + 1)])


def recurrence_of(problem, first=None):
    """The recurrence of dh_t/dθ; a_0 = 0 unless given."""
    direct = problem.direct_params
    return Recurrence(direct, problem.jacobians, jnp.zeros_like(direct[0]) if first is None else first)


def _net(key):
    return {"problem": instances.net(key)}


def _linear_net(key):
    return {"problem": instances.linear_net(key)}


def _recurrence(key, satisfied):
    """Off the condition: the product of c_j in ascending order."""
    return {"recurrence": recurrence_of(**_net(key)), "order": "descending" if satisfied else "ascending"}


def _initial_state_constant_or_not(key, constant):
    problem = instances.net(key)
    first = jax.random.normal(key, problem.direct_params.shape[1:])
    return {"problem": problem, "first": jnp.zeros_like(first) if constant else first, "order": "descending"}


def _scalar_recurrence():
    """c = 2, b = 1, a_0 = 1 for three steps."""
    ones = jnp.ones((3, 1, 1))
    return {"recurrence": Recurrence(ones, 2 * ones, ones[0]), "order": "descending"}


def _shift_and_its_transpose():
    """c_2 = [[0, 1], [0, 0]], c_3 its transpose, b_1 = I and no other b."""
    shift, unit = jnp.array([[0.0, 1.0], [0.0, 0.0]]), jnp.eye(2)
    direct = jnp.array([unit, 0 * unit, 0 * unit])
    return {"recurrence": Recurrence(direct, jnp.array([unit, shift, shift.T]), 0 * unit), "order": "ascending"}


@identity(
    "S3.3",
    "holds",
    r"\frac{\partial L}{\partial w_h}=\frac{1}{T}\sum_{t=1}^{T}\frac{\partial l(y_t,o_t)}{\partial o_t}"
    r"\,\frac{\partial g(h_t,w_o)}{\partial h_t}\,\frac{\partial h_t}{\partial w_h}",
    "the gradient in w_h, which g does not have, comes through the states with total dh_t/dw_h",
    general=_net,
    counterexample="none, as w_o is not tied to w_h; the unit problem ties them: 34 of 48",
)
def gradient_in_recurrent_weights(problem):
    own = slice(0, ravel_pytree(problem.params.cell)[0].size)  # the columns of w_h; those of w_o come after
    through_states = jnp.einsum("to,ton,tnp->p", problem.loss_output, problem.output_state, problem.total_params)
    written = through_states[own] / problem.length
    return Claim((written,) * 2, tuple(problem.flat_gradient(route)[own] for route in ("autodiff", "bptt")))


@identity(
    "S3.4",
    "holds",
    r"\frac{\partial h_t}{\partial w_h}=\frac{\partial f(x_t,h_{t-1},w_h)}{\partial w_h}"
    r"+\frac{\partial f(x_t,h_{t-1},w_h)}{\partial h_{t-1}}\,\frac{\partial h_{t-1}}{\partial w_h}",
    "the total derivative of a state is the direct one plus J_t times the total one of the state before",
    general=_net,
    smallest=[{"problem": instances.unit(theta)} for theta in THETAS],
    counterexample="none: 4 + 2 · 4 = 12 in the unit problem at t = 3",
)
def total_from_direct(problem):
    total = problem.total_params
    before = jnp.concatenate((jnp.zeros_like(total[:1]), total[:-1]))
    return Claim(problem.direct_params + problem.jacobians @ before, total)


@identity(
    "S3.5",
    "conditional",
    r"a_t=b_t+\sum_{i=1}^{t-1}\left(\prod_{j=i+1}^{t}c_j\right)b_i",
    "the recurrence a_t = b_t + c_t a_{t−1} has this solution",
    correct="for a_0 = 0 (else add c_t … c_1 a_0) and, for matrices, the product in the order c_t … c_{i+1}",
    correct_latex=r"a_0=0,\ \prod_{j=i+1}^{t}c_j=c_t\cdots c_{i+1},"
    r"\quad\mathrm{else}\ a_t=b_t+\sum_{i=1}^{t-1}c_t\cdots c_{i+1}\,b_i+c_t\cdots c_1\,a_0",
    general=_recurrence,
    smallest=[_scalar_recurrence(), _shift_and_its_transpose()],
    counterexample="a_0 = 1, c = 2, b = 1: a_1 = 3, formula 1. c_2 = [[0, 1], [0, 0]] and c_3 = c_2ᵀ: "
    "c_3 c_2 = diag(0, 1), but c_2 c_3 = diag(1, 0)",
)
def solved_recurrence(recurrence, order):
    return Claim(recurrence.solved(order), recurrence.run(), recurrence.corrected())


@identity(
    "S3.6",
    "conditional",
    r"\frac{\partial h_t}{\partial w_h}=\frac{\partial f(x_t,h_{t-1},w_h)}{\partial w_h}+\sum_{i=1}^{t-1}"
    r"\left(\prod_{j=i+1}^{t}\frac{\partial f(x_j,h_{j-1},w_h)}{\partial h_{j-1}}\right)"
    r"\frac{\partial f(x_i,h_{i-1},w_h)}{\partial w_h}",
    "the total derivative of a state is the sum of all earlier direct ones, each carried on by the step Jacobians",
    correct="for an h_0 that does not depend on w_h (else add J_t … J_1 dh_0/dw_h) and the product in the order "
    "J_t … J_{i+1}",
    correct_latex=r"\frac{\partial h_0}{\partial w_h}=0,\ \prod_{j=i+1}^{t}J_j=J_t\cdots J_{i+1},"
    r"\quad\mathrm{else}\ \frac{\partial h_t}{\partial w_h}=\frac{\partial f_t}{\partial w_h}"
    r"+\sum_{i=1}^{t-1}J_t\cdots J_{i+1}\,\frac{\partial f_i}{\partial w_h}"
    r"+J_t\cdots J_1\,\frac{\partial h_0}{\partial w_h},"
    r"\quad f_j=f(x_j,h_{j-1},w_h),\quad J_j=\frac{\partial f_j}{\partial h_{j-1}}",
    general=_initial_state_constant_or_not,
    smallest=[
        {"problem": instances.scalar(2.0, 3, initial=2.0), "first": jnp.ones((1, 1)), "order": "descending"},
        {**_initial_state_constant_or_not(jax.random.key(0), True), "order": "ascending"},
    ],
    counterexample="h_t = w h_{t−1} with h_0 = w = 2: dh_1/dw = 2w = 4, formula 2",
)
def total_from_all_direct(problem, first, order):
    recurrence = recurrence_of(problem, first)
    return Claim(recurrence.solved(order), total_states(problem, first), recurrence.corrected())


@identity(
    "S3.10",
    "holds",
    r"\frac{\partial L}{\partial o_t}=\frac{\partial l(o_t,y_t)}{T\cdot\partial o_t}\in R^q",
    "the gradient in an output is 1/T of the derivative of that step's loss",
    general=_linear_net,
)
def mean_loss_in_output(problem):
    return recurrent_net.mean_loss_in_output(problem)


@identity(
    "S3.11",
    "holds",
    r"\frac{\partial L}{\partial W_{qh}}=\sum_{t=1}^{T}\mathrm{prod}\left(\frac{\partial L}{\partial o_t},"
    r"\frac{\partial o_t}{\partial W_{qh}}\right)=\sum_{t=1}^{T}\frac{\partial L}{\partial o_t}\,h_t^{\top}",
    "the gradient of the readout weights is the sum over t of output error times state",
    general=_linear_net,
)
def readout_weights(problem):
    return recurrent_net.readout_weights(problem)


@identity(
    "S3.12",
    "holds",
    r"\frac{\partial L}{\partial h_T}=\mathrm{prod}\left(\frac{\partial L}{\partial o_T},"
    r"\frac{\partial o_T}{\partial h_T}\right)=W_{qh}^{\top}\,\frac{\partial L}{\partial o_T}",
    "the last state's gradient comes through its own output alone",
    general=_linear_net,
)
def last_state(problem):
    return recurrent_net.last_state(problem)


@identity(
    "S3.13",
    "holds",
    r"\frac{\partial L}{\partial h_t}=\mathrm{prod}\left(\frac{\partial L}{\partial h_{t+1}},"
    r"\frac{\partial h_{t+1}}{\partial h_t}\right)+\mathrm{prod}\left(\frac{\partial L}{\partial o_t},"
    r"\frac{\partial o_t}{\partial h_t}\right)"
    r"=W_{hh}^{\top}\,\frac{\partial L}{\partial h_{t+1}}+W_{qh}^{\top}\,\frac{\partial L}{\partial o_t}",
    "without activation the error from t + 1 is carried back by W_hhᵀ, and that from t added",
    general=_linear_net,
)
def error_from_next_and_own(problem):
    by_products, by_weights = (
        recurrent_net.error_from_next_and_own(problem),
        recurrent_net.carried_back_by_weight(problem),
    )
    return Claim((by_products.written, by_weights.written), (by_products.truth, by_weights.truth))


@identity(
    "S3.14",
    "holds",
    r"\frac{\partial L}{\partial h_t}=\sum_{i=t}^{T}(W_{hh}^{\top})^{T-i}\,W_{qh}^{\top}"
    r"\,\frac{\partial L}{\partial o_{T+t-i}}",
    "unrolled without activation, a state's gradient sums powers of W_hhᵀ on the errors of all outputs from t on",
    general=_linear_net,
    smallest=[{"problem": recurrent_net.scalar_net(2.0, (1.0, 10.0, 100.0), initial=1.0)}],
    counterexample="none: 1 + 2 · 10 + 4 · 100 = 421 for W_hh = 2, ∂L/∂o = (1, 10, 100), t = 1",
)
def powers_of_recurrent_weights(problem):
    written = recurrent_net.sum_of_powers(problem, lambda t, i: problem.length + t - i)
    return Claim((written,) * 2, (recurrent_net.state_gradients(problem), problem.adjoints))


@identity(
    "S3.15",
    "holds",
    r"\frac{\partial L}{\partial W_{hx}}=\sum_{t=1}^{T}\frac{\partial L}{\partial h_t}\,x_t^{\top},\quad"
    r"\frac{\partial L}{\partial W_{hh}}=\sum_{t=1}^{T}\frac{\partial L}{\partial h_t}\,h_{t-1}^{\top}",
    "without activation the gradients of both weights of the cell are sums of error times what the weight multiplies",
    general=_linear_net,
)
def cell_weights(problem):
    written = tuple(problem.adjoints.T @ multiplied for multiplied in (problem.inputs, problem.previous))
    return Claim(
        (written,) * 2, recurrent_net.by_both_routes(problem, lambda grads: (grads.cell.w_hx, grads.cell.w_hh))
    )


class Truncations(NamedTuple):
    """dh_T/dθ, [N, P] each, by the three strategies of the slide."""

    full: jax.Array
    windows: dict[int, jax.Array]  # K -> the last K steps only
    randomised: dict[float, tuple[jax.Array, jax.Array]]  # probability to keep -> (mean, standard deviation)


def truncation_expectations(problem, windows=(1, 2, 4), keep=(0.5, 0.9)):
    """S3.7 exactly: z_t = b_t + ξ_t c_t z_{t−1} with ξ_t = 1/π kept or 0 cut, over all 2^(T−1) patterns of cuts."""
    recurrence = recurrence_of(problem)
    full, randomised = recurrence.run()[-1], {}
    patterns = np.array(list(itertools.product((False, True), repeat=problem.length - 1)))
    for probability in keep:
        weights = np.where(patterns, probability, 1 - probability).prod(axis=1)
        z = jnp.broadcast_to(recurrence.direct[0], (len(patterns), *full.shape))
        for b, c, kept in zip(recurrence.direct[1:], recurrence.steps[1:], patterns.T, strict=True):
            z = b + (kept / probability)[:, None, None] * (c @ z)
        mean = jnp.tensordot(weights, z, 1)
        randomised[probability] = mean, jnp.sqrt(jnp.tensordot(weights, (z - mean) ** 2, 1))
    last = {k: recurrence._replace(direct=recurrence.direct.at[:-k].set(0)).run()[-1] for k in windows}
    return Truncations(full, last, randomised)
