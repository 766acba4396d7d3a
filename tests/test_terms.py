"""The table of all terms (t, k), each against its definition."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import gradients, models, report, terms
from jaxbptt.gradients.forward import run_forward
from jaxbptt.jacobians import step_jacobians
from jaxbptt.terms import GradientTerms
from jaxbptt.trajectories import unroll
from tests import cases
from tests.mutation import mutate

KEY = jax.random.key(6)


def dense_terms(model, params, inputs, targets, initial):
    """Every term as a pytree, one (t, k) at a time, from its definition."""
    trajectory = unroll(model, params, inputs, initial=initial)
    chain = np.asarray(step_jacobians(model, params, trajectory, method="forward"))
    weight = 1 / len(inputs) if model.reduction == "mean" else 1.0
    at = lambda tree, t: jax.tree.map(lambda leaf: leaf[t], tree)
    unravel = ravel_pytree(at(trajectory.states, 0))[1]

    @jax.jit
    def local(state, target):
        return jax.grad(lambda h: model.loss(model.readout(params, unravel(h)), target))(ravel_pytree(state)[0])

    @jax.jit
    def direct(previous, x, row):
        return jax.vjp(lambda p: model.step(p, previous, x), params)[1](unravel(row))[0]

    table = {}
    for t in range(1, len(inputs) + 1):
        row = np.asarray(local(at(trajectory.states, t - 1), targets[t - 1])) * weight
        for k in range(t, 0, -1):
            table[t, k] = direct(at(trajectory.previous, k - 1), inputs[k - 1], row)
            row = row @ chain[k - 1]
    return table


def in_place(table, numbers):
    """[T, T] of one number a term."""
    square = np.zeros((cases.T, cases.T))
    for (t, k), number in zip(table, numbers, strict=True):
        square[t - 1, k - 1] = number
    return square


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "custom", "shared", "in blocks"])
def test_table_against_its_definition(name, monkeypatch):
    if name == "in blocks":
        name = "gru"
        monkeypatch.setattr(terms, "LEAST_STEPS", 1)
    if name == "shared":
        model, outputs = cases.shared_model(), cases.N
    else:
        model, outputs = models.sequence_model(cases.CELLS[name], cases.O, reduction="mean"), cases.O
    data = cases.instance(model, KEY, gain=1.5, num_outputs=outputs)
    table = dense_terms(model, *data)
    result = terms.gradient_terms(model, *data[:3], initial=data[3])
    by_leaf = jax.tree.map(lambda *leaves: in_place(table, map(np.linalg.norm, leaves)), *table.values())
    chex.assert_trees_all_close(result.by_leaf, by_leaf, rtol=1e-12, atol=1e-15)
    norms = np.sqrt(sum(leaf**2 for leaf in jax.tree.leaves(by_leaf)))
    np.testing.assert_allclose(result.norms, norms, rtol=1e-12)  # zero exactly for k > t
    # The terms and the readout's direct part are the whole gradient.
    total = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *table.values())
    direct = run_forward(model, *data).direct
    _, expected = gradients.autodiff(model, *data[:3], initial=data[3])
    chex.assert_trees_all_close(jax.tree.map(jnp.add, total, direct), expected, rtol=1e-11, atol=1e-13)


def test_profile_and_reach():
    norms = jnp.array([[4.0, 0, 0], [2, 1, 0], [0, 2, 1]])
    table = GradientTerms(norms, norms)
    np.testing.assert_array_equal(table.profile(), [6, 4, 0])
    assert float(table.profile(1)) == 4
    np.testing.assert_array_equal(table.profile(jnp.array([2, 0])), [0, 6])
    assert [int(table.reach(q)) for q in (0.1, 0.6, 0.61, 1.0)] == [0, 0, 1, 1]
    assert int(jax.jit(lambda table: table.reach(0.9))(table)) == 1
    assert np.isnan(jax.jit(lambda table, lag: table.profile(lag))(table, 3))
    empty = GradientTerms(jnp.zeros((2, 2)), None)
    assert int(empty.reach(0.9)) == 0


@pytest.mark.parametrize("quantile", [0, -0.1, 1.5, float("nan")])
def test_bad_quantiles(quantile):
    with pytest.raises(ValueError, match=r"quantile: got .* expected a number in \(0, 1\]"):
        GradientTerms(jnp.eye(3), None).reach(quantile)


@pytest.mark.parametrize(("lag", "error"), [(-1, ValueError), (3, ValueError), (0.5, TypeError)])
def test_bad_lags(lag, error):
    with pytest.raises(error, match="lag: got"):
        GradientTerms(jnp.eye(3), None).profile(lag)


def test_a_transposed_table_is_seen():
    model = models.sequence_model(cases.CELLS["elman"], cases.O)
    data = cases.instance(model, KEY)
    right = terms.gradient_terms(model, *data[:3])
    wrong = mutate(terms, "blocks.swapaxes(1, 2).reshape", "blocks.reshape").gradient_terms(model, *data[:3])
    assert np.abs(right.norms - wrong.norms).max() > 1e-3


def dense_saliency(model, params, inputs, targets, initial):
    """[T, T] of ‖∂C/∂L_t · ∂L_t/∂x_k‖, by reverse mode through the whole sequence for each loss."""
    weight = 1 / len(inputs) if model.reduction == "mean" else 1.0

    def losses(inputs):
        states = unroll(model, params, inputs, initial=initial).states
        return weight * models.step_losses(model, params, states, targets)

    return np.linalg.norm(jax.jit(jax.jacrev(losses))(inputs), axis=2)


@pytest.mark.sweep
@pytest.mark.parametrize("radius", cases.GAINS)
@pytest.mark.parametrize("name", ["elman", "lstm", "custom"])
def test_saliency_against_its_definition(name, radius):
    model = models.sequence_model(cases.CELLS[name], cases.O, reduction="mean")
    data = cases.instance(model, KEY, num_outputs=cases.O)
    params = data[0]
    if name == "elman":
        w_hh = params.cell.w_hh
        scaled = w_hh * (radius / jnp.max(jnp.abs(jnp.linalg.eigvals(w_hh))))
        params = params._replace(cell=params.cell._replace(w_hh=scaled))
    found = terms.input_saliency(model, params, *data[1:3], initial=data[3])
    expected = dense_saliency(model, params, *data[1:])
    np.testing.assert_allclose(np.exp(found.log_norms), expected, rtol=1e-12, atol=1e-300)
    by_lag = [np.trace(expected, -lag) for lag in range(cases.T)]
    np.testing.assert_allclose(np.exp(found.profile()), by_lag, rtol=1e-12)
    share = np.cumsum(by_lag) / np.sum(by_lag)
    assert [int(found.reach(q)) for q in (0.5, 0.9)] == [int(np.argmax(share >= q)) for q in (0.5, 0.9)]
    felt = expected >= 0.3 * expected.max(axis=1, keepdims=True)
    density = [np.diagonal(felt, -lag).mean() for lag in range(cases.T)]
    np.testing.assert_allclose(found.recall_density(0.3), density, rtol=1e-12)
    assert found.recall_density(0.3)[0] > 0


def test_saliency_of_a_chain_that_leaves_the_float_range():
    """J_t = 1e-40 or 1e40 at every step: after 30 of them plain floats hold 0 or inf."""
    step = lambda w, h, x: w * h + x["drive"]
    model = models.make_model(step, jnp.zeros_like, lambda w, h: h, lambda o, y: jnp.sum(o * y))
    inputs = {"drive": jnp.zeros((30, 2)), "token": jnp.zeros(30, int)}
    for factor in (1e-40, 1e40):
        found = terms.input_saliency(model, jnp.full(2, factor), inputs, jnp.ones((30, 2)))
        lags = np.arange(30)[:, None] - np.arange(30)
        expected = np.where(lags >= 0, 0.5 * np.log(2) + lags * np.log(factor), -np.inf)
        np.testing.assert_allclose(found.log_norms, expected, rtol=1e-12)
        assert int(found.reach(0.9)) == (0 if factor < 1 else 29)
        assert found.recall_density()[1] == (0 if factor < 1 else 1 / 29)


def test_saliency_of_losses_that_feel_nothing():
    model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, lambda o, y: jnp.sum(o * y))
    found = terms.input_saliency(model, jnp.ones(2), jnp.ones((3, 2)), jnp.zeros((3, 2)))
    assert np.all(np.asarray(found.log_norms) == -np.inf)
    assert int(found.reach(0.9)) == 0
    np.testing.assert_array_equal(found.recall_density(), 0)


def test_integers_have_no_saliency():
    model = models.make_model(lambda w, h, x: w[x] * h, lambda w: jnp.ones(2), lambda w, h: h, models.squared_error)
    with pytest.raises(TypeError, match="inputs: got int64, expected at least one float leaf"):
        terms.input_saliency(model, jnp.ones((3, 2)), jnp.array([0, 2]), jnp.zeros((2, 2)))


@pytest.mark.parametrize("threshold", [0, 1.5, float("nan")])
def test_bad_thresholds(threshold):
    with pytest.raises(ValueError, match=r"threshold: got .* expected a number in \(0, 1\]"):
        terms.InputSaliency(jnp.zeros((2, 2))).recall_density(threshold)


@pytest.mark.sweep
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_norms_of_any_size(scale):
    """No square leaves the float range: all norms scale as the loss does."""
    model = models.sequence_model(cases.CELLS["gru"], cases.O)
    params, inputs, targets, _ = cases.instance(model, jax.random.key(3))
    large = model._replace(loss=lambda output, target: scale * model.loss(output, target))
    for each in (model, models.batched(model, 1)):
        other = large if each is model else models.batched(large, 1)
        data = (inputs, targets) if each is model else (inputs[:, None], targets[:, None])
        one, whole = (terms.gradient_terms(m, params, *data) for m in (each, other))
        np.testing.assert_allclose(whole.norms, scale * one.norms, rtol=1e-12)
        assert whole.reach(0.9) == one.reach(0.9)
    numbers, expected = (report.monitor(m, params, inputs, targets) for m in (large, model))
    np.testing.assert_allclose(numbers["gradient_norm"], scale * expected["gradient_norm"], rtol=1e-12)
    assert numbers["reach_90"] == expected["reach_90"]
