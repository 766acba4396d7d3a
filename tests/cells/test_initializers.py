"""Recurrent weights are drawn as stated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells

KEY = jax.random.key(1)


def test_initialisation_is_as_stated():
    size = 400
    w = cells.elman(2, size, recurrent=cells.gaussian(0.8)).init(KEY).w_hh
    assert abs(np.std(w) * size**0.5 - 0.8) < 0.01
    assert 0.7 < np.max(np.abs(np.linalg.eigvals(w))) < 0.9
    q = cells.gru(2, 5, recurrent=cells.orthogonal(1.3)).init(KEY).w_hh
    for gate in np.split(np.asarray(q), 3):
        np.testing.assert_allclose(np.linalg.svd(gate, compute_uv=False), 1.3, rtol=1e-12)
    np.testing.assert_array_equal(cells.linear(0, 3, recurrent=cells.identity(0.5)).init(KEY).w_hh, 0.5 * np.eye(3))
    bias = cells.lstm(2, 3, forget_bias=2.5).init(KEY).b_h
    np.testing.assert_array_equal(bias, np.repeat([0, 2.5, 0, 0], 3))
    bias = np.asarray(cells.lstm(2, 500, forget_bias=cells.chrono(50)).init(KEY).b_h)
    lags = np.exp(bias[500:1000])
    assert 1 <= lags.min() < 1.5
    assert 48 < lags.max() <= 49
    assert abs(lags.mean() - 25) < 2
    np.testing.assert_array_equal(bias[:500], -bias[500:1000])
    np.testing.assert_array_equal(bias[1000:], 0)
    minimal = cells.min_lstm(2, 5, forget_bias=cells.chrono(50)).init(KEY)
    np.testing.assert_array_equal(minimal.b_i, -minimal.b_f)
    np.testing.assert_array_equal(cells.min_lstm(2, 3, forget_bias=1.5).init(KEY).b_f, np.full(3, 1.5))
    assert cells.linear(0, 3).init(KEY).w_hx.shape == (3, 0)


@pytest.mark.parametrize("scheme", [cells.gaussian, cells.orthogonal, cells.identity])
@pytest.mark.parametrize(
    ("gain", "error", "said"),
    [
        (np.nan, ValueError, "gain: got nan, expected a finite number"),
        (np.inf, ValueError, "gain: got inf, expected a finite number"),
        ("2", TypeError, "gain: got str, expected a finite number"),
        (None, TypeError, "gain: got NoneType, expected a finite number"),
        (True, TypeError, "gain: got bool, expected a finite number"),
        (1j, TypeError, "gain: got complex, expected a finite number"),
        (np.ones(2), ValueError, r"gain: got \[1. 1.\], expected a finite number"),
    ],
)
def test_a_gain_that_is_none_is_refused(scheme, gain, error, said):
    with pytest.raises(error, match=said):
        scheme(gain)


def test_a_gain_may_be_traced():
    largest = jax.jit(lambda gain: jnp.abs(cells.orthogonal(gain)(KEY, (1, 1), jnp.float64)).max())
    np.testing.assert_allclose(largest(0.7), 0.7)


@pytest.mark.parametrize("make", [cells.elman, cells.linear, cells.leaky, cells.gru, cells.lstm, cells.slstm])
@pytest.mark.parametrize(
    ("recurrent", "said"),
    [
        (1.5, "got float, expected a scheme such as gaussian"),
        (lambda gain: gain, "got one that fails .* takes 1 positional argument but 3 were given"),  # not called
        (lambda *at: jnp.ones(3), r"got one that gives shape \[3\], expected \[3, 3\]"),
    ],
)
def test_a_scheme_that_is_none_is_refused(make, recurrent, said):
    with pytest.raises((TypeError, ValueError), match=f"recurrent: {said}"):
        make(2, 3, recurrent=recurrent).init(KEY)
