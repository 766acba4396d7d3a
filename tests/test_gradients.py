import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, gradients, models
from jaxbptt.comparison import compare
from tests import cases
from tests.mutation import mutate

KEY = jax.random.key(5)
LOSSES = {"squared": models.squared_error, "cross_entropy": models.softmax_cross_entropy}
HAND = ("bptt", "forward_sensitivity", "double_sum")


@functools.cache
def model_of(name, loss, reduction, plain=False):
    cell = cases.CELLS[name]
    if plain:  # the same derivation as a user writes it: an ordinary pullback, not a factored one
        factored = cell.derivation.pullback
        cell = cell._replace(derivation=cell.derivation._replace(pullback=lambda *arguments: factored(*arguments)))
    return models.sequence_model(cell, cases.O, loss=LOSSES[loss], reduction=reduction)


@functools.cache
def jitted(route, model, own_initial=False, module=gradients):
    function = getattr(module, route)
    if own_initial:
        return jax.jit(lambda params, inputs, targets, _: function(model, params, inputs, targets))
    return jax.jit(lambda params, inputs, targets, h_0: function(model, params, inputs, targets, initial=h_0))


def errors_of(model, data, **options):
    """Worst relative error of each hand route against autodiff, and whether some leaf differs in some bit."""
    loss, expected = jitted("autodiff", model, **options)(*data)
    for route in HAND:
        other_loss, actual = jitted(route, model, **options)(*data)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-13)
        different = any(
            not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (expected, actual)), strict=True)
        )
        yield route, compare(expected, actual).relative, different


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["linear", "elman", "lstm", "gru"])
def test_four_routes_agree(name, loss, reduction):
    model = model_of(name, loss, reduction)
    differing = set()
    for gain in cases.GAINS:
        data = cases.instance(model, KEY, gain=gain, classes=loss == "cross_entropy")
        for route, error, different in errors_of(model, data):
            assert error < 1e-12, (route, gain)
            differing |= {route} if different else set()
    assert differing == set(HAND), "routes that agree to the last bit everywhere would be the same code"


@pytest.mark.parametrize("own_initial", [False, True])
@pytest.mark.parametrize("kind", ["shared", "custom", "plain pullback"])
def test_four_routes_agree_for_other_models(kind, own_initial):
    if kind == "shared":
        model, outputs = cases.shared_model(), cases.N
    else:
        model, outputs = (
            model_of("custom" if kind == "custom" else "lstm", "squared", "mean", kind != "custom"),
            cases.O,
        )
    data = cases.instance(model, KEY, num_outputs=outputs, gain=1.5)
    for route, error, _ in errors_of(model, data, own_initial=own_initial):
        assert error < 1e-12, route


def loop_loss(model, params, inputs, targets, initial):
    """C by a plain Python loop: the reference that shares nothing with the library."""
    state = model.initial_state(params) if initial is None else initial
    total = 0.0
    for x, target in zip(inputs, targets, strict=True):
        state = model.step(params, state, x)
        total = total + model.loss(model.readout(params, state), target)
    return total / len(inputs) if model.reduction == "mean" else total


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", ["shared", "custom"])
def test_autodiff_against_a_python_loop(kind, given):
    model = cases.shared_model() if kind == "shared" else model_of("custom", "squared", "sum")
    params, inputs, targets, initial = cases.instance(model, KEY, num_outputs=cases.N if kind == "shared" else cases.O)
    initial = initial if given else None
    loss, expected = jax.value_and_grad(lambda p: loop_loss(model, p, inputs, targets, initial))(params)
    actual_loss, actual = gradients.autodiff(model, params, inputs, targets, initial=initial)
    np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-12


@pytest.mark.parametrize("name", ["elman", "lstm", "custom"])
def test_adjoints_are_gradients_of_a_kick_to_each_state(name):
    model = model_of(name, "squared", "mean")
    params, inputs, targets, initial = cases.instance(model, KEY)
    flat, unravel = ravel_pytree(initial)

    def kicked(kicks):
        state, total = initial, 0.0
        for x, target, kick in zip(inputs, targets, kicks, strict=True):
            state = unravel(ravel_pytree(model.step(params, state, x))[0] + kick)
            total = total + model.loss(model.readout(params, state), target)
        return total / len(inputs)

    expected = jax.grad(kicked)(jnp.zeros((cases.T, flat.size)))
    actual = gradients.adjoints(model, params, inputs, targets, initial=initial)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_the_unit_problem():
    """h_t = θ h_{t−1}, o_t = θ h_t, L_t = o_t, θ = 2, T = 3: C = 28, dC/dθ = 48 = 34 + 14, λ = 14, 6, 2."""
    model = models.Model(
        init=lambda key: jnp.ones(()),
        initial_state=lambda theta: jnp.ones(()),
        step=lambda theta, h, x: theta * h,
        readout=lambda theta, h: theta * h,
        loss=lambda o, y: o,
    )
    arguments = (model, jnp.array(2.0), jnp.zeros((3, 0)), jnp.zeros((3, 0)))
    for route in ("autodiff", *HAND):
        assert tuple(map(float, getattr(gradients, route)(*arguments))) == (28, 48)
    np.testing.assert_array_equal(gradients.adjoints(*arguments)[:, 0], [14, 6, 2])
    _, _, _, direct = gradients.run_forward(*arguments, None)
    assert float(direct) == 14


MUTANTS = [
    ("bptt", "jax.tree.map(jnp.add, local, from_later)", "local"),
    ("bptt", "(factors, local), reverse=True", "(factors, local), reverse=False"),
    ("bptt", "jax.tree.map(jnp.add, direct, recurrent)", "recurrent"),
    ("bptt", "cotangent: pullback.state(params, factors, cotangent)", "cotangent: cotangent"),
    ("bptt", "    steps = (trajectory.previous, trajectory.inputs)\n    if model.derivation is None:\n        all",
     "    steps = (trajectory.states, trajectory.inputs)\n    if model.derivation is None:\n        all"),
    ("bptt", "jnp.sum(losses) * reduction_weight(model, length, losses.dtype), losses\n\n    (loss, losses), (direct",
     "jnp.sum(losses), losses\n\n    (loss, losses), (direct"),
    ("bptt", "return jax.tree.map(jnp.add, grads, pull(initial_adjoint)[0])", "return grads"),
    ("forward_sensitivity", "direct + jacobian @ sensitivity", "direct + sensitivity"),
    ("forward_sensitivity", "direct + jacobian @ sensitivity", "direct + jacobian.T @ sensitivity"),
    ("forward_sensitivity", "direct + jacobian @ sensitivity", "jacobian @ sensitivity"),
    ("forward_sensitivity", "gradient + readout_gradient + local", "gradient + local"),
    ("forward_sensitivity", "return weight * model.loss", "return model.loss"),
    ("forward_sensitivity", "sensitivity = jax.jacrev(lambda theta:", "sensitivity = 0 * jax.jacrev(lambda theta:"),
    ("double_sum", "cotangents @ jacobian)", "cotangents @ jacobian.T)"),
    ("double_sum", "cotangents @ jacobian)", "cotangents)"),
    ("double_sum", "(jnp.arange(len(local)), trajectory.previous,", "(jnp.arange(len(local)), trajectory.states,"),
    ("double_sum", "initial_adjoint = unravel(jnp.sum(carried, axis=0))", "initial_adjoint = unravel(carried[0])"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "old", "new"), MUTANTS)
def test_a_broken_route_is_seen(route, old, new):
    """Dropped factors, swapped orders, h_t for h_{t−1}, a lost 1/T, a lost direct or initial part: all far off."""
    model = cases.shared_model()
    model = model._replace(initial_state=lambda params: jnp.sin(params.b_h))
    data = cases.instance(model, KEY, num_outputs=cases.N, gain=1.5)
    _, expected = jitted("autodiff", model, True)(*data)
    _, broken = jax.jit(lambda *data: getattr(mutate(gradients, old, new), route)(model, *data[:3]))(*data)
    assert compare(expected, broken).relative > 1e-3


ELMAN = model_of("elman", "squared", "sum")
PARAMS, X, Y, _ = cases.instance(ELMAN, KEY)


@pytest.mark.parametrize("route", ["autodiff", "adjoints", *HAND])
@pytest.mark.parametrize(
    ("inputs", "targets", "initial", "error", "message"),
    [
        (X, Y[:-1], None, ValueError, "targets: got 4 steps, expected 5"),
        (X, Y[:, :-1], None, ValueError, r"target: got shape \[3\], expected \[4\]"),
        (X, Y.astype(jnp.float32), None, TypeError, "target: got float32, expected float64"),
        (X, Y.at[1].set(jnp.nan), None, ValueError, "targets: got NaN or inf.*t = 2"),
        (X, Y, jnp.ones(9), ValueError, r"initial: got shape \[9\], expected \[3\]"),
        (X[:0], Y[:0], None, ValueError, "inputs: got T = 0"),
    ],
)
def test_bad_input_gets_one_line(route, inputs, targets, initial, error, message):
    with pytest.raises(error, match=message) as caught:
        getattr(gradients, route)(ELMAN, PARAMS, inputs, targets, initial=initial)
    assert "\n" not in str(caught.value)


def test_a_label_outside_is_named_by_its_step():
    model = model_of("gru", "cross_entropy", "sum")
    params, inputs, targets, _ = cases.instance(model, KEY, classes=True)
    for route in ("autodiff", *HAND):
        with pytest.raises(ValueError, match=r"losses: got NaN or inf.*t = 4"):
            getattr(gradients, route)(model, params, inputs, targets.at[3].set(cases.O))


def test_a_cell_is_free_to_have_no_gradient_in_a_leaf():
    cell = cells.from_step(lambda p, s, x: s * p["used"], lambda p: jnp.ones(2), init=None)
    model = models.Model(lambda key: None, cell.initial_state, cell.step, lambda p, s: s, models.squared_error)
    params = {"used": jnp.array(0.5), "unused": jnp.ones(3)}
    for route in (gradients.bptt, gradients.double_sum, gradients.forward_sensitivity):
        model_ = model._replace(init=cell.init)
        _, grads = route(model_, params, jnp.zeros((4, 0)), jnp.zeros((4, 2)))
        np.testing.assert_array_equal(grads["unused"], 0)
