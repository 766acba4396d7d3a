"""Steps of many kinds, each right by automatic differentiation: none may be blamed."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, models
from jaxbptt.derivations import Derivation

N, M, T = 3, 2, 5
KEYS = ("w", "u", "b", "v", "c")


def affine(p, h, x):
    return p["w"] @ h + p["u"] @ x + p["b"]


def second(p, h, x):
    return p["v"] @ h + p["c"]


def leaky(p, h, x):
    return 0.7 * h + 0.3 * jnp.tanh(affine(p, h, x))


def smooth_relu(p, h, x):
    a = affine(p, h, x)
    return a * jax.nn.sigmoid(a) * 0.5


def coupled(p, h, x):
    f = jax.nn.sigmoid(second(p, h, x))
    return f * h + (1 - f) * jnp.tanh(affine(p, h, x))


def product(p, h, x):
    return jnp.tanh(affine(p, h, x)) * jnp.cos(second(p, h, x)) + 0.1 * h * h


def where_on_input(p, h, x):
    return jnp.where(x[0] > 0.3, 0.2 * p["b"], jnp.tanh(affine(p, h, x)))


def masked(p, h, x):
    return jnp.tanh(affine(p, (1 - (x[0] > 0.3).astype(h.dtype)) * h, x))


def branches(p, h, x):
    return jax.lax.cond(x[0] > 0, lambda: jnp.tanh(affine(p, h, x)), lambda: 0.5 * h + p["c"])


def layer_norm(p, h, x):
    a = affine(p, h, x)
    a = a - jnp.mean(a)
    return jnp.tanh(p["c"] * a / jnp.sqrt(jnp.mean(a * a) + jnp.asarray(0.1, a.dtype)) + p["b"])


def sine(p, h, x):
    return jnp.sin(affine(p, h, x)) * 0.8


def softplus(p, h, x):
    return jax.nn.softplus(affine(p, h, x)) - 0.7


def residual(p, h, x):
    return h + 0.3 * p["v"] @ jnp.tanh(affine(p, h, x))


def two_layers(p, h, x):
    return jnp.tanh(p["v"] @ jnp.tanh(affine(p, h, x)) + p["w"] @ h + p["c"])


def relu(p, h, x):
    return jax.nn.relu(affine(p, h, x)) * 0.5


def clamp(p, h, x):
    return jnp.clip(affine(p, h, x), -1, 1)


STEPS = (leaky, smooth_relu, coupled, product, where_on_input, masked, branches, layer_norm, sine, softplus)
STEPS += (residual, two_layers, relu, clamp)


def draw(key, dtype, gain):
    """(params, inputs, targets)."""
    keys = jax.random.split(key, 8)
    square, wide = (N, N), (N, M)
    shapes = {"w": square, "u": wide, "b": (N,), "v": square, "c": (N,)}
    params = {k: jax.random.normal(key, shapes[k], dtype) for k, key in zip(KEYS, keys, strict=False)}
    params["w"] = params["w"] * jnp.asarray(gain / N**0.5, dtype)
    inputs, targets = (jax.random.normal(k, (T, n), dtype) for k, n in zip(keys[5:], (M, N), strict=False))
    return params, inputs, targets


def make(step):
    """(model, its cell, a derivation that is right)."""
    start = lambda p: jnp.tanh(p["b"])
    cell = cells.from_step(step, start, num_inputs=M)

    def state_jacobian(params, state, x):
        flat, unravel = ravel_pytree(state)
        return jax.jacrev(lambda h: ravel_pytree(step(params, unravel(h), x))[0])(flat)

    derivation = Derivation(state_jacobian, lambda *at: jax.vjp(step, *at[:3])[1](at[3]))
    readout = lambda p, s: jnp.tanh(p["v"] @ s)
    model = models.Model(None, start, step, readout, models.squared_error, reduction="mean", num_inputs=M)
    return model, cell, derivation
