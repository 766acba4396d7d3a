"""What cannot be decided is said: kinks, vjps that are not linear, numbers below rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, gradients, models
from jaxbptt.derivations import check, check_gradient
from jaxbptt.derivations.doubts import settle_doubts
from jaxbptt.derivations.matching import Piece, is_wrong
from tests.derivations.by_hand import T
from tests.derivations.test_places import KEY, PARAMS, N, X, Y, affine, by_vjp, model_of, plain

AT_ZERO = X.at[:2].set(0)
START = {**PARAMS, "h_0": jnp.zeros(N)}


def relu_half(p, h, x):
    return jnp.maximum(affine(p, h, x), 0)


def relu_zero(p, h, x):
    return jax.nn.relu(affine(p, h, x))


def check_at_zero(step, gradient):
    return check_gradient(model_of(step), gradient, key=KEY, params=START, inputs=AT_ZERO, targets=Y)


def relu_where(p, h, x):
    a = affine(p, h, x)
    return jnp.where(a > 0, a, 0)


@pytest.mark.sweep
@pytest.mark.parametrize("step", [relu_half, relu_zero, relu_where])
def test_another_choice_at_a_kink_is_not_blamed(step):
    other = lambda model, *at: gradients.autodiff(model._replace(step=relu_zero), *at)
    report = check_at_zero(step, other)
    assert report.ok, report
    assert "is not differentiable at the argument visited at t = 1, 2: 6 entries" in str(report)
    wrong = check_at_zero(step, lambda *at: jax.tree.map(jnp.negative, other(*at)[1]))
    assert {finding.slip for finding in wrong.findings} == {"sign"}


def test_a_kink_that_cannot_be_avoided_is_left_undecided():
    step = lambda p, h, x: jnp.maximum(plain(p, h, x), jnp.tanh(affine(p, h, x)))
    report = check_at_zero(step, lambda *at: jax.tree.map(lambda leaf: leaf * 1.1, gradients.autodiff(*at)[1]))
    assert report.ok
    assert "left undecided" in str(report)


@pytest.mark.sweep
@pytest.mark.parametrize("smooth", [jax.nn.softplus, jnp.tanh, lambda a: jnp.logaddexp(a, -a)])
def test_what_is_smooth_at_zero_is_no_kink(smooth):
    report = check_at_zero(lambda p, h, x: smooth(affine(p, h, x)), gradients.autodiff)
    assert report.ok
    assert not report.notes


@jax.custom_vjp
def clip_backward(h):
    return h


clip_backward.defvjp(lambda h: (h, None), lambda _, cotangent: (jnp.clip(cotangent, -0.1, 0.1),))


@jax.custom_vjp
def spike(v):
    return jnp.where(v > 0, 1.0, 0.0)


spike.defvjp(lambda v: (spike(v), v), lambda v, cotangent: (cotangent / (1 + jnp.abs(v)) ** 2,))


def test_a_step_whose_vjp_is_not_linear_is_a_finding():
    step = lambda p, h, x: clip_backward(plain(p, h, x))
    (finding,) = check_gradient(model_of(step), gradients.bptt, key=KEY, params=PARAMS, inputs=X, targets=Y).findings
    assert finding.piece == "step"
    assert "not linear in its cotangent" in str(finding)
    cell = cells.from_step(step, lambda p: p["h_0"])
    (finding,) = check(cell, by_vjp(step), key=KEY, params=PARAMS, inputs=X).findings
    assert "not linear in its cotangent" in str(finding)
    surrogate = lambda p, h, x: spike(affine(p, h, x))
    assert check(cells.from_step(surrogate, lambda p: p["h_0"]), by_vjp(surrogate), key=KEY, params=PARAMS, inputs=X).ok


@pytest.mark.parametrize("bound", [0.5, 20.0])
def test_a_pullback_that_is_not_linear_is_a_finding(bound):
    cell, right = cells.from_step(plain, lambda p: p["h_0"]), by_vjp(plain)

    def pullback(*at):
        params, state, x = right.pullback(*at)
        return params, jnp.clip(state, -bound, bound), x

    (finding,) = check(cell, right._replace(pullback=pullback), key=KEY, params=PARAMS, inputs=X).findings
    assert finding.piece == "previous_state"
    assert "not linear in its cotangent" in str(finding)


def test_a_zero_gradient_is_found_or_said():
    model = models.sequence_model(cells.elman(2, N), 2)

    def without_recurrence(model, *at):
        grads = gradients.autodiff(model, *at)[1]
        return grads._replace(cell=jax.tree.map(jnp.zeros_like, grads.cell))

    inputs = jax.random.normal(KEY, (T, 2), jnp.float32)
    for gain in (3, 10, 30, 100):
        params = jax.tree.map(lambda leaf, gain=gain: (leaf * gain).astype(jnp.float32), model.init(KEY))
        arguments = {"key": KEY, "params": params, "inputs": inputs, "targets": jnp.zeros((T, 2), jnp.float32)}
        report = check_gradient(model, without_recurrence, **arguments)
        right = gradients.autodiff(model, params, inputs, arguments["targets"])[1].cell
        for leaf, value in zip(right._fields, right, strict=True):
            name = f"params.cell.{leaf}"
            noted = any(f"cannot tell {name}" in note for note in report.notes)
            assert noted or name in [finding.piece for finding in report.findings] or not jnp.any(value)
        assert check_gradient(model, gradients.bptt, **arguments).ok


@pytest.mark.parametrize(("response", "is_found"), [(1e-12, True), (1e-8, False)])
def test_a_zero_below_the_rounding_of_sums_is_judged_by_the_reference_itself(response, is_found):
    small = np.full((1, 2), 3e-9)
    piece = Piece(small, 0 * small, np.full(1, 1e-5), np.full(1, response))
    settled, notes = settle_doubts({"params.w": piece, "params.u": piece._replace(actual=small)}, np.dtype("float32"))
    assert is_wrong(settled["params.w"]) == is_found
    assert ("float32 cannot tell params.w, of norm 4.2e-09, from zero: check in float64" in notes) == (not is_found)
    assert any("params.u" in note and "cannot prove it" in note for note in notes)
