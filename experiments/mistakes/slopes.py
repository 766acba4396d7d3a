"""Mistakes in the derivative of an activation or a gate."""

import functools

import jax
import jax.numpy as jnp

import jaxbptt
from jaxbptt import cells, gradients, models

from .row import Look, Mistake, distance, look_at_gradient

INPUTS, HIDDEN, LENGTH = 2, 3, 6
SLOPES = {  # of φ, by h = φ(a): right, and as published
    "tanh' at tanh a": (jnp.tanh, lambda h: (1 - h) * (1 + h), lambda h: 1 - jnp.tanh(h) ** 2),
    "σ' at σ(a)": (jax.nn.sigmoid, lambda h: h * (1 - h), lambda h: jax.nn.sigmoid(h) * (1 - jax.nn.sigmoid(h))),
    "(1 − h)² for 1 − h²": (jnp.tanh, lambda h: (1 - h) * (1 + h), lambda h: (1 - h) ** 2),
}


def look_at_slope(name: str, key: jax.Array, wrong: bool) -> Look:
    """h = φ(W_hx x + W_hh h + b) with the hand-derived pullback that takes φ' from h."""
    activation, *slopes = SLOPES[name]
    slope = slopes[wrong]
    cell = cells.elman(INPUTS, HIDDEN, activation=activation)

    def advance(params, state, drive):
        h = activation(drive + params.w_hh @ state)
        return h, slope(h)

    return _by_hand(cell, cell.derivation.pullback._replace(advance=advance), key)


def look_at_gates(key: jax.Array, wrong: bool) -> Look:
    """∂C/∂i of the LSTM is g; with the two exchanged it is i."""
    cell = cells.lstm(INPUTS, HIDDEN)
    pullback = cell.derivation.pullback

    def expand(state, new, gates):
        factors, (i, _, g, _) = pullback.expand(state, new, gates), gates
        return factors._replace(gates=((i if wrong else g) * i * (1 - i), *factors.gates[1:]))

    return _by_hand(cell, pullback._replace(expand=expand), key)


def _by_hand(cell, pullback, key):
    """dC/dθ by `bptt` with this pullback."""
    model = models.sequence_model(cell, 1)
    derivation = cell.derivation._replace(pullback=pullback, parts=None)
    mine = models.sequence_model(cell._replace(derivation=derivation), 1)
    inputs, targets = _draw(key)
    return look_at_gradient(model, lambda *data: gradients.bptt(mine, *data), key, model.init(key), inputs, targets)


def look_at_clip(key: jax.Array, wrong: bool) -> Look:
    """An identity in the step whose backward pass clips the cotangent of the state, entry by entry."""

    @jax.custom_vjp
    def pass_on(state):
        return state

    bound = (lambda cotangent: jnp.clip(cotangent, -0.1, 0.1)) if wrong else (lambda cotangent: cotangent)
    pass_on.defvjp(lambda state: (state, None), lambda _, cotangent: (bound(cotangent),))
    cell = cells.elman(INPUTS, HIDDEN)
    step = lambda params, state, x: cell.step(params, pass_on(state), x)
    model = models.sequence_model(cell._replace(step=step, derivation=None), 1)
    params, (inputs, targets) = model.init(key), _draw(key)
    verdict = jaxbptt.verify(model, params, inputs, targets, key=key)
    right = models.sequence_model(cell, 1)
    grads = [
        jax.jit(functools.partial(gradients.autodiff, each))(params, inputs, targets)[1] for each in (right, model)
    ]
    failed = [check.name for check in verdict.checks if check.status == "failed"]
    return Look(*distance(*grads), verdict.ok, f"failed: {', '.join(failed)}" if failed else "verified")


MOST = 1000.0  # the published bound of the root's derivative


def look_at_root(key: jax.Array, wrong: bool) -> Look:
    """√(1−a²) of the RG-LRU at a → 1, its derivative 1/(2√u) held below 1,000."""

    @jax.custom_vjp
    def root(u):
        return jnp.sqrt(u)

    least = MOST**-2 if wrong else 0.0
    root.defvjp(lambda u: (jnp.sqrt(u), u), lambda u, v: (v / jnp.sqrt(jnp.maximum(4 * u, least)),))
    cell = cells.rg_lru(HIDDEN)

    def step(params, state, x):
        r, i = jax.nn.sigmoid(params.w_a @ x + params.b_a), jax.nn.sigmoid(params.w_i @ x + params.b_i)
        log_a = -8 * r * jax.nn.softplus(params.lambda_)
        return jnp.exp(log_a) * state + root(-jnp.expm1(2 * log_a)) * i * x

    model = models.sequence_model(cell, 1)
    mine = models.sequence_model(cell._replace(step=step, derivation=None), 1)
    params, (_, targets) = model.init(key), _draw(key)
    inputs = jax.random.normal(jax.random.fold_in(key, 2), (LENGTH, HIDDEN))
    slow = params.cell._replace(lambda_=jnp.linspace(-22.0, -18.0, HIDDEN))  # 1 − a from 1e-9 to 6e-8 at r = ½
    params = params._replace(cell=slow)
    return look_at_gradient(model, lambda *data: gradients.autodiff(mine, *data), key, params, inputs, targets)


def _draw(key):
    """(inputs [T, M], targets [T, 1])."""
    keys = jax.random.split(jax.random.fold_in(key, 1))
    return jax.random.normal(keys[0], (LENGTH, INPUTS)), jax.random.normal(keys[1], (LENGTH, 1))


ROWS = (
    *(
        Mistake(
            name,
            "check_gradient",
            "gradient",
            f"{activation.__name__}' from h",
            functools.partial(look_at_slope, name),
        )
        for name, (activation, *_) in SLOPES.items()
    ),
    Mistake("LSTM, i for g at the input gate", "check_gradient", "gradient", "∂C/∂i = g", look_at_gates),
    Mistake(
        "√(1 − a²), its derivative bounded", "check_gradient", "gradient", "not bounded", look_at_root, on_purpose=True
    ),
    Mistake("state cotangent clipped in the backward pass", "verify", "gradient", "passed on", look_at_clip),
)
