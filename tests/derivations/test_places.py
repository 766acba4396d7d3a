"""Mistakes at places that few cells have: resets, tied parameters, a learned h_0, nonlinear readouts; and pairs."""

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, gradients, models, truncation
from jaxbptt.derivations import Derivation, check, check_gradient
from tests.derivations.by_hand import T, make

N = 3
KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 5)
W, U, X = (jax.random.normal(key, shape) for key, shape in zip(KEYS, ((N, N), (N, N), (T, N)), strict=False))
PARAMS = {"w": W / 2, "u": U, "v": W.T, "h_0": jnp.full(N, 0.3)}
Y = jnp.ones((T, N))
frozen = jax.lax.stop_gradient


def affine(p, h, x):
    return p["w"] @ h + p["u"] @ x


def plain(p, h, x):
    return jnp.tanh(affine(p, h, x))


def model_of(step, **fields):
    model = models.Model(None, lambda p: p["h_0"], step, lambda p, h: h, models.squared_error)
    return model._replace(**fields)


def by_vjp(step):
    def state_jacobian(params, state, x):
        flat, unravel = ravel_pytree(state)
        return jax.jacrev(lambda h: ravel_pytree(step(params, unravel(h), x))[0])(flat)

    return Derivation(state_jacobian, lambda *at: jax.vjp(step, *at[:3])[1](at[3]))


def slips_of(report):
    return {finding.piece: finding.slip for finding in report.findings}


def check_planted(model, **wrong):
    """The report on the gradient of the same model with another derivative."""
    gradient = lambda model, *at: gradients.autodiff(model._replace(**wrong), *at)
    return check_gradient(model, gradient, key=KEY, params=PARAMS, inputs=X, targets=Y)


def mask(x):
    return (x[2] > 0.3).astype(x.dtype)


def reset_by_where(p, h, x):
    return plain(p, jnp.where(x[2] > 0.3, p["h_0"], h), x)


def reset_by_where_leaks(p, h, x):
    return plain(p, jnp.where(x[2] > 0.3, p["h_0"] + h - frozen(h), h), x)


def reset_by_mask(p, h, x):
    return plain(p, (1 - mask(x)) * h, x)


def reset_by_mask_leaks(p, h, x):
    return plain(p, (1 - mask(x)) * frozen(h) + h - frozen(h), x)


RESETS = [(reset_by_where, reset_by_where_leaks), (reset_by_mask, reset_by_mask_leaks)]


@pytest.mark.parametrize(("right", "wrong"), RESETS)
def test_a_gradient_carried_across_a_reset_is_named(right, wrong):
    cell = cells.from_step(right, lambda p: p["h_0"])
    report = check(cell, by_vjp(wrong), key=KEY, params=PARAMS, inputs=X)
    assert slips_of(report) == {"state_jacobian": "across_reset", "previous_state": "across_reset"}
    assert set(slips_of(check_planted(model_of(right), step=wrong)).values()) == {"across_reset"}


def twice(p, h, x):
    return jnp.tanh(p["w"] @ jnp.tanh(p["w"] @ h) + p["u"] @ x)


def second_use_alone(p, h, x):
    return jnp.tanh(p["w"] @ jnp.tanh(frozen(p["w"]) @ h) + p["u"] @ x)


def test_each_missing_use_of_a_parameter_is_named():
    cell = cells.from_step(twice, lambda p: p["h_0"])
    report = check(cell, by_vjp(second_use_alone), key=KEY, params=PARAMS, inputs=X)
    assert slips_of(report) == {"params.w": "missing_direct_term"}
    assert "use 1 of 2 of params.w" in str(report)
    tied = model_of(plain, readout=lambda p, h: jnp.sin(p["w"] @ h))
    without = lambda p: {**p, "w": frozen(p["w"])}
    report = check_planted(tied, step=lambda p, h, x: plain(without(p), h, x))
    assert slips_of(report) == {"params.w": "missing_direct_term"}
    assert "the step's own use" in str(report)
    report = check_planted(tied, readout=lambda p, h: tied.readout(without(p), h))
    assert slips_of(report) == {"params.w": "missing_direct_term"}
    assert "the readout's own use" in str(report)


def test_the_missing_gradient_of_a_learned_start_is_named():
    report = check_planted(model_of(plain), initial_state=lambda p: frozen(p["h_0"]))
    assert slips_of(report) == {"params.h_0": "missing_initial_state"}


def bend_wrongly(slope):
    """A readout tanh(v h) whose derivative is slope(y)."""

    def readout(p, h):
        a = p["v"] @ h
        y = frozen(jnp.tanh(a))
        return y + slope(y) * (a - frozen(a))

    return readout


SLOPES = {
    "missing_activation_derivative": jnp.ones_like,
    "activated_value": lambda y: 1 - jnp.tanh(y) ** 2,
    "squared_complement": lambda y: (1 - y) ** 2,
}


@pytest.mark.sweep
@pytest.mark.parametrize("slip", SLOPES)
def test_a_slip_in_the_readout_is_named(slip):
    model = model_of(plain, readout=lambda p, h: jnp.tanh(p["v"] @ h))
    report = check_planted(model, readout=bend_wrongly(SLOPES[slip]))
    assert set(slips_of(report).values()) == {slip}
    assert "in the readout" in str(report)


def test_two_slips_at_once_are_named():
    model = models.sequence_model(make("elman"), 2)

    def cut_and_negated(model, *at):
        return jax.tree.map(jnp.negative, truncation.windowed(model, *at, window=3)[1])

    report = check_gradient(model, cut_and_negated, key=KEY)
    found = slips_of(report)
    assert {found[f"params.cell.{leaf}"] for leaf in ("w_hx", "w_hh", "b_h")} == {"sign + truncated"}
    assert found["params.readout.w_yh"] == "sign"
    assert "every 3 steps" in str(report)

    def late_and_flat(p, h, x):  # φ' missing, and h_t for h_{t−1} in W's factor
        a, new = affine(p, h, x), frozen(plain(p, h, x))
        moved = p["w"] @ frozen(new - h) - frozen(p["w"] @ (new - h))
        return new + a - frozen(a) + moved

    cell = cells.from_step(plain, lambda p: p["h_0"])
    report = check(cell, by_vjp(late_and_flat), key=KEY, params=PARAMS, inputs=X)
    assert slips_of(report)["params.w"] == "missing_activation_derivative + wrong_time_index"
    assert slips_of(report)["params.u"] == "missing_activation_derivative"


def test_a_report_says_which_gate():
    cell = make("lstm")
    right = cell.derivation.pullback

    def pullback(params, state, x, cotangent):
        leaves, of_state, of_x = right(params, state, x, cotangent)
        blocks = jnp.split(leaves.w_hh, 4)
        return leaves._replace(w_hh=jnp.concatenate((blocks[1], blocks[0], *blocks[2:]))), of_state, of_x

    report = check(cell, Derivation(cell.derivation.state_jacobian, pullback), key=KEY)
    assert slips_of(report) == {"params.w_hh": "swapped_gates"}
    assert "the rows of gate i and the rows of gate f" in str(report)
    bare = cells.from_step(lambda p, h, x: cell.step(p, h, x), cell.initial_state)  # params without letters
    as_dict = lambda p: {"w_hx": p.w_hx, "w_hh": p.w_hh, "b_h": p.b_h}
    params = cell.init(KEY)
    anonymous = cells.from_step(
        lambda p, h, x: bare.step(type(params)(**p), h, x), lambda p: cell.initial_state(type(params)(**p))
    )

    def dict_pullback(p, state, x, cotangent):
        leaves, of_state, of_x = pullback(type(params)(**p), state, x, cotangent)
        return as_dict(leaves), of_state, of_x

    jacobian = lambda p, *at: cell.derivation.state_jacobian(type(params)(**p), *at)
    inputs = jax.random.normal(KEY, (T, 2))
    derivation = Derivation(jacobian, dict_pullback)
    report = check(anonymous, derivation, key=KEY, params=as_dict(params), inputs=inputs)
    assert "rows 0–2 of params" in str(report)


TIED = model_of(plain, readout=lambda p, h: jnp.sin(p["w"] @ h))
BENT = model_of(plain, readout=lambda p, h: jnp.tanh(p["v"] @ h))
PLANTED = {
    "across_reset, where": ("across_reset", model_of(reset_by_where), {"step": reset_by_where_leaks}),
    "across_reset, mask": ("across_reset", model_of(reset_by_mask), {"step": reset_by_mask_leaks}),
    "a use": ("missing_direct_term", model_of(twice), {"step": second_use_alone}),
    "the step's": ("missing_direct_term", TIED, {"step": lambda p, h, x: plain({**p, "w": frozen(p["w"])}, h, x)}),
    "h_0": ("missing_initial_state", model_of(plain), {"initial_state": lambda p: frozen(p["h_0"])}),
    **{f"readout {slip}": (slip, BENT, {"readout": bend_wrongly(slope)}) for slip, slope in SLOPES.items()},
    "two of step and readout": (
        "activated_value + missing_direct_term",
        model_of(twice, readout=BENT.readout),
        {"step": second_use_alone, "readout": bend_wrongly(SLOPES["activated_value"])},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTED)
def test_slips_at_such_places_are_named_at_random_params(plant):
    slip, model, wrong = PLANTED[plant]
    planted = jax.jit(lambda *at: gradients.autodiff(model._replace(**wrong), *at)[1])
    named, count = 0, 20
    for number in range(count):
        keys, dtype = jax.random.split(jax.random.key(number), 6), (jnp.float64, jnp.float32)[number % 2]
        shapes = {"w": (N, N), "u": (N, N), "v": (N, N), "h_0": (N,)}
        params = {name: jax.random.normal(key, shapes[name], dtype) for name, key in zip(shapes, keys, strict=False)}
        params["w"] = params["w"] * jnp.asarray((0.5, 1.0, 1.5)[number % 3] / N**0.5, dtype)
        inputs, targets = (jax.random.normal(key, (T, N), dtype) for key in keys[4:])
        inputs = inputs.at[1, 2].set(1)  # a reset that the checks cannot miss
        gradient = lambda _, *at: planted(*at)
        report = check_gradient(model, gradient, key=keys[0], params=params, inputs=inputs, targets=targets)
        assert not report.ok, number
        named += slip in slips_of(report).values()
    assert named >= 0.95 * count
