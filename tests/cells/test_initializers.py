"""Recurrent weights are drawn as stated."""

import jax
import numpy as np

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
