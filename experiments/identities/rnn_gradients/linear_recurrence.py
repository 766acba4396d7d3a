"""The linear recurrence by powers and eigenvectors; perturbed, contracting, composed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.identities import instances
from experiments.identities.derivatives import state_pairs
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import N
from jaxbptt import jacobians, trajectories

from .state_jacobians import recurrence

LONG = 40  # steps after which growing and shrinking components are apart
FAR = 1e3  # by at least this factor each way
DEPTH = 6  # how often the map is composed
QUARTER_TURN = [[0.0, -1.0], [1.0, 0.0]]
PAIR = [[0.0, -1.5, 0.0], [0.8, 0.3, 0.0], [0.0, 0.0, 0.6]]  # a complex pair and a real eigenvalue
PYTHAGOREAN = [[0.6, -0.8], [0.8, 0.6]]


def orthogonal(key):
    return jnp.linalg.qr(instances.matrix(key))[0]


def generic_vector(key):
    return 0.2 + jax.random.normal(jax.random.fold_in(key, 1), (N,))


def oblique(key, block):
    """P block P⁻¹ with a well-conditioned, non-orthogonal P."""
    p = jnp.eye(N) + 0.3 * instances.matrix(key)
    return p @ jnp.asarray(block) @ jnp.linalg.inv(p)


def symmetric_instance(key):
    eigenvalues = jax.random.uniform(jax.random.fold_in(key, 2), (N,), minval=0.5, maxval=1.8)
    return {"q": orthogonal(key), "eigenvalues": eigenvalues, "initial": generic_vector(key), "t": 4}


SYMMETRIC = {
    "q": jnp.array(PYTHAGOREAN),
    "eigenvalues": jnp.array([2.0, 0.5]),
    "initial": jnp.array([1.0, 0.0]),
    "t": 2,
}


def by_transpose(q, eigenvalues, initial):
    """h_t = Wᵀ h_{t−1} with W = QΛQᵀ."""
    return recurrence((q @ jnp.diag(eigenvalues) @ q.T).T, initial=initial)


def as_written_and_mended(q, eigenvalues, t):
    """(QᵀΛ^(t−1)Q, QΛᵗQᵀ)."""
    return q.T @ jnp.diag(eigenvalues ** (t - 1)) @ q, q @ jnp.diag(eigenvalues**t) @ q.T


@functools.partial(jax.jit, static_argnums=0)
def _first_unit(model, params, inputs, initials):
    def states(initial):
        return trajectories.unroll(model, params, inputs, initial=initial).states[:, 0]

    return jax.vmap(states)(initials)


def turning_points(problem, direction):
    """How often the first unit of h_t turns along the line h_0 = s · direction, −1 ≤ s ≤ 1; t = 1 … T."""
    line = jnp.linspace(-1.0, 1.0, 2001)[:, None] * direction[None, :] + problem.initial[None, :]
    rises = np.sign(np.diff(_first_unit(problem.model, problem.params, problem.inputs, line), axis=0))
    return np.sum(rises[1:] * rises[:-1] < 0, axis=0)


def gain_three(key, size=100):
    """A tanh net of spectral radius about 3, and a line through its states."""
    direction = jax.random.normal(jax.random.fold_in(key, 1), (size,))
    w = instances.matrix(key, size, 3.0)
    return {
        "problem": recurrence(w, initial=0.1 * direction, activation=jnp.tanh, length=DEPTH),
        "direction": direction,
    }


def scalar_tanh(gain):
    problem = recurrence([[gain]], initial=[0.1], activation=jnp.tanh, length=DEPTH)
    return {"problem": problem, "direction": jnp.ones(1)}


def pairs_come_closer(problem, states):
    """Whether one step brings any two of the states [K, N] closer together."""
    step = jax.vmap(lambda state: problem.model.step(problem.params, state, problem.inputs[0]))
    before, after = (np.linalg.norm(each[:, None] - each[None], axis=2) for each in (states, step(states)))
    return np.all(after < before, where=before > 0)


@identity(
    "S0.20",
    "conditional",
    r"f\circ f\circ\cdots\circ f\ \mathrm{bends\ ever\ more}",
    "composing the activation map over and over brings extraordinary nonlinearity",
    correct="with a gain that is large enough and a map that is not monotone along the line",
    general=lambda key, satisfied: gain_three(key) if satisfied else scalar_tanh(1.5 + jax.random.uniform(key)),
    smallest=[scalar_tanh(2.0), {"problem": recurrence(QUARTER_TURN, length=DEPTH), "direction": jnp.ones(2)}],
    counterexample="tanh(2h) has no turning point at any depth, nor has a linear map",
)
def composition_bends(problem, direction):
    turns = turning_points(problem, direction)
    return Claim(True, turns[-1] > turns[0])


@identity(
    "S0.23",
    "fails",
    r"h_t=W^{\top}h_{t-1},\ W=Q\Lambda Q^{\top}\ \Rightarrow\ h_t=Q^{\top}\Lambda^{t-1}Q\,h_0",
    "a symmetric linear recurrence by its eigenvectors",
    correct="h_t = QΛᵗQᵀ h_0: the other side of Q, and t steps from h_0",
    correct_latex=r"h_t=W^{\top}h_{t-1},\quad W=Q\Lambda Q^{\top}\ \Rightarrow\ h_t=Q\Lambda^{t}Q^{\top}h_0",
    general=symmetric_instance,
    smallest=[SYMMETRIC],
    counterexample="Q = [[.6, −.8], [.8, .6]], Λ = diag(2, ½), h_0 = (1, 0), t = 2: (1.6, 1.8), written (1.04, −.72)",
)
def power_of_a_symmetric_matrix(q, eigenvalues, initial, t):
    written, mended = as_written_and_mended(q, eigenvalues, t)
    return Claim(written @ initial, by_transpose(q, eigenvalues, initial).states[t - 1], mended @ initial)


@identity(
    "S0.24",
    "conditional",
    r"\lambda<1\rightarrow 0,\quad\lambda>1\rightarrow\infty",
    "the size of the component on each eigenvector goes to 0 for λ < 1 and to infinity for λ > 1",
    correct="with |λ| in place of λ (at |λ| = 1 the size stays), and for growth a start that is not zero",
    correct_latex=r"\left|\lambda\right|<1\rightarrow 0,"
    r"\quad\left|\lambda\right|>1\rightarrow\infty\ (q^{\top}h_0\neq 0),"
    r"\quad\left|\lambda\right|=1:\ \left|q^{\top}h_t\right|=\left|q^{\top}h_0\right|",
    general=lambda key, satisfied: {
        "q": orthogonal(key),
        "eigenvalues": jnp.array([1.6, 0.8, 0.5 if satisfied else -1.2 - jax.random.uniform(key)]),
        "initial": generic_vector(key),
    },
    smallest=[
        {"q": jnp.eye(1), "eigenvalues": jnp.array([-2.0]), "initial": jnp.ones(1)},
        {"q": jnp.eye(1), "eigenvalues": jnp.array([-1.0]), "initial": jnp.ones(1)},
        {"q": jnp.eye(2), "eigenvalues": jnp.array([2.0, 0.5]), "initial": jnp.array([0.0, 1.0])},
    ],
    counterexample="λ = −2: (−2)⁵ = −32; (−1)ⁿ keeps its size; diag(2, ½) from (0, 1): 0.03125 at t = 5",
)
def growth_of_components(q, eigenvalues, initial):
    w = q @ jnp.diag(eigenvalues) @ q.T
    start, end = (jnp.abs(q.T @ state) for state in (initial, recurrence(w, initial=initial, length=LONG).states[-1]))
    # To infinity, to zero or neither: 1, −1, 0.
    fate = jnp.where(end > FAR * start, 1.0, jnp.where(end <= start / FAR, -1.0, 0.0))
    corrected = jnp.where(start > 0, jnp.sign(jnp.abs(eigenvalues) - 1), -1.0)
    return Claim(jnp.sign(eigenvalues - 1), fate, corrected)


@identity(
    "S0.25",
    "fails",
    r"\frac{\partial h_t}{\partial h_0}=Q^{\top}\Lambda^{t-1}Q\,h_0",
    "the Jacobian from h_0 to h_t by eigenvectors",
    correct="QΛᵗQᵀ, a matrix without h_0",
    correct_latex=r"\frac{\partial h_t}{\partial h_0}=Q\Lambda^{t}Q^{\top}",
    general=symmetric_instance,
    smallest=[SYMMETRIC],
    counterexample="the same W, t = 2: true [[1.6, 1.8], [1.8, 2.65]], written a vector",
)
def jacobian_of_a_symmetric_matrix(q, eigenvalues, initial, t):
    written, mended = as_written_and_mended(q, eigenvalues, t)
    products = jacobians.prefix_products(by_transpose(q, eigenvalues, initial).jacobians)
    return Claim(written @ initial, products[t - 1], mended)


@identity(
    "S0.26",
    "conditional",
    r"g\rightarrow Jg\rightarrow\cdots\rightarrow J^{n}g",
    "backpropagation sends g to J g, then J² g, and so on to Jⁿ g",
    correct="where J is the transposed Jacobian and the same at each of n steps; in general g goes to J_nᵀ g, and on "
    "to J_1ᵀ … J_nᵀ g",
    correct_latex=r"J=J_1^{\top}=\cdots=J_n^{\top},"
    r"\quad\mathrm{else}\ g\rightarrow J_n^{\top}g\rightarrow\cdots\rightarrow J_1^{\top}\cdots J_n^{\top}g",
    general=lambda key, satisfied: {
        "problem": recurrence(instances.matrix(key), initial=generic_vector(key)),
        "g": generic_vector(jax.random.fold_in(key, 3)),
        "transposed": satisfied,
    },
    smallest=[
        {
            "problem": recurrence([[1.0, 1.0], [0.0, 1.0]], length=4),
            "g": jnp.array([1.0, 0.0]),
            "transposed": False,
        },
        {"problem": recurrence([[2.0]], initial=[0.1], activation=jnp.tanh), "g": jnp.ones(1), "transposed": True},
    ],
    counterexample="J = [[1, 1], [0, 1]], g = (1, 0), n = 3: J³g = (1, 0), backpropagation (1, 3); tanh: J_t varies",
)
def backpropagated_vector(problem, g, transposed):
    # L_t = o_tᵀ y_t with y_T = g and no other target: λ_T = g, and λ_{T−m} is g sent back m steps.
    only_last = problem._replace(targets=jnp.zeros_like(problem.targets).at[-1].set(g))
    step = problem.jacobians[-1].T if transposed else problem.jacobians[-1]
    sent = jnp.stack([jnp.linalg.matrix_power(step, m) @ g for m in range(problem.length)])
    back = jnp.einsum("tmn,m->tn", state_pairs(problem.jacobians)[-1], g)
    return Claim(sent, only_last.adjoints[::-1], back[::-1])


@identity(
    "S0.29",
    "conditional",
    r"g=\delta x,\quad\left\|J^{n}(h+\delta x)-J^{n}h\right\|=\delta\,|\lambda|^{n}",
    "two runs set apart along an eigenvector separate by δ |λ|ⁿ",
    correct="for a real eigenvector; for a complex pair ‖Re(λⁿ v)‖ in the plane of Re v, Im v",
    correct_latex=r"Jv=\lambda v,\ \mathrm{Im}\,v=0,\quad\mathrm{else}\ \left\|J^{n}(h+\delta x)-J^{n}h\right\|="
    r"\delta\,\frac{\left\|\mathrm{Re}(\lambda^{n}v)\right\|}{\left\|\mathrm{Re}\,v\right\|},"
    r"\quad\delta x=\delta\,\frac{\mathrm{Re}\,v}{\left\|\mathrm{Re}\,v\right\|}",
    general=lambda key, satisfied: {
        "problem": recurrence(
            oblique(key, jnp.diag(jnp.array([1.3, -0.7, 0.4])) if satisfied else PAIR), initial=generic_vector(key)
        ),
        "distance": 0.5,
    },
    smallest=[{"problem": recurrence([[0.0, -4.0], [1.0, 0.0]], length=3), "distance": 1.0}],
    counterexample="J = [[0, −4], [1, 0]], λ = ±2i, n = 3: 4 from (1, 0), 16 from (0, 1), |λ|ⁿ = 8",
)
def separation_along_an_eigenvector(problem, distance):
    eigenvalues, vectors = np.linalg.eig(np.asarray(problem.jacobians[0]))
    which = int(np.argmax(eigenvalues.imag))  # the complex pair, where there is one
    value, vector = eigenvalues[which], vectors[:, which]
    size = np.linalg.norm(vector.real)
    other = problem._replace(initial=problem.initial + jnp.asarray(distance * vector.real / size))
    power = value**problem.length
    separation = jnp.linalg.norm(other.states[-1] - problem.states[-1])
    return Claim(distance * np.abs(power), separation, distance * np.linalg.norm((power * vector).real) / size)


@identity(
    "S0.30",
    "holds",
    r"g+\delta x\rightarrow J(g+\delta x)\rightarrow\cdots\rightarrow J^{n}(g+\delta x)",
    "a constant Jacobian sends the perturbed vector on as a whole",
    general=lambda key: {
        "problem": recurrence(instances.matrix(key), initial=generic_vector(key)),
        "shift": 0.3 * generic_vector(jax.random.fold_in(key, 3)),
    },
)
def perturbed_vector_sent_on(problem, shift):
    start, step = problem.initial + shift, problem.jacobians[0]
    powers = jnp.stack([jnp.linalg.matrix_power(step, n) @ start for n in range(1, problem.length + 1)])
    return Claim(powers, problem._replace(initial=start).states)


@identity(
    "S0.31",
    "fails",
    r"J^{n}(g+\delta x)-J^{n}g=J^{n}\delta x+\delta x",
    "the two runs differ by Jⁿ δx and δx again",
    correct="Jⁿ δx alone (λⁿ δx for an eigenvector)",
    correct_latex=r"J^{n}(g+\delta x)-J^{n}g=J^{n}\delta x",
    general=lambda key: {
        "problem": recurrence(instances.matrix(key), initial=generic_vector(key)),
        "shift": 0.3 * generic_vector(jax.random.fold_in(key, 3)),
    },
    smallest=[{"problem": recurrence([[2.0]], length=3), "shift": jnp.ones(1)}],
    counterexample="J = 2, n = 3, g = δx = 1: 8, written 9",
)
def difference_of_two_runs(problem, shift):
    n = problem.length
    difference = problem._replace(initial=problem.initial + shift).states[-1] - problem.states[-1]
    sent = jnp.linalg.matrix_power(problem.jacobians[0], n) @ shift
    return Claim(sent + shift, difference, problem.product(0, n) @ shift)


@identity(
    "S0.33",
    "conditional",
    r"\rho(J)<1\ \Rightarrow\ \mathrm{contractive}",
    "eigenvalues inside the unit circle at every state make the map contractive: any two states come closer in a step",
    correct="in the 2-norm it is contractive where the largest singular value is below 1 at every state",
    correct_latex=r"\sigma_{\max}(J(h))<1\ \mathrm{for\ all}\ h\ \Leftrightarrow\ \mathrm{contractive}",
    general=lambda key, satisfied: {
        "problem": recurrence(
            orthogonal(key) @ (0.5 * jnp.eye(N) + (0.1 if satisfied else 10.0) * jnp.eye(N, k=1)) @ orthogonal(key).T,
            initial=generic_vector(key),
            activation=jnp.tanh if satisfied else None,
        )
    },
    smallest=[{"problem": recurrence(w)} for w in ([[0.5, 10.0], [0.0, 0.5]], [[0.0, 5.0], [0.0, 0.0]])],
    counterexample="[[.5, 10], [0, .5]]: ρ = .5, ‖Jⁿ‖ = 10.02, 10.01, 7.50, 5.00; [[0, 5], [0, 0]] is degenerate (the "
    "Japanese word written: rank 1), ρ = 0, norm 5",
)
def contractive_by_eigenvalues(problem):
    states = jax.random.normal(jax.random.key(0), (64, len(problem.initial)))
    steps = np.asarray(jax.vmap(lambda state: problem._replace(initial=state).jacobians[0])(states))
    inside = np.all(np.abs(np.linalg.eigvals(steps)) < 1)
    below_one = np.all(np.linalg.norm(steps, 2, axis=(1, 2)) < 1)
    return Claim(inside, pairs_come_closer(problem, states), below_one)
