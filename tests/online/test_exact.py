"""RTRL is BPTT forward in time: the same gradient, whatever the cell and wherever it starts."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, gradients, models, online
from jaxbptt.comparison import compare
from jaxbptt.trajectories import unroll
from tests import cases
from tests.mutation import mutate_package
from tests.online.problems import KEY, exact_of, instance_of, model_of, online_of, truth_of


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "own"),
    [*((name, True) for name in cases.CELLS), ("shared", True), ("moving start", True), ("moving start", False),
     ("custom", False), ("lstm", False)],
)  # fmt: skip
def test_rtrl_is_bptt(name, own):
    expected_loss, expected = truth_of(name, own)
    loss, actual = online_of(online.rtrl(), model_of(name), instance_of(name), own=own)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-12


@pytest.mark.parametrize("name", ["lstm", "custom"])
def test_windows_of_rtrl_are_exact_and_without_memory_they_are_not(name):
    """Each window's gradient is that of its own losses alone; with Â reset at its start only the first is.

    The custom cell's first is not either: its Â_0 = ∂h_0/∂θ is lost.
    """
    model, (params, inputs, targets, _) = model_of(name), instance_of(name, length=6)
    rule_ = online.rtrl()
    windows = jax.tree.map(lambda leaf: leaf.reshape(3, 2, *leaf.shape[1:]), (inputs, targets))

    def losses(params):
        states = unroll(model, params, inputs).states
        return models.step_losses(model, params, states, targets).reshape(3, 2).sum(axis=1)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def summed(state, window):
        def body(carry, step):
            state, total = carry
            state, _, grads = rule_.update(params, state, *step)
            return (state, jax.tree.map(jnp.add, total, grads)), None

        return jax.lax.scan(body, (state, jax.tree.map(jnp.zeros_like, params)), window)[0]

    chex.clear_trace_counter()
    expected, kept = jax.jit(jax.jacrev(losses))(params), rule_.init(model, params, key=KEY)
    reset = kept
    for i in range(3):
        pick = lambda leaf, i=i: leaf[i]
        reset = dataclasses.replace(reset, sensitivity=jnp.zeros_like(reset.sensitivity))
        (kept, right), (reset, wrong) = (summed(state, jax.tree.map(pick, windows)) for state in (kept, reset))
        assert compare(jax.tree.map(pick, expected), right).relative < 1e-12
        assert (compare(jax.tree.map(pick, expected), wrong).relative > 1e-2) == (i > 0 or name == "custom")


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("elman", "left[np.array(chosen)][:, None] * v[None, :]", "0 * left[np.array(chosen)][:, None] * v[None, :]"),
        ("elman", "sensitivity = transition @ sensitivity", "sensitivity = transition.T @ sensitivity"),
        ("gru", "start += len(block.rows) * v.size", "start += 0"),
        ("lstm", "position[z] * v.size", "position[z - z % 2] * v.size"),
        ("custom", "transition @ sensitivity + direct", "transition @ (sensitivity + direct)"),
        ("custom", "    return jacobian(\n        lambda theta:", "    return 0 * jacobian(\n        lambda theta:"),
    ],
)
def test_a_broken_rtrl_is_seen(name, old, new):
    mutant = mutate_package(online, old, new)
    _, broken = online_of(mutant.rtrl(), model_of(name), instance_of(name), module=mutant)
    assert compare(truth_of(name)[1], broken).relative > 1e-3


def test_structure_is_not_read_from_params():
    """Units that are dead at these params, and weights that are zero, come alive later with their direct term."""
    cell = cells.elman(cases.M, cases.N, activation=jax.nn.relu, recurrent=cells.identity(1.0))
    model = models.sequence_model(cell, cases.O)
    params, inputs, targets, _ = data = cases.instance(model, KEY, length=6)
    dead = params._replace(cell=params.cell._replace(b_h=params.cell.b_h - 50.0))
    state = online.rtrl().init(model, dead, key=KEY)
    total = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(online.rtrl().update)
    for x, y in zip(inputs, targets, strict=True):
        state, _, grads = update(params, state, x, y)
        total = jax.tree.map(jnp.add, total, grads)
    assert compare(exact_of(model, data)[1], total).relative < 1e-12


def test_inputs_of_any_form():
    """A model whose inputs are a pytree, integers among them: exact, and the leaves that a step reads found from x."""
    cell = cells.from_step(lambda p, h, x: jnp.tanh(p["e"][x["i"]] + p["w"] @ h), lambda p: jnp.zeros(cases.N))
    model = models.Model(cell.init, cell.initial_state, cell.step, lambda p, h: p["o"] @ h, models.squared_error)
    keys = jax.random.split(KEY, 3)
    params = {name: jax.random.normal(k, (cases.N, cases.N)) for name, k in zip("ewo", keys, strict=True)}
    data = (params, {"i": jnp.array([0, 2, 1, 2])}, jnp.ones((4, cases.N)), None)
    assert compare(exact_of(model, data)[1], online_of(online.rtrl(), model, data)[1]).relative < 1e-12
    x = {"i": jnp.array(0)}
    assert online.rtrl().cost(model, params, x=x).state_floats == cases.N + cases.N * 2 * cases.N**2
    assert online.rtrl().cost(model, params).state_floats == cases.N + cases.N * 3 * cases.N**2
    assert compare(exact_of(model, data)[1], online_of(online.snap(cases.N), model, data)[1]).relative < 1e-12


def test_a_batch_is_exact_by_rtrl_and_refused_where_it_has_no_such_form():
    model = models.sequence_model(cases.CELLS["gru"], cases.O)
    drawn = [cases.instance(model, jax.random.key(i)) for i in range(2)]
    inputs, targets = (jnp.stack([one[i] for one in drawn], axis=1) for i in (1, 2))
    batch = models.batched(model, 2)
    expected = jax.jit(functools.partial(gradients.bptt, batch))(drawn[0][0], inputs, targets)[1]
    actual = jax.jit(functools.partial(online.run, online.rtrl(), batch))(drawn[0][0], inputs, targets)[1]
    assert compare(expected, actual).relative < 1e-12
    with pytest.raises(ValueError, match="it is a batch of sequences"):
        online.run(online.kf_rtrl(), batch, drawn[0][0], inputs, targets, key=jax.random.key(0))
