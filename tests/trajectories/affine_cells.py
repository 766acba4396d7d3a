"""Small cells that are affine in their state, each with another kind of blocks, and their derivations."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells
from jaxbptt.partials import vjp

M, K, V = 3, 4, 3  # inputs, keys, values


def affine_cell(init, size, factors_of, apply, form, place):
    """h_t = apply(factors_of(θ, x_t), h_{t−1}); the factors are (core, offset). Pullbacks are automatic."""

    def step(params, state, x):
        return apply(factors_of(params, x), state)

    def jacobian(params, state, x):
        return jax.jacfwd(lambda h: step(params, h, x))(state)

    pullback = cells.FactoredPullback(
        drive=factors_of,
        advance=lambda params, state, factors: (apply(factors, state), factors),
        expand=lambda state, new, factors: factors,
        delta=lambda factors, cotangent: (factors, cotangent),
        state=lambda params, factors, cotangent, delta: vjp(lambda h: apply(factors, h), jnp.zeros(size))[1](cotangent),
        params=lambda params, state, x, delta: vjp(lambda p: step(p, state, x), params)[1](delta[1]),
        input=lambda params, delta: jnp.zeros(M),  # not needed here
    )
    derivation = cells.Derivation(jacobian, pullback, cells.BlockParts(form, place, affine=True))
    return cells.Cell(init, lambda params: jnp.zeros(size), step, derivation, num_inputs=M)


def draw(*shapes):
    def init(key):
        keys = jax.random.split(key, len(shapes))
        return tuple(jax.random.normal(k, shape) * 0.6 for k, shape in zip(keys, shapes, strict=True))

    return init


def _empty(diagonal):
    none = jnp.zeros((*diagonal.shape, 0), diagonal.dtype)
    return cells.DiagonalLowRank(diagonal, none, none)


def real_diagonal(size=4):
    """h' = a(x) ⊙ h + b(x), a in (0, 1)."""
    factors_of = lambda params, x: (jax.nn.sigmoid(4 * params[0] @ x), params[1] @ x)
    form = lambda params, factors: _empty(factors[0][:, None])
    place = np.arange(size).reshape(size, 1, 1)
    apply = lambda factors, h: factors[0] * h + factors[1]
    return affine_cell(draw((size, M), (size, M)), size, factors_of, apply, form, place)


def complex_diagonal(size=3):
    """z' = λ ⊙ z + B x with |λ| < 1, real parts first."""

    def factors_of(params, x):
        return jnp.exp(jax.lax.complex(-jnp.exp(params[0]), params[1])), params[2] @ x

    def apply(factors, h):
        z = factors[0] * jax.lax.complex(h[:size], h[size:])
        return jnp.concatenate((z.real, z.imag)) + factors[1]

    form = lambda params, factors: _empty(factors[0][:, None])
    place = np.stack((np.arange(size), size + np.arange(size)), axis=1)[:, None]
    return affine_cell(draw((size,), (size,), (2 * size, M)), 2 * size, factors_of, apply, form, place)


def delta_rule(beta=None, log_decay=None):
    """S' = diag(w) (I − β k kᵀ) S + β k vᵀ, ‖k‖ = 1, S [K, V]; w = e^log_decay, or in (0, 1) from x."""

    def factors_of(params, x):
        key = params[0] @ x + 0.1
        key = key / jnp.sqrt(jnp.sum(key**2))
        strength = 2 * jax.nn.sigmoid(jnp.sum(params[2] * x)) if beta is None else jnp.asarray(beta)
        decay = jax.nn.sigmoid(3 * params[3] @ x) if log_decay is None else jnp.full(K, jnp.exp(log_decay))
        return cells.DiagonalLowRank(decay, (-strength * decay * key)[:, None], key[:, None]), strength * key[
            :, None
        ] * (params[1] @ x)[None]

    def apply(factors, h):
        core, offset = factors
        state = h.reshape(K, V)
        moved = core.diagonal[:, None] * state + core.left @ (core.right.T @ state)
        return (moved + offset).reshape(-1)

    form = lambda params, factors: jax.tree.map(lambda leaf: leaf[None], factors[0])
    place = np.arange(K * V).reshape(1, K, V)
    return affine_cell(draw((K, M), (V, M), (M,), (K, M)), K * V, factors_of, apply, form, place)


def full_core():
    """S' = A(x) S + b(x): A ⊗ I with a full A [K, K]."""

    def factors_of(params, x):
        return jnp.eye(K) * 0.5 + 0.3 * jnp.tensordot(params[0], x, axes=1), (params[1] @ x).reshape(K, V)

    apply = lambda factors, h: (factors[0] @ h.reshape(K, V) + factors[1]).reshape(-1)
    form = lambda params, factors: factors[0][None]
    place = np.arange(K * V).reshape(1, K, V)
    return affine_cell(draw((K, K, M), (K * V, M)), K * V, factors_of, apply, form, place)


CELLS = {
    "real diagonal": real_diagonal(),
    "complex diagonal": complex_diagonal(),
    "delta rule with decay": delta_rule(),
    "delta rule": delta_rule(log_decay=0.0),
    "delta rule, β = 1": delta_rule(beta=1.0, log_decay=0.0),
    "delta rule, β = 2": delta_rule(beta=2.0, log_decay=0.0),
    "delta rule, decay 0": delta_rule(log_decay=-jnp.inf),
    "delta rule, decay near 0": delta_rule(log_decay=-300.0),
    "delta rule, decay near 1": delta_rule(log_decay=-1e-12),
    "full core": full_core(),
}
