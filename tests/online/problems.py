"""Models, instances, truths and dense references that the tests of online rules share."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, gradients, models, online
from jaxbptt.online import rule
from tests import cases

KEY = jax.random.key(11)
RULES = {
    "rtrl": online.rtrl,
    "snap": lambda: online.snap(1),
    "uoro": online.uoro,
    "kf_rtrl": online.kf_rtrl,
    "rflo": online.rflo,
    "sketched_rtrl": lambda: online.sketched_rtrl(1),
    "reverse_kf_rtrl": online.reverse_kf_rtrl,
    "ok_rtrl": lambda: online.ok_rtrl(2),
    "kernl": lambda: online.kernl(rate=0.1, timescale=2.0),
    "eprop": lambda: online.eprop("adaptive", rate=0.1),
    "immediate": lambda: online.immediate(decay=0.5),
}


@functools.cache
def model_of(name):
    if name == "shared":
        return cases.shared_model()._replace(reduction="sum")
    if name == "moving start":  # a factored derivation, and an h_0 that depends on params
        return model_of("elman")._replace(initial_state=lambda params: jnp.sin(params.cell.b_h))
    return models.sequence_model(cases.CELLS[name], cases.O)


@functools.cache
def instance_of(name, gain=1.2, length=cases.T):
    return cases.instance(
        model_of(name), KEY, gain=gain, length=length, num_outputs=cases.N if name == "shared" else cases.O
    )


def online_of(rule_, model, data, *, own=True, key=None, module=online):
    """`run`, compiled, at params that stay concrete: a sparse rule reads their zeros."""
    params, inputs, targets, initial = data
    initial = None if own else initial
    return jax.jit(lambda x, y: module.run(rule_, model, params, x, y, key=key, initial=initial))(inputs, targets)


def exact_of(model, data, *, own=True):
    params, inputs, targets, initial = data
    initial = None if own else initial
    return jax.jit(lambda p, x, y: gradients.bptt(model, p, x, y, initial=initial))(params, inputs, targets)


@functools.cache
def truth_of(name, own=True):
    return exact_of(model_of(name), instance_of(name), own=own)


def flatten(tree):
    return ravel_pytree(tree)[0]


def dense_masked(model, data, kept, transition):
    """Σ_t g_t of A_t = kept ⊙ (K_t A_{t−1} + D_t), A_0 = ∂h_0/∂θ, on dense arrays by autodiff and plain loops."""
    params, inputs, targets, _ = data
    theta, unravel = ravel_pytree(params)
    flat, unravel_state = ravel_pytree(model.initial_state(params))
    sensitivity = jax.jacfwd(lambda theta: flatten(model.initial_state(unravel(theta))))(theta)

    @jax.jit
    def advance(flat, sensitivity, x, y):
        state = unravel_state(flat)
        direct = jax.jacfwd(lambda theta: flatten(model.step(unravel(theta), state, x)))(theta)
        sensitivity = kept * (transition(params, state, x) @ sensitivity + direct)
        state = model.step(params, state, x)
        loss = lambda theta, h: model.loss(model.readout(unravel(theta), unravel_state(h)), y)
        own, local = jax.grad(loss, argnums=(0, 1))(theta, flatten(state))
        return flatten(state), sensitivity, own + local @ sensitivity

    total = jnp.zeros_like(theta)
    for x, y in zip(inputs, targets, strict=True):
        flat, sensitivity, grads = advance(flat, sensitivity, x, y)
        total = total + grads
    return unravel(total)


def small_model(name):
    """N = 2 entries of state: every sign pattern can be tried."""
    stack = lambda num_inputs, size: cells.stack(cells.elman(num_inputs, size), cells.gru(size, size))
    makers = {"elman": (cells.elman, 2), "lstm": (cells.lstm, 1), "gru": (cells.gru, 2), "stack": (stack, 1)}
    make, size = makers[name.split()[0]]
    model = models.sequence_model(make(1, size), 2)
    if "start" in name:
        model = model._replace(initial_state=lambda params: jnp.sin(params.cell.b_h))
    return model


def mean_over_all_signs(module, name):
    """(exact dC/dθ, the mean of a rule's estimate over every sign pattern), T = 4; `module` holds the rule."""
    model = small_model(name)
    params, inputs, targets, _ = cases.instance(model, KEY, length=4, num_outputs=2)
    plan = module._plan(model, params, inputs[0], False)
    width = module.METHOD.num_signs(plan)
    steps = 5 if "start" in name else 4
    every = np.array(list(itertools.product((-1.0, 1.0), repeat=width * steps))).reshape(-1, steps, width)
    if steps == 4:  # nothing is drawn for an h_0 that does not depend on params: any signs do
        every = np.concatenate((np.ones((len(every), 1, width)), every), axis=1)

    def estimate(signs):
        def body(state, step):
            state, _, grads = rule.update_with(params, state, *step)
            return state, grads

        state = rule.start_with(module.METHOD, plan, model, params, signs[0])
        grads = jax.lax.scan(body, state, (inputs, targets, signs[1:]))[1]
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), grads)

    means = jax.jit(lambda every: jax.tree.map(lambda g: jnp.mean(g, axis=0), jax.vmap(estimate)(every)))(every)
    return jax.jit(lambda *data: gradients.bptt(model, *data)[1])(params, inputs, targets), means


def assert_mean_is_one(rule_, name, count=10_000):
    """s = ⟨ĝ, g⟩/‖g‖² per leaf has mean one. Power: a bias of 20 % would stand at 5 standard errors or more."""
    model = model_of(name)
    params, inputs, targets, _ = data = instance_of(name, gain=0.7)
    truth = exact_of(model, data)[1]
    estimate = jax.jit(jax.vmap(lambda key: online.run(rule_, model, params, inputs, targets, key=key)[1]))
    drawn = estimate(jax.random.split(KEY, count))
    for leaf, expected in zip(*map(jax.tree.leaves, (drawn.cell, truth.cell)), strict=True):
        scores = np.asarray(leaf).reshape(count, -1) @ np.ravel(expected) / np.sum(np.square(expected))
        error = np.std(scores, ddof=1) / count**0.5
        assert abs(scores.mean() - 1) < 4 * error
        assert 0.2 / error > 5
        assert np.std(scores) > 1e-3, "a rule that draws must spread"
