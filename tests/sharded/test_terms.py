"""The (t, k) table over devices is that of one device."""

import jax
import numpy as np
import pytest

from jaxbptt import models, sharded, terms
from tests import cases
from tests.gradients.problems import KEY, model_of
from tests.sharded.devices import collectives, compiled, mesh_of

LENGTH = 12


def make(name):
    model = models.sequence_model(cases.MODERN[name], cases.O) if name == "lru" else model_of(name, "squared", "mean")
    return model, cases.instance(model, KEY, gain=1.5, length=LENGTH)[:3]


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["lstm", "custom", "lru"])
@pytest.mark.parametrize(("devices", "losses"), [(4, None), (4, (4, 6)), (2, (0, 6)), (4, (11, 12))])
def test_the_table_is_that_of_one_device(name, devices, losses):
    model, data = make(name)
    expected = jax.jit(lambda *data: terms.gradient_terms(model, *data))(*data)
    find = lambda *data: sharded.gradient_terms(model, *data, mesh=mesh_of(devices), losses=losses)
    actual = jax.jit(find)(*data)
    rows = slice(*losses) if losses else slice(None)
    compare = lambda a, b: np.testing.assert_allclose(a, b[rows], rtol=1e-12, atol=1e-14)
    jax.tree.map(compare, tuple(actual), tuple(expected))
    assert actual.norms.addressable_shards[0].data.shape[1] == LENGTH // devices


def test_an_output_that_reads_the_previous_state_adds_its_own_term():
    cell = cases.CELLS["elman"]
    readout = lambda params, state, x, previous: params.w_hh @ state + x[0] * previous
    model = models.make_model(
        cell.step, cell.initial_state, readout, models.squared_error, init=cell.init, num_inputs=cases.M
    )
    data = cases.instance(model, KEY, length=LENGTH, num_outputs=cases.N)[:3]
    expected = terms.gradient_terms(model, *data)
    actual = jax.jit(lambda *data: sharded.gradient_terms(model, *data, mesh=mesh_of(4)))(*data)
    np.testing.assert_allclose(actual.norms, expected.norms, rtol=1e-12, atol=1e-14)
    assert int(actual.reach(0.9)) == int(expected.reach(0.9))


def test_the_program_sends_cotangents_to_the_neighbour_alone():
    model, data = make("elman")
    found = collectives(compiled(lambda *data: sharded.gradient_terms(model, *data, mesh=mesh_of(4)).norms, *data))
    assert set(found) == {"collective-permute"}
    assert found["collective-permute"] == 2  # in loops over the devices: h, and the rows
