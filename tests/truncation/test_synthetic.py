"""Synthetic gradients: exact where the readout is the true adjoint, windows where it is zero, and learned where it is
linear."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import assessment, cells, gradients, models, truncation
from jaxbptt.comparison import compare
from jaxbptt.gradients.forward import join_early, run_forward
from jaxbptt.trajectories import flatten_steps
from jaxbptt.truncation import synthetic
from tests import cases
from tests.mutation import mutate
from tests.truncation.problems import KEY, model_of

INSTANCES = [*((name, False) for name in cases.CELLS), ("custom", True), ("reading", True)]
LENGTH, WINDOW = 7, 3  # ends at 3 and 6, and one step left over


@functools.cache
def problem_of(name):
    if name == "reading":
        cell = cells.elman(1, 3)
        readout = lambda params, h, x, previous: h * x[0] + jnp.tanh(params.w_hh @ previous)
        start = lambda params: jnp.sin(params.b_h + 1)
        model = models.make_model(cell.step, start, readout, models.squared_error, init=cell.init, num_inputs=1)
    else:
        model = model_of(name, "mean")
    return model, cases.instance(model, KEY, length=LENGTH, gain=1.2, num_outputs=3 if name == "reading" else cases.O)


def true_adjoints(model, params, inputs, targets, initial):
    """(h, μ) at the ends of windows: μ_t = λ_t less what comes through o_t alone, from the exact routes."""
    forward = run_forward(model, params, inputs, targets, initial)
    both, _ = join_early(forward.local, forward.early)
    adjoints = gradients.adjoints(model, params, inputs, targets, initial=initial)
    later = adjoints - flatten_steps(both)
    if forward.early is not None:  # what o_{t+1} reads of h_t is of the window after t
        later = adjoints - flatten_steps(forward.local)
    ends = jnp.arange(WINDOW, LENGTH, WINDOW) - 1
    return flatten_steps(forward.trajectory.states)[ends], later[ends]


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "own"), INSTANCES)
def test_exact_where_the_readout_is_the_true_adjoint(name, own):
    """D through two points: a pseudo-inverse finds it. D = 0 is `windowed`; one window is exact with any D."""
    model, (params, inputs, targets, initial) = problem_of(name)

    @jax.jit
    def run(params, inputs, targets, initial):
        initial = None if own else initial
        data = model, params, inputs, targets
        states, later = true_adjoints(*data, initial)
        phi = jnp.concatenate((states, jnp.ones((len(states), 1))), axis=1)
        weights = (jnp.linalg.pinv(phi) @ later).T
        call = lambda window, weights: truncation.bootstrapped(*data, window=window, weights=weights, initial=initial)
        return (
            (gradients.bptt(*data, initial=initial), call(WINDOW, weights), call(LENGTH, weights + 1)),
            (truncation.windowed(*data, window=WINDOW, initial=initial), call(WINDOW, 0 * weights)),
        )

    (expected, found, whole), (windows, nothing) = run(params, inputs, targets, initial)
    for one in (found, whole, nothing):
        np.testing.assert_allclose(one[0], expected[0], rtol=1e-13)
    assert compare(expected[1], found[1]).relative < 1e-11  # the pseudo-inverse loses a digit
    assert compare(expected[1], whole[1]).relative < 1e-12
    assert compare(windows[1], nothing[1]).relative < 1e-12
    assert compare(expected[1], nothing[1]).relative > 1e-3


@functools.cache
def linear_problem():
    """(model, data, S): h_t = A h_{t−1} + x_t with A³ = 0, L = ½‖h‖² and no input after step 1: μ = S h with
    S = AᵀA + (A²)ᵀ A²."""
    a = jnp.array([[0.0, 0.9, -0.5], [0.0, 0.0, 0.7], [0.0, 0.0, 0.0]])
    model = models.make_model(
        lambda a, h, x: a @ h + x, lambda a: jnp.ones(3), lambda a, h: h, models.squared_error, num_inputs=3
    )
    inputs = jnp.zeros((9, 3)).at[0].set(jax.random.normal(KEY, (3,)))
    s = a.T @ a + (a @ a).T @ (a @ a)
    return model, (a, inputs, jnp.zeros((9, 3))), s


def test_the_true_readout_of_a_linear_problem_is_exact():
    model, (a, inputs, targets), s = linear_problem()
    start = jnp.array([1.0, -2.0, 0.5])
    options = {"window": 2, "features": lambda h: h, "initial": start}
    call = jax.jit(lambda s: truncation.bootstrapped(model, a, inputs, targets, weights=s, **options)[1])
    exact = jax.jit(lambda a: gradients.bptt(model, a, inputs, targets, initial=start)[1])(a)
    assert compare(exact, call(s)).relative < 1e-12
    assert compare(exact, call(0 * s)).relative > 0.1


def learn(module, count, rate=0.1):
    """D after `count` episodes of two windows of one step, each from an h_0 of its own."""
    model, (a, _, _), _ = linear_problem()
    rule = module.synthetic_gradients(optax.sgd(rate), features=lambda h: h)
    zeros = jnp.zeros((1, 3))

    def episode(weights, start):
        state = rule.init(model, a, initial=start)
        state = module.SyntheticState(state.model_state, weights, state.memory, state.at_start, model)
        state, _, _ = rule.update(a, state, zeros, zeros)
        state, _, _ = rule.update(a, state, zeros, zeros)
        return state.weights, None

    starts = jax.random.normal(jax.random.key(3), (count, 3))
    return jax.jit(lambda starts: jax.lax.scan(episode, jnp.zeros((3, 3)), starts)[0])(starts)


def test_it_learns_the_true_adjoint_where_that_is_linear():
    """From D = 0, on windows of one step where the adjoint comes from two: only bootstrapping tells the rest."""
    s = linear_problem()[2]
    np.testing.assert_allclose(learn(synthetic, 2000), s, atol=1e-10)
    assert np.abs(s - learn(synthetic, 10)).max() > 1e-2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("state.weights @ phi(first) - ravel_pytree(earlier)[0]", "jnp.zeros_like(first)"),
        ("leaf.at[-1].add(later)", "leaf.at[-1].add(0 * later)"),
        ("leaf.at[-1].add(later)", "leaf.at[-1].add(-later)"),
    ],
)  # fmt: skip
def test_a_slip_learns_something_else(old, new):
    assert np.abs(learn(mutate(synthetic, old, new), 2000) - linear_problem()[2]).max() > 1e-2


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "own"), INSTANCES)
def test_its_windows_add_up_to_bootstrapped(name, own):
    """At a learning rate of zero, from a D that is not: the last window is not bootstrapped, h_0 counts once."""
    model, (params, inputs, targets, initial) = problem_of(name)
    model = model._replace(reduction="sum")
    rule = truncation.synthetic_gradients(optax.sgd(0.0))
    size = ravel_pytree(initial)[0].size
    weights = 0.3 * jax.random.normal(KEY, (size, size + 1))

    @jax.jit
    def run(params, inputs, targets, initial):
        initial = None if own else initial
        state = rule.init(model, params, initial=initial)
        state = truncation.SyntheticState(state.model_state, weights, state.memory, state.at_start, model)
        total, loss = jax.tree.map(jnp.zeros_like, params), 0.0
        for begin in range(0, LENGTH, WINDOW):
            part = jax.tree.map(lambda leaf, begin=begin: leaf[begin : begin + WINDOW], (inputs, targets))
            state, part_loss, grads = rule.update(params, state, *part, last=begin + WINDOW >= LENGTH)
            total, loss = jax.tree.map(jnp.add, total, grads), loss + part_loss
        options = {"window": WINDOW, "weights": weights, "initial": initial}
        return truncation.bootstrapped(model, params, inputs, targets, **options), (loss, total), state.weights

    expected, found, kept = run(params, inputs, targets, initial)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-13)
    assert compare(expected[1], found[1]).relative < 1e-12
    np.testing.assert_array_equal(kept, weights)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_training_in_a_scan_and_over_a_batch(dtype):
    """init and update as written, beside optax, traced once; a map over sequences; in the dtype that came."""
    model = models.sequence_model(cases.CELLS["lstm"], cases.O)
    params, inputs, targets, _ = jax.tree.map(lambda leaf: leaf.astype(dtype), cases.instance(model, KEY, length=8))
    rule, optimizer = truncation.synthetic_gradients(optax.adam(0.05)), optax.sgd(0.05)
    blocks = jax.tree.map(lambda leaf: leaf.reshape(4, 2, *leaf.shape[1:]), (inputs, targets))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def train(start, blocks):
        def body(carry, block):
            state, params, memory = carry
            state, loss, grads = rule.update(params, state, *block)
            updates, memory = optimizer.update(grads, memory, params)
            return (state, optax.apply_updates(params, updates), memory), loss

        return jax.vmap(lambda blocks: jax.lax.scan(body, start, blocks))(blocks)

    chex.clear_trace_counter()
    start = (rule.init(model, params), params, optimizer.init(params))
    pair = jax.tree.map(lambda leaf: jnp.stack((leaf, leaf.at[3].set(jnp.nan))), blocks)
    (state, moved, _), losses = train(start, pair)
    train(start, jax.tree.map(lambda leaf: 2 * leaf, pair))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.weights, moved, losses))} == {jnp.dtype(dtype)}
    assert np.isfinite(losses[0]).all()
    assert np.isnan(losses[1, 3])
    assert np.any(state.weights[0] != 0)
    assert all(np.isnan(leaf[1]).all() for leaf in jax.tree.leaves(moved))


def test_the_cost_is_as_stated():
    n, length, window = 64, 40, 10
    model = models.sequence_model(cells.elman(8, n), 4)
    params, inputs, targets, _ = cases.instance(model, KEY, length=length, num_outputs=4)
    weights = jnp.ones((n, n + 1))
    cost = lambda route, *data: assessment.cost_per_step(model, route, params, *data).flops
    windowed = functools.partial(truncation.windowed, window=window)
    predicted = functools.partial(truncation.bootstrapped, window=window, weights=weights)
    extra = cost(predicted, inputs, targets) - cost(windowed, inputs, targets)
    # A product for each window but the last, and D is read once to see that it is finite; P to say so.
    products = 2 * n * (n + 1) * (length // window - 1)
    stated = (products + n * (n + 1) + ravel_pytree(params)[0].size) / length
    assert 0.95 < extra / stated < 1.05
    rule = truncation.synthetic_gradients(optax.sgd(0.1))
    state = rule.init(model, params)
    floats = sum(leaf.size for leaf in jax.tree.leaves((state.model_state, state.weights, state.memory)))
    assert floats == n + n * (n + 1)

    def one_window(model, params, inputs, targets, *, initial):
        new, loss, grads = rule.update(params, state, inputs, targets)
        return loss, (grads, new.weights)

    one = inputs[:window], targets[:window]
    extra = cost(one_window, *one) - cost(functools.partial(truncation.windowed, window=window), *one)
    stated = 7 * n * (n + 1) / window  # 5 N F, and 2 N F of plain gradient descent
    assert 0.95 < extra / stated < 1.1


MODEL, DATA = problem_of("elman")[0], problem_of("elman")[1][:3]
SUMMED = MODEL._replace(reduction="sum")
RULE = truncation.synthetic_gradients(optax.sgd(0.1))
D = jnp.zeros((cases.N, cases.N + 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: truncation.bootstrapped(MODEL, *DATA, window=0, weights=D), ValueError, "window: got 0, expected"),
        (lambda: truncation.bootstrapped(MODEL, *DATA, window=2, weights=D.T), ValueError, "weights: got shape"),
        (lambda: truncation.bootstrapped(MODEL, *DATA, window=2, weights=[1.0]), TypeError, "weights: got list"),
        (lambda: truncation.bootstrapped(MODEL, *DATA, window=2, weights=D * jnp.nan), ValueError, "weights: got NaN"),
        (lambda: truncation.bootstrapped(MODEL, *DATA, window=2, weights=D.astype(jnp.float32)), TypeError,
         "weights: got float32, expected float64 like the state"),
        (lambda: truncation.bootstrapped(MODEL, *DATA, window=2, weights=D, features=lambda h: h[0]), ValueError,
         r"features: got shape \[\], expected a vector"),
        (lambda: truncation.bootstrapped(MODEL, *DATA, window=2, weights=D, features=lambda h: (h, h)), ValueError,
         "features: got tuple, expected a vector"),
        (lambda: truncation.bootstrapped(MODEL, *DATA, window=2, weights=D, features=lambda h: h > 0), TypeError,
         "features: got bool, expected float64 like the state"),
        (lambda: truncation.bootstrapped(MODEL, *DATA, window=2, weights=D, features=lambda h: h @ D.T), TypeError,
         "features: raised TypeError where it was traced"),
        (lambda: truncation.synthetic_gradients("adam"), TypeError, "optimizer: got str, expected an optax"),
        (lambda: truncation.synthetic_gradients(optax.sgd(0.1), features="tanh"), TypeError, "features: got str"),
        (lambda: truncation.synthetic_gradients(optax.sgd(0.1), features=jnp.sum).init(SUMMED, DATA[0]), ValueError,
         r"features: got shape \[\], expected a vector"),
        (lambda: RULE.update(DATA[0], RULE.init(SUMMED, DATA[0]), *DATA[1:], last=jnp.array(True)), TypeError,
         r"last: got an array of shape \[\], expected one of True, False"),
        (lambda: RULE.init(MODEL, DATA[0]), ValueError, "model.reduction: got 'mean', expected 'sum'"),
        (lambda: RULE.init(models.penalised(SUMMED, lambda p: 0.0 * jnp.sum(p.readout.b_y)), DATA[0]), ValueError,
         "model.penalty: got a penalty"),
        (lambda: RULE.init(SUMMED, DATA[0].cell), ValueError, "params: got structure"),
        (lambda: RULE.init(SUMMED, DATA[0], initial=jnp.ones(9)), ValueError, "initial: got shape"),
        (lambda: RULE.update(RULE.init(SUMMED, DATA[0]), *DATA), TypeError, "state: got .*, expected a Syn"),
        (lambda: RULE.update(DATA[0], RULE.init(SUMMED, DATA[0]), DATA[1], DATA[2][:-1]), ValueError, "targets: got 6"),
        (lambda: RULE.update(DATA[0], RULE.init(SUMMED, DATA[0]), *DATA[1:], last=3), ValueError, "last: got 3"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
