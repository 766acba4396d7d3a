"""All states at once are those of the scan, and so are their gradients, for every kind of blocks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import gradients, models, trajectories
from jaxbptt.comparison import compare
from tests import cases
from tests.trajectories import affine_cells

KEY = jax.random.key(7)


def is_affine(cell):
    return getattr(cell.derivation.parts, "affine", False)


def data_of(cell, length):
    keys = jax.random.split(KEY, 3)
    params = cell.init(keys[0])
    size = cell.initial_state(params).size
    return params, jax.random.normal(keys[1], (length, affine_cells.M)), jax.random.normal(keys[2], (size,))


def both(cell, length, **options):
    """((states, gradients) of the scan, those in parallel); gradients of a random linear function of the states."""
    data = data_of(cell, length)
    weight = jax.random.normal(jax.random.key(9), (length, data[2].size))

    @functools.partial(jax.jit, static_argnums=0)
    def of(method, params, inputs, initial):
        def total(params, inputs, initial):
            states = trajectories.unroll(cell, params, inputs, initial=initial, method=method, **options).states
            return jnp.sum(weight * states), states

        grads, states = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(params, inputs, initial)
        return states, grads

    return of("sequential", *data), of("parallel", *data)


def assert_close(expected, actual, tolerance):
    for a, b in zip(*map(jax.tree.leaves, (expected, actual)), strict=True):
        assert np.linalg.norm(a - b) <= tolerance * max(1, np.linalg.norm(a))


@pytest.mark.sweep
@pytest.mark.parametrize("name", affine_cells.CELLS)
@pytest.mark.parametrize("length", [1, 37])
def test_parallel_is_the_scan(name, length):
    (states, grads), (actual, actual_grads) = both(affine_cells.CELLS[name], length)
    assert_close(states, actual, 1e-12)
    assert_close(grads, actual_grads, 1e-11)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["real diagonal", "complex diagonal", "delta rule with decay", "full core"])
def test_newton_of_an_affine_cell_takes_its_blocks_and_one_iteration(name):
    cell = affine_cells.CELLS[name]
    params, inputs, initial = data_of(cell, 20)
    found = jax.jit(lambda *data: trajectories.unroll(cell, *data[:2], initial=data[2], method="newton"))(
        params, inputs, initial
    )
    assert bool(found.converged)
    assert int(found.iterations) <= 2  # the second one for rounding
    assert_close(trajectories.unroll(cell, params, inputs, initial=initial).states, found.states, 1e-12)


@pytest.mark.sweep
@pytest.mark.parametrize("name", [name for name, cell in cases.MODERN.items() if is_affine(cell)])
def test_the_affine_cells_are_unrolled_and_pulled_back_in_parallel(name):
    model = models.sequence_model(cases.MODERN[name], 2)
    params, inputs, targets, initial = cases.instance(model, KEY, length=19, num_outputs=2)

    @jax.jit
    def found(*data):
        unroll = functools.partial(trajectories.unroll, model, *data[:2], initial=initial)
        routes = [gradients.bptt(model, *data, initial=initial, adjoint=way)[1] for way in ("sequential", "parallel")]
        return [unroll(method=method) for method in ("sequential", "parallel", "newton")], routes

    (scan, parallel, newton), (expected, actual) = found(params, inputs, targets)
    assert_close(scan.states, parallel.states, 1e-12)
    assert_close(scan.states, newton.states, 1e-12)
    assert int(newton.iterations) <= 2
    assert compare(expected, actual).relative < 1e-12


def test_float32_stays_float32_under_jit_and_vmap():
    cell = affine_cells.CELLS["complex diagonal"]
    params, inputs, _ = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), data_of(cell, 5))
    cell = cell._replace(initial_state=lambda params: jnp.zeros(6, params[0].dtype))
    unroll = lambda x: trajectories.unroll(cell, params, x, method="parallel")
    parallel = jax.jit(jax.vmap(unroll))(jnp.stack((inputs, -inputs)))
    assert parallel.states.dtype == jnp.float32
    expected = trajectories.unroll(cell, params, -inputs).states
    chex.assert_trees_all_close(parallel.states[1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", [cases.CELLS["elman"], cases.CELLS["custom"]], ids=["elman", "step alone"])
def test_a_cell_that_is_not_affine_is_refused_in_one_line(cell):
    params, inputs, *_ = cases.instance(cell, KEY)
    with pytest.raises(ValueError, match=r"^cell: got one .* expected .* method='newton'$"):
        trajectories.unroll(cell, params, inputs, method="parallel")


def test_blocks_that_depend_on_the_state_are_refused():
    cell = affine_cells.CELLS["full core"]
    parts = cell.derivation.parts._replace(affine=False)
    cell = cell._replace(derivation=cell.derivation._replace(parts=parts))
    with pytest.raises(ValueError, match="not known to be affine"):
        trajectories.unroll(cell, *data_of(cell, 3)[:2], method="parallel")


def test_a_state_that_leaves_the_float_range_is_named():
    cell = affine_cells.CELLS["full core"]
    params, inputs, initial = data_of(cell, 4)
    with pytest.raises(ValueError, match=r"states: got NaN or inf.*t = 3"):
        trajectories.unroll(cell, (params[0] * 1e120, params[1]), inputs, initial=initial, method="parallel")
