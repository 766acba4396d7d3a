"""Ordered products dh_t/dh_k, against dense loops and the derivative of the whole unroll."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import jacobians
from tests import cases
from tests.jacobians.chains import chain_of
from tests.mutation import mutate_package


@pytest.mark.sweep
@pytest.mark.parametrize("name", cases.CELLS)
def test_products_against_a_dense_loop_and_the_whole_unroll(name):
    cell, params, trajectory, chain = chain_of(name, 1.5)
    flat, unravel = ravel_pytree(trajectory.initial)

    def state_at(stop, h):
        state = unravel(h)
        for x in trajectory.inputs[:stop]:
            state = cell.step(params, state, x)
        return ravel_pytree(state)[0]

    prefixes = jacobians.prefix_products(chain)
    for start in range(cases.T + 1):
        dense = np.eye(len(flat))
        for stop in range(start, cases.T + 1):
            if stop > start:
                dense = np.asarray(chain[stop - 1]) @ dense
            np.testing.assert_allclose(jacobians.product(chain, start, stop), dense, rtol=1e-12, atol=1e-13)
            if start == 0 and stop > 0:
                np.testing.assert_allclose(prefixes[stop - 1], dense, rtol=1e-12, atol=1e-13)
    unrolled = jax.jacrev(lambda h: state_at(cases.T, h))(flat)
    np.testing.assert_allclose(prefixes[-1], unrolled, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(multiply(step, total), None)", "(multiply(total, step), None)"),
        ("leaf[start:stop], steps)", "leaf[start:stop][::-1], steps)"),
        ("leaf[start:stop], steps)", "leaf[start + 1 : stop], steps)"),
    ],
)
def test_a_broken_product_is_seen(old, new):
    *_, chain = chain_of("elman", 1.5)
    right, wrong = (module.product(chain, 1, 4) for module in (jacobians, mutate_package(jacobians, old, new)))
    assert np.abs(right - wrong).max() > 1e-3


@pytest.mark.parametrize(
    ("start", "stop", "error", "message"),
    [
        (3, 2, ValueError, "start: got 3 > stop = 2"),
        (-1, 2, ValueError, "start: got -1, expected 0 … T = 5"),
        (0, 6, ValueError, "stop: got 6, expected 0 … T = 5"),
        (0.0, 2, TypeError, "start: got float, expected a static int"),
    ],
)
def test_spans_outside_are_refused(start, stop, error, message):
    with pytest.raises(error, match=message):
        jacobians.product(jnp.ones((5, 2, 2)), start, stop)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (jnp.ones((3, 2)), ValueError, r"jacobians: got shape \[3, 2\], expected \[T, N, N\]"),
        (jnp.ones((3, 2, 4)), ValueError, "jacobians: got shape"),
        (jnp.ones((0, 2, 2)), ValueError, "jacobians: got shape"),
        (jnp.ones((3, 2, 2), int), TypeError, "jacobians: got int64"),
        ([[1.0]], TypeError, "jacobians: got list"),
        (jnp.ones((3, 2, 2)).at[1, 0, 0].set(jnp.inf), ValueError, "first at step t = 2"),
    ],
)
def test_bad_jacobians_are_refused(bad, error, message):
    for function in (jacobians.prefix_products, lambda j: jacobians.product(j, 0, 1)):
        with pytest.raises(error, match=message):
            function(bad)
