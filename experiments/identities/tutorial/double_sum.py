"""Layouts, the double sum over (t, k) and its expansion at T = 3.

The note counts t = 0 … T from a given h_{−1}, so its t is the index t of an array here. W is the recurrent matrix.
"""

import functools
import itertools
from collections import Counter

import jax
import jax.numpy as jnp

from experiments.identities import instances
from experiments.identities.derivatives import state_pairs, states_in_states, via_output
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import THETAS, M, N
from jaxbptt import cells, terms

LENGTH = 4  # the note's T = 3
ALL = slice(None)
RECURRENT = slice(N * M, N * M + N * N)  # the columns of θ that W_hh fills
STEPS = range(LENGTH)

# The factors of each of the note's 14 terms: "3210" is (∂L_3/∂h_3)(∂h_3/∂h_2)(∂h_2/∂h_1)(∂h_1/∂h_0)(∂h_0/∂W).
CHAINS = ("0", "10", "11", "20", "210", "211", "22", "30", "310", "311", "320", "3210", "3211", "322")
EXACT = [(t, k) for t in STEPS for k in STEPS if k <= t]
WRITTEN = [(int(chain[0]), int(chain[-1])) for chain in CHAINS]
REPEATED = dict(Counter(WRITTEN) - Counter(EXACT))
MISSING = list(Counter(EXACT) - Counter(WRITTEN))

SCALARS = [{"problem": instances.scalar(theta, LENGTH), "columns": ALL} for theta in THETAS]


def tutorial(key):
    """h_t = σ(W h_{t−1} + U x_t + b) from h_{−1} ≠ 0, T = 3."""
    return {"problem": instances.net(key, reduction="sum", length=LENGTH), "columns": RECURRENT}


def direct_or_total(key, satisfied):
    return {**tutorial(key), "last": "direct" if satisfied else "total"}


@functools.partial(jax.jit, static_argnums=0)
def _recurrent_terms(model, params, inputs, targets, initial):
    return terms.gradient_terms(model, params, inputs, targets, initial=initial).by_leaf.cell.w_hh


def through_pairs(problem, pairs, last):
    """Σ_t Σ_{k≤t} (∂L_t/∂h_t) ∂h_t/∂h_k ∂h_k/∂W, whichever ∂h_t/∂h_k [T, T, N, N] and ∂h_k/∂W are given."""
    lower = jnp.tril(jnp.ones((problem.length,) * 2))
    return jnp.einsum("tn,tk,tknm,kmp->p", via_output(problem), lower, pairs, last)


def _with_last_factor(problem, columns, last, pairs):
    direct = through_pairs(problem, pairs, problem.direct_params)
    written = direct if last == "direct" else through_pairs(problem, pairs, problem.total_params)
    return Claim(*(each[columns] for each in (written, problem.flat_gradient("bptt"), direct)))


def slopes(problem, activation):
    """φ'(W h_{t−1} + U x_t + b), [T, N], with φ' by autodiff."""
    cell = problem.params.cell
    a = problem.previous @ cell.w_hh.T + problem.inputs @ cell.w_hx.T + cell.b_h
    return jax.vmap(jax.vmap(jax.grad(activation)))(a)


def layer(weights, activation):
    """x ↦ φ(W x) as one step of the toolkit's cell from h = 0."""
    outputs, num_inputs = weights.shape
    cell = cells.elman(num_inputs, outputs, activation=activation)
    params = cells.ElmanParams(weights, jnp.zeros((outputs, outputs)), jnp.zeros(outputs))
    return lambda x: cell.step(params, jnp.zeros(outputs), x)


def weights_and_input(key):
    return {"weights": jax.random.normal(key, (N, M)), "x": jax.random.normal(jax.random.fold_in(key, 1), (M,))}


@identity(
    "S4.1",
    "holds",
    r"z=(Wx)^{\top}=\left(\sum_{i=1}^{d}w_{1i}x_i,\ldots,\sum_{i=1}^{d}w_{ni}x_i\right)=x^{\top}W^{\top}",
    "the transpose of Wx is the row vector xᵀWᵀ",
    general=weights_and_input,
)
def transposed_product(weights, x):
    entries = jnp.array([[sum(row[i] * x[i] for i in range(len(x))) for row in weights]])
    return Claim((entries, x[None, :] @ weights.T), (layer(weights, jnp.positive)(x)[None, :],) * 2)


@identity(
    "S4.2",
    "conditional",
    r"\frac{\partial z}{\partial x}=W^{\top}",
    "the derivative of the row z = (Wx)ᵀ in the column x is Wᵀ, one row for each entry of x",
    correct="in denominator layout (rows indexed by x); in numerator layout, and from jacfwd, it is W",
    correct_latex=r"\frac{\partial z}{\partial x}=W^{\top}\ (\mathrm{denominator\ layout}),"
    r"\quad\frac{\partial z}{\partial x}=W\ (\mathrm{numerator\ layout})",
    general=lambda key, satisfied: {**weights_and_input(key), "layout": "denominator" if satisfied else "numerator"},
    smallest=[{"weights": jnp.arange(1.0, 7.0).reshape(2, 3), "x": jnp.ones(3), "layout": "numerator"}],
    counterexample="W of shape 2 × 3: jacfwd gives W, 2 × 3; Wᵀ is 3 × 2",
)
def layout_of_a_linear_map(weights, x, layout):
    row_of_z = layer(weights, jnp.positive)
    by_entry_of_x = jax.vmap(lambda direction: jax.jvp(row_of_z, (x,), (direction,))[1])(jnp.eye(len(x)))
    denominator = layout == "denominator"
    measured = by_entry_of_x if denominator else jax.jacfwd(row_of_z)(x)
    return Claim(weights.T, measured, weights.T if denominator else weights)


@identity(
    "S4.3",
    "holds",
    r"y=\sigma(Wx)\ \Rightarrow\ \frac{\partial y_i}{\partial x_j}=\sigma^{\prime}(w_i^{\top}x)\,w_{ij},\quad"
    r"\frac{\partial y}{\partial x}=\mathrm{diag}(\sigma^{\prime})\,W",
    "the Jacobian of a layer is diag(σ') W in numerator layout, of an input and of a state alike",
    general=lambda key: {"problem": tutorial(key)["problem"]},
)
def layer_jacobian(problem):
    cell, slope = problem.params.cell, slopes(problem, jnp.tanh)
    entries = jnp.einsum("ti,ij->tij", slope, cell.w_hx)
    return Claim((entries, jax.vmap(jnp.diag)(slope) @ cell.w_hh), (problem.direct_inputs, problem.jacobians))


@identity(
    "S4.4",
    "holds",
    r"\frac{\partial L}{\partial W}=\sum_{t=0}^{T}\frac{\partial L_t}{\partial W}="
    r"\sum_{t=0}^{T}\frac{\partial L_t}{\partial h_t}\frac{\partial h_t}{\partial W}",
    "the gradient in W is the sum over t of ∂L_t/∂h_t times the total derivative of h_t in W",
    general=tutorial,
    smallest=SCALARS,
)
def sum_through_states(problem, columns):
    through = jnp.einsum("tn,tnp->p", via_output(problem), problem.total_params)
    truth = problem.flat_gradient("bptt")[columns]
    return Claim((jnp.sum(problem.total_losses, axis=0)[columns], through[columns]), (truth, truth))


@identity(
    "S4.5",
    "holds",
    r"\frac{\partial h_t}{\partial h_k}\neq 0\ \ (k\leq t),\quad\frac{\partial h_k}{\partial W}\neq 0",
    "h_t depends on every h_k with k ≤ t and on no later one, and each h_k on W: every such pair has its gradient term",
    general=lambda key: {"problem": tutorial(key)["problem"]},
)
def dependency_on_earlier_states(problem):
    reaches = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    measured = jnp.any(states_in_states(problem) != 0, axis=(2, 3))
    own = jnp.any(problem.direct_params[..., RECURRENT] != 0, axis=(1, 2))
    return Claim((reaches, jnp.ones(LENGTH, bool), reaches), (measured, own, _recurrent_terms(*problem) > 0))


@identity(
    "S4.6",
    "conditional",
    r"\sum_{t=0}^{T}\frac{\partial L_t}{\partial h_t}\frac{\partial h_t}{\partial W}=\sum_{t=0}^{T}\sum_{k=0}^{t}"
    r"\frac{\partial L_t}{\partial h_t}\frac{\partial h_t}{\partial h_k}\frac{\partial h_k}{\partial W}",
    "the gradient in W is the sum over all k ≤ t of ∂L_t/∂h_t ∂h_t/∂h_k ∂h_k/∂W",
    correct="with the direct ∂⁺h_k/∂⁺W (h_{k−1} frozen) and the total ∂h_t/∂h_k; with the total ∂h_k/∂W every path is "
    "counted again",
    correct_latex=r"\sum_{t=0}^{T}\frac{\partial L_t}{\partial h_t}\frac{dh_t}{dW}=\sum_{t=0}^{T}"
    r"\sum_{k=0}^{t}\frac{\partial L_t}{\partial h_t}\frac{dh_t}{dh_k}\frac{\partial^{+}h_k}{\partial^{+}W}",
    general=direct_or_total,
    smallest=[{**instance, "last": "total"} for instance in SCALARS],
    counterexample="h_t = 2h_{t−1}, h_{−1} = 1, L_t = h_t, T = 3: with total ∂h_k/∂W 111, true 49",
)
def double_sum(problem, columns, last):
    return _with_last_factor(problem, columns, last, states_in_states(problem))


@identity(
    "S4.7",
    "holds",
    r"\frac{\partial h_t}{\partial h_k}=\prod_{i=k+1}^{t}\frac{\partial h_i}{\partial h_{i-1}}="
    r"\frac{\partial h_t}{\partial h_{t-1}}\frac{\partial h_{t-1}}{\partial h_{t-2}}\ldots"
    r"\frac{\partial h_{k+1}}{\partial h_k}",
    "dh_t/dh_k is the product of the Jacobians between, the latest on the left",
    general=lambda key: {"problem": tutorial(key)["problem"]},
    smallest=[{"problem": instances.scalar(2.0, LENGTH)}],
)
def ordered_product(problem):
    measured = states_in_states(problem)
    return Claim(
        [problem.product(k + 1, t + 1) for t, k in EXACT],
        [measured[t, k] for t, k in EXACT],
    )


@identity(
    "S4.9",
    "conditional",
    r"\frac{\partial L}{\partial W}=\sum_{t=0}^{T}\sum_{k=0}^{t}\frac{\partial L_t}{\partial h_t}\cdot"
    r"\prod_{i=k+1}^{t}\frac{\partial h_i}{\partial h_{i-1}}\cdot\frac{\partial h_k}{\partial W}",
    "the gradient in W is the double sum with the product of step Jacobians written out",
    correct="with the direct ∂⁺h_k/∂⁺W; then exact",
    correct_latex=r"\frac{dL}{dW}=\sum_{t=0}^{T}\sum_{k=0}^{t}\frac{\partial L_t}{\partial h_t}\cdot"
    r"\prod_{i=k+1}^{t}\frac{\partial h_i}{\partial h_{i-1}}\cdot\frac{\partial^{+}h_k}{\partial^{+}W}",
    general=direct_or_total,
    smallest=[{**instance, "last": "total"} for instance in SCALARS],
    counterexample="h_t = 2h_{t−1}, h_{−1} = 1, L_t = h_t, T = 3: with total ∂h_k/∂W 111, true 49",
)
def double_sum_of_products(problem, columns, last):
    return _with_last_factor(problem, columns, last, state_pairs(problem.jacobians))


@identity(
    "S4.11",
    "fails",
    r"\frac{\partial L}{\partial W}=\frac{\partial L_0}{\partial h_0}\frac{\partial h_0}{\partial W}+\ldots+"
    r"\frac{\partial L_3}{\partial h_3}\frac{\partial h_3}{\partial h_2}\frac{\partial h_2}{\partial h_1}"
    r"\frac{\partial h_1}{\partial h_1}\frac{\partial h_1}{\partial W}+"
    r"\frac{\partial L_3}{\partial h_3}\frac{\partial h_3}{\partial h_2}\frac{\partial h_2}{\partial h_2}"
    r"\frac{\partial h_2}{\partial W}",
    f"at T = 3 the gradient in W is a sum of {len(WRITTEN)} terms, one for every chain of intermediate stops",
    correct=f"{len(EXACT)} terms, each (t, k) with k ≤ t once: dh_t/dh_k holds all chains already",
    correct_latex=r"\frac{dL}{dW}=\sum_{t=0}^{3}"
    r"\sum_{k=0}^{t}\frac{\partial L_t}{\partial h_t}\frac{dh_t}{dh_k}\frac{\partial^{+}h_k}{\partial^{+}W}",
    general=lambda key: {**tutorial(key), "reading": "total"},
    smallest=[{**instance, "reading": reading} for instance in SCALARS for reading in ("total", "direct")],
    counterexample=f"(t, k) more than once: {REPEATED}, missing: {MISSING}; h_t = 2h_{{t−1}}, h_{{−1}} = 1, L_t = h_t: "
    "true 49, written 77, and 41 with every ∂h_t/∂h_k direct",
)
def expansion_at_three(problem, columns, reading):
    local, pairs, direct = via_output(problem), state_pairs(problem.jacobians), problem.direct_params
    if reading == "direct":  # ∂⁺h_t/∂⁺h_k = 0 over more than one step
        pairs *= jnp.triu(jnp.ones((LENGTH, LENGTH)), -1)[..., None, None]

    def term(chain):
        factors = [pairs[int(late), int(early)] for late, early in itertools.pairwise(chain)]
        return functools.reduce(jnp.matmul, factors, local[int(chain[0])]) @ direct[int(chain[-1])]

    corrected = through_pairs(problem, state_pairs(problem.jacobians), direct)
    return Claim(sum(map(term, CHAINS))[columns], problem.flat_gradient("bptt")[columns], corrected[columns])
