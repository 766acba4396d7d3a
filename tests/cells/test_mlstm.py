"""The mLSTM: its equations, the spectrum of its chain in closed form, and the identity its stabiliser obeys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, gradients, jacobians, models, trajectories
from tests import cases
from tests.cells import matrix_cells
from tests.cells.matrix_cells import KEY, STOPPED

CELL = cases.MODERN["mlstm"]
K, V = cases.N, 2
sigmoid = lambda a: 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("empty", [False, True])
def test_it_computes_its_equations(empty):
    params, inputs, _, state = matrix_cells.instance(CELL, KEY)
    state = jax.tree.map(jnp.zeros_like, state) if empty else state
    (c, n, m), x, p = map(np.asarray, state), np.asarray(inputs[0]), jax.tree.map(np.asarray, params)
    k, v, q = p.w_k @ x / np.sqrt(K) + p.b_k, p.w_v @ x + p.b_v, p.w_q @ x + p.b_q
    i, log_f = p.w_i @ x + p.b_i, np.log(sigmoid(p.w_f @ x + p.b_f))
    new_m = i if empty else max(log_f + m, i)
    forget, write = np.exp(log_f + m - new_m), np.exp(i - new_m)
    new_c, new_n = forget * c + write * np.outer(k, v), forget * n + write * k
    new = CELL.step(params, state, inputs[0])
    for ours, own in zip(new, (new_c, new_n, new_m), strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-13)
    y = sigmoid(p.w_o @ x + p.b_o) * (new_c.T @ q) / max(abs(new_n @ q), np.exp(-new_m))
    np.testing.assert_allclose(CELL.output(params, new, inputs[0]), y, rtol=1e-13)


@pytest.mark.parametrize(("bias", "corner"), [(3.0, 1), (-6.0, 0)])
def test_the_chains_spectrum_is_known(bias, corner):
    """F, KV + K − 1 times, and the two of [[F, ‖U‖], [0, S]]: S = 1 where no ĩ ever sets m'."""
    params, inputs, _, initial = matrix_cells.instance(CELL, KEY)
    params = params._replace(b_f=jnp.asarray(bias), b_i=jnp.asarray(-bias))
    steps = trajectories.unroll(CELL, params, inputs, initial=initial)
    chain = jacobians.product(jacobians.step_jacobians(CELL, params, steps, method="reverse"), 0, cases.T)
    log_f = jax.nn.log_sigmoid(inputs @ params.w_f + params.b_f)
    scale = np.exp(jnp.sum(log_f) + initial.stabiliser - steps.states.stabiliser[-1])
    two = np.linalg.svd([[scale, np.linalg.norm(chain[:-1, -1])], [0, corner]], compute_uv=False)
    expected = np.sort([*[scale] * (K * V + K - 1), *two])
    np.testing.assert_allclose(np.sort(np.linalg.svd(chain, compute_uv=False)), expected, rtol=1e-12, atol=1e-15)
    assert chain[-1, -1] == corner


def read(least, added):
    """The output with another denominator, max(|n·q|, least(m)) + added."""

    def output(params, state, x):
        q, o = params.w_q @ x + params.b_q, jax.nn.sigmoid(params.w_o @ x + params.b_o)
        length = jnp.maximum(jnp.abs(state.normaliser @ q), least(state.stabiliser)) + added
        return o * (q @ state.cell) / length

    return CELL._replace(output=output)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("cell", "least", "most"),
    [
        (CELL, 0, 1e-12),
        (CELL._replace(derivation=None), 0, 1e-12),
        (read(lambda m: jnp.exp(-m), 1e-6), 1e-8, 1e-2),
        (read(jnp.ones_like, 0), 0.1, np.inf),
    ],
    ids=["hand-derived", "automatic", "plus 1e-6", "max(·, 1)"],
)
def test_losses_on_y_feel_the_scale_of_what_is_stored_only_in_other_forms(cell, least, most):
    """⟨C, Λ⟩ + n·λ_n = λ_m holds with max(·, e^{−m}) alone."""
    model = models.sequence_model(cell, cases.O)
    params, inputs, targets, initial = matrix_cells.instance(model, KEY)
    states = trajectories.unroll(model, params, inputs, initial=initial).states
    adjoints = jax.jit(lambda *data: gradients.adjoints(model, *data, initial=initial))(params, inputs, targets)
    stored = jnp.concatenate((states.cell.reshape(cases.T, -1), states.normaliser), axis=1)
    felt = jnp.sum(stored * adjoints[:, :-1], axis=1)
    assert least <= matrix_cells.relative(felt, adjoints[:, -1]) < most


def step(params, state, x, at):
    """The step with a function of its own for each use of m'."""
    c, n, m = state
    k, v = params.w_k @ x * params.b_k.size**-0.5 + params.b_k, params.w_v @ x + params.b_v
    i, decayed = params.w_i @ x + params.b_i, jax.nn.log_sigmoid(params.w_f @ x + params.b_f) + m
    new_m = jnp.where(jnp.all(n == 0), i, jnp.maximum(decayed, i))
    forget, write = jnp.exp(decayed - at["forget"](new_m)), jnp.exp(i - at["write"](new_m))
    return cells.MLSTMState(forget * c + write * k[:, None] * v[None], forget * n + write * k, at["carry"](new_m))


VARIANTS = matrix_cells.stopped(CELL, step)


@pytest.mark.sweep
@pytest.mark.parametrize("uses", VARIANTS, ids="+".join)
def test_stopping_the_gradient_at_m(uses):
    """Everywhere, the output included: the gradient of losses on y stays exact. At one use of m' alone: it does not."""
    error = matrix_cells.error_of_gradient(CELL, VARIANTS[uses])
    assert error < 1e-13 if uses == STOPPED else error > 0.01


def test_what_is_written_weakly_keeps_its_gradient():
    """i' = e^{−16}: λ_m is 10⁷ times the cotangent of ĩ, which must not be a difference from it."""
    model = models.sequence_model(cells.mlstm(1, 2, 2), 1)
    params = model.init(KEY)
    weak = params.cell._replace(
        w_i=jnp.array([-16.0]), b_i=jnp.array(0.0), b_k=jnp.full(2, 0.3), b_q=jnp.full(2, 0.3), b_v=jnp.ones(2)
    )
    params, inputs, targets = params._replace(cell=weak), jnp.ones((40, 1)).at[0].set(0), jnp.ones((40, 1))
    found, expected = (route(model, params, inputs, targets)[1] for route in (gradients.bptt, gradients.autodiff))
    np.testing.assert_allclose(found.cell.w_i, expected.cell.w_i, rtol=1e-13)
