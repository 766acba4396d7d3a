"""Frozen leaves, complex leaves, counters and keys: a model on part of a tree, and the way back."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt import cells, gradients, jacobians, models, trajectories
from jaxbptt.comparison import compare
from jaxbptt.partials import step_partials

KEY, T = jax.random.key(6), 5
X, Y = jax.random.normal(KEY, (T, 2)), jax.random.normal(KEY, (T, 4))
FULL = models.sequence_model(cells.gru(2, 3), 4)


def test_frozen_leaves_are_constants_and_the_derivation_stays():
    full = FULL.init(KEY)
    chosen = lambda path, leaf: any(name in jax.tree_util.keystr(path) for name in ("w_h", "b_x"))
    model, params, restore, values = models.trainable(FULL, full, chosen)
    assert step_partials(model).source == "factored"
    expected = gradients.autodiff(FULL, full, X, Y)[1]
    restored = restore(gradients.bptt(model, params, X, Y)[1])
    assert restored.readout.w_yh is restored.cell.b_h is None
    for name in ("w_hx", "w_hh", "b_x"):
        assert compare(getattr(expected.cell, name), getattr(restored.cell, name)).relative < 1e-12
    assert compare(full, values(params)).relative == 0


def test_leaves_that_are_not_floats_are_closed_over():
    tree = {
        "w": jnp.eye(2) / 2,
        "act": jnp.tanh,
        "scale": jnp.asarray(2),
        "flag": jnp.asarray(True),
        "key": KEY,
        "n": 3,
    }
    step = lambda p, h, x: p["act"](p["w"] @ h * p["scale"].astype(float) + x * p["n"])
    model = models.make_model(step, lambda p: jnp.ones(2), lambda p, h: h, models.squared_error)
    found = models.trainable(model, tree)
    assert jax.tree.leaves(found.params)[0].shape == (2, 2)
    assert len(jax.tree.leaves(found.params)) == 1
    grads = gradients.bptt(found.model, found.params, X, Y[:, :2])[1]

    def loop(w):
        h, total = jnp.ones(2), 0.0
        for x, y in zip(X, Y[:, :2], strict=True):
            h = jnp.tanh(w @ h * 2.0 + x * 3)
            total = total + jnp.sum((h - y) ** 2) / 2
        return total

    assert compare(jax.grad(loop)(tree["w"]), found.restore(grads)["w"]).relative < 1e-12
    assert found.values(found.params)["act"] is jnp.tanh
    with pytest.raises(ValueError, match="params: got no leaf to train"):
        models.trainable(model, tree, lambda path, leaf: False)


def test_a_complex_recurrence_equals_its_own_loop():
    """An LRU: h' = λ ⊙ h + γ ⊙ B x with λ = exp(−e^ν + i e^θ); ln σ_i = T ln|λ_i|, each twice."""
    params = {
        "nu": jnp.array([-1.0, -0.5, 0.1]),
        "theta": jnp.array([0.2, 0.9, -0.4]),
        "b": jax.lax.complex(*jax.random.normal(KEY, (2, 3, 2))),
        "c": jax.lax.complex(*jax.random.normal(KEY, (2, 4, 3))),
    }
    rates = lambda p: jnp.exp(jax.lax.complex(-jnp.exp(p["nu"]), jnp.exp(p["theta"])))
    scale = lambda p: jnp.sqrt(1 - jnp.abs(rates(p)) ** 2).astype(complex)
    step = lambda p, h, x: rates(p) * h + scale(p) * (p["b"] @ x.astype(complex))
    start = jnp.array([1 + 2j, -0.5j, 0.3])
    model = models.make_model(step, lambda p: start, lambda p, h: jnp.real(p["c"] @ h), models.squared_error)

    def loop(p):
        h, total = start, 0.0
        for x, y in zip(X, Y, strict=True):
            h = step(p, h, x)
            total = total + jnp.sum((jnp.real(p["c"] @ h) - y) ** 2) / 2
        return total

    adapted = models.real_pairs(model, params)
    for route in (gradients.autodiff, gradients.bptt):
        grads = route(adapted.model, adapted.params, X, Y)[1]
        assert compare(jax.grad(loop)(params), adapted.restore(grads)).relative < 1e-12
    assert compare(params, adapted.values(adapted.params)).relative < 1e-15
    chain = jacobians.step_jacobians(
        adapted.model, adapted.params, trajectories.unroll(adapted.model, adapted.params, X)
    )
    sigma = jnp.linalg.svd(jacobians.product(chain, 0, T), compute_uv=False)
    expected = jnp.sort(jnp.repeat(jnp.abs(rates(params)) ** T, 2))[::-1]
    assert jnp.max(jnp.abs(jnp.log(sigma) - jnp.log(expected))) < 1e-12


def _noisy(params, state, x):
    """A counter and a key in the state: dropout and a schedule."""
    key, own = jax.random.split(state["key"])
    kept = jax.random.bernoulli(own, 0.7, (2,)).astype(float)
    count = state["count"] + 1
    h = jnp.tanh(params @ (state["h"] * kept) + x / count.astype(float))
    return {"h": h, "count": count, "key": key}


def test_counters_and_keys_are_computed_beforehand():
    start = {"h": jnp.array([0.3, -0.2]), "count": jnp.asarray(0), "key": jax.random.key(3)}
    readout = lambda params, state: state["h"] * state["count"].astype(float)
    model = models.make_model(_noisy, lambda params: start, readout, models.squared_error)
    params = jax.random.normal(KEY, (2, 2))

    def loop(params):
        state, total = start, 0.0
        for x, y in zip(X, Y[:, :2], strict=True):
            state = _noisy(params, state, x)
            total = total + jnp.sum((readout(params, state) - y) ** 2) / 2
        return total

    known, inputs = models.precomputed(model, params, X)
    for route in (gradients.bptt, gradients.forward_sensitivity):
        assert compare(jax.grad(loop)(params), route(known, params, inputs, Y[:, :2])[1]).relative < 1e-12
    assert jax.tree.leaves(trajectories.unroll(known, params, inputs).states)[0].shape == (T, 2)


def test_a_reset_restarts_counters_and_keys_too():
    """Resets come first: a model whose counters are inputs already could not restart them."""
    start = {"h": jnp.array([0.3, -0.2]), "count": jnp.asarray(0), "key": jax.random.key(3)}
    readout = lambda params, state: state["h"] * state["count"].astype(float)
    model = models.make_model(_noisy, lambda params: start, readout, models.squared_error)
    params, reset = jax.random.normal(KEY, (2, 2)), [False, False, True, False, False]

    def loop(params):
        state, total = start, 0.0
        for x, y, first in zip(X, Y[:, :2], reset, strict=True):
            state = _noisy(params, start if first else state, x)
            total = total + jnp.sum((readout(params, state) - y) ** 2) / 2
        return total

    inputs = models.Resetting(X, jnp.array(reset))
    known, inputs = models.precomputed(models.resetting(model), params, inputs)
    assert compare(jax.grad(loop)(params), gradients.bptt(known, params, inputs, Y[:, :2])[1]).relative < 1e-12
    with pytest.raises(ValueError, match="model: got one that is precomputed already"):
        models.resetting(known)


def test_a_counter_that_follows_the_state_is_refused():
    step = lambda p, state, x: (jnp.tanh(p @ state[0] + x), state[1] + (state[0][0] > 0).astype(int))
    start = lambda p: (jnp.ones(2), jnp.asarray(0))
    model = models.make_model(step, start, lambda p, state: state[0], models.squared_error)
    with pytest.raises(ValueError, match=r"state.1: got values that depend on the state's floats"):
        models.precomputed(model, jnp.eye(2), X)
    with pytest.raises(TypeError, match="compute them beforehand and pass them as inputs"):
        gradients.bptt(model, jnp.eye(2), X, Y[:, :2])
