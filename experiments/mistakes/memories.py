"""Mistakes in matrix memories and in gates that are kept in range, by exact facts and checks of one step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells, derivations, gradients, jacobians, models
from jaxbptt.trajectories import unroll

from .row import Look, Mistake, distance, look_at_fact, name_slips

KEYS, VALUES, INPUTS, HIDDEN, LENGTH = 4, 4, 3, 2, 6


def look_at_side(key: jax.Array, wrong: bool) -> Look:
    """X_t = X_{t−1} (I − k kᵀ) + v kᵀ, two writes at one key: reading there, X k, gives the second value.

    The steps (A, W) of X' = X A + W compose to (A_1 A_2, W_1 A_2 + W_2); on the side of the values to (A_2 A_1, A_2 W_1
    + W_2), which is another recurrence.
    """
    drawn = jax.random.normal(key, (3, KEYS))
    at, values = drawn[0] / jnp.linalg.norm(drawn[0]), drawn[1:]
    transitions = jnp.stack([jnp.eye(KEYS) - jnp.outer(at, at)] * 2)
    writes = values[:, :, None] * at[None, None]

    def compose(first, second):
        (a, w), (b, v) = first, second
        return (b @ a, b @ w + v) if wrong else (a @ b, w @ b + v)

    memory = jax.lax.associative_scan(compose, (transitions, writes))[1][-1]
    return look_at_fact(values[1], memory @ at, "recall of the second value")


def look_at_product(key: jax.Array, wrong: bool) -> Look:
    """The transition of two steps of the delta rule, (I − β_2 k_2 k_2ᵀ)(I − β_1 k_1 k_1ᵀ), beside dh_2/dh_0."""
    cell = cells.delta_net(INPUTS, KEYS, VALUES)
    params, inputs = cell.init(key), jax.random.normal(jax.random.fold_in(key, 1), (2, INPUTS))
    unit = lambda vector: vector / jnp.linalg.norm(vector)
    factors = []
    for x in inputs:
        k, beta = unit(params.w_k @ x), jax.nn.sigmoid(params.w_beta @ x + params.b_beta)
        factors.append(jnp.eye(KEYS) - beta * jnp.outer(k, k))
    product = factors[1] * factors[0] if wrong else factors[1] @ factors[0]
    chain = jax.jit(lambda: jacobians.step_jacobians(cell, params, unroll(cell, params, inputs), method="reverse"))()
    expected = jacobians.product(chain, 0, 2)
    return look_at_fact(expected, jnp.kron(product, jnp.eye(VALUES)), "J_2 J_1")


def look_at_kronecker(key: jax.Array, wrong: bool) -> Look:
    """J_t of RWKV-7, S' = S A + v kᵀ on the rows of S [V, K]: I ⊗ Aᵀ."""
    cell = cells.rwkv7(INPUTS, KEYS, VALUES)

    def transition(params, x):
        unit = lambda vector: vector / jnp.linalg.norm(vector)
        decay = jnp.exp(-jnp.exp(-0.5) * jax.nn.sigmoid(params.w_w @ x + params.b_w))
        removed, rate = unit(params.xi * (params.w_k @ x)), jax.nn.sigmoid(params.w_a @ x + params.b_a)
        return jnp.diag(decay) - jnp.outer(removed, removed * rate)

    def state_jacobian(params, state, x):
        a = transition(params, x)
        return jnp.kron(jnp.eye(VALUES), a if wrong else a.T)

    mine = derivations.Derivation(state_jacobian, cell.derivation.pullback)
    params, inputs = cell.init(key), jax.random.normal(jax.random.fold_in(key, 1), (LENGTH, INPUTS))
    report = derivations.check(cell, mine, key=key, params=params, inputs=inputs)

    def both(params, inputs):
        trajectory = unroll(cell, params, inputs)
        of_mine = jax.vmap(state_jacobian, in_axes=(None, 0, 0))(params, trajectory.previous, inputs)
        return jacobians.step_jacobians(cell, params, trajectory, method="reverse"), of_mine

    return Look(distance(*jax.jit(both)(params, inputs))[0], np.nan, report.ok, name_slips(report))


DENOMINATORS = {
    "right": lambda read, m: jnp.maximum(jnp.abs(read), jnp.exp(-m)),
    "plus 1e-6": lambda read, m: jnp.maximum(jnp.abs(read), jnp.exp(-m)) + 1e-6,
    "at least 1": lambda read, m: jnp.maximum(jnp.abs(read), 1),
}


def look_at_gauge(published: str, key: jax.Array, wrong: bool) -> Look:
    """(C, n, m) → (C e^{−δ}, n e^{−δ}, m + δ) changes no y of the mLSTM: ⟨C, Λ⟩ + n·λ_n = λ_m at every step."""
    denominator = DENOMINATORS[published if wrong else "right"]
    cell = cells.mlstm(INPUTS, KEYS, VALUES)

    def output(params, state, x):
        q, o = params.w_q @ x + params.b_q, jax.nn.sigmoid(params.w_o @ x + params.b_o)
        return o * (q @ state.cell) / denominator(state.normaliser @ q, state.stabiliser)

    model = models.sequence_model(cell._replace(output=output), 1)
    params = model.init(key)
    # A weak query, |n·q| of 1e-3 and more, and a strong input gate: e^{−m'} is below it.
    weak = params.cell._replace(w_q=1e-3 * params.cell.w_q, b_i=params.cell.b_i + 8)
    params, (inputs, targets) = params._replace(cell=weak), _draw(key, INPUTS)

    def both_sides(params, inputs, targets):
        """(⟨C, Λ⟩ + n·λ_n, λ_m), each [T]."""
        adjoints = gradients.adjoints(model, params, inputs, targets)
        states = unroll(model, params, inputs).states
        flat = jnp.concatenate((states.cell.reshape(LENGTH, -1), states.normaliser), axis=1)
        return jnp.sum(flat * adjoints[:, :-1], axis=1), adjoints[:, -1]

    return look_at_fact(*jax.jit(both_sides)(params, inputs, targets), "⟨C, Λ⟩ + n·λ_n = λ_m")


def look_at_stop(stopped: str, key: jax.Array, wrong: bool) -> Look:
    """A stop_gradient at one use of the sLSTM's m': in i', in f' or in what is carried. At all of them it is exact."""
    where = (stopped,) if wrong else ("i'", "f'", "carry")
    cell = cells.slstm(INPUTS, HIDDEN)

    def step(params, state, x):
        z, i, f, o = jnp.split(params.w_hx @ x + params.w_hh @ state.hidden + params.b_h, 4)
        decayed = jax.nn.log_sigmoid(f) + state.stabiliser
        m = jnp.where(state.normaliser > 0, jnp.maximum(decayed, i), i)
        at = {use: jax.lax.stop_gradient(m) if use in where else m for use in ("i'", "f'", "carry")}
        forget, write = jnp.exp(decayed - at["f'"]), jnp.exp(i - at["i'"])
        c, n = forget * state.cell + write * jnp.tanh(z), forget * state.normaliser + write
        return cells.SLSTMState(c, n, at["carry"], jax.nn.sigmoid(o) * c / n)

    params = cell.init(key)
    # Input and forget gates of like size, so that either sets m' at some steps.
    params = params._replace(b_h=params.b_h.at[2 * HIDDEN : 3 * HIDDEN].set(1))
    inputs, _ = _draw(key, INPUTS)
    forward = lambda cell: lambda params, inputs: unroll(cell, params, inputs).states.hidden  # y_1 … y_T
    pull = lambda cell: jax.jit(lambda params, inputs, cotangent: jax.vjp(forward(cell), params, inputs)[1](cotangent))
    backward = pull(cell._replace(step=step, derivation=None))
    report = derivations.check_vjp(jax.jit(forward(cell)), backward, (params, inputs), key=key)
    cotangent = jax.random.normal(key, (LENGTH, HIDDEN))
    errors = distance(*(pulled(params, inputs, cotangent)[0] for pulled in (pull(cell), backward)))
    return Look(*errors, report.ok, name_slips(report))


def _draw(key, num_inputs):
    """(inputs [T, M], targets [T, 1])."""
    keys = jax.random.split(jax.random.fold_in(key, 1))
    return jax.random.normal(keys[0], (LENGTH, num_inputs)), jax.random.normal(keys[1], (LENGTH, 1))


ROWS = (
    Mistake(
        "delta rule, transition on the value side",
        "overwriting a key",
        "state",
        "on the side of the keys",
        look_at_side,
    ),
    Mistake(
        "Householder product, elementwise", "product of step Jacobians", "dh_2/dh_0", "of matrices", look_at_product
    ),
    Mistake("RWKV-7, I ⊗ A for I ⊗ Aᵀ", "check", "J_t", "I ⊗ Aᵀ", look_at_kronecker),
    *(
        Mistake(
            f"sLSTM, m' a constant in {use} only",
            "check_vjp",
            "gradient",
            "m' a constant everywhere",
            functools.partial(look_at_stop, use),
        )
        for use in ("i'", "f'", "carry")
    ),
    *(
        Mistake(
            f"mLSTM, denominator {which}",
            "gauge identity",
            "λ_m",
            "max(|n·q|, e^(−m))",
            functools.partial(look_at_gauge, which),
        )
        for which in ("plus 1e-6", "at least 1")
    ),
)
