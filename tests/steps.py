"""Steps of every make that JAX allows, each as a model with its data: what people write, not what is convenient."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import models

N, M, T = 3, 2, 5
KEY = jax.random.key(11)


def affine(params, h, x):
    return params["w"] @ h + params["u"] @ x


def flags(params, h, x):
    """Comparisons of the input and of the state."""
    new = jnp.tanh(affine(params, h, x)) * jnp.asarray(h > -0.2, h.dtype)
    return jnp.where(x[0] > 0.9, 0.5 * h, new)


def token(params, h, x):
    return jnp.tanh(params["w"] @ h + params["u"].T[x])


def reset_by_bool(params, h, x):
    return jnp.tanh(affine(params, jnp.where(x["reset"], jnp.zeros_like(h), h), x["x"]))


def zoneout(params, h, x):
    return jnp.where(jax.random.bernoulli(x["key"], 0.3, h.shape), h, jnp.tanh(affine(params, h, x["x"])))


def branches(params, h, x):
    new = jax.lax.cond(x[0] > 0, lambda: jnp.tanh(affine(params, h, x)), lambda: 0.5 * affine(params, h, x))
    index = jnp.clip(jnp.asarray(jnp.floor(x[1]), jnp.int32) + 1, 0, 2)
    return jax.lax.switch(index, [lambda a: 0.8 * a, jnp.tanh, jnp.sin], new)


def inner_loops(params, h, x):
    """Two sub-steps by scan, one by fori_loop."""
    advance = lambda h: h + 0.3 * (jnp.tanh(affine(params, h, x)) - h)
    h = jax.lax.scan(lambda h, _: (advance(h), None), h, length=2)[0]
    return jax.lax.fori_loop(0, 1, lambda _, h: advance(h), h)


def inner_while(params, h, x):
    """A loop of unknown length: no reverse mode."""
    body = lambda at: (at[0] + 1, jnp.tanh(affine(params, at[1], x)))
    return jax.lax.while_loop(lambda at: at[0] < 2, body, (0, h))[1]


def nested_calls(params, h, x):
    return jax.checkpoint(jax.jit(lambda h: jnp.tanh(affine(params, h, x))))(h)


@jax.custom_jvp
def smooth(a):
    return jnp.tanh(a)


@smooth.defjvp
def _(primals, tangents):
    y = jnp.tanh(primals[0])
    return y, (1 - y) * (1 + y) * tangents[0]


def with_custom_jvp(params, h, x):
    return smooth(affine(params, h, x))


@jax.custom_vjp
def spike(a):
    """A smooth stand-in for a surrogate gradient: only a reverse rule."""
    return jnp.tanh(a)


def _spiked(a):
    y = jnp.tanh(a)
    return y, y


spike.defvjp(_spiked, lambda y, cotangent: ((1 - y) * (1 + y) * cotangent,))


def with_custom_vjp(params, h, x):
    return spike(affine(params, h, x))


def implicit(params, h, x):
    """z = ½ tanh(z) + a, solved by iteration and differentiated by the implicit function theorem."""
    a = affine(params, h, x)
    residual = lambda z: z - 0.5 * jnp.tanh(z) - a
    solve = lambda f, z: jax.lax.fori_loop(0, 60, lambda _, z: z - f(z), z)
    linear = lambda g, y: jnp.linalg.solve(jax.jacobian(g)(y), y)
    return jnp.tanh(jax.lax.custom_root(residual, jnp.zeros_like(a), solve, linear))


def stopped(params, h, x):
    """stop_gradient, an effect, and a cond without results."""
    jax.debug.print("{}", h[0])
    jax.lax.cond(x[0] > 0, lambda: None, lambda: None)
    return jnp.tanh(affine(params, h, x)) + 0.1 * jax.lax.stop_gradient(h)


def callback_of_input(params, h, x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jnp.tanh(affine(params, h, jax.pure_callback(np.sin, shape, x, vmap_method="sequential")))


def callback_of_state(params, h, x):
    """No derivative at all."""
    shape = jax.ShapeDtypeStruct(h.shape, h.dtype)
    return jax.pure_callback(np.tanh, shape, affine(params, h, x), vmap_method="sequential")


def ordered(params, h, x):
    a = affine(params, h, x)
    best = jnp.argmax(a)
    return jnp.tanh(jnp.sort(a) + 0.3 * a[best] + 0.2 * jax.lax.dynamic_slice(a, (best,), (1,)))


def complex_inside(params, h, x):
    z = jax.lax.complex(h[:2], h[1:]) * jnp.exp(1j * 0.7)
    z = z + jnp.fft.fft(jax.lax.complex(h, jnp.zeros_like(h)))[:2] / 3
    return jnp.tanh(affine(params, jnp.concatenate((z.real, z.imag[:1])), x))


def log_space(params, h, x):
    """log h' = log(e^{w + log h} + e^{u x}); h_0 = log 0."""
    return jnp.logaddexp(h + params["w"][0], params["u"] @ x)


def solver(params, h, x):
    """One time unit of dh/dt = tanh(W h + U x) − h by a diffrax solver with its default adjoint."""
    import diffrax

    field = lambda t, h, args: jnp.tanh(affine(params, h, x)) - h
    solution = diffrax.diffeqsolve(diffrax.ODETerm(field), diffrax.Heun(), 0.0, 1.0, 0.25, h, max_steps=8)
    return solution.ys[0]


def _inputs(kind):
    floats = jax.random.normal(KEY, (T, M))
    if kind == "tokens int32":
        return jnp.arange(T, dtype=jnp.int32) % M
    if kind in ("tokens int64", "NumPy's arrays, outside jit"):
        return jnp.arange(T) % M
    if kind == "bool inputs":
        return {"x": floats, "reset": jnp.arange(T) == 2}
    if kind == "keys":
        return {"x": floats, "key": jax.random.split(KEY, T)}
    return floats


STEPS = {
    "comparisons": flags,
    "tokens int32": token,
    "tokens int64": token,
    "NumPy's arrays, outside jit": token,
    "bool inputs": reset_by_bool,
    "keys": zoneout,
    "cond, switch": branches,
    "scan, fori_loop": inner_loops,
    "while_loop": inner_while,
    "remat, jit": nested_calls,
    "custom_jvp": with_custom_jvp,
    "custom_vjp": with_custom_vjp,
    "custom_root": implicit,
    "stop_gradient, debug.print": stopped,
    "callback of the input": callback_of_input,
    "callback of the state": callback_of_state,
    "sort, argmax, index": ordered,
    "complex inside": complex_inside,
    "log space, h_0 = −inf": log_space,
}
if importlib.util.find_spec("diffrax"):
    STEPS["diffrax"] = solver


@functools.cache
def model_of(kind):
    start = -jnp.inf if kind.startswith("log space") else 0.3
    initial_state = lambda params: jnp.full_like(params["w"][0], start)
    return models.make_model(STEPS[kind], initial_state, lambda params, h: h, models.squared_error)


@functools.cache
def data_of(kind):
    """(params, inputs, targets, h_0)."""
    keys = jax.random.split(KEY, 3)
    params = {"w": jax.random.normal(keys[0], (N, N)) * 0.7, "u": jax.random.normal(keys[1], (N, M))}
    start = jnp.full(N, -jnp.inf) if kind.startswith("log space") else 0.5 * jax.random.normal(keys[2], (N,))
    data = params, _inputs(kind), jax.random.normal(keys[2], (T, N)), start
    return jax.tree.map(np.asarray, data) if kind.startswith("NumPy") else data


def looped_gradient(kind):
    """dC/dθ by jax.grad (or jax.jacfwd, where there is no reverse mode) of a Python loop over the steps."""
    model, (params, inputs, targets, h) = model_of(kind), jax.tree.map(jnp.asarray, data_of(kind))

    def total(params):
        state, losses = h, []
        for t in range(T):
            state = model.step(params, state, jax.tree.map(lambda leaf, t=t: leaf[t], inputs))
            losses.append(model.loss(state, targets[t]))
        return sum(losses[1:], losses[0])

    return (jax.jacfwd if kind == "while_loop" else jax.grad)(total)(params)
