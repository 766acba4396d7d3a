"""SnAp-n and RFLO against their definitions on dense arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, models, online
from jaxbptt.comparison import compare
from tests import cases
from tests.mutation import mutate_package
from tests.online.problems import KEY, dense_masked, exact_of, flatten, instance_of, model_of, online_of, truth_of


def partials(model):
    """(∂⁺h/∂⁺h_{t−1}, ∂⁺h/∂⁺θ, ∂h_0/∂θ) of a model by autodiff, dense."""

    def jacobian(params, state, x):
        flat, unravel = ravel_pytree(state)
        return jax.jacfwd(lambda h: flatten(model.step(params, unravel(h), x)))(flat)

    def direct(params, state, x):
        theta, unravel = ravel_pytree(params)
        return jax.jacfwd(lambda theta: flatten(model.step(unravel(theta), state, x)))(theta)

    def start(params):
        theta, unravel = ravel_pytree(params)
        return jax.jacfwd(lambda theta: flatten(model.initial_state(unravel(theta))))(theta)

    return jacobian, direct, start


@pytest.mark.parametrize(
    ("name", "order"), [("elman", 1), ("elman", 2), ("lstm", 1), ("gru", 1), ("custom", 1), ("custom", 2)]
)
def test_snap_against_its_definition(name, order):
    model, data = model_of(name), instance_of(name)
    params, inputs, _, initial = data
    jacobian, direct, start = partials(model)
    kept = np.asarray((direct(params, initial, inputs[0]) != 0) | (start(params) != 0))
    for _ in range(order - 1):
        kept = kept | ((np.asarray(jacobian(params, initial, inputs[0])) != 0) @ kept)
    expected = dense_masked(model, data, kept.astype(float), jacobian)
    _, actual = online_of(online.snap(order), model, data)
    assert compare(expected, actual).relative < 1e-12
    _, truth = truth_of(name)
    assert (compare(truth, actual).relative < 1e-12) == (order == 2), "dense: SnAp-2 is exact, SnAp-1 is not"
    assert order == 2 or compare(truth, actual).relative > 0.05


def ring_model(kind, size=5):
    """A directed ring (diameter size − 1): by zeros in w_hh, or by a mask in the step of a cell without derivation."""
    mask = jnp.roll(jnp.eye(size), 1, axis=0)
    ring = lambda key, shape, dtype: mask.astype(dtype) * (1.0 + jax.random.uniform(key, shape, dtype))
    cell = cells.elman(1, size, recurrent=ring)
    if kind == "mask":
        dense = cells.elman(1, size, recurrent=cells.gaussian(3.0))
        step = lambda p, h, x: dense.step(p._replace(w_hh=mask * p.w_hh), h, x)
        cell = cells.from_step(step, dense.initial_state, init=dense.init, num_inputs=1)
    return models.sequence_model(cell, 2)


@pytest.mark.parametrize(("kind", "orders", "columns"), [("zeros", (1, 4, 5), 7), ("mask", (4, 5), 3)])
def test_snap_n_is_exact_from_the_diameter_plus_one_on(kind, orders, columns):
    model = ring_model(kind)
    params = model.init(KEY)
    data = (params, jax.random.normal(KEY, (8, 1)), jax.random.normal(KEY, (8, 2)), None)
    _, truth = exact_of(model, data)
    for order in orders:
        error = compare(truth, online_of(online.snap(order), model, data)[1]).relative
        assert error < 1e-12 if order >= 5 else error > 1e-6, order
        # each unit's own weights (masked: one recurrent, one input, one bias), kept for `order` units down the ring
        assert online.snap(order).cost(model, params).state_floats == 5 + 5 * columns * min(order, 5)


def test_a_wrong_reach_is_seen():
    """One hop too few in the pattern: SnAp-2 of a dense net is no longer exact."""
    broken = mutate_package(online, "_jacobian, order - 1", "_jacobian, order - 2")
    _, actual = online_of(broken.snap(2), model_of("elman"), instance_of("elman"), module=broken)
    assert compare(truth_of("elman")[1], actual).relative > 1e-2


def carry_of(name):
    """K_t by hand: the paths past the recurrent weights."""
    if name == "lstm":
        cell = cases.CELLS["lstm"]

        def carry(params, state, x):
            through = lambda c: flatten(cell.step(params.cell, state._replace(cell=c), x))
            return jnp.concatenate((jax.jacfwd(through)(state.cell), jnp.zeros((2 * cases.N, cases.N))), axis=1)

        return carry
    if name == "gru":

        def update_gate(params, state, x):
            p, part = params.cell, slice(cases.N, 2 * cases.N)
            z = jax.nn.sigmoid((p.w_hx @ x + p.b_x + p.w_hh @ state + p.b_h)[part])
            return jnp.diag(z)

        return update_gate
    return lambda params, state, x: (0.8 if name == "leaky" else 0.0) * jnp.eye(cases.N)


def leaky_model():
    step = lambda p, h, x: 0.8 * h + 0.2 * jnp.tanh(p.w_hx @ x + p.w_hh @ h + p.b_h)
    elman = cases.CELLS["elman"]
    cell = cells.from_step(step, elman.initial_state, init=elman.init, num_inputs=cases.M)
    return models.sequence_model(cell, cases.O)


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "leaky"])
def test_rflo_against_its_definition(name):
    leaky = name == "leaky"
    model = leaky_model() if leaky else model_of(name)
    data = cases.instance(model, KEY, gain=1.2)
    expected = dense_masked(model, data, 1.0, carry_of(name))
    _, actual = online_of(online.rflo(leak=0.8 if leaky else None), model, data)
    assert compare(expected, actual).relative < 1e-12
    assert compare(exact_of(model, data)[1], actual).relative > 0.02


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jnp.zeros_like(leaf) if leaf.ndim > 1 else leaf", "leaf"),  # the recurrent weights left in
        ("transition[rows[:, :, None], rows[:, None, :]]", "transition[rows[:, None, :], rows[:, :, None]]"),
        ("colours[rows][:, :, None]", "0 * colours[rows][:, :, None]"),
    ],
)
def test_a_broken_trace_is_seen(old, new):
    model, data = model_of("lstm"), instance_of("lstm")
    expected = dense_masked(model, data, 1.0, carry_of("lstm"))
    mutant = mutate_package(online, old, new)
    _, actual = online_of(mutant.rflo(), model, data, module=mutant)
    assert compare(expected, actual).relative > 1e-2
