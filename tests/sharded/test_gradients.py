"""Gradients, adjoints and states over devices are those of one device, and cost what the docstrings say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import gradients, models, sharded, trajectories
from jaxbptt.comparison import compare
from tests import cases
from tests.gradients.problems import BATCH, KEY, batch_of, model_of
from tests.mutation import mutate_package
from tests.sharded.devices import collectives, compiled, mesh_of

LENGTH = 16
MODERN = "lru", "delta_net", "min_gru"  # one probe of a complex diagonal; K of a block on V copies; one of 1 × 1 blocks
METHODS = "sequential", "parallel"


def make(name, gain=1.5):
    """(model, (params, inputs, targets, h_0))."""
    if name in MODERN:
        model = models.sequence_model(cases.MODERN[name], cases.O, reduction="mean")
    else:
        model = model_of(name, "squared", "mean")
    return model, cases.instance(model, KEY, gain=gain, length=LENGTH)


def call(function, model, *, own_initial=True, **options):
    def of(params, inputs, targets, initial):
        return function(model, params, inputs, targets, initial=None if own_initial else initial, **options)

    return of


def assert_same(expected, actual):
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-13)
    assert compare(expected[1], actual[1]).relative < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize("adjoint", METHODS)
@pytest.mark.parametrize(
    ("name", "gain", "devices", "options"),
    [
        ("elman", 0.5, 8, {}),
        ("elman", 1.0, 4, {"own_initial": False}),
        ("lstm", 1.5, 4, {}),
        ("lstm", 1.5, 2, {"block": 3}),
        ("custom", 1.5, 4, {}),
        ("custom", 1.0, 2, {"block": 3, "own_initial": False}),
        *((name, 1.5, 4, {}) for name in MODERN),
    ],
)
def test_the_gradient_is_that_of_one_device(name, gain, devices, options, adjoint):
    model, data = make(name, gain)
    own = {"own_initial": options.get("own_initial", True)}
    expected = jax.jit(call(gradients.autodiff, model, **own))(*data)
    actual = jax.jit(call(sharded.bptt, model, mesh=mesh_of(devices), adjoint=adjoint, **options))(*data)
    assert_same(expected, actual)


@pytest.mark.sweep
@pytest.mark.parametrize("adjoint", METHODS)
@pytest.mark.parametrize("name", ["lstm", "custom", "lru"])
def test_adjoints_and_states_are_those_of_one_device(name, adjoint):
    model, data = make(name)
    mesh = mesh_of(4)
    expected = jax.jit(call(gradients.adjoints, model))(*data)
    actual = jax.jit(call(sharded.adjoints, model, mesh=mesh, adjoint=adjoint))(*data)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13 * np.abs(expected).max())
    assert [shard.data.shape[0] for shard in actual.addressable_shards] == [LENGTH // 4] * 4
    method = "parallel" if name == "lru" and adjoint == "parallel" else "sequential"
    states = lambda params, inputs: sharded.unroll(model, params, inputs, mesh=mesh, method=method).states
    wanted = trajectories.unroll(model, *data[:2]).states
    assert compare(wanted, jax.jit(states)(*data[:2])).relative < 1e-13


@pytest.mark.sweep
@pytest.mark.parametrize("adjoint", METHODS)
@pytest.mark.parametrize(
    ("name", "sizes", "batch"), [("gru", (4,), None), ("gru", (2, 3), "batch"), ("lru", (2, 3), "batch")]
)
def test_a_batch_is_cut_by_steps_and_by_sequences(name, sizes, batch, adjoint):
    model = make(name)[0]
    params, inputs, targets, initial = batch_of(model, LENGTH)
    model = models.batched(model, BATCH)
    data = params, inputs, targets, initial
    mesh = mesh_of(*sizes, names=("time", "batch")[: len(sizes)])
    expected = jax.jit(call(gradients.autodiff, model, own_initial=False))(*data)
    actual = jax.jit(call(sharded.bptt, model, own_initial=False, mesh=mesh, batch=batch, adjoint=adjoint))(*data)
    assert_same(expected, actual)


def test_what_a_model_carries_with_it_is_kept():
    """Weights divided by each sequence's own sum, a penalty once, an output that reads h_{t−1}."""
    cell = cases.CELLS["elman"]
    single = models.make_model(
        cell.step,
        cell.initial_state,
        lambda params, state, x, previous: params.w_hh @ state + x[0] * previous,
        models.squared_error,
        init=cell.init,
        reduction="mean",
        num_inputs=cases.M,
    )
    model = models.batched(models.weighted(single), BATCH)
    model = models.penalised(model, lambda params: jnp.sum(params.w_hh**2))
    drawn = [
        cases.instance(single, jax.random.fold_in(KEY, i), length=LENGTH, num_outputs=cases.N) for i in range(BATCH)
    ]
    inputs, targets = (jnp.stack([one[i] for one in drawn], axis=1) for i in (1, 2))
    weight = (jnp.arange(LENGTH)[:, None] < jnp.array([16, 9, 4])[None]).astype(float)
    data = drawn[0][0], inputs, models.Weighted(targets, weight), None
    mesh = mesh_of(2, 3, names=("time", "batch"))
    expected = jax.jit(call(gradients.autodiff, model))(*data)
    for adjoint in METHODS:
        assert_same(expected, jax.jit(call(sharded.bptt, model, mesh=mesh, batch="batch", adjoint=adjoint))(*data))


def test_a_pullback_that_is_not_linear_gives_nan_in_parallel():
    model = model_of("plain", "squared", "mean")
    pullback = model.derivation.pullback
    bent = lambda params, state, x, cotangent: pullback(params, state, x, jax.tree.map(jnp.tanh, cotangent))
    model = model._replace(derivation=model.derivation._replace(pullback=bent))
    data = cases.instance(model, KEY, gain=1.5, length=LENGTH)
    _, grads = jax.jit(call(sharded.bptt, model, mesh=mesh_of(4), adjoint="parallel"))(*data)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "adjoint", "hops"),
    [
        ("elman", "sequential", 1 + 1),  # in loops over the devices: h forward, μ backward
        ("elman", "parallel", 1 + 2 * (3 + 1) + 1),  # A and b, log₂ 8 + 1 times; what spans pass on
        ("lru", "parallel", 2 * 2 * (3 + 1) + 2 * 2),  # a state of two leaves
    ],
)
def test_the_program_sends_what_the_docstring_says(name, adjoint, hops):
    """A state of one leaf. Besides: sums of |θ| and of a flag."""
    model, data = make(name)
    found = collectives(compiled(call(sharded.bptt, model, mesh=mesh_of(8), adjoint=adjoint), *data))
    assert found["collective-permute"] <= hops
    assert set(found) <= {"collective-permute", "all-reduce"}
    assert found["collective-permute"] >= hops // 2  # XLA may send two arrays in one


def test_memory_of_a_device_falls_with_their_number():
    model = model_of("lstm", "squared", "mean")
    data = cases.instance(model, KEY, length=1024)
    one = compiled(call(gradients.bptt, model, block=1024), *data).memory_analysis().temp_size_in_bytes
    for devices in (2, 8):
        function = call(sharded.bptt, model, mesh=mesh_of(devices), block=1024, adjoint="parallel")
        assert compiled(function, *data).memory_analysis().temp_size_in_bytes < 1.5 * one / devices + 2**14


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("adjoint", "name", "old", "new"),
    [
        ("parallel", "lstm", "later.matrix @ earlier.offset + later.offset", "later.offset"),
        ("parallel", "lstm", "later.matrix @ earlier.matrix, ", "earlier.matrix @ later.matrix, "),
        ("parallel", "lstm", "local, first = jax.tree.map(jnp.zeros_like, (local, first))", "pass"),
        ("parallel", "lru", "later.matrix * earlier.matrix", "later.matrix"),
        ("sequential", "lstm", "relay(pull, nothing, at.time, reverse=True)", "nothing"),
        ("sequential", "lstm", "relay(skip, first, at.time)", "first"),
    ],
)
def test_a_broken_line_is_seen(adjoint, name, old, new):
    model, data = make(name)
    expected = jax.jit(call(gradients.autodiff, model))(*data)[1]
    broken = mutate_package(sharded, old, new).bptt
    actual = jax.jit(call(broken, model, mesh=mesh_of(8), adjoint=adjoint))(*data)[1]
    assert not compare(expected, actual).relative < 1e-8


def test_states_that_the_maps_got_wrong_are_nan():
    model, data = make("lru")
    broken = mutate_package(sharded, "later.matrix * earlier.matrix", "later.matrix")
    states = jax.jit(lambda params, inputs: broken.unroll(model, params, inputs, mesh=mesh_of(8)).states)(*data[:2])
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(states))
    loss, grads = jax.jit(call(broken.bptt, model, mesh=mesh_of(8), adjoint="sequential"))(*data)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves((loss, grads)))
