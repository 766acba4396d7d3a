"""BPTT by hand: its recursion, what it takes, and a batch of sequences side by side."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import gradients, models
from jaxbptt.comparison import compare
from tests import cases
from tests.gradients.problems import BATCH, KEY, batch_of, jitted, loop_loss, model_of, moving_start
from tests.mutation import mutate_package


@pytest.mark.sweep
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

    expected = jax.jit(jax.grad(kicked))(jnp.zeros((cases.T, flat.size)))
    actual = gradients.adjoints(model, params, inputs, targets, initial=initial)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


@pytest.fixture(scope="module")
def problem():
    return moving_start()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jax.tree.map(jnp.add, local, from_later)", "local"),
        ("body, later, (residuals, local), reverse=True", "body, later, (residuals, local), reverse=False"),
        ("jax.tree.map(jnp.add, direct, recurrent)", "recurrent"),
        ("return pullback.state(params, factors, cotangent, delta), delta", "return cotangent, delta"),
        ("previous = saved.steps(inputs).previous", "previous = saved.states"),
        ("losses = losses * reduction_weight(model, length, losses.dtype)", "pass"),
        ("return jax.tree.map(jnp.add, grads, pull(initial_adjoint)[0])", "return grads"),
    ],
)
def test_a_broken_line_is_seen(old, new, problem):
    model, data, expected = problem
    mutant = mutate_package(gradients, old, new)
    _, broken = jax.jit(lambda *data: mutant.bptt(model, *data[:3]))(*data)
    assert compare(expected, broken).relative > 1e-3


@pytest.mark.sweep
@pytest.mark.parametrize("own_initial", [False, True])
@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "custom", "plain"])
def test_a_batch_is_the_sum_of_its_sequences(name, own_initial):
    model = model_of(name, "squared", "mean")
    params, inputs, targets, initial = batch_of(model)
    batch = models.batched(model, BATCH)

    def total(params):
        each = jax.vmap(lambda x, y, h: loop_loss(model, params, x, y, None if own_initial else h), (1, 1, 0))
        return jnp.sum(each(inputs, targets, initial))

    loss, expected = jax.jit(jax.value_and_grad(total))(params)
    for route in ("bptt", "double_sum", "autodiff"):
        actual_loss, actual = jitted(route, batch, own_initial)(params, inputs, targets, initial)
        np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
        assert compare(expected, actual).relative < 1e-12, route


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block": 0}, ValueError, "block: got 0, expected at least 1"),
        ({"block": 2.0}, TypeError, "block: got float, expected an int"),
        ({"adjoint": "fast"}, ValueError, "adjoint: got 'fast', expected one of"),
    ],
)
def test_options_not_as_stated_are_refused(options, error, message):
    model = model_of("elman")
    with pytest.raises(error, match=message):
        gradients.bptt(model, *cases.instance(model, KEY)[:3], **options)


def test_bptt_is_differentiable_and_maps():
    model = model_of("lstm")
    params, inputs, targets, initial = cases.instance(model, KEY)

    def norm(route):
        grads = lambda params: route(model, params, inputs, targets, initial=initial)[1]
        return lambda params: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads(params)))

    expected = jax.jit(jax.grad(norm(gradients.autodiff)))(params)
    assert compare(expected, jax.jit(jax.grad(norm(gradients.bptt)))(params)).relative < 1e-12
    run = lambda x: gradients.bptt(model, params, x, targets)
    several = jax.jit(jax.vmap(run))(jnp.stack((inputs, 2 * inputs)))
    one = jax.tree.map(lambda leaf: leaf[1], several)
    chex.assert_trees_all_close(one, run(2 * inputs), rtol=1e-13, atol=1e-13)
