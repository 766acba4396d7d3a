"""Every singular value of a product of any length and magnitude, against arbitrary precision and exact cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, jacobians, spectra, trajectories
from tests import references
from tests.spectra.chains import (
    CHAINS,
    INF,
    METHODS,
    SHIFT,
    A,
    last,
    log_singular_values,
    singular_decomposition,
)

DIGITS = {"rows": 1500, "columns": 1500, "duplicates": 1500, "growing": 700, "shrinking": 700, "repeated": 900}


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", CHAINS)
def test_every_value_against_arbitrary_precision(kind, dtype):
    chain = CHAINS[kind].astype(dtype)
    expected = references.log_singular_values(chain, DIGITS[kind])
    actual = last(chain)
    assert actual.dtype == dtype
    tolerance = 1e-9 if dtype == np.float64 else 2e-5 * max(1, np.abs(expected).max())
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def test_the_chains_above_span_what_they_should():
    """The suite covers values beyond 10^±600."""
    assert last(CHAINS["growing"])[0] > 600 * np.log(10)
    assert last(CHAINS["shrinking"])[-1] < -600 * np.log(10)
    assert last(CHAINS["duplicates"])[0] < -600 * np.log(10)


@pytest.mark.parametrize("kind", CHAINS)
def test_the_values_multiply_to_the_determinant(kind):
    chain = CHAINS[kind]
    np.testing.assert_allclose(last(chain).sum(), np.linalg.slogdet(chain)[1].sum(), rtol=0, atol=1e-9)


@pytest.mark.sweep
@pytest.mark.parametrize("size", [1, 2, 5, 9])
@pytest.mark.parametrize("length", [1, 7])
def test_short_chains_against_a_dense_svd(size, length):
    chain = np.random.default_rng(size).standard_normal((length, size, size))
    dense = np.eye(size)
    for jacobian in chain:
        dense = jacobian @ dense
    np.testing.assert_allclose(last(chain), np.log(np.linalg.svd(dense, compute_uv=False)), atol=1e-9)


def test_records_are_the_shorter_chains_own_values():
    chain = CHAINS["rows"][:11]
    records = np.asarray(log_singular_values(chain, every=4))
    assert records.shape == (3, 4)
    for record, stop in zip(records, (4, 8, 11), strict=True):
        np.testing.assert_allclose(record, last(chain[:stop]), atol=1e-11)
    np.testing.assert_array_equal(log_singular_values(chain, every=50), log_singular_values(chain))


@pytest.mark.parametrize("method", METHODS)
def test_directions_and_spans_rebuild_the_product(method):
    chain = np.random.default_rng(2).standard_normal((11, 5, 5))
    chain[6, 2] = 0
    chain[4, :, 1] = 0
    found = singular_decomposition(chain, every=4, start=1, stop=10, method=method)
    for record, stop in enumerate((5, 9, 10)):
        left, right = found.left[record], found.right[record]
        for basis in (left, right):
            np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-13)
        dense = np.linalg.multi_dot([*chain[1:stop][::-1], np.eye(5)])
        rebuilt = left @ jnp.diag(jnp.exp(found.log_sigma[record])) @ right.T
        np.testing.assert_allclose(rebuilt, dense, atol=1e-13 * np.abs(dense).max())
    np.testing.assert_allclose(last(chain, start=1, stop=10, method=method), found.log_sigma[-1], atol=1e-11)
    assert found.resolved.all()
    assert (found.error < 1e-12).all()


def test_directions_of_a_long_chain_are_stretched_as_they_say():
    """J_t … J_1 v_i, carried in logs, has length σ_i and points along u_i, for the leading directions."""
    chain = CHAINS["rows"]
    found = singular_decomposition(chain)
    vector, log_length = np.asarray(found.right[0, :, 0]), 0.0
    for jacobian in chain:
        vector = jacobian @ vector
        log_length += np.log(np.linalg.norm(vector))
        vector /= np.linalg.norm(vector)
    np.testing.assert_allclose(log_length, found.log_sigma[0, 0], atol=1e-10)
    np.testing.assert_allclose(vector, found.left[0, :, 0], atol=1e-12)


DENSE = np.random.default_rng(0).standard_normal((4, 4))
UP, DOWN = np.diag([10.0, 1, 0.1, 1]), np.diag([0.1, 1, 10.0, 1])
UNDOING = {
    "undone": [DENSE] * 60 + [np.linalg.inv(DENSE)] * 60,
    "palindrome": [UP] * 30 + [DOWN] * 60 + [UP] * 30,
    "reordered": [np.diag([10, 1, 0.1, 0.001])] * 60 + [np.diag([0.1, 10, 1, 5])] * 60,
}


@pytest.mark.sweep
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", UNDOING)
def test_a_chain_that_undoes_its_own_expansion_is_reported(kind, method):
    chain = np.array(UNDOING[kind])
    expected = references.log_singular_values(chain, 400)
    found = singular_decomposition(chain, method=method)
    answered = ~np.isnan(found.log_sigma[0])
    assert answered.all() == (kind != "undone")  # the others are diagonal: sums of logs
    np.testing.assert_allclose(found.log_sigma[0, answered], expected[answered], atol=1e-6)
    assert not found.resolved[0, ~answered].any()
    cheap = last(chain, method=method)
    np.testing.assert_allclose(cheap[~np.isnan(cheap)], expected[~np.isnan(cheap)], atol=1e-6)
    assert np.isnan(cheap).any() == (kind == "undone")


def test_outside_jit_the_report_is_a_warning():
    with pytest.warns(RuntimeWarning, match=r"jacobians: . of 4 values at t = 120 are NaN, because rounding"):
        assert np.isnan(spectra.log_singular_values(jnp.array(UNDOING["undone"]))).any()


@pytest.mark.sweep
@pytest.mark.parametrize("kind", CHAINS)
def test_an_honest_chain_is_not_blamed(kind):
    found = singular_decomposition(CHAINS[kind], every=130)
    assert (found.error < 1e-8).all()
    assert found.resolved.all()


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([A], [np.log(2), -INF]),
        ([A] * 3, [-INF, -INF]),
        ([A, A.T] * 20, [40 * np.log(2), -INF]),
        ([A.T, A] * 20, [40 * np.log(2), -INF]),
        ([SHIFT], [0, 0, 0, -INF]),
        ([SHIFT] * 3, [0, -INF, -INF, -INF]),
        ([SHIFT] * 4, [-INF] * 4),
        ([np.eye(3), np.zeros((3, 3)), np.eye(3)], [-INF] * 3),
        ([np.zeros((1, 1))], [-INF]),
    ],
)
def test_exactly_singular_steps_are_minus_infinity(chain, expected):
    np.testing.assert_allclose(last(np.array(chain)), expected, atol=1e-12)


@pytest.mark.parametrize("place", [0, 2, 5])
@pytest.mark.parametrize("kind", ["row", "column", "both"])
def test_zero_rows_and_columns_at_any_step(kind, place):
    chain = np.random.default_rng(3).standard_normal((6, 5, 5))
    if kind in ("row", "both"):
        chain[place, 1] = 0
    if kind in ("column", "both"):
        chain[(place + 1) % 6, :, 2] = 0
    expected = references.log_singular_values(chain, 80)
    np.testing.assert_array_equal(np.isneginf(last(chain)), np.isneginf(expected))
    alive = np.isfinite(expected)
    np.testing.assert_allclose(last(chain)[alive], expected[alive], atol=1e-11)


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.5])
def test_linear_exact_cases(gain):
    rng, length = np.random.default_rng(0), 400
    orthogonal = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    chain = np.broadcast_to(gain * orthogonal, (length, 5, 5))
    np.testing.assert_allclose(last(chain), length * np.log(gain), atol=1e-9)
    magnitudes = gain * np.array([1.2, -1.0, 0.7, 0.01, -0.3])
    normal = orthogonal @ np.diag(magnitudes) @ orthogonal.T
    # W itself is rounded, which moves |μ_i| by eps ‖W‖ and t ln|μ_i| by t eps ‖W‖ / |μ_i|.
    expected = length * np.log(np.sort(np.abs(magnitudes))[::-1])
    tolerance = np.maximum(1e-9, 8 * length * np.finfo(float).eps * 1.2 * gain / np.exp(expected / length))
    assert (np.abs(last(np.broadcast_to(normal, (length, 5, 5))) - expected) <= tolerance).all()


def chain_of(cell, params, initial, length):
    trajectory = trajectories.unroll(cell, params, jnp.zeros((length, cell.num_inputs)), initial=initial)
    return trajectory, jacobians.step_jacobians(cell, params, trajectory)


def test_zero_weight_lstm():
    cell, forget, length, hidden = cells.lstm(2, 3), jax.nn.sigmoid(1.5), 200, 3
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    params = params._replace(b_h=params.b_h.at[hidden : 2 * hidden].set(1.5))
    initial = cells.LSTMState(jnp.array([0.5, -1.0, 2.0]), jnp.zeros(hidden))
    trajectory, chain = chain_of(cell, params, initial, length)
    memory = np.asarray(trajectory.states.cell)
    for record, t in zip(log_singular_values(chain, every=50), (50, 100, 150, 200), strict=True):
        expected = t * np.log(forget) + 0.5 * np.log1p(0.25 / np.cosh(memory[t - 1]) ** 4)
        np.testing.assert_allclose(record[:hidden], np.sort(expected)[::-1], atol=1e-9)
        assert np.isneginf(record[hidden:]).all()


def test_zero_weight_gru():
    cell, keep = cells.gru(2, 3), jax.nn.sigmoid(0.7)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    params = params._replace(b_h=params.b_h.at[3:6].set(0.7))
    _, chain = chain_of(cell, params, jnp.array([0.5, -1.0, 2.0]), 300)
    np.testing.assert_allclose(last(chain), 300 * np.log(keep), atol=1e-9)


def test_two_unit_relu_tent():
    slope, length = 1.9, 300
    cell = cells.elman(0, 2, activation=jax.nn.relu)
    weights = jnp.array([[slope, -slope], [2 * slope, -2 * slope]])
    params = cell.init(jax.random.key(0))._replace(w_hh=weights, b_h=jnp.array([0.0, -slope]))
    trajectory, chain = chain_of(cell, params, jnp.array([0.4, 0.0]), length)
    mask = np.asarray(trajectory.states[-1]) > 0
    expected = length * np.log(slope) + 0.5 * np.log(2) + np.log(np.linalg.norm(mask * np.array([1.0, 2.0])))
    values = last(chain)
    np.testing.assert_allclose(values[0], expected, atol=1e-9)
    assert not np.isfinite(values[1])  # rank one by a dependent row: what a factorisation finds is noise


def test_bad_numbers():
    chain = jnp.ones((5, 3, 3)).at[3, 0, 1].set(jnp.nan)
    with pytest.raises(ValueError, match="jacobians: got NaN or inf, expected finite numbers; first at step t = 4"):
        spectra.log_singular_values(chain)
    assert np.isnan(log_singular_values(chain, every=1)).all()


@pytest.mark.parametrize(
    ("chain", "every", "error", "message"),
    [
        (jnp.ones((3, 2)), None, ValueError, r"jacobians: got shape \[3, 2\]"),
        (jnp.ones((3, 2, 2), int), None, TypeError, "jacobians: got int64, expected a real float dtype"),
        (jnp.ones((3, 2, 2), jnp.bfloat16), None, TypeError, "jacobians: got bfloat16, expected float32 or float64"),
        (jnp.ones((0, 2, 2)), None, ValueError, r"jacobians: got shape \[0, 2, 2\]"),
        (jnp.ones((3, 2, 2)), 0, ValueError, "every: got 0, expected at least 1"),
        (jnp.ones((3, 2, 2)), 1.5, TypeError, "every: got float, expected an int"),
    ],
)
def test_bad_arguments_get_one_line(chain, every, error, message):
    with pytest.raises(error, match=message):
        spectra.log_singular_values(chain, every=every)


def test_equal_float32_steps_do_not_add_up_their_carries():
    """The compensation of ℓ must stay small: at T = 20,000 it would itself be rounded by 10⁻⁴ nats."""
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    matrix = (turned @ np.diag([0.95, 0.92]) @ turned.T).astype(np.float32)
    found = spectra.log_singular_values(jnp.broadcast_to(jnp.asarray(matrix), (20_000, 2, 2)), errors=True)
    exact = 20_000 * np.log(np.sort(np.abs(np.linalg.eigvalsh(matrix.astype(float))))[::-1])
    off = np.asarray(found.log_sigma[0], float) + np.asarray(found.rest[0], float) - exact
    assert np.all(np.abs(off) < 1e-5)
