"""SnAp-n and RFLO against their definitions on dense arrays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, gradients, models, online
from jaxbptt.comparison import compare
from tests import cases
from tests.mutation import mutate_package
from tests.online.problems import KEY, dense_masked, exact_of, flatten, instance_of, model_of, online_of, truth_of


def plan_of(rule, model, params, x=None):
    return jax.eval_shape(lambda: rule.init(model, params, x=x)).plan


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


@pytest.mark.sweep
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
    broken = mutate_package(online, "_plan, None, order - 1", "_plan, None, order - 2")
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


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "leaky"])
def test_rflo_against_its_definition(name):
    leaky = name == "leaky"
    model = leaky_model() if leaky else model_of(name)
    data = cases.instance(model, KEY, gain=1.2)
    expected = dense_masked(model, data, 1.0, carry_of(name))
    _, actual = online_of(online.rflo(leak=0.8 if leaky else None), model, data)
    assert compare(expected, actual).relative < 1e-12
    assert compare(exact_of(model, data)[1], actual).relative > 0.02


@pytest.mark.sweep
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


SIZE, LENGTH = 3, 6
here = lambda p, h: jnp.tanh(p["w"] * h + p["b"])
there = lambda p, h: jnp.tanh(p["v"] * jnp.roll(h, 1))  # with `here`: a ring


def flag(p, h, x):
    return jnp.where(x[-1] == 1.0, jnp.tanh(p["v"] * jnp.roll(h, 1)), jnp.tanh(p["w"] * h + p["b"] * x[0]))


def token(p, h, x):
    return jnp.tanh(p["w"] * jnp.roll(h, 1) + p["e"][jnp.asarray(x, int)])


def one_hot(p, h, x):
    return jnp.tanh(p["w"] * jnp.roll(h, 1) + jnp.asarray(x == jnp.arange(4.0), h.dtype) @ p["e"])


def reset(p, h, x):
    return jnp.where(x["on"], there(p, h), here(p, h)) + x["x"][0]


def zoneout(p, h, x):
    return jnp.where(jax.random.bernoulli(x["key"], 0.3, h.shape), h, there(p, h) + x["x"][0] * p["b"])


def branches(p, h, x):
    h = jax.lax.cond(x[0] > 0.9, there, here, p, h)
    return jax.lax.switch(jnp.asarray(x[1] > 0, int), [lambda h: h, lambda h: jax.nn.relu(p["b"] * h)], h)


def loops(p, h, x):
    h = jax.lax.scan(lambda h, s: (jnp.where(s > x[0], there(p, h), here(p, h)), None), h, jnp.array([-3.0, 1.0]))[0]
    return jax.lax.fori_loop(0, 2, lambda i, h: h.at[i].add(p["b"][i]), h)


def routes(p, h, x):
    part = jax.lax.dynamic_slice(h, (jnp.asarray(x[0] > 0, int),), (2,))
    h = jnp.sort(jnp.concatenate((p["w"][:2] * part, p["b"][:1])))
    return jnp.maximum(h, p["v"] * jnp.roll(h, 1)) + x[1]


@jax.custom_vjp
def spike(a):
    return jnp.asarray(a > 0.5, a.dtype)


spike.defvjp(lambda a: (spike(a), a), lambda a, cotangent: (cotangent / (1 + jnp.abs(a)) ** 2,))


def spiking(p, h, x):
    fired = spike(h)
    return p["w"] * h * (1 - jax.lax.stop_gradient(fired)) + p["v"] * jnp.roll(fired, 1) + x[0] * p["b"]


def unknown_length(p, h, x):
    return jax.lax.while_loop(lambda a: jnp.sum(a * a) > 0.5, lambda a: there(p, a), here(p, h) + x[0])


FLOATS = jax.random.normal(KEY, (LENGTH, 2))
TOKENS = jnp.array([0, 2, 1, 2, 3, 0])
STEPS = {  # (step, inputs, entries that SnAp-1 keeps)
    "flag": (flag, FLOATS.at[:, 1].set(np.arange(LENGTH) % 2.0), 3 * 3),
    "int32 token": (token, jnp.asarray(TOKENS, jnp.int32), 3 + 3 * 4),
    "int64 token": (token, TOKENS, 3 + 3 * 4),
    "float token": (token, jnp.asarray(TOKENS, float), 3 + 3 * 4),
    "one hot": (one_hot, jnp.asarray(TOKENS, float), 3 + 3 * 4),
    "bool": (reset, {"x": FLOATS, "on": jnp.arange(LENGTH) % 2 == 1}, 3 * 3),
    "key": (zoneout, {"x": FLOATS, "key": jax.random.split(KEY, LENGTH)}, 2 * 3),
    "cond, switch, relu": (branches, FLOATS, 3 * 3),
    "scan, fori_loop": (loops, FLOATS, 2 * 9),
    "slice, sort, max": (routes, FLOATS, 3 * 3 + 3),
    "spikes": (spiking, FLOATS, 3 * 3),
    "while_loop": (unknown_length, FLOATS, 3 * 9),
}


def model_of_step(step):
    return models.Model(None, lambda p: jnp.full(SIZE, 0.1), step, lambda p, h: h, models.squared_error)


def params_of(step):
    names = "be" if step in (token, one_hot) else "bvw"
    draw = lambda name: jax.random.normal(jax.random.key(ord(name)), (4, SIZE) if name == "e" else (SIZE,))
    return {name: draw(name) for name in {*names, "w"}}


def looped(model, params, inputs, targets):
    def body(carry, at):
        h = model.step(params, carry[0], at[0])
        return (h, carry[1] + model.loss(h, at[1])), None

    return jax.lax.scan(body, (model.initial_state(params), 0.0), (inputs, targets))[0][1]


@pytest.mark.sweep
@pytest.mark.parametrize("name", STEPS)
def test_snap_is_exact_whatever_route_a_step_takes(name):
    """The first input, which `init` is given, takes another route than later ones."""
    step, inputs, size = STEPS[name]
    model, params, targets = model_of_step(step), params_of(step), jax.random.normal(KEY, (LENGTH, SIZE))
    if name == "while_loop":
        exact = jax.jacfwd(functools.partial(looped, model))
    else:
        exact = lambda *data: gradients.autodiff(model, *data)[1]

    @jax.jit
    def both(inputs, targets):
        rule = online.snap(SIZE)
        return exact(params, inputs, targets), online.run(rule, model, params, inputs, targets)[1]

    expected, actual = both(inputs, targets)
    assert compare(expected, actual).relative < 1e-12
    first = jax.tree.map(lambda leaf: leaf[0], inputs)
    plan = plan_of(online.snap(1), model, params, first)
    assert np.sum((plan.rows.array >= 0).sum(1) * (plan.columns.array >= 0).sum(1)) == size
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first)
    assert plan_of(online.snap(1), model, params, shapes) == plan


def coupled(p, h, x):
    return jnp.tanh(p["w"] * h + jnp.sum(h))  # J_t is dense


def biased(p, h, x):
    return jnp.tanh(p["w"] * h + p["b"])  # ∂⁺h/∂⁺b is not zero


def masked(p, h, x):
    return jnp.tanh(p["w"] * h + 0 * p["b"])


def connected(p, h, x):
    return jnp.tanh(p["w"] * h + jnp.outer(p["b"], p["b"]) @ h)  # zeros of b: no connection


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("found", "met", "bias", "message"),
    [
        (masked, coupled, 0.0, r"step: got a Jacobian J_t with entries outside the pattern found at init; call init"),
        (masked, biased, 0.0, "step: got a direct partial ∂⁺h/∂⁺θ with entries outside"),
        (connected, connected, 1.0, "params: got a weight that was zero at init"),
        (masked, masked, 1.0, None),
        (biased, biased, 1.0, None),
    ],
)
def test_what_was_not_found_at_init_is_seen(found, met, bias, message):
    """A plan for one step, or for one set of params, and an update with another one."""
    params, x, target = {"b": jnp.zeros(SIZE), "w": jnp.ones(SIZE)}, jnp.ones(2), jnp.ones(SIZE)
    state = online.snap(2).init(model_of_step(found), params, x=x)
    state = dataclasses.replace(state, model=model_of_step(met))
    params = params | {"b": jnp.full(SIZE, bias)}
    _, _, grads = jax.jit(online.snap(2).update)(params, state, x, target)
    broken = [bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves(grads)]
    if message is None:
        assert broken == [False, False]
        return
    assert broken == [True, True]
    with pytest.raises(ValueError, match=message):
        online.snap(2).update(params, state, x, target)


def test_the_built_in_cells_are_not_looked_at_more_than_needed():
    """Nothing is taken to be zero for a dense Elman net, GRU; for the LSTM, ∂⁺C/∂⁺(weights of the gate o)."""
    for name, sizes in {
        "elman": [0, 0, 0],
        "gru": [0, 0, 0],
        "lstm": [0, 0, cases.N * (cases.N + cases.M + 1)],
    }.items():
        plan = plan_of(online.snap(1), model_of(name), instance_of(name)[0])
        assert [claim.array.sum() for claim in plan.claims] == sizes
