"""Four routes to dC/dθ, each its own algorithm, and autodiff itself against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, gradients, models
from jaxbptt.comparison import compare
from jaxbptt.gradients.forward import run_forward
from tests import cases
from tests.gradients.problems import HAND, KEY, LOSSES, jitted, loop_loss, model_of, moving_start
from tests.mutation import mutate_package


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


@pytest.mark.sweep
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


@pytest.mark.sweep
@pytest.mark.parametrize("own_initial", [False, True])
@pytest.mark.parametrize("kind", ["shared", "custom", "plain"])
def test_four_routes_agree_for_other_models(kind, own_initial):
    model = cases.shared_model() if kind == "shared" else model_of(kind, "squared", "mean")
    data = cases.instance(model, KEY, num_outputs=cases.N if kind == "shared" else cases.O, gain=1.5)
    for route, error, _ in errors_of(model, data, own_initial=own_initial):
        assert error < 1e-12, route


@pytest.mark.sweep
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", ["shared", "custom"])
def test_autodiff_against_a_python_loop(kind, given):
    model = cases.shared_model() if kind == "shared" else model_of("custom")
    params, inputs, targets, initial = cases.instance(model, KEY, num_outputs=cases.N if kind == "shared" else cases.O)
    initial = initial if given else None
    loss, expected = jax.jit(jax.value_and_grad(lambda p: loop_loss(model, p, inputs, targets, initial)))(params)
    actual_loss, actual = gradients.autodiff(model, params, inputs, targets, initial=initial)
    np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-12


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
    assert float(run_forward(*arguments).direct) == 14


@pytest.fixture(scope="module")
def problem():
    return moving_start()


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("route", "old", "new"),
    [
        ("forward_sensitivity", "direct + transition @ sensitivity", "direct + sensitivity"),
        ("forward_sensitivity", "direct + transition @ sensitivity", "direct + transition.T @ sensitivity"),
        ("forward_sensitivity", "direct + transition @ sensitivity", "transition @ sensitivity"),
        ("forward_sensitivity", "gradient + readout_gradient + local", "gradient + local"),
        ("forward_sensitivity", "return weight * model.loss", "return model.loss"),
        ("forward_sensitivity", "sensitivity = jax.jacrev(lambda theta:", "sensitivity = 0 * jax.jacrev(lambda theta:"),
        ("double_sum", "moved = move(cotangents, jacobian)", "moved = move(cotangents, jacobian.T)"),
        ("double_sum", "moved = move(cotangents, jacobian)", "moved = cotangents"),
        ("double_sum", "(jnp.arange(len(own)), trajectory.previous,", "(jnp.arange(len(own)), trajectory.states,"),
        ("double_sum", "initial_adjoint = unravel(jnp.sum(carried, axis=0))", "initial_adjoint = unravel(carried[0])"),
    ],
)
def test_a_broken_route_is_seen(route, old, new, problem):
    """Dropped factors, swapped orders, h_t for h_{t−1}, a lost 1/T, a lost direct or initial part: all far off."""
    model, data, expected = problem
    function = getattr(mutate_package(gradients, old, new), route)
    _, broken = jax.jit(lambda *data: function(model, *data[:3]))(*data)
    assert compare(expected, broken).relative > 1e-3


ELMAN = model_of("elman")
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
    model = model_of("gru", "cross_entropy")
    params, inputs, targets, _ = cases.instance(model, KEY, classes=True)
    for route in ("autodiff", *HAND):
        with pytest.raises(ValueError, match=r"losses: got NaN or inf.*t = 4"):
            getattr(gradients, route)(model, params, inputs, targets.at[3].set(cases.O))


def test_a_cell_is_free_to_have_no_gradient_in_a_leaf():
    cell = cells.from_step(lambda p, s, x: s * p["used"], lambda p: jnp.ones(2), init=None)
    model = models.Model(cell.init, cell.initial_state, cell.step, lambda p, s: s, models.squared_error)
    params = {"used": jnp.array(0.5), "unused": jnp.ones(3)}
    for route in (gradients.bptt, gradients.double_sum, gradients.forward_sensitivity):
        _, grads = route(model, params, jnp.zeros((4, 0)), jnp.zeros((4, 2)))
        np.testing.assert_array_equal(grads["unused"], 0)


@pytest.mark.parametrize("route", ["autodiff", "bptt", "double_sum", "forward_sensitivity"])
def test_params_are_compared_with_those_of_init_where_it_can_be_traced(route):
    call = lambda model: getattr(gradients, route)(model, PARAMS._replace(cell=PARAMS.cell[:2]), X, Y)
    with pytest.raises(ValueError, match="params: got structure"):
        call(ELMAN)
    with pytest.raises(ValueError, match=r"init: got one that cannot be traced \(.*\), expected a pure function"):
        call(ELMAN._replace(init=lambda key: float(jax.random.normal(key))))
    with pytest.raises(AttributeError, match="b_h"):  # nothing to compare with: the step meets it
        call(ELMAN._replace(init=None))
