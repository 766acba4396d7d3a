"""Rules that carry eligibility traces: immediate derivatives, KeRNL, and e-prop with its feedback."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, models, online, truncation
from jaxbptt.comparison import compare
from jaxbptt.online import rule
from tests import cases
from tests.mutation import mutate_package
from tests.online.problems import KEY, exact_of, flatten, instance_of, model_of, online_of

SIZE = cases.N


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_immediate_derivatives_are_a_window_of_one_step(name):
    model, data = model_of(name), instance_of(name)
    params, inputs, targets, _ = data
    expected = jax.jit(lambda x, y: truncation.windowed(model, params, x, y, window=1)[1])(inputs, targets)
    assert compare(expected, online_of(online.immediate(), model, data)[1]).relative < 1e-12


def diagonal_model(values):
    """h_t = λ ⊙ h_{t−1} + W x_t + b with λ constant: J_t = diag(λ)."""
    elman = cases.CELLS["elman"]
    step = lambda p, h, x: values * h + p.w_hx @ x + jnp.sin(p.w_hh) @ jnp.tile(x, 2)[: cases.N] + p.b_h
    cell = cells.from_step(step, elman.initial_state, init=elman.init, num_inputs=cases.M)
    return models.sequence_model(cell, cases.O)


VALUES = np.array([0.9, -0.5, 0.3])


def diagonal_runs(module=online):
    """(exact, immediate) of a diagonal net, decay its eigenvalues."""
    model = diagonal_model(VALUES)
    data = cases.instance(model, KEY)
    rule_ = module.immediate(decay=VALUES)
    return exact_of(model, data)[1], online_of(rule_, model, data, module=module)[1]


def test_a_trace_that_decays_as_a_diagonal_net_is_exact():
    assert compare(*diagonal_runs()).relative < 1e-12
    model = diagonal_model(0.8)
    data = cases.instance(model, KEY)
    one, rflo, half = (
        online_of(each, model, data)[1]
        for each in (online.immediate(decay=0.8), online.rflo(leak=0.8), online.immediate(decay=0.4))
    )
    assert compare(exact_of(model, data)[1], one).relative < 1e-12
    assert compare(rflo, one).relative < 1e-12
    assert compare(one, half).relative > 0.05


def test_a_broken_decay_is_seen():
    mutant = mutate_package(online, "decay[plan.rows.array][:, :, None] * entries", "decay[0] * entries")
    assert compare(*diagonal_runs(mutant)).relative > 1e-2


# KeRNL


def kernel_by_hand(model, data, signs, rate, timescale):
    """Σ_t g_t and (β, γ) of KeRNL on dense arrays, each line from the docstring."""
    params, inputs, targets, _ = data
    theta, unravel = ravel_pytree(params)
    h = flatten(model.initial_state(params))
    start = model.initial_state(params)
    unflatten = ravel_pytree(start)[1]
    size = h.size
    trace = jax.jacfwd(lambda theta: flatten(model.initial_state(unravel(theta))))(theta)
    step = lambda theta, h, x: flatten(model.step(unravel(theta), unflatten(h), x))
    beta, gamma = jnp.eye(size), jnp.full(size, 1 / timescale)
    shift = omega = slope = jnp.zeros(size)
    total = jnp.zeros_like(theta)

    @jax.jit
    def advance(h, trace, beta, gamma, shift, omega, slope, x, y, zeta):
        direct, transition = jax.jacfwd(step, (0, 1))(theta, h, x)
        h = step(theta, h, x)
        kappa = jnp.exp(-gamma)
        shift, slope = transition @ shift + zeta, kappa * (slope - omega)
        omega = kappa * omega + zeta
        trace = kappa[:, None] * trace + direct
        predict = lambda beta, gamma: 0.5 * jnp.sum((beta @ (omega + slope * (gamma - old)) - shift) ** 2)
        old = gamma
        d_beta, d_gamma = jax.grad(predict, (0, 1))(beta, gamma)
        d_gamma = d_gamma / jnp.maximum(jnp.sum((beta * slope[None, :]) ** 2), 1e-300)
        beta, gamma = beta - rate * d_beta / jnp.sum(omega**2), jnp.maximum(gamma - rate * d_gamma, 0)
        loss = lambda theta, h: model.loss(model.readout(unravel(theta), unflatten(h)), y)
        own, local = jax.grad(loss, (0, 1))(theta, h)
        return own + (local @ beta) @ trace, h, trace, beta, gamma, shift, omega, slope

    for x, y, zeta in zip(inputs, targets, signs, strict=True):
        grads, h, trace, beta, gamma, shift, omega, slope = advance(
            h, trace, beta, gamma, shift, omega, slope, x, y, zeta
        )
        total = total + grads
    return unravel(total), beta, gamma


def kernel_runs(module, model, data, signs, rate=0.4, timescale=1.5):
    params, inputs, targets, _ = data
    update = rule.update_with if module is online else module.rule.update_with
    state = module.kernl(rate=rate, timescale=timescale).init(model, params, key=KEY)

    def body(state, at):
        state, _, grads = update(params, state, *at)
        return state, grads

    state, grads = jax.jit(lambda *at: jax.lax.scan(body, state, at))(inputs, targets, signs)
    kernel = state.sensitivity
    return jax.tree.map(lambda leaf: leaf.sum(axis=0), grads), kernel.weights, kernel.rates


@functools.cache
def kernel_case(name):
    model, data = model_of(name), instance_of(name)
    size = flatten(model.initial_state(data[0])).size
    signs = jax.random.rademacher(KEY, (cases.T, size), float)
    return model, data, signs, kernel_by_hand(model, data, signs, 0.4, 1.5)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["lstm", "custom"])
def test_kernl_against_its_definition(name):
    model, data, signs, (expected, beta, gamma) = kernel_case(name)
    actual, weights, rates = kernel_runs(online, model, data, signs)
    assert compare(expected, actual).relative < 1e-12
    np.testing.assert_allclose(weights, beta, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(rates, gamma, rtol=1e-10)
    assert np.abs(beta - np.eye(len(beta))).max() > 0.05
    assert np.abs(gamma - 1 / 1.5).max() > 0.05


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("decay * (kernel.slope - kernel.filtered)", "decay * (kernel.slope + kernel.filtered)"),
        ("local @ kernel.weights", "kernel.weights @ local"),
        (
            "jnp.outer(_divided(plan.rate * error, filtered @ filtered), filtered)",
            "jnp.outer(filtered, _divided(plan.rate * error, filtered @ filtered))",
        ),
        ("ravel_pytree(pushed)[0] + signs", "ravel_pytree(pushed)[0] - signs"),
    ],
)
def test_a_broken_kernl_is_seen(old, new):
    model, data, signs, (expected, *_) = kernel_case("lstm")
    mutant = mutate_package(online, old, new)
    assert compare(expected, kernel_runs(mutant, model, data, signs)[0]).relative > 1e-3


def test_kernl_is_exact_where_the_kernel_is_right_and_learns_it_where_it_is_not():
    """h_t = 0.8 h_{t−1} + W x + b has β = 1 and γ = −ln 0.8; from γ = ½ it is learned, and the gradient with it."""
    model = diagonal_model(0.8)
    data = cases.instance(model, KEY, length=8)
    exact = exact_of(model, data)[1]
    right = online_of(online.kernl(rate=0.0, timescale=float(-1 / np.log(0.8))), model, data, key=KEY)[1]
    assert compare(exact, right).relative < 1e-12
    params, rule_ = data[0], online.kernl(rate=0.1, timescale=2.0)
    steps = jnp.zeros((600, cases.M)), jnp.zeros((600, cases.O))
    state = rule_.init(model, params, key=KEY)
    state, _ = jax.jit(lambda *at: jax.lax.scan(lambda s, at: (rule_.update(params, s, *at)[0], None), state, at))(
        *steps
    )
    np.testing.assert_allclose(state.sensitivity.rates, -np.log(0.8), rtol=0.02)
    np.testing.assert_allclose(state.sensitivity.weights, np.eye(cases.N), atol=0.02)


# e-prop


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "leak"), [("elman", None), ("lstm", None), ("gru", None), ("custom", 0.7)])
def test_symmetric_feedback_is_rflo(name, leak):
    model, data = model_of(name), instance_of(name)
    ours, theirs = (online_of(each, model, data)[1] for each in (online.eprop(leak=leak), online.rflo(leak=leak)))
    assert compare(theirs, ours).relative < 1e-15


def fed_by_hand(model, data, matrix, rate, weight_decay):
    """(Σ_t g_t, B) by loops over the rules' own states: e_tᵀ ℓ_t from what `rflo` carries."""
    params, inputs, targets, _ = data
    rule_ = online.rflo()
    state = rule_.init(model, params)
    total = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def advance(state, matrix, x, y):
        state = rule_.update(params, state, x, y)[0]
        answer = lambda params: model.readout(params, state.model_state)
        output, pull = jax.vjp(answer, params)
        error = output - y
        signal = matrix @ error
        grads = jax.tree.map(
            jnp.add, pull(error)[0], state.method.contract(state.plan, params, state.sensitivity, signal)
        )
        learned = jnp.where(matrix != 0, jnp.outer(flatten(state.model_state), error), 0.0)
        return state, (1 - weight_decay) * matrix - rate * learned, grads

    for x, y in zip(inputs, targets, strict=True):
        state, matrix, grads = advance(state, matrix, x, y)
        total = jax.tree.map(jnp.add, total, grads)
    return total, matrix


@functools.cache
def fed_case(adaptive):
    """(rule's options, its state at init, Σ_t g_t and B by hand) of the LSTM."""
    model, data = model_of("lstm"), instance_of("lstm")
    options = {"rate": 0.2, "weight_decay": 0.1} if adaptive else {}
    kind = "adaptive" if adaptive else "random"
    start = online.eprop(kind, **options).init(model, data[0], key=KEY)
    numbers = options or {"rate": 0.0, "weight_decay": 0.0}
    return kind, options, start, fed_by_hand(model, data, start.sensitivity.feedback, **numbers)


@pytest.mark.parametrize("adaptive", [False, True])
def test_feedback_against_its_definition(adaptive):
    model, data = model_of("lstm"), instance_of("lstm")
    kind, options, start, (expected, _) = fed_case(adaptive)
    matrix = np.asarray(start.sensitivity.feedback)
    assert (matrix[:SIZE] == 0).all(), "the readout does not read the cell state"
    np.testing.assert_allclose(np.abs(matrix[SIZE:]), SIZE**-0.5)
    assert start.key is None, "nothing is drawn later"
    actual = online_of(online.eprop(kind, **options), model, data, key=KEY)[1]
    assert compare(expected, actual).relative < 1e-12
    assert compare(exact_of(model, data)[1].readout, actual.readout).relative < 1e-12
    assert compare(online_of(online.rflo(), model, data)[1].cell, actual.cell).relative > 0.1


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("set(errors @ fed", "set((errors + 0.1) @ fed"),
        ("(1 - plan.weight_decay) * fed.feedback", "fed.feedback"),
        ("(plan.rate * state[", "(-plan.rate * state["),
        ("_mask(plan, state.dtype) * (plan.rate", "(plan.rate"),
        ("_mask(plan, signs.dtype) * matrix", "matrix"),
    ],
)
def test_broken_feedback_is_seen(old, new):
    kind, options, _, (expected, _) = fed_case(adaptive=True)
    mutant = mutate_package(online, old, new)
    actual = online_of(mutant.eprop(kind, **options), model_of("lstm"), instance_of("lstm"), key=KEY, module=mutant)[1]
    assert compare(expected, actual).relative > 1e-3


@pytest.mark.parametrize("kind", ["random", "adaptive"])
def test_sequences_of_a_batch_share_one_feedback_and_none_hears_anothers_errors(kind):
    model, (params, inputs, targets, _) = model_of("lstm"), instance_of("lstm")
    rule_, decay = (
        (online.eprop(kind), 0.0) if kind == "random" else (online.eprop(kind, rate=0.2, weight_decay=0.1), 0.1)
    )
    xs, ys = jnp.stack((inputs[0], -inputs[1])), jnp.stack((targets[0], 3 * targets[1]))
    start = rule_.init(model, params, key=KEY)
    each = [rule_.update(params, start, *at) for at in zip(xs, ys, strict=True)]
    both = rule_.init(models.batched(model, 2), params, key=KEY, x=xs)
    np.testing.assert_array_equal(both.sensitivity.feedback, start.sensitivity.feedback)
    both, loss, grads = rule_.update(params, both, xs, ys)
    np.testing.assert_allclose(loss, each[0][1] + each[1][1], rtol=1e-14)
    assert compare(jax.tree.map(jnp.add, each[0][2], each[1][2]), grads).relative < 1e-12
    kept = (1 - decay) * start.sensitivity.feedback
    learned = sum(state.sensitivity.feedback - kept for state, _, _ in each)
    np.testing.assert_allclose(both.sensitivity.feedback, kept + learned, atol=1e-14)


def test_adaptive_feedback_finds_the_readout():
    """Trained at the same rate and decay, Bᵀ − W shrinks by 1 − c in every step."""
    rate, decay, count = 0.05, 0.1, 30
    model, (params, *_) = model_of("elman"), instance_of("elman")
    rule_ = online.eprop("adaptive", rate=rate, weight_decay=decay)
    inputs, targets = jax.random.normal(KEY, (count, cases.M)), jax.random.normal(KEY, (count, cases.O))

    def body(carry, at):
        params, state = carry
        state, _, grads = rule_.update(params, state, *at)
        readout = params.readout._replace(w_yh=(1 - decay) * params.readout.w_yh - rate * grads.readout.w_yh)
        return (params._replace(readout=readout), state), jnp.linalg.norm(state.sensitivity.feedback.T - readout.w_yh)

    start = rule_.init(model, params, key=KEY)
    distance = jax.jit(lambda *at: jax.lax.scan(body, (params, start), at)[1])(inputs, targets)
    begin = np.linalg.norm(start.sensitivity.feedback.T - params.readout.w_yh)
    np.testing.assert_allclose(distance, begin * (1 - decay) ** np.arange(1, count + 1), rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: online.immediate(decay="a"), TypeError, "decay: got str, expected a number or an array"),
        (lambda: online.immediate(decay=np.nan), ValueError, "decay: got"),
        (lambda: online.immediate(decay=np.ones(9)).init(model_of("elman"), instance_of("elman")[0]), ValueError,
         "decay: got 9 numbers, expected one, or 3"),
        (lambda: online.kernl(rate=2.0, timescale=1.0), ValueError, "rate: got 2.0, expected a number between 0 and 1"),
        (lambda: online.kernl(rate=0.1, timescale=0.0), ValueError, "timescale: got 0.0, expected a positive"),
        (lambda: online.kernl(rate=None, timescale=1.0), TypeError, "rate: got NoneType, expected a number"),
        (lambda: online.eprop("learned"), ValueError, "feedback: got 'learned', expected"),
        (lambda: online.eprop("adaptive"), ValueError, "rate: got None, expected a number for 'adaptive'"),
        (lambda: online.eprop("random", rate=0.1), ValueError, "rate: got 0.1, expected a number for 'adaptive'"),
        (lambda: online.eprop("adaptive", rate=-1.0), ValueError, "rate: got -1.0, expected at least 0"),
        (lambda: online.eprop("adaptive", rate=1.0, weight_decay=2.0), ValueError, "weight_decay: got 2.0"),
        (lambda: online.eprop("random", weight_decay=0.1), ValueError, "weight_decay: got 0.1, expected none"),
        (lambda: online.eprop("adaptive", rate=0.1, weight_decay=None), TypeError, "weight_decay: got NoneType"),
        (lambda: online.eprop("adaptive", rate=np.inf), ValueError, "rate: got inf, expected a finite number"),
        (lambda: online.eprop(jnp.ones(2)), TypeError, r"feedback: got an array of shape \[2\], expected one of"),
        (lambda: online.eprop(leak=np.nan), ValueError, "leak: got nan, expected a finite number"),
        (lambda: online.rflo(leak=np.inf), ValueError, "leak: got inf, expected a finite number"),
        (lambda: online.kernl(rate=0.1, timescale=np.inf), ValueError, "timescale: got inf, expected a finite number"),
        (lambda: jax.jit(lambda k: online.immediate(decay=k))(0.5), TypeError, "decay: got a traced array, expected"),
        (lambda: online.eprop(leak="a"), TypeError, "leak: got str"),
        (lambda: online.eprop("random").init(model_of("custom"), instance_of("custom")[0], key=KEY), ValueError,
         "eprop: got a cell without factored"),
        (lambda: online.eprop("random").init(model_of("elman"), instance_of("elman")[0]), TypeError, "key: got None"),
        (lambda: online.sketched_rtrl(-1), ValueError, "rank: got -1, expected at least 0"),
        (lambda: online.sketched_rtrl(4).init(model_of("elman"), instance_of("elman")[0]), ValueError,
         r"rank: got 4, expected"),
        (lambda: online.ok_rtrl(0), ValueError, "rank: got 0, expected at least 1"),
        (lambda: online.ok_rtrl(1).init(model_of("custom"), instance_of("custom")[0], key=KEY), ValueError,
         "ok_rtrl: got a model without z"),
        (lambda: online.reverse_kf_rtrl().init(model_of("moving start"), instance_of("elman")[0], key=KEY), ValueError,
         "reverse_kf_rtrl: got an h_0 that depends on"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
