"""Cells are the equations they state, and refuse what they cannot be made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells
from tests import cases

KEY = jax.random.key(1)


def test_cells_compute_their_equations():
    x, h, c = np.array([0.3, -1.2]), np.array([0.5, -0.4, 0.9]), np.array([1.1, -0.2, 0.4])
    step = lambda name, params, state: cases.CELLS[name].step(params, jax.tree.map(jnp.asarray, state), jnp.asarray(x))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))

    params, *_ = cases.instance(cases.CELLS["elman"], KEY)
    w, u, b = (np.asarray(leaf) for leaf in (params.w_hx, params.w_hh, params.b_h))
    np.testing.assert_allclose(step("elman", params, h), np.tanh(w @ x + u @ h + b), rtol=1e-14)
    np.testing.assert_allclose(step("linear", params, h), w @ x + u @ h + b, rtol=1e-14)

    params, *_ = cases.instance(cases.CELLS["lstm"], KEY)
    i, f, g, o = np.split(np.asarray(params.w_hx) @ x + np.asarray(params.w_hh) @ h + np.asarray(params.b_h), 4)
    new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    out = step("lstm", params, cells.LSTMState(c, h))
    np.testing.assert_allclose(out.cell, new_c, rtol=1e-13)
    np.testing.assert_allclose(out.hidden, sigmoid(o) * np.tanh(new_c), rtol=1e-13)

    params, *_ = cases.instance(cases.CELLS["gru"], KEY)
    u_r, u_z, u_n = np.split(np.asarray(params.w_hx) @ x + np.asarray(params.b_x), 3)
    v_r, v_z, v_n = np.split(np.asarray(params.w_hh) @ h + np.asarray(params.b_h), 3)
    z, n = sigmoid(u_z + v_z), np.tanh(u_n + sigmoid(u_r + v_r) * v_n)
    np.testing.assert_allclose(step("gru", params, h), (1 - z) * n + z * h, rtol=1e-13)


@pytest.mark.parametrize("name", cases.MODERN)
def test_a_cell_may_be_a_static_argument(name):
    cell = cases.MODERN[name]
    parts = cell.derivation.parts
    assert hash(cell) == hash(cell._replace())
    assert cell == cell._replace()
    assert parts != parts._replace(form=lambda params, factors: factors)


def test_a_cell_may_be_made_under_jit():
    params = cells.ElmanParams(*map(jnp.zeros, ((3, 0), (3, 3), 3)))
    new = jax.jit(lambda h: cells.elman(0, 3).step(params, h, h[:0]))(jnp.ones(3))
    np.testing.assert_array_equal(new, np.zeros(3))


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
