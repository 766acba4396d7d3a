"""The forward pass is a loop over the step, and what cannot be unrolled is refused in one line."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, trajectories
from tests import cases

KEY = jax.random.key(3)


@pytest.mark.parametrize("name", cases.CELLS)
def test_unroll_is_a_loop_over_step(name):
    cell = cases.CELLS[name]
    params, inputs, _, initial = cases.instance(cell, KEY)
    trajectory = trajectories.unroll(cell, params, inputs, initial=initial)
    states = [initial]
    for x in inputs:
        states.append(cell.step(params, states[-1], x))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    for actual, expected in (
        (trajectory.previous, jax.tree.map(lambda leaf: leaf[:-1], stacked)),
        (trajectory.states, jax.tree.map(lambda leaf: leaf[1:], stacked)),
    ):
        chex.assert_trees_all_equal_structs(actual, expected)
        chex.assert_trees_all_close(actual, expected, rtol=1e-13, atol=1e-14)
    flat = trajectories.flatten_steps(trajectory.states)
    np.testing.assert_array_equal(flat[-1], ravel_pytree(jax.tree.map(lambda leaf: leaf[-1], trajectory.states))[0])


def test_initial_none_is_the_cells_own():
    cell = cases.CELLS["custom"]
    params, inputs, *_ = cases.instance(cell, KEY)
    own = trajectories.unroll(cell, params, inputs)
    given = trajectories.unroll(cell, params, inputs, initial=cell.initial_state(params))
    chex.assert_trees_all_equal(own, given)


def test_inputs_may_be_any_pytree_or_empty():
    cell = cells.from_step(lambda p, s, x: s * p + x["a"] - x["b"][0], lambda p: jnp.zeros(()))
    out = trajectories.unroll(cell, jnp.array(2.0), {"a": jnp.ones(3), "b": jnp.zeros((3, 2))})
    np.testing.assert_array_equal(out.states, [1, 3, 7])
    autonomous = cells.linear(0, 2)
    assert trajectories.unroll(autonomous, autonomous.init(KEY), jnp.zeros((4, 0))).states.shape == (4, 2)


ELMAN, GRU = cases.CELLS["elman"], cases.CELLS["gru"]
PARAMS = ELMAN.init(KEY)
X = jnp.ones((4, cases.M))


def broken(step):
    return cells.from_step(step, lambda params: jnp.zeros(2))


@pytest.mark.parametrize(
    ("cell", "params", "inputs", "initial", "error", "message"),
    [
        (ELMAN, PARAMS, X[0], None, ValueError, r"inputs: got shape \[2\], expected \[T, 2\]"),
        (ELMAN, PARAMS, X[None], None, ValueError, r"inputs: got shape \[1, 4, 2\], expected \[T, 2\]"),
        (ELMAN, PARAMS, X[:, :1], None, ValueError, r"inputs: got shape \[4, 1\], expected \[T, 2\]"),
        (ELMAN, PARAMS, X[:0], None, ValueError, "inputs: got T = 0 steps"),
        (ELMAN, PARAMS, [1.0], None, TypeError, "inputs: got list"),
        (ELMAN, PARAMS, X.astype(int), None, TypeError, "inputs: got int64, expected a real float"),
        (ELMAN, PARAMS, X.astype(jnp.float32), None, TypeError, "inputs: got float32, expected float64 like params"),
        (ELMAN, PARAMS, X.at[2].set(jnp.nan), None, ValueError, "inputs: got NaN or inf.*first at step t = 3"),
        (ELMAN, PARAMS, X, jnp.ones(2), ValueError, r"initial: got shape \[2\], expected \[3\]"),
        (ELMAN, PARAMS, X, (jnp.ones(3),), ValueError, "initial: got structure"),
        (ELMAN, PARAMS, X, jnp.ones(3, int), TypeError, "initial: got int64, expected float64"),
        (ELMAN, PARAMS, X, jnp.full(3, jnp.nan), ValueError, "initial: got NaN or inf"),
        (ELMAN, jax.tree.map(lambda a: a.astype(int), PARAMS), X, None, TypeError, "params.w_hx: got int64"),
        (ELMAN, jax.tree.map(lambda a: a.astype(complex), PARAMS), X, None, TypeError, "params.w_hx: got complex128"),
        (ELMAN, PARAMS._replace(b_h=jnp.ones(3, jnp.float32)), X, None, TypeError, "params.b_h: got float32, expected"),
        (ELMAN, PARAMS._replace(b_h=jnp.ones(4)), X, None, ValueError, r"params.b_h: got shape \[4\], expected \[3\]"),
        (ELMAN, PARAMS._replace(b_h=jnp.full(3, jnp.inf)), X, None, ValueError, "params.b_h: got NaN or inf"),
        (GRU, PARAMS, X, None, ValueError, "params: got structure"),
        (broken(lambda p, s, x: (s, s)), jnp.ones(()), X, None, ValueError, "step's new state: got structure"),
        (broken(lambda p, s, x: s[:1]), jnp.ones(()), X, None, ValueError, r"step's new state: got shape \[1\]"),
        (
            broken(lambda p, s, x: s.astype(jnp.float32)),
            jnp.ones(()),
            X,
            None,
            TypeError,
            "step's new state: got float32",
        ),
        (broken(lambda p, s, x: s), jnp.ones(()), (), None, ValueError, "inputs: got no arrays"),
        (broken(lambda p, s, x: s), jnp.ones(()), (X, X[:2]), None, ValueError, r"inputs.1: got 2 steps, expected 4"),
        (broken(lambda p, s, x: s + jnp.inf), jnp.ones(()), X, None, ValueError, "states: got NaN or inf.*t = 1"),
        (
            cells.from_step(lambda p, s, x: s, lambda p: jnp.zeros(2, int)),
            jnp.ones(()),
            X,
            None,
            TypeError,
            r"initial_state\(params\): got int64, expected a real float",
        ),
    ],
)
def test_bad_input_gets_one_line(cell, params, inputs, initial, error, message):
    with pytest.raises(error, match=message) as caught:
        trajectories.unroll(cell, params, inputs, initial=initial)
    assert "\n" not in str(caught.value)
    assert "jaxbptt" in caught.traceback[-1].path.parts[-3:], "raised by our own check, not inside JAX"
