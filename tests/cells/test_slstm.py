"""The sLSTM: its equations, the identity its stabiliser obeys, and gradients stopped there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, gradients, models, trajectories
from tests import cases
from tests.cells import matrix_cells
from tests.cells.matrix_cells import KEY, STOPPED

CELL = cases.MODERN["slstm"]
H = cases.N
sigmoid = lambda a: 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("empty", [False, True])
def test_it_computes_its_equations(empty):
    params, inputs, _, state = matrix_cells.instance(CELL, KEY)
    state = jax.tree.map(jnp.zeros_like, state) if empty else state
    c, n, m, y = map(np.asarray, state)
    z, i, f, o = np.split(np.asarray(params.w_hx @ inputs[0] + params.w_hh @ y + params.b_h), 4)
    new_m = i if empty else np.maximum(np.log(sigmoid(f)) + m, i)
    forget, write = np.exp(np.log(sigmoid(f)) + m - new_m), np.exp(i - new_m)
    new_c, new_n = forget * c + write * np.tanh(z), forget * n + write
    new = CELL.step(params, state, inputs[0])
    expected = new_c, new_n, new_m, sigmoid(o) * new_c / new_n
    for ours, own in zip(new, expected, strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-13)


@pytest.mark.parametrize("source", ["hand-derived", "automatic"])
def test_losses_on_y_do_not_feel_the_scale_of_what_is_stored(source):
    """c ⊙ λ_c + n ⊙ λ_n = λ_m at every step, and dC/db_i = 0 where nothing was stored at first."""
    model = models.sequence_model(CELL, cases.O)
    params, inputs, targets, initial = matrix_cells.instance(model, KEY)
    model = model if source == "hand-derived" else model._replace(derivation=None)

    @jax.jit
    def found(params):
        states = trajectories.unroll(model, params, inputs, initial=initial).states
        adjoints = gradients.adjoints(model, params, inputs, targets, initial=initial)
        return states, adjoints, gradients.bptt(model, params, inputs, targets)[1].cell.b_h

    states, adjoints, of_bias = found(params)
    of_c, of_n, of_m, _ = jnp.split(adjoints, 4, axis=1)
    stored = states.cell * of_c + states.normaliser * of_n
    assert jnp.linalg.norm(of_m) > 1e-3
    assert matrix_cells.relative(stored, of_m) < 1e-12
    assert np.linalg.norm(of_bias[H : 2 * H]) < 1e-12 * np.linalg.norm(of_bias)


def test_rank_falls_by_one_for_each_unit_whose_input_gate_sets_m():
    seen = set()
    for seed in range(4):
        params, inputs, _, state = matrix_cells.instance(CELL, jax.random.key(seed))
        params = params._replace(b_h=params.b_h.at[2 * H : 3 * H].add(-3.0))
        _, i, f, _ = jnp.split(params.w_hx @ inputs[0] + params.w_hh @ state.hidden + params.b_h, 4)
        written = int(jnp.sum(i > jax.nn.log_sigmoid(f) + state.stabiliser))
        values = np.linalg.svd(CELL.derivation.state_jacobian(params, state, inputs[0]), compute_uv=False)
        assert np.sum(values > 1e-12 * values[0]) == 4 * H - written
        seen.add(written)
    assert len(seen) > 1


def test_a_tie_is_split_as_jax_splits_it():
    params = jax.tree.map(jnp.zeros_like, CELL.init(KEY))
    ones = jnp.ones(H)
    state = cells.SLSTMState(0.5 * ones, ones, -jax.nn.log_sigmoid(0 * ones), ones)
    at = params, state, jnp.zeros(cases.M)
    assert CELL.derivation.pullback.factors(*at).carried.tolist() == [0.5] * H
    assert matrix_cells.step_errors(CELL, [at]).max() < 1e-13


def step(params, state, x, at):
    """The step with a function of its own for each use of m'."""
    c, n, m, y = state
    z, i, f, o = jnp.split(params.w_hx @ x + params.w_hh @ y + params.b_h, 4)
    decayed = jax.nn.log_sigmoid(f) + m
    new_m = jnp.where(n == 0, i, jnp.maximum(decayed, i))
    forget, write = jnp.exp(decayed - at["forget"](new_m)), jnp.exp(i - at["write"](new_m))
    c, n = forget * c + write * jnp.tanh(z), forget * n + write
    return cells.SLSTMState(c, n, at["carry"](new_m), jax.nn.sigmoid(o) * c / n)


SMALL = cells.slstm(1, 2)
VARIANTS = matrix_cells.stopped(SMALL, step)


@pytest.mark.sweep
@pytest.mark.parametrize("uses", VARIANTS, ids="+".join)
def test_stopping_the_gradient_at_m(uses):
    """Everywhere: the gradient of losses on y stays exact. At one use of m' alone: it does not."""
    error = matrix_cells.error_of_gradient(SMALL, VARIANTS[uses])
    assert error < 1e-13 if uses == STOPPED else error > 0.01


def test_check_gradient_passes_a_gradient_stopped_everywhere():
    assert matrix_cells.found_in_gradient(SMALL, VARIANTS[STOPPED]).ok


@pytest.mark.slow
@pytest.mark.parametrize("use", STOPPED)
def test_check_gradient_finds_a_gradient_stopped_at_one_use(use):
    assert not matrix_cells.found_in_gradient(SMALL, VARIANTS[use,]).ok


@pytest.mark.slow
def test_a_step_stopped_everywhere_has_other_partials_while_its_gradient_is_exact():
    found = {finding.piece for finding in matrix_cells.found_in_step(SMALL, VARIANTS[STOPPED]).findings}
    assert {"state_jacobian", "previous_state"} <= found
