import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import jacobians, models, trajectories
from tests import cases
from tests.mutation import mutate

KEY = jax.random.key(4)


def chain_of(name, gain, method="auto", length=cases.T):
    cell = cases.CELLS[name]
    params, inputs, _, initial = cases.instance(cell, KEY, gain=gain, length=length)
    trajectory = trajectories.unroll(cell, params, inputs, initial=initial)
    return cell, params, trajectory, jacobians.step_jacobians(cell, params, trajectory, method=method)


@pytest.mark.parametrize("gain", cases.GAINS)
@pytest.mark.parametrize("name", cases.CELLS)
def test_every_method_gives_the_same_jacobians(name, gain):
    *_, forward = chain_of(name, gain, "forward")
    for method in ("auto", "reverse") + (("closed",) if name in cases.BUILT_IN else ()):
        *_, other = chain_of(name, gain, method)
        np.testing.assert_allclose(other, forward, rtol=1e-13, atol=1e-13 * np.abs(forward).max())


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
        ("leaf[start:stop]", "leaf[start:stop][::-1]"),
        ("leaf[start:stop]", "leaf[start + 1 : stop]"),
    ],
)
def test_a_broken_product_is_seen(old, new):
    *_, chain = chain_of("elman", 1.5)
    right, wrong = (module.product(chain, 1, 4) for module in (jacobians, mutate(jacobians, old, new)))
    assert np.abs(right - wrong).max() > 1e-3


@pytest.mark.parametrize("gain", cases.GAINS)
@pytest.mark.parametrize("name", cases.BUILT_IN)
def test_structured_jacobians_multiply_as_dense_ones(name, gain):
    cell, params, trajectory, chain = chain_of(name, gain)
    structured = jacobians.structured_jacobians(cell, params, trajectory)
    assert len(structured) == cases.T
    np.testing.assert_allclose(structured.assemble(), chain, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(jacobians.product(structured, 1, 4), jacobians.product(chain, 1, 4), atol=1e-13)
    expected = jacobians.prefix_products(chain)
    np.testing.assert_allclose(jacobians.prefix_products(structured), expected, atol=1e-12 * np.abs(expected).max())
    at = structured.at(jax.tree.map(lambda leaf: leaf[2], structured.factors))
    matrix = jax.random.normal(KEY, (chain.shape[1], 2))
    np.testing.assert_allclose(structured.parts.left(at, matrix), chain[2] @ matrix, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(structured.parts.right(at, matrix.T), matrix.T @ chain[2], rtol=1e-12, atol=1e-14)


def test_a_model_lifts_the_parts_and_a_step_has_none():
    model = models.sequence_model(cases.CELLS["lstm"], cases.O)
    params, inputs, _, initial = cases.instance(model, KEY)
    trajectory = trajectories.unroll(model, params, inputs, initial=initial)
    structured = jax.jit(lambda *data: jacobians.structured_jacobians(model, *data))(params, trajectory)
    expected = jacobians.step_jacobians(model, params, trajectory, method="forward")
    np.testing.assert_allclose(structured.assemble(), expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="cell: got one without parts of its Jacobian"):
        jacobians.structured_jacobians(cases.CELLS["custom"], params, trajectory)


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


def test_bad_methods_are_refused():
    cell, params, trajectory, _ = chain_of("custom", None)
    with pytest.raises(ValueError, match="method: got 'closed', expected 'forward' or 'reverse'"):
        jacobians.step_jacobians(cell, params, trajectory, method="closed")
    with pytest.raises(ValueError, match="method: got 'fast', expected one of"):
        jacobians.step_jacobians(cell, params, trajectory, method="fast")
