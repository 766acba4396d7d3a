import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells
from jaxbptt.cells.derivation import Outer, norms, sum_over_steps
from tests import cases
from tests.mutation import mutate

KEY = jax.random.key(1)


def step_errors(cell, derivation, gain=1.0):
    """Relative errors of the hand derivation against vjp and jacfwd of one step, at a random point and cotangent."""
    params, inputs, _, state = cases.instance(cell, KEY, gain=gain)
    x = inputs[0]
    out, pull = jax.vjp(cell.step, params, state, x)
    cotangent = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape) + 0.1, out)
    flat, unravel = ravel_pytree(state)
    jacobian = jax.jacfwd(lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0])(flat)
    expected = (*pull(cotangent), jacobian)
    actual = (*derivation.pullback(params, state, x, cotangent), derivation.state_jacobian(params, state, x))
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])


@pytest.mark.parametrize("gain", cases.GAINS)
@pytest.mark.parametrize("name", cases.BUILT_IN)
def test_hand_derivation_equals_automatic(name, gain):
    cell = cases.CELLS[name]
    assert step_errors(cell, cell.derivation, gain).max() < 1e-13


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("elman", "delta: delta @ params.w_hh", "delta: cotangent @ params.w_hh"),
        ("elman", "delta: delta @ params.w_hh", "delta: delta @ params.w_hh.T"),
        ("elman", "cotangent: slope * cotangent", "cotangent: cotangent"),
        ("elman", "slope[:, None] * params.w_hh", "slope[None, :] * params.w_hh"),
        ("lstm", "return cotangent.cell + factors.output * cotangent.hidden", "return cotangent.cell"),
        ("lstm", "g * i * (1 - i)", "g * i"),
        ("lstm", "zip(scales, jnp.split(", "zip(scales[::-1], jnp.split("),
        ("gru", "through_n), through_n * r)", "through_n), through_n)"),
        ("gru", "(state - n) * z * (1 - z)", "(n - state) * z * (1 - z)"),
        ("gru", "return factors.carry, r + z + n", "return factors.carry, z + n"),
    ],
)
def test_a_broken_derivation_is_seen(module, old, new):
    mutant = mutate(importlib.import_module(f"jaxbptt.cells.{module}"), old, new)
    broken = getattr(mutant, module)(cases.M, cases.N).derivation
    assert step_errors(cases.CELLS[module], broken).max() > 1e-3


def test_cells_compute_their_equations():
    x, h = np.array([0.3, -1.2]), np.array([0.5, -0.4, 0.9])
    c = np.array([1.1, -0.2, 0.4])
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731

    params, *_ = cases.instance(cases.CELLS["elman"], KEY)
    w, u, b = (np.asarray(leaf) for leaf in (params.w_hx, params.w_hh, params.b_h))
    np.testing.assert_allclose(cases.CELLS["elman"].step(params, h, x), np.tanh(w @ x + u @ h + b), rtol=1e-14)
    np.testing.assert_allclose(cases.CELLS["linear"].step(params, h, x), w @ x + u @ h + b, rtol=1e-14)

    params, *_ = cases.instance(cases.CELLS["lstm"], KEY)
    i, f, g, o = np.split(np.asarray(params.w_hx) @ x + np.asarray(params.w_hh) @ h + np.asarray(params.b_h), 4)
    new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    out = cases.CELLS["lstm"].step(params, cells.LSTMState(jnp.asarray(c), jnp.asarray(h)), x)
    np.testing.assert_allclose(out.cell, new_c, rtol=1e-13)
    np.testing.assert_allclose(out.hidden, sigmoid(o) * np.tanh(new_c), rtol=1e-13)

    params, *_ = cases.instance(cases.CELLS["gru"], KEY)
    u_r, u_z, u_n = np.split(np.asarray(params.w_hx) @ x + np.asarray(params.b_x), 3)
    v_r, v_z, v_n = np.split(np.asarray(params.w_hh) @ h + np.asarray(params.b_h), 3)
    z, n = sigmoid(u_z + v_z), np.tanh(u_n + sigmoid(u_r + v_r) * v_n)
    np.testing.assert_allclose(cases.CELLS["gru"].step(params, h, x), (1 - z) * n + z * h, rtol=1e-13)


def test_initialisation_is_as_stated():
    size = 400
    w = cells.elman(2, size, recurrent=cells.gaussian(0.8)).init(KEY).w_hh
    assert abs(np.std(w) * size**0.5 - 0.8) < 0.01
    assert 0.7 < np.max(np.abs(np.linalg.eigvals(w))) < 0.9
    q = cells.gru(2, 5, recurrent=cells.orthogonal(1.3)).init(KEY).w_hh
    for gate in np.split(np.asarray(q), 3):
        np.testing.assert_allclose(np.linalg.svd(gate, compute_uv=False), 1.3, rtol=1e-12)
    np.testing.assert_array_equal(cells.linear(0, 3, recurrent=cells.identity(0.5)).init(KEY).w_hh, 0.5 * np.eye(3))
    bias = cells.lstm(2, 3, forget_bias=2.5).init(KEY).b_h
    np.testing.assert_array_equal(bias, np.repeat([0, 2.5, 0, 0], 3))
    assert cells.linear(0, 3).init(KEY).w_hx.shape == (3, 0)


def test_rank_one_cotangents_sum_and_measure_like_matrices():
    left, right = jax.random.normal(KEY, (4, 3)), jax.random.normal(KEY, (4, 2))
    dense = left[:, :, None] * right[:, None, :]
    np.testing.assert_allclose(sum_over_steps(Outer(left, right)), dense.sum(0), rtol=1e-14)
    np.testing.assert_allclose(norms([Outer(left, right)])[0], np.linalg.norm(dense, axis=(1, 2)), rtol=1e-14)
    several = Outer(left[None], right[None]), dense.sum(0)
    np.testing.assert_allclose(norms([several[0]])[0], [np.linalg.norm(several[1])], rtol=1e-13)
    np.testing.assert_allclose(norms([dense])[0], np.linalg.norm(dense, axis=(1, 2)), rtol=1e-14)


@pytest.mark.parametrize("name", cases.BUILT_IN)
def test_a_factored_pullback_advances_as_its_step(name):
    cell = cases.CELLS[name]
    params, inputs, _, state = cases.instance(cell, KEY, gain=1.5)
    pullback = cell.derivation.pullback
    actual = pullback.advance(params, state, pullback.drive(params, inputs[0]))[0]
    for a, b in zip(*map(jax.tree.leaves, (actual, cell.step(params, state, inputs[0]))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


def test_a_cell_may_be_made_under_jit():
    assert jax.jit(lambda h: cells.elman(0, 3).step(cells.ElmanParams(*map(jnp.zeros, ((3, 0), (3, 3), 3))), h, h[:0]))(
        jnp.ones(3)
    ).shape == (3,)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cells.elman(2, 0), ValueError, "num_hidden: got 0, expected at least 1"),
        (lambda: cells.lstm(-1, 2), ValueError, "num_inputs: got -1, expected at least 0"),
        (lambda: cells.gru(2, 3.0), TypeError, "num_hidden: got float, expected an int"),
        (lambda: cells.elman(2, 3, activation=jax.nn.softmax), ValueError, "activation: got a function that mixes"),
        (lambda: cells.elman(2, 3, activation=jnp.sum), ValueError, "activation: got .* expected the same shape"),
        (lambda: cells.from_step(3, lambda p: p), TypeError, "step: got int, expected a function"),
        (lambda: cells.from_step(lambda p, s, x: s, lambda p: p).init(KEY), ValueError, "init: this cell was made"),
        (lambda: cells.elman(2, 3).init(0), TypeError, "key: got int, expected a typed key"),
        (lambda: cells.elman(2, 3).init(jax.random.split(KEY)), ValueError, "key: got an array of keys"),
    ],
)
def test_bad_arguments_get_one_line(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
