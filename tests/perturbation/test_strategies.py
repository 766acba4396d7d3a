"""Persistent evolution strategies: unbiased over windows for the smoothed loss; the truncated ones are not."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import assessment, cells, gradients, models, perturbation, truncation
from jaxbptt.comparison import compare
from jaxbptt.perturbation.draws import draw_like
from tests import cases
from tests.mutation import mutate_package
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

SCALE = 0.3


@functools.cache
def polynomial():
    """(model, data, E, its weights): h_t = a h_{t−1} + b x_t, h_0 = a, five steps in windows of 2, 2 and 1.

    C is a polynomial of degree 6 in a window's a and 4 in its b, so 4 nodes in each direction are exact.
    """
    step, start = lambda p, h, x: p["a"] * h + p["b"] * x, lambda p: p["a"]
    model = models.make_model(step, start, lambda p, h: h, models.squared_error, reduction="mean")
    params = {"a": jnp.asarray(0.8), "b": jnp.asarray(-0.6)}
    inputs, targets = jax.random.normal(KEY, (2, 5))
    rows, weights = hermite(6, 4)
    return model, (params, inputs, targets), rows.reshape(-1, 3, 2), weights


def loss_of_windows(model, inputs, targets, window, thetas):
    """C by a plain loop, with params of its own for each window."""
    state, total = None, 0.0
    for t, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        params = thetas[t // window]
        state = model.initial_state(params) if state is None else state
        state = model.step(params, state, x)
        total = total + model.loss(model.readout(params, state), y)
    return total / len(inputs)


@functools.cache
def smoothed_gradient():
    """d/dθ of E[C(θ + σ ε_1, θ + σ ε_2, θ + σ ε_3)] by autodiff."""
    model, (params, inputs, targets), rows, weights = polynomial()
    noise = shaped_like(params, rows)

    def smoothed(params):
        def one(noise):
            moved = [jax.tree.map(lambda p, e, w=w: p + SCALE * e[w], params, noise) for w in range(3)]
            return loss_of_windows(model, inputs, targets, 2, moved)

        return jnp.sum(weights * jax.vmap(one)(noise))

    return jax.jit(jax.grad(smoothed))(params)


def mean_over_all(module, **options):
    model, data, rows, weights = polynomial()
    noise = shaped_like(data[0], rows)

    def one(noise):
        noise = jax.tree.map(lambda leaf: leaf[None], noise)
        return module.evolution_strategies(model, *data, perturbations=noise, window=2, scale=SCALE, **options)[1]

    each = jax.jit(jax.vmap(one))(noise)
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), each)


def test_unbiased_for_the_smoothed_loss_over_all_normal_perturbations():
    assert compare(smoothed_gradient(), mean_over_all(perturbation)).relative < 1e-12


def test_the_truncated_ones_are_biased():
    assert compare(smoothed_gradient(), mean_over_all(perturbation, persistent=False)).relative > 0.05


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jax.tree.map(jnp.add, state.sums, perturbations)", "perturbations"),
        ("Particles(states, sums", "Particles(_repeat(one_of(state.model_states), num_pairs), sums"),
        ("jnp.where(state.at_start, own, at)", "at"),
        ("losses[:, 0] - losses[:, 1]", "losses[:, 0] + losses[:, 1]"),
        ("(2 * num_pairs * scale)", "(1.98 * num_pairs * scale)"),
        ("jax.tree.map(jnp.add, total, grads)", "grads"),
    ],
)
def test_a_slip_is_biased(old, new):
    assert compare(smoothed_gradient(), mean_over_all(mutate_package(perturbation, old, new))).relative > 1e-3


def by_windows(rule, model, params, inputs, targets, *, window, noise=None, key=None, initial=None):
    """(Σ losses, Σ estimates, the last state) of a user's loop over windows; noise [m, W, …]."""
    state, loss, grads = rule.init(model, params, key=key, initial=initial), 0.0, None
    for w, start in enumerate(range(0, len(inputs), window)):
        given = None if noise is None else jax.tree.map(lambda leaf, w=w: leaf[:, w], noise)
        steps = inputs[start : start + window], targets[start : start + window]
        state, of_window, found = rule.update(params, state, *steps, perturbations=given)
        loss, grads = loss + of_window, found if grads is None else jax.tree.map(jnp.add, grads, found)
    return loss, grads, state


def mean_of_windows(module):
    """As `mean_over_all`, of the rule, all perturbations as pairs of one run."""
    model, data, rows, weights = polynomial()
    rule = module.persistent_strategies(scale=SCALE)

    def one(noise):
        noise = jax.tree.map(lambda leaf: leaf[None], noise)
        return by_windows(rule, model._replace(reduction="sum"), *data, window=2, noise=noise)[1]

    each = jax.jit(jax.vmap(one))(shaped_like(data[0], rows))
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1) / len(data[1]), each)


def test_window_by_window_it_is_unbiased_over_all_normal_perturbations_and_a_slip_is_not():
    assert compare(smoothed_gradient(), mean_of_windows(perturbation)).relative < 1e-12
    forgetful = mutate_package(perturbation, "Particles(states, sums", "Particles(states, state.sums")
    assert compare(smoothed_gradient(), mean_of_windows(forgetful)).relative > 1e-3


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("keyed", [True, False])
def test_at_fixed_params_windows_add_up_to_the_whole_bit_for_bit(keyed, own):
    model = model_of("elman")._replace(reduction="sum", initial_state=lambda params: jnp.sin(params.cell.b_h))
    params, inputs, targets, initial = instance_of("elman")
    options = {"window": 2, "initial": None if own else initial}
    rule = perturbation.persistent_strategies(scale=SCALE, num_pairs=3)

    @jax.jit
    def both(draws):
        whole = {"key": draws} if keyed else {"perturbations": draws}
        whole = perturbation.evolution_strategies(
            model, params, inputs, targets, **whole, **options, scale=SCALE, num_pairs=3
        )[1]
        draws = {"key": draws} if keyed else {"noise": draws}
        return whole, by_windows(rule, model, params, inputs, targets, **draws, **options)[1]

    whole, summed = both(KEY if keyed else draw_like(KEY, params, (3, 3), "normal"))
    assert compare(whole, summed).relative < 1e-12
    if not keyed:  # what is drawn inside a scan may differ in the last bit
        chex.assert_trees_all_equal(whole, summed)


def test_it_learns_while_it_runs():
    """h_t = h_{t−1} / 2 + W x_t after a net of its own: SGD at every window of two steps, new runs every ten."""
    step, zeros = lambda w, h, x: 0.5 * h + w @ x, lambda w: jnp.zeros(2)
    model = models.make_model(step, zeros, lambda w, h: h, models.squared_error)
    w, inputs = jnp.array([[1.0, 0.5], [-0.5, 2.0]]), jax.random.normal(KEY, (40, 10, 2, 2))
    targets = jax.vmap(lambda x: jax.lax.scan(lambda h, x: (step(w, h, x),) * 2, zeros(w), x)[1])(
        inputs.reshape(40, 20, 2)
    ).reshape(inputs.shape)
    rule = perturbation.persistent_strategies(scale=0.01, num_pairs=8)

    def over_sequence(at, sequence):
        def body(carry, window):
            at, state = carry
            state, _, grads = rule.update(at, state, *window)
            return (at - 0.01 * grads, state), None

        key, *windows = sequence
        return jax.lax.scan(body, (at, rule.init(model, at, key=key)), tuple(windows))[0][0], None

    found, _ = jax.jit(lambda *data: jax.lax.scan(over_sequence, 0 * w, data))(
        jax.random.split(KEY, 40), inputs, targets
    )
    assert jnp.linalg.norm(found - w) < 0.1 * jnp.linalg.norm(w)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_quadratic_loss_over_all_signs(persistent):
    """h_t = h_{t−1} + W x_t: the mean is dC/dθ itself, and that of windows where they forget; at any scale."""
    model = models.make_model(lambda w, h, x: h + w @ x, lambda w: jnp.zeros(2), lambda w, h: h, models.squared_error)
    w, inputs, targets = jnp.array([[1.0, 0.5], [-0.5, 2.0]]), jax.random.normal(KEY, (5, 2)), jnp.ones((5, 2))
    signs = all_signs(12).reshape(-1, 3, 2, 2)
    options = {"perturbations": signs, "window": 2, "scale": 0.7, "persistent": persistent}
    route = lambda *data: perturbation.evolution_strategies(model, *data, **options)[1]
    found = jax.jit(route)(w, inputs, targets)
    exact, windows = (
        gradients.bptt(model, w, inputs, targets)[1],
        truncation.windowed(model, w, inputs, targets, window=2)[1],
    )
    assert compare(exact if persistent else windows, found).relative < 1e-12
    assert compare(windows if persistent else exact, found).relative > 0.1


INSTANCES = [*((name, False) for name in cases.CELLS), ("custom", True)]


def joint_basis(params, num_windows):
    """√(P W) times the unit vectors of all windows' params: E[ε εᵀ] = I."""
    count = ravel_pytree(params)[0].size * num_windows
    return shaped_like(params, (count**0.5 * jnp.eye(count)).reshape(count, num_windows, -1))


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "own"), INSTANCES)
def test_every_cell_on_an_orthogonal_basis_at_a_small_scale(name, own):
    """Central differences of C as a function of the params of each window: exact up to σ² and the rounding of C."""
    model, (params, inputs, targets, initial) = model_of(name), instance_of(name)
    basis = joint_basis(params, 3)

    @jax.jit
    def run(params, inputs, targets, initial):
        initial = None if own else initial
        options = {"perturbations": basis, "window": 2, "scale": 1e-6, "initial": initial}
        call = functools.partial(perturbation.evolution_strategies, model, params, inputs, targets, **options)
        windows = truncation.windowed(model, params, inputs, targets, window=2, initial=initial)
        return call(), call(persistent=False), windows

    expected = exact_of(name, own)
    (loss, grads), (_, truncated), (_, windows) = run(params, inputs, targets, initial)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    assert compare(expected[1], grads).relative < 1e-6
    assert compare(windows, truncated).relative < 1e-6
    assert compare(expected[1], truncated).relative > 1e-3


def test_outputs_that_read_the_state_before_and_a_penalty():
    model, *data = reading_model()
    options = {"perturbations": joint_basis(data[0], 2), "window": 3, "scale": 1e-6}
    loss, exact = jax.jit(lambda *data: gradients.autodiff(model, *data))(*data)
    found = jax.jit(lambda *data: perturbation.evolution_strategies(model, *data, **options))(*data)
    np.testing.assert_allclose(found[0], loss, rtol=1e-6)
    assert compare(exact, found[1]).relative < 1e-6


@pytest.mark.parametrize(("persistent", "unbiased"), [(True, True), (False, False)])
def test_keys_average_to_the_gradient_of_a_quadratic_loss(persistent, unbiased):
    """Power: with 2000 keys the bias of forgetful windows stands at more than 10 standard errors."""
    model = models.make_model(lambda w, h, x: h + w @ x, lambda w: jnp.zeros(2), lambda w, h: h, models.squared_error)
    data = jnp.array([[1.0, 0.5], [-0.5, 2.0]]), jax.random.normal(KEY, (5, 2)), jnp.ones((5, 2))
    options = {"window": 2, "scale": 0.1, "num_pairs": 3, "persistent": persistent}
    estimator = functools.partial(perturbation.evolution_strategies, **options)
    keys = jax.random.split(KEY, 2000)
    found = jax.jit(lambda *data: assessment.assess(model, estimator, *data, keys=keys).whole)(*data)
    assert (abs(found.z_score) < 4) if unbiased else (found.z_score < -10)
    assert 0.1 / found.standard_error > 4


def test_a_loss_without_derivatives():
    """An output that is a step function: what autodiff calls zero has a smoothed gradient."""
    step = lambda w, h, x: jnp.where(h + w > 1, 1.0, 0.0) * x
    model = models.make_model(step, jnp.zeros_like, lambda w, h: h, lambda o, y: o - y)
    data = jnp.asarray(0.9), jnp.ones(4), jnp.zeros(4)
    assert gradients.autodiff(model, *data)[1] == 0
    route = lambda key: perturbation.evolution_strategies(model, *data, key=key, window=1, scale=0.5, num_pairs=64)[1]
    assert jnp.mean(jax.jit(jax.vmap(route))(jax.random.split(KEY, 20))) > 0.5


def test_vmap_and_bad_numbers():
    model, (params, inputs, targets, _) = model_of("gru"), instance_of("gru")
    options = {"key": KEY, "window": 2, "scale": 0.1}
    call = jax.jit(jax.vmap(lambda x: perturbation.evolution_strategies(model, params, x, targets, **options)))
    sequences = jnp.stack((inputs, inputs[::-1], inputs.at[1, 0].set(jnp.nan)))
    (losses, grads), (again, swapped) = call(sequences), call(sequences[::-1])
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True])
    np.testing.assert_allclose(losses, again[::-1], rtol=1e-12)
    pick = lambda tree, at: jax.tree.map(lambda leaf: leaf[at], tree)
    chex.assert_trees_all_close(pick(grads, 0), pick(swapped, 2), rtol=1e-9, atol=1e-12)
    assert all(np.isnan(leaf[2]).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("persistent", [True, False])
def test_the_cost_is_as_stated(persistent):
    """Leading terms of a large Elman net; what is elementwise in N is the rest."""
    n, m, o, length, window = 128, 64, 32, 40, 20
    model = models.sequence_model(cells.elman(m, n), o)
    params, inputs, targets, _ = cases.instance(model, KEY, length=length, num_outputs=o)

    def flops(count):
        given = jax.tree.map(lambda leaf: jnp.ones((count, 2, *leaf.shape)), params)
        options = {"perturbations": given, "window": window, "scale": 0.1, "persistent": persistent}
        estimator = lambda *data, initial: perturbation.evolution_strategies(*data, **options)
        return assessment.cost_per_step(model, estimator, params, inputs, targets).flops

    one, two, three = flops(1), flops(2), flops(3)
    assert abs((three - two) - (two - one)) <= 1  # rounded down
    forward, size = 2 * n * (m + n) + 2 * n * o, ravel_pytree(params)[0].size
    assert 1 < (two - one) / (2 * forward + 7 * size / window) < 1.1
    rest = one - (two - one)
    assert abs(rest - (0 if persistent else forward)) < 0.12 * forward


def update(params=None, state=None, **options):
    rule = perturbation.persistent_strategies(scale=0.1, num_pairs=2)
    state = rule.init(SUMMED, PARAMS, **options.pop("init", {})) if state is None else state
    return rule.update(PARAMS if params is None else params, state, INPUTS, TARGETS, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: perturbation.persistent_strategies(scale=0), ValueError, "scale: got 0, expected a finite number abo"),
        (lambda: perturbation.persistent_strategies(scale=1.0, num_pairs=0), ValueError, "num_pairs: got 0, expected"),
        (lambda: perturbation.persistent_strategies(scale=1.0).init(MODEL, PARAMS), ValueError,
         "model.reduction: got 'mean', expected 'sum'"),
        (lambda: update(init={"key": 3}), TypeError, "key: got int, expected a typed key"),
        (lambda: update(init={"initial": jnp.ones(9)}), ValueError, r"initial: got shape \[9\]"),
        (update, TypeError, "state.key, perturbations: got neither, expected exactly one of them"),
        (lambda: update(init={"key": KEY}, perturbations=PARAMS), TypeError, "state.key, perturbations: got both"),
        (lambda: update(perturbations=PARAMS), ValueError, r"perturbations: got leading axes \[3\], expected \[2\]"),
        (lambda: update(state=PARAMS), TypeError, "state: got SequenceParams, expected the Particles of persistent_st"),
        (lambda: update(PARAMS.cell, init={"key": KEY}), ValueError, "params: got structure"),
        (lambda: update(jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS), init={"key": KEY}), ValueError,
         "params.* got NaN or inf"),
    ],
)  # fmt: skip
def test_bad_arguments_of_the_rule_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


MODEL, (PARAMS, INPUTS, TARGETS, _) = model_of("elman"), instance_of("elman")
SUMMED = MODEL._replace(reduction="sum")
GIVEN = jax.tree.map(lambda leaf: jnp.ones((2, 2, *leaf.shape)), PARAMS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "key, perturbations: got neither, expected exactly one of them"),
        ({"key": KEY, "window": 0}, ValueError, "window: got 0, expected at least 1"),
        ({"key": KEY, "window": 2.0}, TypeError, "window: got float, expected an int"),
        ({"key": KEY, "num_pairs": 0}, ValueError, "num_pairs: got 0, expected at least 1"),
        ({"key": KEY, "scale": -1.0}, ValueError, "scale: got -1.0, expected a finite number above 0"),
        ({"key": KEY, "persistent": None}, ValueError, "persistent: got None, expected one of True, False"),
        ({"perturbations": GIVEN}, ValueError, r"perturbations: got leading axes \[2, 2\], expected \[any, 3\]"),
    ],
)
def test_bad_arguments_get_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        perturbation.evolution_strategies(MODEL, PARAMS, INPUTS, TARGETS, **{"window": 2, "scale": 0.1, **options})
    assert "\n" not in str(caught.value)
