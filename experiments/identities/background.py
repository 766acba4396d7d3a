"""X: statements the notes lean on without writing them: what eigenvalues and singular values say about vanishing.

An upper bound b on a norm is written as the claim ‖·‖ = min(‖·‖, b).
"""

import functools

import jax
import jax.numpy as jnp

from jaxbptt import cells, jacobians, models, spectra

from . import instances
from .derivatives import end_in_start
from .identity import Claim, identity
from .instances import N
from .tutorial.matrix_powers import jordan, sloped

LENGTH = 12
LONG = 400
SLOPE = {jnp.tanh: 1.0, jax.nn.sigmoid: 0.25}  # γ = sup φ'

NILPOTENT = 2 * jnp.array([[1.0, -1], [1, -1]])  # W² = 0
ALTERNATING = jnp.tile(jnp.array([[[0.0, 2], [0, 0]], [[0, 0], [2, 0]]]), (LENGTH // 2, 1, 1))


def free_running(weights, bias, initial, activation=jnp.tanh):
    """h_t = φ(W h_{t−1} + b), no input."""
    params = cells.ElmanParams(jnp.zeros((len(bias), 0)), weights, bias)
    model = _free_running_model(len(bias), activation)
    return instances.Problem(model, params, jnp.zeros((LENGTH, 0)), jnp.zeros((LENGTH, 0)), initial)


def varying(steps):
    """h_t = J_t h_{t−1} with J_1 … J_T of one's choice."""
    return instances.Problem(_varying_model(), jnp.zeros(steps.shape[1]), steps, steps, jnp.ones(steps.shape[1]))


@functools.cache
def _free_running_model(size, activation):
    cell = cells.elman(0, size, activation=activation)
    loss = lambda output, target: jnp.sum(output)
    readout = lambda params, h: h
    return models.Model(
        cell.init, cell.initial_state, cell.step, readout, loss, derivation=cell.derivation, num_inputs=0
    )


@functools.cache
def _varying_model():
    cell = cells.from_step(lambda params, h, step: step @ h, jnp.ones_like)
    return models.Model(cell.init, cell.initial_state, cell.step, lambda params, h: h, lambda output, target: output[0])


log_singular_values = jax.jit(spectra.log_singular_values, static_argnames="every")
prefix_products = jax.jit(jacobians.prefix_products)


def spectral_norm(matrices):
    return jnp.linalg.norm(matrices, 2, axis=(-2, -1))


def spectral_radius(matrices):
    return jnp.max(jnp.abs(jnp.linalg.eigvals(matrices)), axis=-1)


def with_radius(key, radius):
    drawn = instances.matrix(key)
    return drawn * radius / spectral_radius(drawn)


def with_norm(key, norm):
    drawn = instances.matrix(key)
    return drawn * norm / spectral_norm(drawn)


def unstable_point_of_contracting_weights(key):
    """ρ(W) < 1, and h_0 a fixed point where some units are saturated, so that diag(φ') W expands."""
    noise = 0.02 * jax.random.normal(key, (N, N))
    weights = noise.at[:2, :2].add(NILPOTENT)
    point = jnp.array([0.1, -0.95, 0.3]) + 0.04 * jax.random.uniform(key, (N,))
    return {"weights": weights, "bias": jnp.arctanh(point) - weights @ point, "initial": point}


def in_wide_or_narrow_chain(key, satisfied):
    """Growth by 2 or by 1.02, decay by their inverses, in a dense frame."""
    growth = 1.02 if satisfied else 2.0
    frame = jnp.eye(N) + 0.3 * jax.random.normal(key, (N, N))
    step = frame @ jnp.diag(jnp.array([growth, 1, 1 / growth])) @ jnp.linalg.inv(frame)
    return {"steps": jnp.broadcast_to(step, (60, N, N))}


@identity(
    "X1",
    "fails",
    r"\rho(W)<\frac{1}{\gamma}\ \Rightarrow\ \left\Vert\frac{\partial h_T}{\partial h_0}\right\Vert\leq"
    r"\left(\gamma\,\rho(W)\right)^T\rightarrow 0",
    "if the largest eigenvalue of W is below 1/γ in size, the gradient is at most (γ ρ(W))ᵀ, and so vanishes",
    correct="at most (γ σ_max(W))ᵀ, by the largest singular value, and so vanishing where that is below 1/γ; the "
    "eigenvalues bound nothing here",
    correct_latex=r"\left\Vert\frac{\partial h_T}{\partial h_0}\right\Vert\leq\left(\gamma\,\sigma_{\max}(W)\right)^T,"
    r"\quad\rightarrow 0\ \mathrm{for}\ \sigma_{\max}(W)<\frac{1}{\gamma}",
    general=unstable_point_of_contracting_weights,
    smallest=[{"weights": NILPOTENT, "bias": jnp.array([-2.0, -8]), "initial": jnp.array([0.0, -1])}],
    counterexample="tanh, W = 2[[1, −1], [1, −1]], b = (−2, −8), h_0 = (0, −1): ρ(W) = 0, ‖dh_12/dh_0‖ = 5772",
)
def vanishing_by_eigenvalue(weights, bias, initial):
    gamma = SLOPE[jnp.tanh]
    contracting = weights * 0.9 / (gamma * spectral_norm(weights))
    steps = [free_running(w, bias, initial).jacobians for w in (weights, contracting)]
    assembled = jnp.array([spectral_norm(prefix_products(each)[-1]) for each in steps])
    truth = jnp.array([jnp.exp(log_singular_values(each, every=1)[-1, 0]) for each in steps])
    radius, norm = (gamma * size(jnp.array([weights, contracting])) for size in (spectral_radius, spectral_norm))
    # Said of an eigenvalue below 1/γ only. The bound vanishes, being a power. In units of the truth: both count.
    written = jnp.minimum(assembled, jnp.where(radius < 1, radius**LENGTH, jnp.inf))
    return Claim(written / truth, jnp.ones(2), jnp.minimum(assembled, norm**LENGTH) / truth)


@identity(
    "X2",
    "holds",
    r"\left\Vert J_tJ_{t-1}\ldots J_{k+1}\right\Vert\leq\left(\gamma\,\sigma_{\max}(W)\right)^{t-k}",
    "γ σ_max(W) < 1 makes gradients vanish, so exploding needs γ σ_max(W) > 1 (tanh: γ = 1, sigmoid: ¼); neither "
    "converse holds",
    general=lambda key: {
        "weights": with_norm(key, 3.9),
        "initial": jax.random.normal(key, (N,)),
        "activation": jax.nn.sigmoid,
    },
    smallest=[
        {"weights": with_norm(jax.random.key(0), 0.95), "initial": 0.1 * jnp.ones(N), "activation": jnp.tanh},
        {"weights": 1.5 * jnp.eye(N), "initial": 0.1 * jnp.ones(N), "activation": jnp.tanh},
    ],
    counterexample="tanh, W = 1.5 I: σ_max > 1, yet after 12 steps the product is below 0.01",
)
def vanishing_by_singular_value(weights, initial, activation):
    problem = free_running(weights, 0.1 * initial, initial, activation)
    assembled = spectral_norm(prefix_products(problem.jacobians))
    bound = (SLOPE[activation] * spectral_norm(weights)) ** jnp.arange(1, LENGTH + 1)
    truth = jnp.exp(log_singular_values(problem.jacobians, every=1)[:, 0])
    # All shrink, the last of the instances with γ σ_max(W) > 1: neither converse holds.
    return Claim((jnp.minimum(assembled, bound), True), (truth, truth[-1] < 1))


@identity(
    "X3",
    "holds",
    r"\lim_{n\rightarrow\infty}W^n=0\ \Leftrightarrow\ \rho(W)<1",
    "in the linear case the powers vanish just if the spectral radius is below 1, whatever they do on the way",
    general=lambda key: {"matrices": [with_radius(key, radius) for radius in (0.8, 1.25)]},
    smallest=[{"matrices": [0.5 * jnp.eye(N) + 10 * jnp.eye(N, k=1), jordan(1.0, N)]}],
)
def powers_vanish_by_radius(matrices):
    def rate(matrix):
        return log_singular_values(sloped(matrix, jnp.ones((LONG, len(matrix)))).jacobians)[0, 0] / LONG

    written = jnp.array([spectral_radius(matrix) < 1 for matrix in matrices])
    # Per step: below zero by more than what a transient or a Jordan block leaves after LONG steps.
    return Claim(written, jnp.array([rate(matrix) < -0.05 for matrix in matrices]))


@identity(
    "X4",
    "fails",
    r"\left\Vert\prod_{t}J_t\right\Vert\sim\prod_{t}\rho(J_t)",
    "the eigenvalues of every J_t tell how the product grows",
    correct="they do not when J_t varies: the singular values of the product itself do",
    correct_latex=r"\left\Vert\prod_{t}J_t\right\Vert=\sigma_{\max}\left(\prod_{t}J_t\right)",
    general=lambda key: {
        "problem": free_running(instances.matrix(key, gain=1.5), jax.random.normal(key, (N,)), jnp.ones(N)),
    },
    smallest=[{"problem": varying(ALTERNATING)}],
    counterexample="[[0, 2], [0, 0]] and its transpose in turn: all eigenvalues 0, norm 4096 after 12 steps",
)
def growth_by_eigenvalues(problem):
    written = jnp.prod(spectral_radius(problem.jacobians))
    measured, ordered = end_in_start(problem), problem.product(0, problem.length)
    # Neither the norm nor the spectral radius of the product, which for a constant J would be exact.
    truth = spectral_norm(measured), spectral_radius(measured)
    return Claim(
        (written, written),
        truth,
        (jnp.exp(log_singular_values(problem.jacobians, every=1)[-1, 0]), spectral_radius(ordered)),
    )


@identity(
    "X5",
    "conditional",
    r"\sigma_i\left(\frac{\partial h_T}{\partial h_0}\right)=\sigma_i\left(\mathrm{SVD}(J_TJ_{T-1}\ldots J_1)\right)",
    "the singular values of dh_T/dh_0 are those of the assembled product",
    correct="while σ_max/σ_min is far below 1/eps; else of QR factors, the sizes carried along in logs",
    correct_latex=r"\frac{\sigma_{\max}(P)}{\sigma_{\min}(P)}\ll\frac{1}{\mathrm{eps}},\quad P=J_TJ_{T-1}\ldots J_1,"
    r"\quad\mathrm{else}\ P=Q\,\mathrm{diag}(e^{\ell})\,R\,Q_0^{\top}:\ \sigma_i(P)=\sigma_i"
    r"\left(\mathrm{diag}(e^{\ell})\,R\right)",
    general=in_wide_or_narrow_chain,
    smallest=[{"steps": jnp.broadcast_to(jnp.array([[1.25, 0.75, 0], [0.75, 1.25, 0], [0, 0, 1]]), (60, N, N))}],
    counterexample="growth 2 and decay ½ in a turned frame, 60 steps: log2 σ_min = −60, lost in the assembled product",
)
def singular_values_of_the_assembled_product(steps):
    problem = varying(steps)
    assembled = jnp.log(jnp.linalg.svd(prefix_products(problem.jacobians)[-1], compute_uv=False))
    carried = log_singular_values(problem.jacobians)[0]
    # The least is the largest of the inverse, assembled of inverses, which loses nothing; the third has what the
    # determinant leaves.
    inverse = prefix_products(jnp.linalg.inv(problem.jacobians)[::-1])[-1]
    largest, least = jnp.log(spectral_norm(end_in_start(problem))), -jnp.log(spectral_norm(inverse))
    middle = jnp.sum(jnp.linalg.slogdet(problem.jacobians).logabsdet) - largest - least
    return Claim(assembled, jnp.array([largest, middle, least]), carried)
