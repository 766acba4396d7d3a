"""A finite loss with a NaN gradient: every route names the first bad step, or gives the right finite value."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, gradients, models, online, terms, truncation
from jaxbptt.cells.derivation import Derivation
from jaxbptt.partials import is_linear, step_partials

ROUTES = {
    "autodiff": gradients.autodiff,
    "bptt": gradients.bptt,
    "double_sum": gradients.double_sum,
    "forward_sensitivity": gradients.forward_sensitivity,
    "adjoints": gradients.adjoints,
    "gradient_terms": terms.gradient_terms,
    "windowed": functools.partial(truncation.windowed, window=3),
    "windowed, reset": functools.partial(truncation.windowed, window=3, carry_state=False),
    "sliding": functools.partial(truncation.sliding, stride=2, num_lags=3),
    "randomised": functools.partial(truncation.randomised, keep=1.0, cuts=jnp.zeros(3, bool)),
    "weighted_gradient": functools.partial(truncation.weighted_gradient, weights=jnp.tril(jnp.ones((3, 4)), 1)),
    "lag_profile": functools.partial(truncation.lag_profile, num_lags=3),
    "adaptive": functools.partial(truncation.adaptive, tolerance=0.5, num_lags=3),
    "rtrl": functools.partial(online.run, online.rtrl()),
    "snap": functools.partial(online.run, online.snap(2)),
}
EXACT = ("autodiff", "bptt", "double_sum", "forward_sensitivity", "windowed", "sliding", "randomised", "rtrl", "snap")
P = jnp.asarray(0.5)


def model_of(step, start, readout=lambda p, h: h):
    return models.make_model(step, lambda p: jnp.asarray(start), readout, lambda o, y: o + 0 * y)


def root(p, h, x):
    return jnp.where(h > 0, p * jnp.sqrt(h), p * h) + x


def looped(step, start, xs):
    """C and dC/dp by forward mode through a Python loop."""

    def total(p):
        h, loss = jnp.asarray(start), 0.0
        for x in xs:
            h = step(p, h, x)
            loss = loss + h
        return loss

    return total(P), jax.jacfwd(total)(P)


@pytest.mark.sweep
@pytest.mark.parametrize("route", ROUTES)
def test_the_branch_that_where_did_not_take_is_named(route):
    xs = jnp.array([-1.0, 0.3, 0.2])
    loss, right = looped(root, 0.4, xs)
    np.testing.assert_allclose([loss, right], [-0.54660141, 0.0392527], rtol=1e-5)  # finite, and so are differences
    model = model_of(root, 0.4)
    with pytest.raises(ValueError, match=r"gradient: got NaN .* t = 2, where dh_t/dh_{t−1} is not finite in reverse"):
        ROUTES[route](model, P, xs, jnp.zeros(3))
    with pytest.raises(ValueError, match="finite in forward mode: the branch that `where` did"):
        ROUTES[route](model, P, xs, jnp.zeros(3))
    traced = jax.jit(lambda p: ROUTES[route](model, p, xs, jnp.zeros(3)))
    if route != "snap":  # its pattern needs numbers
        assert any(np.isnan(np.asarray(leaf)).any() for leaf in jax.tree.leaves(traced(P)))


@pytest.mark.sweep
@pytest.mark.parametrize("route", EXACT)
def test_a_bad_derivative_that_nothing_needs_does_no_harm(route):
    """sqrt at h_0 = 0, a constant: dh_1/dh_0 is not finite in reverse mode, and no gradient passes it."""
    xs = jnp.array([0.3, 0.2, 0.1])
    expected = looped(root, 0.0, xs)
    call = lambda: ROUTES[route](model_of(root, 0.0), P, xs, jnp.zeros(3))
    if route in ("forward_sensitivity", "rtrl"):  # they multiply it by a sensitivity of zero
        with pytest.raises(ValueError, match=r"t = 1, where dh_t/dh_{t−1} is not finite in reverse mode"):
            call()
    else:
        np.testing.assert_allclose(call(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "xs", "said"),
    [
        (
            model_of(lambda p, h, x: p * jnp.sqrt(h) + 0 * x, 0.0),
            jnp.ones(3),
            r"t = 2, where dh_t/dh_{t−1} is not finite in reverse mode and not finite in forward mode: the step has no",
        ),
        (
            model_of(lambda p, h, x: jnp.sqrt(p - 0.5) + h + x, 0.0),
            jnp.ones(3),
            r"t = 1, where ∂⁺h_t/∂⁺θ is not finite in reverse mode and not finite in forward mode",
        ),
        (
            model_of(lambda p, h, x: p * h + x, 0.0, lambda p, h: jnp.sqrt(h)),
            jnp.array([1.0, -0.5, 1.0]),
            "t = 2, where the readout or the loss",
        ),
        (
            model_of(lambda p, h, x: p * 1e200 * h + x, 0.0),
            jnp.zeros(4),
            r"derivatives of all steps are finite, but λ_t, carried back from the end to step t = 2,",
        ),
    ],
)  # fmt: skip
def test_other_causes_are_told_apart(model, xs, said):
    with pytest.raises(ValueError, match=said) as caught:
        gradients.autodiff(model, P, xs, jnp.zeros(len(xs)))
    assert "\n" not in str(caught.value)


def test_one_update_is_diagnosed_too():
    rule, model = online.rtrl(), model_of(root, 0.4)
    state = rule.init(model, P, x=jnp.asarray(0.1))
    state, _, _ = rule.update(P, state, jnp.asarray(-1.0), jnp.asarray(0.0))
    with pytest.raises(ValueError, match=r"gradient: got NaN or inf though the loss is finite.*reverse mode"):
        rule.update(P, state, jnp.asarray(0.3), jnp.asarray(0.0))


def test_a_class_out_of_range_is_named():
    model = models.make_model(
        lambda p, h, x: jnp.tanh(p * h + x), lambda p: jnp.zeros(3), lambda p, h: h, models.softmax_cross_entropy
    )
    with pytest.raises(ValueError, match=r"losses: .* t = 2 \(targets: got class 3, expected 0 … 2\)"):
        gradients.bptt(model, jnp.ones(3), jnp.ones((3, 3)), jnp.array([0, 3, 1]))


def clipped(size):
    """A right derivation but for its pullback, which clips what it passes back."""

    def pullback(params, state, x, cotangent):
        of_params, of_state, of_x = jax.vjp(lambda *at: jnp.tanh(at[0] @ at[1] + at[2]), params, state, x)[1](cotangent)
        return of_params, jnp.clip(of_state, -size, size), of_x

    state_jacobian = jax.jacrev(lambda params, state, x: jnp.tanh(params @ state + x), argnums=1)
    return models.make_model(
        lambda params, state, x: jnp.tanh(params @ state + x), lambda params: jnp.zeros(3), lambda p, h: h,
        models.squared_error,
    )._replace(derivation=Derivation(state_jacobian, pullback))  # fmt: skip


@pytest.mark.parametrize("size", [1e-2, 1e3])
def test_a_pullback_that_is_not_linear_gives_no_parallel_number(size):
    model, key = clipped(size), jax.random.key(3)
    params, inputs = jax.random.normal(key, (3, 3)), jax.random.normal(key, (17, 3))
    data = params, inputs, 3 + inputs
    parallel = jax.jit(lambda *data: gradients.bptt(model, *data, adjoint="parallel")[1])(*data)
    if size < 1:  # λ is clipped: the blocks' affine maps are wrong
        assert np.isnan(parallel).all()
        with pytest.raises(ValueError, match=r"adjoint='parallel' met a pullback that is not linear"):
            gradients.bptt(model, *data, adjoint="parallel")
    else:
        np.testing.assert_allclose(parallel, gradients.bptt(model, *data)[1], rtol=1e-12)


def test_linearity_is_seen_in_the_pullback():
    """What adjoint="auto" asks before it takes the parallel form."""
    params, h, x = jnp.eye(3), jnp.ones(3), jnp.ones(3)
    assert not is_linear(step_partials(clipped(1e3)), params, h, x)
    assert is_linear(step_partials(clipped(1e3), source="automatic"), params, h, x)
    for make in (cells.elman, cells.lstm, cells.gru):
        cell = make(3, 3)
        own = cell.init(jax.random.key(0))
        assert is_linear(step_partials(cell), own, cell.initial_state(own), x)
