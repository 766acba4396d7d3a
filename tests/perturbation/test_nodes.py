"""Node perturbation: unbiased over all noise in the limit, and for the smoothed loss at a finite scale."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import assessment, cells, gradients, models, perturbation
from jaxbptt.comparison import compare
from jaxbptt.online import rank_one, rule
from jaxbptt.perturbation import nodes
from tests import cases
from tests.mutation import mutate
from tests.online.problems import small_model
from tests.perturbation.problems import (
    KEY,
    all_signs,
    exact_of,
    hermite,
    instance_of,
    model_of,
    reading_model,
    shaped_like,
)

STEPS = 4


@functools.cache
def problem_of(name):
    """(model, data, dC/dθ), N = 2, T = 4."""
    if name == "reading":
        model, *data = reading_model()
    else:
        model = small_model(name)._replace(reduction="mean")
        data = cases.instance(model, KEY, length=STEPS, num_outputs=2)[:3]
    return model, data, jax.jit(lambda *data: gradients.bptt(model, *data)[1])(*data)


def noise_of(model, params, rows):
    """Rows [m, (T + 1) N] as noise."""
    state = model.initial_state(params)
    return shaped_like(state, rows.reshape(len(rows), STEPS + 1, -1))


def over_all_signs(module, name):
    model, data, _ = problem_of(name)
    felt = "start" in name or name == "reading"
    signs = all_signs(2 * (STEPS + felt))
    if not felt:  # no noise on an h_0 that depends on no param: any will do
        signs = jnp.concatenate((jnp.ones((len(signs), 2)), signs), axis=1)
    noise = noise_of(model, data[0], signs)
    return jax.jit(lambda *data: module.node_perturbation(model, *data, noise=noise)[1])(*data)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "elman start", "lstm", "gru", "stack", "reading"])
def test_unbiased_over_all_signs(name):
    assert compare(problem_of(name)[2], over_all_signs(nodes, name)).relative < 1e-12


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("elman start", "push(params, state, x, tangent)[1], noise)", "push(params, state, x, tangent)[1], tangent)"),
        ("elman start", "jnp.cumsum(effects[::-1])[::-1]", "jnp.cumsum(effects)"),
        ("elman start", "mean[0] if felt", "mean[0] if not felt"),
        ("elman start", "_inner(local, new)", "1.05 * _inner(local, new)"),
        ("reading", "slope + _inner(early, tangent)", "slope"),
    ],
)
def test_a_slip_is_biased(name, old, new):
    assert compare(problem_of(name)[2], over_all_signs(mutate(nodes, old, new), name)).relative > 1e-3


def test_it_is_uoro_without_its_scales():
    """Sample by sample: also that no loss before t is credited to ξ_t, which the mean does not show."""
    model, (params, inputs, targets), _ = problem_of("elman start")
    model = model._replace(reduction="sum")
    unscaled = mutate(rank_one, "from jaxbptt.online.scales import balance", "balance = lambda a, b: (1.0, 1.0)")
    plan = unscaled._plan(model, params, inputs[0], False)
    signs = all_signs(10)[::37].reshape(-1, 5, 2)

    def by_uoro(signs):
        def body(state, step):
            state, _, grads = rule.update_with(params, state, *step)
            return state, grads

        state = rule.start_with(unscaled.METHOD, plan, model, params, signs[0])
        return jax.tree.map(lambda leaf: jnp.sum(leaf, 0), jax.lax.scan(body, state, (inputs, targets, signs[1:]))[1])

    one = lambda signs: nodes.node_perturbation(model, params, inputs, targets, noise=signs[None])[1]
    expected, found = jax.jit(lambda signs: (jax.vmap(by_uoro)(signs), jax.vmap(one)(signs)))(signs)
    assert compare(expected, found).relative < 1e-12


def smoothed(model, data, grid, weights, scale):
    """d/dθ of E[C(h̃)] by autodiff of plain loops; noise [m, T + 1, N] of a one-array state, none on h_0."""
    params, inputs, targets = data

    def loss(params, noise):
        state, total = model.initial_state(params), 0.0
        for x, y, xi in zip(inputs, targets, noise[1:], strict=True):
            state = model.step(params, state, x) + scale * xi
            total = total + model.loss(model.readout(params, state), y)
        return total

    return jax.jit(jax.grad(lambda p: jnp.sum(weights * jax.vmap(lambda noise: loss(p, noise))(grid))))(params)


@functools.cache
def gaussian_problem():
    """A tanh net of one unit over two steps; 12 nodes in each of two directions are exact to 1e-12 at these scales."""
    model = models.sequence_model(cells.elman(1, 1), 1)
    data = cases.instance(model, KEY, length=2, gain=1.5, num_outputs=1)[:3]
    rows, weights = hermite(2, 12)
    grid = jnp.concatenate((jnp.zeros((len(rows), 1)), rows), axis=1)[:, :, None]
    return model, data, grid, weights


def mean_of(module, scale, baseline=True):
    model, data, grid, weights = gaussian_problem()
    one = lambda noise: module.node_perturbation(model, *data, noise=noise[None], scale=scale, baseline=baseline)[1]
    each = jax.jit(jax.vmap(one))(grid)
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), each)


@pytest.mark.parametrize("baseline", [True, False])
def test_a_finite_scale_is_unbiased_for_the_smoothed_loss(baseline):
    model, data, grid, weights = gaussian_problem()
    expected = smoothed(model, data, grid, weights, 0.1)
    assert compare(expected, mean_of(nodes, 0.1, baseline)).relative < 1e-11


def test_its_bias_for_the_loss_itself_is_of_second_order():
    model, data, _, _ = gaussian_problem()
    exact = ravel_pytree(gradients.bptt(model, *data)[1])[0]
    bias = [np.linalg.norm(ravel_pytree(mean_of(nodes, scale))[0] - exact) for scale in (0.1, 0.05)]
    assert 1e-3 < bias[0] / np.linalg.norm(exact) < 0.1
    np.testing.assert_allclose(bias[0] / bias[1], 4, rtol=0.05)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("assemble(model, params, steps, direct", "assemble(model, params, trajectory, direct"),
        ("(losses - subtracted) / scale", "(losses - subtracted)"),
        (
            "losses, _, direct, _ = read_out(",
            "direct = read_out(model, params, trajectory, targets, 2).direct; losses, _, _, _ = read_out(",
        ),
    ],
)
def test_a_slip_at_a_finite_scale_is_biased(old, new):
    model, data, grid, weights = gaussian_problem()
    expected = smoothed(model, data, grid, weights, 0.1)
    assert compare(expected, mean_of(mutate(nodes, old, new), 0.1)).relative > 1e-4


INSTANCES = [*((name, False) for name in cases.CELLS), ("custom", True)]


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "own"), INSTANCES)
def test_every_cell_on_an_orthogonal_basis_and_at_a_small_scale(name, own):
    """All noise is (T + 1) N numbers: √((T + 1) N) times the unit vectors have E[ξ ξᵀ] = I."""
    model, (params, inputs, targets, initial) = model_of(name), instance_of(name)
    size = ravel_pytree(initial)[0].size
    count = size * (cases.T + (1 if own else 0))
    rows = jnp.pad(count**0.5 * jnp.eye(count), ((0, 0), (0 if own else size, 0)))
    noise = shaped_like(initial, rows.reshape(count, cases.T + 1, size))

    @jax.jit
    def run(params, inputs, targets, initial):
        call = functools.partial(perturbation.node_perturbation, model, params, inputs, targets, noise=noise)
        initial = None if own else initial
        return call(initial=initial), call(initial=initial, scale=1e-6)

    expected = exact_of(name, own)
    (loss, grads), (noisy_loss, noisy) = run(params, inputs, targets, initial)
    np.testing.assert_allclose([loss, noisy_loss], expected[0], rtol=1e-13)
    assert compare(expected[1], grads).relative < 1e-12
    assert compare(expected[1], noisy).relative < 1e-4


@pytest.mark.parametrize(("scale", "count"), [(None, 4), (0.01, 4)])
def test_keys_average_to_the_gradient(scale, count):
    """Power: with 2000 keys a bias of 20 % along the gradient would stand at 4 standard errors or more. At σ = 0.01 the
    bias of the smoothed loss is below 1e-3."""
    model, data, _ = problem_of("gru")
    estimator = functools.partial(perturbation.node_perturbation, num_samples=count, scale=scale)
    keys = jax.random.split(KEY, 2000)
    found = jax.jit(lambda *data: assessment.assess(model, estimator, *data, keys=keys).whole)(*data)
    assert abs(found.z_score) < 4
    assert 0.2 / found.standard_error > 4
    assert found.spread > 0.1


def test_vmap_and_bad_numbers():
    model, (params, inputs, targets, _) = model_of("gru"), instance_of("gru")
    call = jax.jit(jax.vmap(lambda x: perturbation.node_perturbation(model, params, x, targets, key=KEY)))
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

    def flops(count, scale=None):
        noise = jnp.ones((count, length + 1, n))
        estimator = lambda *data, initial: perturbation.node_perturbation(
            *data, noise=noise, scale=scale, initial=initial
        )
        return assessment.cost_per_step(model, estimator, params, inputs, targets).flops

    one, two, three = flops(1), flops(2), flops(3)
    assert abs((three - two) - (two - one)) <= 1  # rounded down
    forward, gradient, readout, product = 2 * n * (m + n), 2 * n * (m + n), 6 * n * o, 2 * n * n
    assert 1 < (two - one) / product < 1.1
    assert 1 < (one - (two - one)) / (3 * forward + gradient + readout) < 1.1
    one, two = flops(1, 0.1), flops(2, 0.1)
    shared = 2 * n * m  # the drive of the inputs is the same for all samples
    assert 1 < (two - one) / (2 * (forward - shared) + gradient + readout) < 1.1
    assert 1 < (one - (two - one)) / (forward + 2 * shared + readout) < 1.1


MODEL, (PARAMS, INPUTS, TARGETS, _) = model_of("elman"), instance_of("elman")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "key, noise: got neither, expected exactly one of them"),
        ({"key": KEY, "num_samples": 0}, ValueError, "num_samples: got 0, expected at least 1"),
        ({"key": KEY, "scale": 0}, ValueError, "scale: got 0, expected a finite number above 0"),
        ({"key": KEY, "scale": "a"}, TypeError, "scale: got str, expected a number"),
        ({"key": KEY, "baseline": 2}, ValueError, "baseline: got 2, expected one of True, False"),
        ({"noise": jnp.ones((3, cases.T, cases.N))}, ValueError, r"noise: got leading axes \[3, 5\], expected "),
        ({"noise": jnp.full((3, cases.T + 1, cases.N), jnp.nan)}, ValueError, "noise: got NaN or inf"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        perturbation.node_perturbation(MODEL, PARAMS, INPUTS, TARGETS, **options)
    assert "\n" not in str(caught.value)
