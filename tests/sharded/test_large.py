"""Nets whose weights are cut by rows, and sweeps whose points are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, sharded, spectra, trajectories
from tests.sharded.devices import collectives, compiled, mesh_of

SIZE, LENGTH = 64, 5
OPTIONS = {"k": 2, "key": jax.random.key(2), "oversampling": 6, "max_rounds": 20, "tolerance": 1e-12}


def of_mesh(mesh):
    """(function of (params, inputs), params cut by rows, inputs)."""
    cell = cells.elman(1, SIZE, recurrent=cells.gaussian(1.2))
    places = sharded.row_shardings(jax.eval_shape(cell.init, jax.random.key(0)), mesh=mesh)
    params = jax.jit(cell.init, out_shardings=places)(jax.random.key(0))

    def find(params, inputs):
        steps = trajectories.unroll(cell, params, inputs)
        return sharded.leading_singular_values(cell, params, steps, mesh=mesh, **OPTIONS)

    return find, params, jax.random.normal(jax.random.key(1), (LENGTH, 1)), cell


@pytest.mark.parametrize("devices", [2, 8])
def test_leading_values_are_those_of_one_device(devices):
    find, params, inputs, cell = of_mesh(mesh_of(devices, names=("state",)))
    assert params.w_hh.addressable_shards[0].data.shape == (SIZE // devices, SIZE)
    alone = jax.device_put(params, jax.devices()[0])
    expected = spectra.leading_singular_values(cell, alone, trajectories.unroll(cell, alone, inputs), **OPTIONS)
    actual = jax.jit(find)(params, inputs)
    np.testing.assert_allclose(actual.log_sigma, expected.log_sigma, atol=1e-11)
    overlap = np.abs(np.sum(np.asarray(actual.left) * np.asarray(expected.left), axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-9)
    assert actual.left.addressable_shards[0].data.shape == (SIZE // devices, OPTIONS["k"])


def test_no_device_gathers_the_weights():
    find, params, inputs, _ = of_mesh(mesh_of(8, names=("state",)))
    program = compiled(find, params, inputs)
    sent = re.findall(
        r"= f64\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|collective-permute)", program.as_text()
    )
    width = OPTIONS["k"] + OPTIONS["oversampling"]
    assert sent
    assert max(np.prod([int(n) for n in shape.split(",") if n]) for shape in sent) <= SIZE * (width + 1)
    assert program.memory_analysis().argument_size_in_bytes < SIZE * SIZE * 8 / 8 + 2048


def test_points_of_a_sweep_are_those_of_a_loop_and_exchange_nothing():
    mesh = mesh_of(4, names=("points",))
    points = {"gain": jnp.linspace(0.5, 2.0, 8), "key": jax.random.split(jax.random.key(0), 8)}
    one = lambda point: jnp.linalg.eigvalsh(point["gain"] * jax.random.normal(point["key"], (3, 3)))
    sweep = lambda points: sharded.map_points(one, points, mesh=mesh)
    program = compiled(sweep, points)
    assert not collectives(program)
    np.testing.assert_array_equal(program(points), jax.lax.map(one, points))


def test_a_scalar_state_cannot_be_cut():
    mesh, cell = mesh_of(2, names=("state",)), cells.from_step(lambda a, h, x: a * h, jnp.ones_like)
    steps = trajectories.unroll(cell, jnp.asarray(0.5), jnp.zeros(4))
    with pytest.raises(ValueError, match="trajectory: got a scalar in the state, expected a multiple of 2 entries"):
        sharded.leading_singular_values(cell, jnp.asarray(0.5), steps, mesh=mesh, **OPTIONS | {"k": 1})


def test_explicit_axes_are_refused():
    mesh = mesh_of(2, names=("state",))
    find, params, inputs, _ = of_mesh(mesh)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="mesh: got one set with explicit axes"):
        jax.eval_shape(find, jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: params)), inputs)
