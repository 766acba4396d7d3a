"""One step's derivatives: every source gives the same, and a step with one mode alone works in every function."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, gradients, models, partials, spectra
from jaxbptt._jaxprs.program import Unreadable
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import Outer, map_outer
from jaxbptt.gradients.deferred import stage
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll
from tests import cases, conformance

KEY = jax.random.key(5)


@jax.custom_vjp
def reverse_tanh(a):
    return jnp.tanh(a)


def _saved(a):
    y = jnp.tanh(a)
    return y, y


def _pulled(y, cotangent):
    return ((1 - y) * (1 + y) * cotangent,)


reverse_tanh.defvjp(_saved, _pulled)


def forward_tanh(a):
    """tanh(a) out of a loop of unknown length: no reverse mode."""
    return jax.lax.while_loop(lambda at: at[0] < 1, lambda at: (at[0] + 1, jnp.tanh(at[1])), (0, a))[1]


def opaque_tanh(a):
    """No rule at all."""
    return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(a.shape, a.dtype), a, vmap_method="sequential")


ACTIVATIONS = {"both": jnp.tanh, "reverse alone": reverse_tanh, "forward alone": forward_tanh}


@functools.cache
def model_of(kind):
    activation = opaque_tanh if kind == "none" else ACTIVATIONS[kind]
    elman = cells.elman(cases.M, cases.N)
    step = lambda params, state, x: activation(params.w_hx @ x + params.w_hh @ state + params.b_h)
    return models.sequence_model(cells.from_step(step, elman.initial_state, init=elman.init, num_inputs=cases.M), 2)


@functools.cache
def data():
    return cases.instance(model_of("both"), KEY, gain=1.5, num_outputs=2)


@functools.cache
def expected(function):
    return conformance.run(function, model_of("both"), data())


def test_the_kinds_have_the_rules_they_should():
    a, one = jnp.ones(2), jnp.ones(2)
    with pytest.raises(TypeError, match="jvp"):
        jax.jvp(reverse_tanh, (a,), (one,))
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.vjp(forward_tanh, a)[1](one)


@pytest.mark.sweep(10)
@pytest.mark.parametrize("kind", ["reverse alone", "forward alone"])
@pytest.mark.parametrize(
    "function", sorted({*conformance.TRACED, *conformance.EAGER} - conformance.NEEDS_FACTORED - conformance.LONG)
)
def test_one_mode_alone_is_enough(function, kind):
    actual = conformance.run(function, model_of(kind), data())
    if function == "assessment.cost_per_step":
        assert actual.flops > 0
        return
    chex.assert_trees_all_close(actual, expected(function), rtol=1e-9, atol=1e-12)


def test_a_step_without_any_rule_is_refused_in_one_line():
    model = model_of("none")
    trajectory = unroll(model, data()[0], data()[1])
    with pytest.raises(ValueError, match=r"step: got one that has neither a reverse nor a forward rule .*custom_vjp"):
        step_jacobians(model, data()[0], trajectory)
    with pytest.raises(ValueError, match="step: got one that has neither"):
        gradients.bptt(model, *data()[:3])


@pytest.mark.parametrize(("kind", "method"), [("reverse alone", "forward"), ("forward alone", "reverse")])
def test_a_method_that_the_step_lacks_is_named(kind, method):
    trajectory = unroll(model_of(kind), data()[0], data()[1])
    with pytest.raises(ValueError, match=f"method: got '{method}', expected 'auto'"):
        step_jacobians(model_of(kind), data()[0], trajectory, method=method)


def test_another_source_or_mode_is_refused():
    with pytest.raises(ValueError, match="source: got 'plain', expected one of 'best', 'automatic'"):
        partials.step_partials(model_of("both"), source="plain")
    with pytest.raises(ValueError, match="prefer: got 'backward', expected one of 'forward', 'reverse'"):
        partials.jacobian(jnp.sin, jnp.ones(2), prefer="backward")


def test_a_reverse_rule_that_cannot_be_transposed_is_still_pushed():
    """Its pullback runs a callback, so that J v takes one pullback an entry."""

    @jax.custom_vjp
    def double(a):
        return 2 * a

    def pulled(_, cotangent):
        shape = jax.ShapeDtypeStruct(cotangent.shape, cotangent.dtype)
        return (jax.pure_callback(lambda c: 2 * c, shape, cotangent, vmap_method="sequential"),)

    double.defvjp(lambda a: (2 * a, None), pulled)
    value, pushed = partials.jvp(double, jnp.arange(3.0), jnp.array([1.0, -1.0, 0.5]))
    np.testing.assert_array_equal(value, [0, 2, 4])
    np.testing.assert_array_equal(pushed, [2, -2, 1])


def plain_pullback(cell):
    """The same numbers behind a function that is no FactoredPullback."""
    pullback = cell.derivation.pullback
    return cell._replace(derivation=Derivation(cell.derivation.state_jacobian, lambda *at: pullback(*at)))


@pytest.mark.sweep
@pytest.mark.parametrize("source", ["factored", "plain", "automatic"])
def test_every_source_gives_the_same_partials(source):
    cell = cases.CELLS["lstm"]
    chosen = {"factored": cell, "plain": plain_pullback(cell), "automatic": cell._replace(derivation=None)}[source]
    found = partials.step_partials(chosen)
    assert found.source == source
    assert (found.factored is None) == (source != "factored")
    params, inputs, _, initial = cases.instance(models.sequence_model(cell, 2), KEY, gain=1.5)
    params, x = params.cell, inputs[0]
    cotangent = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape), initial)
    value, pull = jax.vjp(cell.step, params, initial, x)
    of_params, of_state, of_x = pull(cotangent)
    new, jacobian = found.value_and_jacobian(params, initial, x)
    pulled = found.pull_state(params, found.residuals(params, initial, x), cotangent)
    pushed = found.push_state(params, initial, x, cotangent)[1]
    dense = map_outer(Outer.matrix, found.pull_params(params, initial, x, cotangent))
    chex.assert_trees_all_close((new, pulled, dense), (value, of_state, of_params), rtol=1e-12, atol=1e-13)
    chex.assert_trees_all_close(found.pull_input(params, initial, x, cotangent), of_x, rtol=1e-12)
    flat = ravel_pytree(cotangent)[0]
    np.testing.assert_allclose(flat @ jacobian, ravel_pytree(of_state)[0], rtol=1e-12)
    np.testing.assert_allclose(jacobian @ flat, ravel_pytree(pushed)[0], rtol=1e-12)


@pytest.mark.parametrize("source", ["plain", "automatic"])
def test_only_the_float_leaves_of_an_input_have_a_cotangent(source):
    def step(params, h, x):
        return jnp.where(x["reset"], 0 * h, jnp.sin(params @ h + x["drive"]) * x["token"].astype(h.dtype))

    def pullback(*at):
        pulled = jax.vjp(lambda drive: step(at[0], at[1], {**at[2], "drive": drive}), at[2]["drive"])[1](at[3])[0]
        return at[0], at[1], {"drive": pulled, "reset": None, "token": jnp.zeros((), jax.dtypes.float0)}

    derivation = Derivation(lambda *at: at[0], pullback) if source == "plain" else None
    cell = cells.from_step(step, lambda params: jnp.zeros(3))._replace(derivation=derivation)
    x = {"drive": jnp.arange(3.0), "reset": jnp.asarray(False), "token": jnp.asarray(2)}
    found = partials.step_partials(cell).pull_input(jnp.eye(3), jnp.ones(3), x, jnp.ones(3))
    np.testing.assert_allclose(found["drive"], 2 * np.cos(1 + np.arange(3.0)), rtol=1e-14)
    assert found["reset"] is found["token"] is None


def test_the_reference_is_other_code():
    """ "automatic" never calls the hand derivation."""
    broken = Derivation(lambda *at: 1 / 0, lambda *at: 1 / 0)
    cell = cases.CELLS["elman"]._replace(derivation=broken)
    found = partials.step_partials(cell, source="automatic")
    params = cell.init(KEY)
    assert found.jacobian(params, jnp.ones(cases.N), jnp.ones(cases.M)).shape == (cases.N, cases.N)
    with pytest.raises(ZeroDivisionError):
        partials.step_partials(cell).jacobian(params, jnp.ones(cases.N), jnp.ones(cases.M))


@pytest.mark.sweep
@pytest.mark.parametrize("name", cases.CELLS)
def test_every_step_is_read_and_staged(name):
    """The plain way is for programs that cannot be read: these can."""
    model = models.sequence_model(cases.CELLS[name], 2)
    params, inputs, _, initial = cases.instance(model, KEY, num_outputs=2)
    assert not isinstance(stage(model.step, params, initial, inputs[0]), Unreadable)


def test_an_effect_in_the_step_does_not_stop_anything(capsys):
    def step(params, state, x):
        new = jnp.tanh(params @ state + x)
        jax.debug.print("h {}", new[0])
        jax.lax.cond(x[0] > 0, lambda: None, lambda: None)
        return new

    cell = cells.from_step(step, lambda params: jnp.ones(3))
    model = models.Model(None, cell.initial_state, step, lambda params, state: state, models.squared_error)
    w = 0.5 * jax.random.normal(KEY, (3, 3))
    inputs, targets = jax.random.normal(KEY, (4, 3)), jnp.zeros((4, 3))
    _, expected = gradients.autodiff(model, w, inputs, targets)
    _, actual = gradients.bptt(model, w, inputs, targets)
    jax.effects_barrier()
    assert "h " in capsys.readouterr().out
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    assert np.isfinite(spectra.stream_exponents(cell, w, inputs, warm_up=0, blocks=1).exponents).all()
