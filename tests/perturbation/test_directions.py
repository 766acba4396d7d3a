"""Forward gradients: exact over all signs and over a basis, with the spread and the cost that they state."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import assessment, cells, gradients, models, perturbation
from jaxbptt.comparison import compare
from jaxbptt.perturbation import directions
from tests import cases
from tests.mutation import mutate
from tests.perturbation.problems import (
    KEY,
    all_signs,
    exact_of,
    instance_of,
    model_of,
    reading_model,
    shaped_like,
)

INSTANCES = [*((name, False) for name in cases.CELLS), ("custom", True)]


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "own"), INSTANCES)
def test_exact_on_an_orthogonal_basis(name, own):
    """Two bases: √P times the unit vectors as given, and one as drawn."""
    model, (params, inputs, targets, initial) = model_of(name), instance_of(name)
    size = ravel_pytree(params)[0].size
    units = shaped_like(params, size**0.5 * jnp.eye(size))

    @jax.jit
    def run(params, inputs, targets, initial):
        call = functools.partial(perturbation.forward_gradient, model, params, inputs, targets)
        initial = None if own else initial
        drawn = call(key=KEY, num_directions=size, distribution="orthogonal", initial=initial)
        return call(directions=units, initial=initial), drawn

    expected = exact_of(name, own)
    for loss, grads in run(params, inputs, targets, initial):
        np.testing.assert_allclose(loss, expected[0], rtol=1e-13)
        assert compare(expected[1], grads).relative < 1e-12


@functools.cache
def small():
    """(model, data, dC/dθ): P = 5."""
    model = models.sequence_model(cells.elman(1, 1), 1, reduction="mean")
    model = model._replace(initial_state=lambda params: jnp.sin(params.cell.b_h + 1))
    data = cases.instance(model, KEY, length=4, gain=1.2, num_outputs=1)[:3]
    return model, data, jax.jit(lambda *data: gradients.autodiff(model, *data)[1])(*data)


def over_all_signs(module):
    model, data, _ = small()
    signs = shaped_like(data[0], all_signs(5))
    return jax.jit(lambda *data: module.forward_gradient(model, *data, directions=signs)[1])(*data)


def test_unbiased_over_all_signs_with_the_variance_it_states():
    model, data, exact = small()
    assert compare(exact, over_all_signs(directions)).relative < 1e-12
    one = lambda signs: perturbation.forward_gradient(model, *data, directions=signs)[1]
    each = jax.jit(jax.vmap(one))(shaped_like(data[0], all_signs(5)[:, None]))
    off = jax.tree.map(lambda a, b: jnp.sum((a - b[None]) ** 2) / 32, each, exact)
    size = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(exact))
    np.testing.assert_allclose(sum(jax.tree.leaves(off)) / size, 5 - 1, rtol=1e-12)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/ slopes.shape[1]", "/ (1 + slopes.shape[1])"),
        ("(directions, tangents))", "(directions, jax.tree.map(jnp.zeros_like, tangents)))"),
        ("weight * jnp.sum(slopes", "jnp.sum(slopes"),
        ("model.initial_state(params) if", "jax.lax.stop_gradient(model.initial_state(params)) if"),
        ("read(model, params, new, x, state)", "read(model, jax.lax.stop_gradient(params), new, x, state)"),
    ],
)  # fmt: skip
def test_a_slip_is_biased(old, new):
    mutant = mutate(directions, old, new)
    assert compare(small()[2], over_all_signs(mutant)).relative > 1e-3


def test_outputs_that_read_the_state_before_and_a_penalty():
    model, *data = reading_model()
    size = ravel_pytree(data[0])[0].size
    units = shaped_like(data[0], size**0.5 * jnp.eye(size))
    loss, exact = jax.jit(lambda *data: gradients.autodiff(model, *data))(*data)
    found = jax.jit(lambda *data: perturbation.forward_gradient(model, *data, directions=units))(*data)
    np.testing.assert_allclose(found[0], loss, rtol=1e-13)
    assert compare(exact, found[1]).relative < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("distribution", "count", "variance"),
    [("rademacher", 2, 4 / 2), ("normal", 2, 6 / 2), ("orthogonal", 2, 5 / 2 - 1)],
)
def test_keys_average_to_the_gradient_with_the_spread_it_states(distribution, count, variance):
    """Power: with 4000 keys a bias of 10 % along the gradient would stand at 4 standard errors or more."""
    model, data, _ = small()
    estimator = functools.partial(perturbation.forward_gradient, num_directions=count, distribution=distribution)
    keys = jax.random.split(KEY, 4000)
    found = jax.jit(lambda *data: assessment.assess(model, estimator, *data, keys=keys).whole)(*data)
    assert abs(found.z_score) < 4
    assert 0.1 / found.standard_error > 4
    np.testing.assert_allclose(found.spread, variance**0.5, rtol=0.06)


def test_a_step_with_reverse_rules_alone():
    def pull(at, cotangent):
        w, h = at
        slope = cotangent * jnp.cos(w * h)
        return slope * h, slope * w

    double = jax.custom_vjp(lambda w, h: jnp.sin(w * h))
    double.defvjp(lambda w, h: (double(w, h), (w, h)), pull)
    step = lambda w, h, x: double(w, h) + x
    model = models.make_model(step, jnp.zeros_like, lambda w, h: h, models.squared_error)
    data = jnp.asarray(0.7), jnp.ones(4), jnp.zeros(4)
    exact = gradients.autodiff(model, *data)[1]
    np.testing.assert_allclose(
        perturbation.forward_gradient(model, *data, directions=jnp.ones(1))[1], exact, rtol=1e-12
    )


def test_vmap_and_bad_numbers():
    model, (params, inputs, targets, _) = model_of("gru"), instance_of("gru")
    call = jax.jit(jax.vmap(lambda x: perturbation.forward_gradient(model, params, x, targets, key=KEY)))
    sequences = jnp.stack((inputs, inputs[::-1], inputs.at[1, 0].set(jnp.nan)))
    (losses, grads), (again, swapped) = call(sequences), call(sequences[::-1])
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True])
    np.testing.assert_allclose(losses, again[::-1], rtol=1e-12)
    pick = lambda tree, at: jax.tree.map(lambda leaf: leaf[at], tree)
    chex.assert_trees_all_close(pick(grads, 0), pick(swapped, 2), rtol=1e-9, atol=1e-12)
    assert all(np.isnan(leaf[2]).all() for leaf in jax.tree.leaves(grads))


def test_the_cost_is_as_stated():
    """Leading terms of a large Elman net; what is elementwise in N is the rest."""
    n, m, o, length = 128, 64, 32, 40
    model = models.sequence_model(cells.elman(m, n), o)
    params, inputs, targets, _ = cases.instance(model, KEY, length=length, num_outputs=o)

    def flops(count):
        given = jax.tree.map(lambda leaf: jnp.ones((count, *leaf.shape)), params)
        estimator = lambda *data, initial: perturbation.forward_gradient(*data, directions=given, initial=initial)
        return assessment.cost_per_step(model, estimator, params, inputs, targets).flops

    one, two, three = flops(1), flops(2), flops(3)
    assert abs((three - two) - (two - one)) <= 1  # rounded down
    size = ravel_pytree(params)[0].size
    stated = 2 * n * (m + 2 * n) + 4 * n * o + 2 * size / length
    assert 1 < (two - one) / stated < 1.06
    forward = 2 * n * (m + n) + 2 * n * o
    assert 1 < (one - (two - one)) / forward < 1.1


MODEL, (PARAMS, INPUTS, TARGETS, _) = model_of("elman"), instance_of("elman")


def call(**options):
    return perturbation.forward_gradient(MODEL, PARAMS, INPUTS, TARGETS, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "key, directions: got neither, expected exactly one of them"),
        ({"key": KEY, "directions": PARAMS}, TypeError, "key, directions: got both"),
        ({"key": 3}, TypeError, "key: got int, expected a typed key"),
        ({"key": KEY, "num_directions": 0}, ValueError, "num_directions: got 0, expected at least 1"),
        ({"key": KEY, "num_directions": 2.0}, TypeError, "num_directions: got float, expected an int"),
        ({"key": KEY, "num_directions": 99, "distribution": "orthogonal"}, ValueError, "got 99, expected at most 34"),
        ({"key": KEY, "distribution": "cauchy"}, ValueError, "distribution: got 'cauchy', expected one of"),
        ({"directions": PARAMS}, ValueError, "directions.* got shape"),
        ({"directions": PARAMS.cell}, ValueError, "directions: got structure"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        call(**options)
    assert "\n" not in str(caught.value)
