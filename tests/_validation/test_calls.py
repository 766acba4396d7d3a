"""What people hand in by mistake: one line that names the argument and what to do, the same in every function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import (
    cells,
    fixed_points,
    gradients,
    jacobians,
    models,
    online,
    plotting,
    spectra,
    terms,
    trajectories,
    truncation,
)

N, T = 3, 4
W, X, Y = 0.5 * jnp.eye(N) + 0.1, jnp.ones((T, N)), jnp.zeros((T, N))
GOOD = {
    "step": lambda params, state, x: jnp.tanh(params @ state + x),
    "initial_state": lambda params: jnp.zeros(N),
    "readout": lambda params, state: state,
    "loss": models.squared_error,
}


def model_of(**changed):
    return models.make_model(**{**GOOD, **changed})


MODEL = model_of()
ROUTES = {  # (model, params, inputs, targets)
    "autodiff": gradients.autodiff,
    "bptt": gradients.bptt,
    "forward_sensitivity": gradients.forward_sensitivity,
    "double_sum": gradients.double_sum,
    "adjoints": gradients.adjoints,
    "gradient_terms": terms.gradient_terms,
    "windowed": functools.partial(truncation.windowed, window=2),
    "lag": functools.partial(truncation.lag, num_lags=2),
    "randomised": functools.partial(truncation.randomised, keep=0.5, cuts=np.zeros(T, bool)),
    "adaptive": functools.partial(truncation.adaptive, tolerance=0.5, num_lags=2),
    "lag_profile": functools.partial(truncation.lag_profile, num_lags=2),
    "weighted_gradient": functools.partial(truncation.weighted_gradient, weights=jnp.zeros((T, T + 1))),
    "online.run": functools.partial(online.run, online.rtrl()),
}


class Tensor:
    """An array of another framework."""

    shape, ndim = (T, N), 2


MISTAKES = {  # (model, params, inputs, targets), what is said
    "a vector loss": (
        (model_of(loss=lambda o, y: (o - y) ** 2), W, X, Y),
        ValueError,
        r"loss: got shape \[3\], expected a scalar",
    ),
    "a pair of losses": ((model_of(loss=lambda o, y: (o[0], o[1])), W, X, Y), TypeError, "loss: got tuple, expected"),
    "no readout": ((MODEL._replace(readout=None), W, X, Y), TypeError, "model.readout: got NoneType, expected a funct"),
    "a step with an output": (
        (model_of(step=lambda p, s, x: (jnp.tanh(p @ s + x), s)), W, X, Y),
        ValueError,
        r"step's new state: got structure .*\(a step that returns \(carry, output\): pass lambda",
    ),
    "a cell": ((cells.from_step(GOOD["step"], GOOD["initial_state"]), W, X, Y), TypeError, "model: got Cell, expected"),
    "a module": ((object(), W, X, Y), TypeError, r"model: got object, expected a Model \(models.make_model"),
    "h_0 of another dtype": (
        (model_of(initial_state=lambda p: jnp.zeros(N, jnp.float32)), W, X, Y),
        TypeError,
        r"initial_state\(params\): got float32, expected float64 like params",
    ),
    "a float16 h_0": (
        (MODEL, W.astype(jnp.bfloat16), X, Y),
        TypeError,
        r"initial_state\(params\): got float64, expected bfloat16 like params",
    ),
    "inputs of another dtype": (
        (model_of(step=lambda p, s, x: s.astype(jnp.float32) + x), W, X.astype(jnp.float32), Y),
        TypeError,
        "step's new state: got float32, expected float64 like h_0 .*inputs float32: cast them to one dtype",
    ),
    "a list": ((MODEL, W, X.tolist(), Y), TypeError, "inputs: got list, expected an array"),
    "a number among params": ((MODEL, (W, 0.5), X, Y), TypeError, r"params.1: got float|params: got tuple"),
    "another framework's array": ((MODEL, W, X, Tensor()), TypeError, "targets: got Tensor, expected an array"),
    "an array of objects": ((MODEL, W, np.array([None]), Y), TypeError, "inputs: got an array of object, expected"),
    "int params": ((MODEL, W.astype(int), X, Y), TypeError, r"params: got int64, .*\(close over what is not trained\)"),
    "a counter in the state": (
        (model_of(initial_state=lambda p: (jnp.zeros(N), jnp.asarray(0))), W, X, Y),
        TypeError,
        r"initial_state\(params\).1: got int64, .*compute them beforehand and pass them as inputs",
    ),
    "a key in the state": (
        (model_of(initial_state=lambda p: {"h": jnp.zeros(N), "key": jax.random.key(0)}), W, X, Y),
        TypeError,
        r"initial_state\(params\).key: got key<fry>, .*pass them as inputs",
    ),
    "a complex state": (
        (model_of(initial_state=lambda p: jnp.zeros(N, complex)), W, X, Y),
        TypeError,
        r"initial_state\(params\): got complex128, .*real and imaginary parts",
    ),
    "a Python if": (
        (model_of(step=lambda p, s, x: s if s[0] > 0 else -s), W, X, Y),
        TypeError,
        "step: raised TracerBoolConversionError where it was traced",
    ),
    "a reduction": ((MODEL._replace(reduction="max"), W, X, Y), ValueError, "model.reduction: got 'max', expected"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("route", ROUTES)
def test_a_mistake_gets_the_same_line_everywhere(route, mistake):
    arguments, kind, said = MISTAKES[mistake]
    with pytest.raises(kind, match=said) as caught:
        ROUTES[route](*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        jacobians.step_jacobians,
        jacobians.structured_jacobians,
        functools.partial(spectra.leading_singular_values, k=1, key=jax.random.key(0)),
    ],
)
def test_inputs_given_for_a_trajectory(call):
    cell = cells.elman(N, N)
    with pytest.raises(TypeError, match=r"trajectory: got ArrayImpl, expected a Trajectory: unroll\("):
        call(cell, cell.init(jax.random.key(0)), X)


@pytest.mark.parametrize("call", [trajectories.unroll, spectra.stream_exponents])
def test_a_module_given_for_a_cell(call):
    with pytest.raises(TypeError, match=r"cell: got object, expected a Cell \(cells.from_step"):
        call(object(), W, X)
    with pytest.raises(TypeError, match="cell: got object"):
        fixed_points.find_fixed_points(object(), W, X, X[0])


def test_batch_before_time():
    with pytest.raises(ValueError, match=r"x: got shape \[4, 3\] at one step, expected 2 .*time before batch"):
        gradients.bptt(models.batched(MODEL, 2), W, jnp.ones((2, T, N)), jnp.ones((2, T, N)))


@pytest.mark.parametrize(
    ("draw", "arguments", "said"),
    [
        (plotting.terms_table, "terms", "norms: got GradientTerms, expected an array .* fields norms, by_leaf"),
        (plotting.lag_profile, "terms", "profile: got GradientTerms"),
        (plotting.terms_table, "profile", r"norms: got shape \[4\], expected \[T, T\]"),
    ],
)  # fmt: skip
def test_a_result_given_to_plotting(draw, arguments, said):
    table = terms.gradient_terms(MODEL, W, X, Y)
    given = table if arguments == "terms" else table.profile()
    options = ({0.5: 1},) if draw is plotting.lag_profile else ()
    with pytest.raises((TypeError, ValueError), match=said):
        draw(None, given, *options)


def log_space(params, state, x):
    return jnp.logaddexp(state + params[0], x)


@pytest.mark.sweep
@pytest.mark.parametrize("route", ROUTES)
def test_minus_infinity_in_h_0_is_allowed_everywhere(route):
    model = model_of(step=log_space, initial_state=lambda p: jnp.full(N, -jnp.inf))
    results = [ROUTES[route](model, W, X, Y), ROUTES[route](model, W, X, Y, initial=np.full(N, -np.inf))]
    for leaf in jax.tree.leaves(results):
        assert np.isfinite(leaf).all()
    chain = jacobians.step_jacobians(model, W, trajectories.unroll(model, W, X))
    assert not np.any(chain[0])  # h_1 forgets log 0
    assert np.isfinite(chain).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_in_h_0_are_refused_everywhere(bad):
    for route in ROUTES.values():
        with pytest.raises(ValueError, match="initial: got NaN or inf"):
            route(MODEL, W, X, Y, initial=jnp.full(N, bad))


def test_minus_infinity_where_h_0_is_finite_is_named():
    model = model_of(step=lambda p, s, x: s - jnp.where(x > 1, jnp.inf, 0 * x))
    with pytest.raises(ValueError, match=r"states: got NaN or inf.* t = 3"):
        gradients.bptt(model, W, X.at[2].set(2), Y)


@pytest.mark.parametrize(("name", "wrong"), [("step", None), ("readout", 3), ("loss", "mse"), ("init", 1)])
def test_make_model_checks_its_functions(name, wrong):
    with pytest.raises(TypeError, match=f"{name}: got {type(wrong).__name__}, expected a function"):
        models.make_model(**{**GOOD, name: wrong})


def test_make_model_checks_its_options():
    with pytest.raises(ValueError, match="reduction: got 'max', expected one of"):
        models.make_model(**GOOD, reduction="max")
    with pytest.raises(TypeError, match="num_inputs: got float"):
        models.make_model(**GOOD, num_inputs=2.0)
    model = models.make_model(**GOOD, reduction="mean", num_inputs=N)
    assert (model.reduction, model.num_inputs, model.init) == ("mean", N, None)
