"""Every planted fault is found by the row that should find it, and nothing else is blamed."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, gradients, models, report
from jaxbptt.derivations import Derivation
from jaxbptt.gradients.forward import take_problem
from jaxbptt.report import _verify
from jaxbptt.report._subject import Subject
from tests import cases, steps

KEY = jax.random.key(5)
N, M, T = 3, 2, 4
ROWS = dict(_verify.ROWS)
X, Y = jax.random.normal(KEY, (T, M)), jax.random.normal(jax.random.key(6), (T, N))
PARAMS = {"w": 0.7 * jax.random.normal(KEY, (N, N)), "u": jax.random.normal(KEY, (N, M)), "b": jnp.full(N, 0.2)}


def affine(params, h, x):
    return params["w"] @ h + params["u"] @ x + params["b"]


def model_of(step=lambda params, h, x: jnp.tanh(affine(params, h, x)), initial_state=lambda params: 0.5 * params["b"]):
    return models.make_model(step, initial_state, lambda params, h: h, models.squared_error, reduction="mean")


def examine(name, model, params=PARAMS, inputs=X, targets=Y, *, gradient=None, initial=None):
    """One row alone."""
    subject = Subject(model, take_problem(model, params, inputs, targets, initial), gradient, KEY)
    return _verify._examine(subject, name, ROWS[name])


def counted(params, h, x):
    counted.calls += 1
    return jnp.tanh(affine(params, h, x)) * (1 + 1e-9 * counted.calls)


def random_of_trace(params, h, x):
    return jnp.tanh(affine(params, h, x)) + 1e-9 * np.random.rand()  # noqa: NPY002, the fault


def random_of_call(params, h, x):
    noise = jax.pure_callback(
        lambda x: np.asarray(np.random.rand()),  # noqa: NPY002
        jax.ShapeDtypeStruct((), x.dtype),
        x,
        vmap_method="sequential",
    )
    return jnp.tanh(affine(params, h, x)) + 1e-9 * noise


@jax.custom_vjp
def clipped(a):
    return jnp.tanh(a)


clipped.defvjp(lambda a: (jnp.tanh(a), a), lambda a, ct: (jnp.clip(ct / jnp.cosh(a) ** 2, -0.1, 0.1),))


@jax.custom_jvp
def turned(a):
    return jnp.roll(jnp.tanh(a), 1)


@turned.defjvp
def _(primals, tangents):
    slope = 1 / jnp.cosh(primals[0]) ** 2
    forward, backward = (lambda s, t: jnp.roll(s * t, 1)), (lambda s, ct: s * ct)  # forgets to roll back
    return turned(primals[0]), jax.custom_derivatives.linear_call(forward, backward, slope, tangents[0])


def cut(params, h, x):
    return jnp.tanh(affine(params, jnp.where(x[0] == 7, jax.lax.stop_gradient(h), h), x))


@jax.custom_batching.custom_vmap
def mean_of_batch(a):
    return jnp.zeros_like(a)


@mean_of_batch.def_vmap
def _(size, batched, a):
    return jnp.broadcast_to(jnp.mean(a, axis=0, keepdims=True), a.shape), True


def mixing(params, h, x):
    a = affine(params, h, x)
    return jnp.tanh(a) + 1e-6 * mean_of_batch(jax.lax.stop_gradient(a))


def asks_whether_traced(params, h, x):
    return jnp.tanh(affine(params, h, x)) * (1.0 if isinstance(h, jax.core.Tracer) else 1.001)


def other_in_float32(params, h, x):
    return jnp.tanh(affine(params, h, x)) * (1.001 if h.dtype == jnp.float32 else 1.0)


@jax.custom_vjp
def forgotten(b):
    return 0.5 * b


forgotten.defvjp(lambda b: (0.5 * b, None), lambda _, ct: (jnp.zeros_like(ct),))

of = lambda activation: lambda params, h, x: activation(affine(params, h, x))
FAULTS = {
    "Python's counter": ("calls agree", model_of(counted), "two traces"),
    "NumPy's random numbers in the trace": ("calls agree", model_of(random_of_trace), "two traces"),
    "random numbers of the host": ("calls agree", model_of(random_of_call), "two calls"),
    "a trace that counts": ("prefix", model_of(counted), "T − 1"),
    "clipped cotangents": ("pullback linear", model_of(of(clipped)), "not linear"),
    "wrong transpose": ("forward = reverseᵀ", model_of(of(turned)), "not transposes"),
    "stop_gradient at t = 3": ("reaches h_0", model_of(cut), "back to h_3, not to h_2"),
    "stop_gradient in the step": ("finite differences", steps.model_of("stop_gradient, debug.print"), "C moves along"),
    "no gradient of h_0": ("finite differences", model_of(initial_state=lambda p: forgotten(p["b"])), "params.b"),
    "vmap mixes": ("batch", model_of(mixing), "side by side"),
    "isinstance Tracer": ("jit", model_of(asks_whether_traced), "outside jit"),
    "another function in float32": ("float32, float64", model_of(other_in_float32), "float32"),
}
counted.calls = 0


@pytest.mark.sweep
@pytest.mark.parametrize("fault", FAULTS)
def test_the_row_finds_the_fault(fault, capfd):
    row, model, said = FAULTS[fault]
    inputs = X.at[2, 0].set(7) if fault == "stop_gradient at t = 3" else X
    params, inputs = (steps.data_of("cond, switch")[0], X) if "in the step" in fault else (PARAMS, inputs)
    check = examine(row, model, params, inputs)
    assert check.status == "failed", check
    assert said in check.detail
    assert not check.detail.startswith("raised")


@pytest.mark.sweep
@pytest.mark.parametrize("row", sorted({row for row, _, _ in FAULTS.values()}))
def test_the_row_passes_without_the_fault(row):
    check = examine(row, model_of())
    assert check.status == "passed", check
    assert check.number is None or check.number < 1e-6 or row == "reaches h_0"


def mixed_batch(size=3):
    def step(params, h, x):
        return jax.vmap(lambda h, x: jnp.tanh(affine(params, h, x)))(h, x) + 1e-9 * jnp.mean(h, axis=0, keepdims=True)

    loss = lambda output, target: jnp.sum((output - target) ** 2) / 2
    own = models.make_model(step, lambda params: jnp.zeros((size, N)), lambda params, h: h, loss)
    return own._replace(batch=size)


@pytest.mark.parametrize(("mixes", "status"), [(False, "passed"), (True, "failed")])
def test_sequences_of_a_batched_model_do_not_mix(mixes, status):
    model = mixed_batch() if mixes else models.batched(model_of(), 3)
    data = jax.random.normal(KEY, (T, 3, M)), jax.random.normal(KEY, (T, 3, N))
    check = examine("batch", model, PARAMS, *data)
    assert check.status == status, check


class Batched(models.Model):
    single = model_of()


@pytest.mark.parametrize(("factor", "status"), [(1.0, "passed"), (1.001, "failed")])
def test_a_batched_model_is_the_sum_of_its_single_ones(factor, status):
    batch = models.batched(model_of(), 3)
    loss = lambda output, target: factor * batch.loss(output, target)
    data = jax.random.normal(KEY, (T, 3, M)), jax.random.normal(KEY, (T, 3, N))
    check = examine("batch", Batched(*batch._replace(loss=loss)), PARAMS, *data)
    assert check.status == status, check


def without_initial(model, params, inputs, targets):
    return gradients.bptt(model, params, inputs, targets, initial=model.initial_state(params))


def truncated(model, params, inputs, targets):
    cut = jax.tree.map(lambda leaf: leaf[-2:], (inputs, targets))
    states = jax.lax.scan(lambda h, x: (model.step(params, h, x),) * 2, model.initial_state(params), inputs)[1]
    weight = 1 / len(inputs) * 2
    early = jax.tree.map(lambda leaf: leaf[:-2], (inputs, targets))
    late = gradients.bptt(model, params, *cut, initial=states[-3])[1]
    first = gradients.bptt(model, params, *early)[1]
    return jax.tree.map(lambda a, b: weight * (a + b), late, first)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("gradient", "slip"), [(without_initial, "missing_initial_state"), (truncated, "truncated"), (gradients.bptt, None)]
)
def test_a_gradient_of_ones_own(gradient, slip):
    check = examine("gradient given", model_of(), gradient=gradient)
    assert check.status == ("failed" if slip else "passed"), check
    assert slip is None or slip in check.detail


def test_a_given_initial_state_is_a_constant_for_a_gradient_too():
    initial = jnp.full(N, 0.3)
    assert examine("gradient given", model_of(), gradient=gradients.bptt, initial=initial).status == "passed"
    assert examine("h_0 counted", model_of(), initial=initial).status == "note"
    assert examine("h_0 counted", model_of(initial_state=lambda p: jnp.zeros(N)), initial=initial).status == "passed"


def test_a_transposed_jacobian_in_a_derivation():
    model = models.sequence_model(cells.elman(M, N), N)
    own = model.derivation
    wrong = Derivation(lambda *at: own.state_jacobian(*at).T, own.pullback)
    params = model.init(KEY)
    check = examine("hand derivation", model._replace(derivation=wrong), params)
    assert check.status == "failed"
    assert "state_jacobian" in check.detail
    assert "transposed" in check.detail

    def pullback(params, state, x, cotangent):
        of_params, of_state, of_x = own.pullback(params, state, x, cotangent)
        return of_params, -of_state, of_x

    check = examine("routes", model._replace(derivation=Derivation(own.state_jacobian, pullback)), params)
    assert check.status == "failed"
    assert "bptt differs from autodiff" in check.detail


def test_notes():
    unused = {**PARAMS, "unused": jnp.ones(2)}
    check = examine("dead leaves", model_of(), unused)
    assert (check.status, check.number) == ("note", 1.0)
    assert "params.unused" in check.detail
    low = {**PARAMS, "w": jnp.ones((N, N))}
    check = examine("rank of J_t", model_of(), low)
    assert check.status == "note"
    assert "1 at t = 1" in check.detail
    resets = model_of(lambda params, h, x: jnp.tanh(affine(params, jnp.where(x[0] == 7, 0 * h, h), x)))
    check = examine("reaches h_0", resets, inputs=X.at[2, 0].set(7))
    assert check.status == "note"
    assert "does not depend" in check.detail
    at_kink = model_of(of(jax.nn.relu), lambda params: jnp.zeros(N))
    check = examine("finite differences", at_kink, {**PARAMS, "b": jnp.zeros(N)}, inputs=0 * X)
    assert check.status == "note", check


@pytest.mark.parametrize(
    ("model", "failed", "said"),
    [
        (model_of()._replace(loss=lambda o, y: (o - y) ** 2), "arguments, scalar loss", "loss: got shape [3]"),
        (model_of(lambda p, h, x: h.astype(jnp.float32)), "state kept", "float32"),
    ],
)
def test_refused_arguments_are_a_failed_row(model, failed, said):
    verdict = report.verify(model, PARAMS, X, Y)
    assert [check.name for check in verdict.checks if check.status == "failed"] == [failed]
    assert {check.status for check in verdict.checks} == {"failed", "n/a"}
    assert said in str(verdict)
    with pytest.raises(AssertionError, match="1 of 17 checks failed"):
        report.assert_verified(model, PARAMS, X, Y)


def test_what_the_model_raises_is_told_once():
    model, data = steps.model_of("callback of the state"), steps.data_of("callback of the state")
    subject = Subject(model, take_problem(model, *data), None, KEY)
    first = _verify._examine(subject, "routes", ROWS["routes"])
    assert first.status == "failed"
    assert first.detail.startswith("raised ValueError: step: got one that has neither")
    again = _verify._examine(subject, "dead leaves", ROWS["dead leaves"], [first])
    assert again.detail == "raised the same as 'routes'"


def test_options():
    with pytest.raises(TypeError, match="key: got int"):
        report.verify(model_of(), PARAMS, X, Y, key=3)
    with pytest.raises(TypeError, match="model: got NoneType"):
        report.verify(None, PARAMS, X, Y)
    with pytest.raises(TypeError, match="gradient: got int"):
        report.verify(model_of(), PARAMS, X, Y, gradient=3)


def test_a_whole_verdict():
    model = models.sequence_model(cells.elman(M, N), N)
    verdict = report.verify(model, model.init(KEY), X, Y)
    assert verdict.ok, str(verdict)
    assert [check.name for check in verdict.checks][1:] == list(ROWS)
    assert {check.name for check in verdict.checks if check.status == "n/a"} == {"gradient given", "h_0 counted"}
    lines = str(verdict).splitlines()
    assert lines[0] == "verified"
    assert max(map(len, lines)) <= 100
    assert report.assert_verified.__doc__


@pytest.mark.slow
@pytest.mark.parametrize("kind", steps.STEPS)
def test_no_false_alarm_on_any_kind_of_step(kind, capfd):
    params, inputs, targets, start = steps.data_of(kind)
    initial = start if kind.startswith("log space") else None
    verdict = report.verify(steps.model_of(kind), params, inputs, targets, initial=initial)
    failed = [check.name for check in verdict.checks if check.status == "failed"]
    expected = {"stop_gradient, debug.print": ["finite differences"], "callback of the state": ["routes"]}
    assert failed == expected.get(kind, []), str(verdict)
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", cases.CELLS)
def test_no_false_alarm_on_any_cell(name, dtype):
    model = models.sequence_model(cases.CELLS[name], cases.O)
    data = jax.tree.map(lambda leaf: leaf.astype(dtype), cases.instance(model, KEY)[:3])
    verdict = report.verify(model, *data, gradient=functools.partial(gradients.bptt))
    assert verdict.ok, str(verdict)


@pytest.mark.slow
def test_without_x64():
    code = """
import jax, jax.numpy as jnp
from jaxbptt import cells, models, report
model = models.sequence_model(cells.gru(2, 3), 4, loss=models.softmax_cross_entropy)
key = jax.random.key(0)
verdict = report.verify(model, model.init(key), jax.random.normal(key, (12, 2)), jnp.arange(12) % 4)
assert verdict.ok, str(verdict)
assert next(check for check in verdict.checks if check.name == "float32, float64").status == "n/a"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_that_diverges_is_told_once():
    step = lambda w, h, x: w @ h * jnp.vdot(h, h) + 1e100 * x
    model = models.make_model(step, lambda w: jnp.ones(2), lambda w, h: h, models.squared_error)
    verdict = report.verify(model, jnp.eye(2), jnp.ones((9, 2)), jnp.ones((9, 2)))
    failed = [check for check in verdict.checks if check.status == "failed"]
    assert len(failed) == 1
    assert "got NaN or inf" in failed[0].detail
    assert {check.status for check in verdict.checks} == {"failed", "n/a"}
