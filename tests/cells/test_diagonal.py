"""Cells with a diagonal J_t, and the leaky one: their derivations, and what is exact about their chains."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, derivations, gradients, jacobians, models, partials, spectra, trajectories
from jaxbptt.cells import structure
from jaxbptt.comparison import compare
from tests import cases
from tests.cells.hand_derived import largest_disagreement, largest_step_error
from tests.mutation import mutate

NAMES = ("leaky", "lru", "min_gru", "min_lstm", "rg_lru", "selective_ssm")
SPREAD = jnp.array([-25.0, 0.4, 25.0])  # pre-activations of gates that are shut, half open and open
EXTREME = {  # gates and decays near 0 and near 1
    "leaky": lambda params: params._replace(leak=jnp.array([1e-9, 0.5, 1.0])),
    "lru": lambda params: params._replace(nu_log=jnp.array([-25.0, 0.4, 3.5])),
    "min_gru": lambda params: params._replace(b_z=SPREAD),
    "min_lstm": lambda params: params._replace(
        b_f=jnp.array([-25.0, -25.0, 25.0]), b_i=jnp.array([25.0, -26.0, -25.0])
    ),
    "rg_lru": lambda params: params._replace(lambda_=SPREAD / 2, b_a=SPREAD[::-1] / 5, b_i=SPREAD),
    "selective_ssm": lambda params: params._replace(
        b_delta=jnp.array([-3.0, 3.0]), a_log=jnp.broadcast_to(jnp.array([-15.0, 0.5, 3.0]), params.a_log.shape)
    ),
}


def instance(name, seed, change=lambda params: params):
    params, inputs, targets, initial = cases.instance(cases.MODERN[name], jax.random.key(seed))
    return cases.MODERN[name], change(params), inputs, targets, initial


def problems(name, seeds):
    """(params, inputs, targets, h_0) as drawn and with extreme gates."""
    return [instance(name, seed, *change)[1:] for seed in seeds for change in ((), (EXTREME[name],))]


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_hand_derivation_equals_automatic(name):
    points = [(params, state, inputs[0]) for params, inputs, _, state in problems(name, range(3))]
    cell = cases.MODERN[name]
    assert largest_step_error(cell, cell.derivation, points) < 1e-13


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_all_exact_routes_agree(name):
    assert partials.step_partials(cases.MODERN[name]).source == "factored"
    assert largest_disagreement(cases.MODERN[name], problems(name, [5])) < 1e-12


def log_decay(name, params, inputs):
    """ln of the diagonal of J_t of every step, from the published equations and in logs throughout; [T, N]."""
    x, p = np.asarray(inputs), jax.tree.map(np.asarray, params)
    log_sigmoid = lambda a: -np.logaddexp(0, -a)
    if name == "lru":
        return np.tile(-np.exp(p.nu_log), (len(x), 2))
    if name == "min_gru":
        return log_sigmoid(-x @ p.w_z.T - p.b_z)
    if name == "min_lstm":
        f, i = (log_sigmoid(x @ w.T + b) for w, b in ((p.w_f, p.b_f), (p.w_i, p.b_i)))
        return f - np.logaddexp(f, i)
    if name == "rg_lru":
        return -8 * np.exp(log_sigmoid(x @ p.w_a.T + p.b_a)) * np.logaddexp(0, p.lambda_)
    delta = np.logaddexp(0, x @ p.w_delta.T + p.b_delta)
    return (delta[:, :, None] * -np.exp(p.a_log)).reshape(len(x), -1)


log_singular_values = jax.jit(spectra.log_singular_values)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES[1:])
def test_singular_values_are_sums_of_log_decays(name):
    cell = cases.MODERN[name]
    for params, inputs, _, initial in problems(name, [2]):
        steps = trajectories.unroll(cell, params, inputs, initial=initial)
        found = log_singular_values(jacobians.step_jacobians(cell, params, steps))[0]
        expected = np.sort(log_decay(name, params, inputs).sum(0))[::-1]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_parts_are_those_of_the_jacobian(name):
    cell, params, inputs, _, state = instance(name, 3)
    parts, pullback = cell.derivation.parts, cell.derivation.pullback
    formed = parts.form(params, pullback.factors(params, state, inputs[0]))
    dense = cell.derivation.state_jacobian(params, state, inputs[0])
    vector = jax.random.normal(jax.random.key(4), (len(dense),))
    if name == "leaky":
        products = parts.left(formed, vector[:, None])[:, 0], parts.right(formed, vector[None])[0]
        np.testing.assert_array_equal(parts.dense(formed), dense)
    else:
        assert parts.affine
        products = (
            structure.scatter_copies(
                structure.apply_core(core, structure.gather_copies(vector, parts.place, structure.dtype_of(core))),
                parts.place,
            )
            for core in (formed, structure.transpose_core(formed))
        )
    for product, matrix in zip(products, (dense, dense.T), strict=True):
        np.testing.assert_allclose(product, matrix @ vector, rtol=1e-13, atol=1e-15)


def test_of_a_linear_recurrent_unit_each_input_fades_by_powers_of_lambda():
    cell, params, inputs, _, initial = instance("lru", 6)
    assert cell.derivation.parts.constant
    last = lambda inputs: trajectories.unroll(cell, params, inputs, initial=initial).states.hidden[-1]
    found = np.split(np.asarray(jax.jit(jax.jacrev(last))(inputs)), 2)  # Re and Im, [N, T, M]
    p = jax.tree.map(np.asarray, params)
    decay = np.exp(-np.exp(p.nu_log) + 1j * np.exp(p.theta_log))
    gain = np.exp(p.gamma_log)[:, None] * (p.b_re + 1j * p.b_im)
    for k in range(cases.T):
        expected = decay[:, None] ** (cases.T - 1 - k) * gain
        np.testing.assert_allclose(found[0][:, k] + 1j * found[1][:, k], expected, rtol=1e-12)


def test_a_linear_recurrent_unit_starts_on_its_ring():
    params = cells.lru(3, 2000, r_min=0.4, r_max=0.8, max_phase=0.5).init(jax.random.key(0))
    area, phase = np.exp(-2 * np.exp(params.nu_log)), np.exp(params.theta_log)
    assert 0.16 <= area.min() < 0.165
    assert 0.635 < area.max() <= 0.64
    assert abs(area.mean() - 0.4) < 0.01  # uniform in area
    assert 0 < phase.min() < 0.01
    assert 0.49 < phase.max() <= 0.5
    np.testing.assert_allclose(np.exp(2 * params.gamma_log), 1 - area, rtol=1e-12)
    assert abs(np.var(params.b_im) - 1 / 6) < 0.01


@pytest.mark.parametrize("log_a", [-1e-9, -1e-4, -3.0])
def test_the_multiplier_keeps_its_digits(log_a):
    cell, zeros = cells.rg_lru(1), jnp.zeros((1, 1))
    lambda_ = jnp.array([math.log(math.expm1(-log_a / 4))])  # r = ½
    params = cells.RGLRUParams(zeros, zeros[0], zeros, zeros[0], lambda_)
    new = cell.step(params, jnp.zeros(1), jnp.ones(1))[0]
    np.testing.assert_allclose(new, math.sqrt(-math.expm1(2 * log_a)) / 2, rtol=1e-13)


@pytest.mark.parametrize("leaf", ["lambda_", "b_a"])
def test_a_gate_that_is_shut_in_floats_writes_nothing_and_has_a_gradient(leaf):
    model = models.sequence_model(cases.MODERN["rg_lru"], 2)
    params, inputs, targets, initial = cases.instance(model, jax.random.key(3), num_outputs=2)
    shut = params.cell._replace(**{leaf: jnp.full_like(getattr(params.cell, leaf), -800)})
    routes = [
        route(model, params._replace(cell=shut), inputs, targets, initial=initial)[1]
        for route in (gradients.bptt, gradients.autodiff)
    ]
    assert compare(*routes).relative < 1e-12


def test_a_ring_as_narrow_as_a_float_allows_is_drawn_finite():
    params = cells.lru(2, 50_000, r_min=0.9999).init(jax.random.key(0))
    with jax.enable_x64(False):
        single = cells.lru(2, 50_000, r_min=0.9999).init(jax.random.key(0))
    for leaf in (*params, *single):
        assert np.isfinite(leaf).all()


def test_a_reset_forgets_and_writes_in_full():
    plain, cell = cells.rg_lru(3), cells.rg_lru(3, resets=True)
    params, x, targets, state = cases.instance(plain, jax.random.key(2))
    reset = jnp.array([False, False, True, False, True])
    points = [(params, state, cells.RGLRUInput(x[0], jnp.array(start))) for start in (True, False)]
    assert largest_step_error(cell, cell.derivation, points) < 1e-13
    fresh, carried = (cell.step(*point) for point in points)
    np.testing.assert_array_equal(carried, plain.step(params, state, x[0]))
    np.testing.assert_allclose(fresh, jax.nn.sigmoid(params.w_i @ x[0] + params.b_i) * x[0], rtol=1e-14)
    inputs = cells.RGLRUInput(x, reset)
    assert largest_disagreement(cell, [(params, inputs, targets, state)]) < 1e-12
    chain = jacobians.step_jacobians(cell, params, trajectories.unroll(cell, params, inputs, initial=state))
    np.testing.assert_array_equal(np.any(chain != 0, axis=(1, 2)), ~reset)


def test_a_real_gated_unit_starts_with_slow_decays():
    params = cells.rg_lru(500).init(jax.random.key(0))
    area = np.exp(-2 * np.logaddexp(0, params.lambda_))
    assert 0.81 <= area.min() < 0.815
    assert 0.993 < area.max() <= 0.999**2


def test_a_selective_model_holds_its_input_and_reads_through_c():
    cell, params, inputs, _, state = instance("selective_ssm", 4)
    x, p = np.asarray(inputs[0]), jax.tree.map(np.asarray, params)
    delta, a = np.log1p(np.exp(p.w_delta @ x + p.b_delta))[:, None], -np.exp(p.a_log)
    new = np.exp(delta * a) * state + (np.exp(delta * a) - 1) / a * np.outer(x, p.w_b @ x)
    np.testing.assert_allclose(cell.step(params, state, inputs[0]), new, rtol=1e-12)
    np.testing.assert_allclose(cell.output(params, new, inputs[0]), new @ (p.w_c @ x) + p.d * x, rtol=1e-12)
    drawn = cells.selective_ssm(400, 3).init(jax.random.key(0))
    steps = np.logaddexp(0, drawn.b_delta)
    assert 1e-3 <= steps.min() < 1.1e-3
    assert 0.09 < steps.max() <= 0.1
    np.testing.assert_allclose(np.exp(drawn.a_log[7]), [1, 2, 3], rtol=1e-14)


def test_a_leak_is_a_param_of_its_shape():
    scalar = cells.leaky(2, 3, leak=0.3)
    params, inputs, targets, initial = cases.instance(scalar, jax.random.key(5))
    assert params.leak.shape == ()
    assert largest_disagreement(scalar, [(params, inputs, targets, initial)]) < 1e-12
    whole = cells.leaky(2, 3, leak=1.0)
    params = whole.init(jax.random.key(5))
    elman = cells.elman(2, 3).step(cells.ElmanParams(*params[:3]), initial, inputs[0])
    np.testing.assert_allclose(whole.step(params, initial, inputs[0]), elman, rtol=1e-15)


def test_layers_of_them_keep_their_factored_form():
    cell = cells.stack(cells.lru(2, 2), cells.min_gru(4, 3), cells.rg_lru(3))
    assert partials.step_partials(cell).source == "factored"
    assert largest_disagreement(cell, [cases.instance(cell, jax.random.key(6))]) < 1e-12
    model = models.sequence_model(cells.lru(2, 2), 3)
    assert model.init(jax.random.key(0)).readout.w_yh.shape == (3, 4)


@pytest.mark.parametrize("name", ["lru", "rg_lru"])
def test_the_check_of_derivations_finds_nothing(name):
    assert derivations.check(cases.MODERN[name], cases.MODERN[name].derivation, key=jax.random.key(1)).ok


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "module", "old", "new"),
    [
        ("leaky", "_leaky", "value - state", "value"),
        ("leaky", "_leaky", "(1 - params.leak) * cotangent", "params.leak * cotangent"),
        ("lru", "_lru", "_times(_conjugate(_rotate(params)), cotangent)", "_times(_rotate(params), cotangent)"),
        ("lru", "_lru", "-jnp.exp(params.nu_log) * turned", "jnp.exp(params.nu_log) * turned"),
        ("lru", "_lru", "[[re, -im], [im, re]]", "[[re, im], [-im, re]]"),
        ("min_gru", "_minimal", "(carry * write,)", "(write,)"),
        ("min_gru", "_minimal", "gates.candidate - state", "gates.candidate"),
        ("min_lstm", "_minimal", "(-slope * not_f, slope * not_i)", "(-slope, slope)"),
        ("min_lstm", "_minimal", "f @ params.w_f + i @ params.w_i", "i @ params.w_f + f @ params.w_i"),
        ("rg_lru", "_rg_lru", "gates.carry * state - gates.bend", "gates.carry * state"),
        ("rg_lru", "_rg_lru", "delta.x + delta.a", "delta.a"),
        ("selective_ssm", "_selective_ssm", "(delta * carry - write) * written", "delta * carry * written"),
        ("selective_ssm", "_selective_ssm", "carry * (a * state + written)", "a * carry * state"),
    ],
)
def test_a_broken_derivation_is_seen(name, module, old, new):
    mutant = mutate(importlib.import_module(f"jaxbptt.cells.{module}"), old, new)
    sizes = (cases.N,) if name == "rg_lru" else (cases.M, cases.N)
    cell, params, inputs, _, state = instance(name, 1)
    broken = getattr(mutant, name)(*sizes).derivation
    assert largest_step_error(cell, broken, [(params, state, inputs[0])]) > 1e-3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cells.leaky(2, 3, leak=0.0), ValueError, r"leak: got 0.0, expected a number in \(0, 1\]"),
        (lambda: cells.leaky(2, 3, leak=np.ones(2)), ValueError, r"leak: got shape \[2\], expected a scalar or \[3\]"),
        (lambda: cells.leaky(2, 3, activation=jax.nn.softmax), ValueError, "activation: got a function that mixes"),
        (lambda: cells.lru(2, 0), ValueError, "num_hidden: got 0, expected at least 1"),
        (lambda: cells.lru(2, 3, r_min=0.9, r_max=0.5), ValueError, "r_min, r_max: got 0.9, 0.5, expected 0 ≤ r_min"),
        (lambda: cells.lru(2, 3, max_phase=0.0), ValueError, "max_phase: got 0.0, expected a finite number above 0"),
        (lambda: cells.min_gru(-1, 3), ValueError, "num_inputs: got -1, expected at least 0"),
        (lambda: cells.min_lstm(2, 3).init(0), TypeError, "key: got int, expected a typed key"),
        (lambda: cells.lstm(2, 3, forget_bias="x"), TypeError, "forget_bias: got str, expected a finite number or"),
        (lambda: cells.min_lstm(2, 3, forget_bias=None), TypeError, "forget_bias: got NoneType, expected a finite"),
        (lambda: cells.leaky(2, 3, leak=True), TypeError, "leak: got bool, expected a number"),
        (lambda: cells.leaky(2, 3, activation="relu"), TypeError, "activation: got str, expected an elementwise"),
        (lambda: cells.elman(2, 3, activation=None), TypeError, "activation: got NoneType, expected an elementwise"),
        (
            lambda: cells.rg_lru(1, resets=True).step(
                cells.rg_lru(1).init(jax.random.key(0)), jnp.ones(1), jnp.ones(1)
            ),
            TypeError,
            r"inputs: got .*, expected cells.RGLRUInput\(x, reset\)",
        ),
        (lambda: cells.rg_lru(3.0), TypeError, "num_hidden: got float, expected an int"),
        (lambda: cells.rg_lru(3, resets=None), TypeError, "resets: got NoneType, expected a bool"),
        (lambda: cells.selective_ssm(3, 0), ValueError, "states: got 0, expected at least 1"),
        (lambda: cells.chrono(2), ValueError, "max_lag: got 2, expected a finite number above 2"),
    ],
)
def test_bad_arguments_get_one_line(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
