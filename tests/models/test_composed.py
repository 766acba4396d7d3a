"""What people do to models, alone and composed in order, against a loop over sequences and steps."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import derivations, gradients, jacobians, models, spectra, terms, trajectories
from jaxbptt.comparison import compare
from tests import conformance

T, B, KEY = 6, 2, jax.random.key(5)
FIRST = jnp.array([0.3, -0.4])  # read where a sequence starts
MADE = ("feedback", "resetting", "weighted", "batched", "penalised")
PAIRS = [*itertools.combinations(MADE, 2), MADE]


def theirs():
    """A complex recurrence that reads its last output."""
    keys = jax.random.split(KEY, 4)
    draw = lambda key, *shape: jax.lax.complex(*jax.random.normal(key, (2, *shape)))
    return {
        "rate": jnp.array([-0.9, -1.4]),
        "angle": jnp.array([0.7, 2.1]),
        "b": draw(keys[0], 2, 3),
        "d": draw(keys[1], 2, 2),
        "c": draw(keys[2], 2, 2),
        "h_0": draw(keys[3], 2),
    }


def step(params, h, x_and_output):
    x, output = x_and_output
    turn = jnp.exp(jax.lax.complex(-jnp.exp(params["rate"]), params["angle"]))
    return turn * h + params["b"] @ x.astype(complex) + params["d"] @ output.astype(complex)


def readout(params, h):
    return jnp.real(params["c"] @ h)


def penalty(params):
    return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(params)) / 3


def arrays():
    keys = jax.random.split(KEY, 3)
    flags = jnp.zeros((T, B), bool)
    return {
        "x": jax.random.normal(keys[0], (T, B, 3)),
        "y": jax.random.normal(keys[1], (T, B, 2)),
        "start": flags.at[0].set(True).at[3, 1].set(True),
        "reset": flags.at[2, 0].set(True).at[4].set(True),
        "weight": jax.random.uniform(keys[2], (T, B)).at[1].set(0),
    }


ARRAYS = arrays()


def loop(made, reduction, params):
    """C, one sequence after another."""
    at, total = jax.tree.map(np.asarray, ARRAYS), 0.0
    for b in range(B if "batched" in made else 1):
        h, losses, weights = params["h_0"], [], []
        for t in range(T):
            if "resetting" in made and at["reset"][t, b]:
                h = params["h_0"]
            fed = FIRST if at["start"][t, b] else readout(params, h)
            h = step(params, h, (at["x"][t, b], fed if "feedback" in made else jnp.zeros(2)))
            losses.append(jnp.sum((readout(params, h) - at["y"][t, b]) ** 2) / 2)
            weights.append(at["weight"][t, b] if "weighted" in made else 1.0)
        weighted = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        total = total + (weighted if reduction == "sum" else weighted / sum(weights))
    return total + penalty(params) if "penalised" in made else total


def build(made, reduction):
    """(the model on real pairs, its params, restore, inputs, targets) as the toolkit makes them."""
    fed = "feedback" in made
    own = step if fed else lambda params, h, x: step(params, h, (x, jnp.zeros(2)))
    model = models.make_model(own, lambda p: p["h_0"], readout, models.squared_error, reduction=reduction)
    adapted = models.real_pairs(model, theirs())
    of_pairs = lambda params: penalty(models.join_pairs(params))
    apply = {
        "feedback": lambda model: models.feedback(model, FIRST),
        "resetting": models.resetting,
        "weighted": models.weighted,
        "batched": lambda model: models.batched(model, B),
        "penalised": lambda model: models.penalised(model, of_pairs),
    }
    model = functools.reduce(lambda model, name: apply[name](model), made, adapted.model)
    at = ARRAYS if "batched" in made else jax.tree.map(lambda leaf: leaf[:, 0], ARRAYS)
    inputs: Any = models.Started(at["x"], at["start"]) if fed else at["x"]
    inputs = models.Resetting(inputs, at["reset"]) if "resetting" in made else inputs
    targets = models.Weighted(at["y"], at["weight"]) if "weighted" in made else at["y"]
    return model, adapted.params, adapted.restore, inputs, targets


@pytest.mark.sweep
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("made", PAIRS, ids="-".join)
def test_pairs_in_order_equal_the_loop(made, reduction):
    expected_loss, expected = jax.jit(jax.value_and_grad(functools.partial(loop, made, reduction)))(theirs())
    model, params, restore, *data = build(made, reduction)
    assert model.applied == ("real_pairs", *made)
    loss, grads = jax.jit(lambda params, *data: gradients.bptt(model, params, *data))(params, *data)
    assert abs(loss - expected_loss) < 1e-12 * abs(expected_loss)
    assert compare(expected, restore(grads)).relative < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize("route", ["autodiff", "forward_sensitivity", "double_sum"])
def test_every_route_takes_all_of_them(route):
    expected = jax.grad(functools.partial(loop, MADE, "mean"))(theirs())
    model, params, restore, *data = build(MADE, "mean")
    grads = jax.jit(lambda *data: getattr(gradients, route)(model, *data)[1])(params, *data)
    assert compare(expected, restore(grads)).relative < 1e-12


PART = ("feedback", "resetting", "weighted")


@pytest.mark.sweep(10)
@pytest.mark.parametrize("function", sorted({*conformance.TRACED, *conformance.EAGER} - conformance.NEEDS_FACTORED))
def test_every_function_takes_a_composed_model(function):
    model, params, _, *data = build(PART, "mean")
    short = jax.tree.map(lambda leaf: leaf[:5], data)
    conformance.run(function, model, (params, *short, model.initial_state(params)))


def test_nothing_passes_a_reset():
    model, params, _, *data = build(("resetting",), "sum")
    steps = trajectories.unroll(model, params, data[0])
    chain = jacobians.step_jacobians(model, params, steps)
    assert not chain[2].any()
    assert (spectra.log_singular_values(chain, every=1)[2:] == -jnp.inf).all()
    table = terms.gradient_terms(model, params, *data).norms
    assert table[2:, :2].max() == 0 < table[1, 0]


def test_the_gradient_check_sees_weights_that_are_not_divided_by():
    """The user's gradient gets the weights as they came, not normalised ones."""
    model, params, _, *data = build(("weighted",), "mean")
    lost = lambda model, *rest: gradients.autodiff(model._replace(reduction="sum"), *rest)
    check = lambda gradient: derivations.check_gradient(
        model, gradient, key=KEY, params=params, inputs=data[0], targets=data[1]
    )
    assert check(gradients.bptt).ok
    assert not check(lost).ok


def test_weights_are_divided_in_the_precision_of_the_params():
    model, params, _, x, y = build((), "mean")
    weight = jnp.linspace(0.1, 1, T)
    for given in (weight.astype(jnp.float32), weight > 0.5, (10 * weight).astype(int)):
        each = models.Weighted(y, given), models.Weighted(y, given.astype(jnp.float64))
        found, expected = (gradients.bptt(models.weighted(model), params, x, targets)[1] for targets in each)
        assert compare(expected, found).relative < 1e-14


def test_teacher_forcing_reads_what_it_is_given():
    """Forced at every step no gradient passes through outputs; forced at none it is feedback."""
    model = models.real_pairs(models.make_model(step, lambda p: p["h_0"], readout, models.squared_error), theirs())
    at = jax.tree.map(lambda leaf: leaf[:, 0], ARRAYS)
    given = jnp.concatenate((FIRST[None], at["y"][:-1]))

    def forced(params, force):
        h, total = params["h_0"], 0.0
        for t in range(T):
            h = step(params, h, (at["x"][t], given[t] if force[t] else readout(params, h)))
            total = total + jnp.sum((readout(params, h) - at["y"][t]) ** 2) / 2
        return total

    for force in ([True] * T, [True, False, False, True, False, False]):
        inputs = models.Forced(at["x"], given, jnp.array(force))
        grads = gradients.autodiff(models.teacher_forcing(model.model), model.params, inputs, at["y"])[1]
        expected = jax.grad(lambda params, force=force: forced(params, force))(theirs())
        assert compare(expected, model.restore(grads)).relative < 1e-12


def test_a_padded_batch_equals_its_sequences():
    lengths, cell = (8, 5, 2), build((), "mean")
    model, params = cell[0], cell[1]
    keys = jax.random.split(KEY, 2)
    x, y = jax.random.normal(keys[0], (8, 3, 3)), jax.random.normal(keys[1], (8, 3, 2))
    valid = jnp.asarray(np.arange(8)[:, None] < np.array(lengths))
    padded = jnp.where(valid[..., None], x, 7.0), jnp.where(valid[..., None], y, -3.0)
    for reduction in ("sum", "mean"):
        one = model._replace(reduction=reduction)
        batch = models.batched(models.weighted(one), 3)
        targets = models.Weighted(padded[1], valid.astype(float))
        loss, grads = gradients.bptt(batch, params, padded[0], targets)
        alone = [gradients.bptt(one, params, x[:n, b], y[:n, b]) for b, n in enumerate(lengths)]
        assert abs(loss - sum(each for each, _ in alone)) < 1e-12 * abs(loss)
        assert compare(jax.tree.map(lambda *leaves: sum(leaves), *[g for _, g in alone]), grads).relative < 1e-12


def test_resets_equal_separate_episodes():
    model, params, _, x, y = build((), "sum")
    resetting = models.resetting(model)
    reset = jnp.array([False, False, True, False, True, False])
    loss, grads = gradients.bptt(resetting, params, models.Resetting(x, reset), y)
    alone = [gradients.bptt(model, params, x[a:b], y[a:b]) for a, b in ((0, 2), (2, 4), (4, 6))]
    assert abs(loss - sum(each for each, _ in alone)) < 1e-12 * abs(loss)
    assert compare(jax.tree.map(lambda *leaves: sum(leaves), *[g for _, g in alone]), grads).relative < 1e-12


ONE = models.make_model(
    lambda p, h, x: jnp.tanh(p * h + x), lambda p: jnp.zeros(2), lambda p, h: h, models.squared_error
)
MEAN = ONE._replace(reduction="mean")
READS_X = models.make_model(ONE.step, ONE.initial_state, lambda p, h, x: h + x, ONE.loss)
DATA = jnp.ones(2), jnp.ones((3, 2)), jnp.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.feedback(models.resetting(ONE), FIRST), ValueError, "model: got one that is resetting already"),
        (
            lambda: models.resetting(models.weighted(ONE)),
            ValueError,
            "that is weighted already, expected the order",
        ),
        (lambda: models.weighted(models.batched(ONE, 2)), ValueError, "one that is batched already"),
        (lambda: models.batched(models.penalised(ONE, jnp.sum), 2), ValueError, "one that is penalised already"),
        (lambda: models.real_pairs(models.feedback(ONE, FIRST), DATA[0]), ValueError, "one that is feedback already"),
        (lambda: models.weighted(ONE._replace(batch=2)), ValueError, "one that is batched already"),
        (lambda: models.weighted(models.weighted(ONE)), ValueError, "one that is weighted already"),
        (lambda: models.feedback(READS_X, FIRST), ValueError, "model.readout: got one that reads 'state, x'"),
        (lambda: models.penalised(ONE, 0.1), TypeError, "penalty: got float, expected a function of the params"),
        (lambda: run(models.penalised(ONE, lambda p: p)), ValueError, r"penalty: got shape \[2\], expected a scalar"),
        (lambda: run(models.weighted(ONE)), TypeError, r"targets: got \w+, expected models.Weighted"),
        (lambda: run(models.resetting(ONE)), TypeError, r"inputs: got \w+, expected models.Resetting"),
        (lambda: run(models.feedback(ONE, FIRST)), TypeError, r"inputs: got \w+, expected models.Started"),
        (
            lambda: run(
                models.weighted(ONE)._replace(reduction="mean"), targets=models.Weighted(DATA[2], jnp.zeros(3))
            ),
            ValueError,
            "targets.weight: got weights that add up to zero",
        ),
        (
            lambda: run(models.weighted(ONE), targets=models.Weighted(DATA[2], jnp.ones((3, 1)))),
            ValueError,
            r"targets.weight: got shape \[1\], expected \[\]",
        ),
        (lambda: run(READS_X._replace(readout=lambda p, h: h)), TypeError, "readout: raised TypeError"),
        (
            lambda: models.make_model(ONE.step, ONE.initial_state, lambda h: h, ONE.loss),
            TypeError,
            "readout: got a func",
        ),
        (lambda: models.step_losses(READS_X, DATA[0], DATA[1], DATA[2]), TypeError, "inputs: got None, expected them"),
    ],
)
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def run(model, targets=DATA[2]):
    return gradients.bptt(model, DATA[0], DATA[1], targets)


def test_online_rules_refuse_a_penalty():
    from jaxbptt import online

    with pytest.raises(ValueError, match=r"model.penalty: got a penalty, expected none"):
        online.run(online.rtrl(), models.penalised(ONE, jnp.sum), *DATA)
