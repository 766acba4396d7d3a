"""Lyapunov exponents of a chain, and of a cell's own trajectory, against QR at every step."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import jacobians, models, spectra, trajectories
from jaxbptt.spectra.autoregression import long_run
from tests.cases import CELLS, instance
from tests.spectra.chains import INF, SHIFT, TANH, A, exponents, growth_by_qr, tanh_chain

STEP = np.array([[3.0, 1.0], [0.5, 1.0]])


@pytest.mark.sweep
@pytest.mark.parametrize("k", [6, 2])
@pytest.mark.parametrize("gain", TANH)
def test_exponents_and_blocks_against_qr_at_every_step(gain, k):
    expected = growth_by_qr(TANH[gain], k)[60:]
    result = exponents(TANH[gain], k=k, blocks=7)
    np.testing.assert_allclose(result.exponents, expected.mean(axis=0), rtol=0, atol=1e-8)
    bounds = -(-np.arange(8) * 540 // 7)
    local = [expected[start:stop].mean(axis=0) for start, stop in itertools.pairwise(bounds)]
    np.testing.assert_allclose(result.local, local, rtol=0, atol=1e-6)
    assert result.interval > (2.5 if gain < 4 else 1.0)


@pytest.mark.sweep
@pytest.mark.parametrize("gain", TANH)
def test_a_step_at_a_time_is_qr_at_every_step_and_has_its_statistics(gain):
    expected = growth_by_qr(TANH[gain], 6)[60:]
    exact = exponents(TANH[gain], k=6, blocks=7, interval=1)
    np.testing.assert_allclose(exact.exponents, expected.mean(axis=0), rtol=0, atol=1e-12)
    assert exact.interval == 1
    assert (exact.interval_error == 0).all()
    found = long_run(jnp.asarray(expected - expected.mean(axis=0)), jnp.full(6, 540))
    np.testing.assert_allclose(exact.standard_error, np.sqrt(found.variance / 540), rtol=1e-7)
    np.testing.assert_allclose(exact.degrees_of_freedom, found.degrees_of_freedom, rtol=1e-7)
    chosen = exponents(TANH[gain], k=6, blocks=7)
    np.testing.assert_allclose(np.log(chosen.standard_error / exact.standard_error), 0, atol=np.log(2))


def test_what_the_interval_costs_is_measured():
    assert 0 < exponents(TANH[1.0], k=6, blocks=7).interval_error.max() < 1e-8


def test_an_interval_that_is_too_long_is_refused():
    chain = tanh_chain(np.random.default_rng(0), 6, 400, 1.0)
    assert spectra.lyapunov_exponents(chain, interval=3).interval > 2.5
    with pytest.raises(ValueError, match=r"interval: got 25, expected fewer steps .* differs by .* nats per step"):
        spectra.lyapunov_exponents(chain, interval=25)
    assert np.isnan(exponents(chain, interval=25).exponents).all()


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([A, A.T] * 20, [np.log(2), -INF]),
        ([SHIFT] * 40, [-INF] * 4),
        ([STEP @ np.diag([2.0, 0.0])] * 40, [np.log(6), -INF]),
        ([STEP] * 20 + [np.diag([1.0, 0.0])] + [STEP] * 19, None),
        ([np.zeros((1, 1))] * 5, [-INF]),
    ],
)
def test_what_is_lost_exactly_is_minus_infinity(chain, expected):
    result = exponents(np.array(chain), warm_up=0)
    if expected is None:
        np.testing.assert_array_equal(np.isneginf(result.exponents), [False, True])
    else:
        np.testing.assert_allclose(result.exponents, expected, atol=5e-2)
    assert not np.isnan(result.standard_error).any()


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["lstm", "custom"])  # with a derivation and without
def test_streaming_and_structured_jacobians_give_the_same(name):
    cell = CELLS[name]
    params, inputs, _, initial = instance(models.sequence_model(cell, 1), jax.random.key(3), length=60)
    params = params.cell
    trajectory = trajectories.unroll(cell, params, inputs, initial=initial)
    settled = jax.tree.map(lambda leaf: leaf[9], trajectory.states)
    rest = trajectories.unroll(cell, params, inputs[10:], initial=settled)
    expected = exponents(jacobians.step_jacobians(cell, params, rest), k=2, interval=1)

    def stream(params, inputs, initial):
        return spectra.stream_exponents(cell, params, inputs, initial=initial, transient=10, k=2, interval=1)

    streamed = jax.jit(stream)(params, inputs, initial)
    chex.assert_trees_all_close(streamed, expected, rtol=1e-10, atol=1e-11)
    if cell.derivation is not None:
        structured = exponents(jacobians.structured_jacobians(cell, params, rest), k=2, interval=1)
        chex.assert_trees_all_close(structured, expected, rtol=1e-10, atol=1e-11)


def test_bad_numbers():
    chain = jnp.ones((5, 3, 3)).at[3, 0, 1].set(jnp.nan)
    with pytest.raises(ValueError, match="first at step t = 4"):
        spectra.lyapunov_exponents(chain)
    assert np.isnan(exponents(chain).exponents).all()
    cell = CELLS["elman"]
    params = cell.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"inputs: got NaN or inf, .* first at step t = 3"):
        spectra.stream_exponents(cell, params, jnp.ones((6, 2)).at[2, 0].set(jnp.inf))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 3}, ValueError, "k: got 3, expected at most 2"),
        ({"k": 0}, ValueError, "k: got 0, expected at least 1"),
        ({"warm_up": 9}, ValueError, "warm_up: got 9, expected at most 8"),
        ({"interval": 0}, ValueError, "interval: got 0, expected at least 1"),
        ({"blocks": 1.5}, TypeError, "blocks: got float, expected an int"),
    ],
)
def test_bad_arguments_get_one_line(options, error, message):
    with pytest.raises(error, match=message):
        spectra.lyapunov_exponents(jnp.ones((9, 2, 2)), **options)
    with pytest.raises(error, match="jacobians"):
        spectra.lyapunov_exponents(jnp.ones((9, 2, 3)) if error is ValueError else jnp.ones((9, 2, 2), int))


def test_the_shortest_and_smallest_chain():
    result = spectra.lyapunov_exponents(jnp.full((1, 1, 1), -2.0))
    np.testing.assert_allclose(result.exponents, [np.log(2)], rtol=1e-12)
    assert np.isnan(result.standard_error).all()
