"""Truncation as a table of weights: the tables by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import truncation
from tests.truncation.problems import PATTERNS, T, small


def test_tables_by_hand():
    np.testing.assert_array_equal(
        truncation.window_weights(5, 2),
        [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]],
    )
    np.testing.assert_array_equal(
        truncation.sliding_weights(5, 2, 3),
        [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]],
    )
    cuts = jnp.array([False, True, False])
    np.testing.assert_array_equal(
        truncation.random_weights(cuts, jnp.array([0.5, 0.9, 0.25])), [[2, 1, 0, 0], [0, 0, 1, 0], [0, 0, 4, 1]]
    )
    np.testing.assert_array_equal(truncation.one_link_weights(cuts, 0.5), [[2, 1, 0, 0], [0, 0, 1, 0], [2, 2, 2, 1]])
    for length, window in ((4, 2), (4, 4), (4, 9), (1, 1)):  # an empty tail, one window, K > T, T = 1
        table = truncation.window_weights(length, window)
        np.testing.assert_array_equal(table[:, 1:].sum(1), np.arange(length) % window + 1)


def test_sliding_by_one_loss_is_a_table_of_lags():
    t, k = np.arange(1, T + 1)[:, None], np.arange(T + 1)[None, :]
    age = t - np.maximum(k, 1)
    np.testing.assert_array_equal(truncation.sliding_weights(T, 1, 2), (k <= t) & (age < 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: truncation.window_weights(4, 0), ValueError, "window: got 0"),
        (lambda: truncation.window_weights(0, 2), ValueError, "num_steps: got 0"),
        (lambda: truncation.sliding_weights(4, 0, 2), ValueError, "stride: got 0"),
        (lambda: truncation.sliding_weights(4, 1, 0), ValueError, "num_lags: got 0"),
        (lambda: truncation.random_weights(PATTERNS[0], 0.0), ValueError, "keep: got 0.0"),
        (lambda: weighted(jnp.ones((4, 4))), ValueError, r"weights: got shape"),
        (lambda: weighted(jnp.ones((4, 5))), ValueError, "weights: .* k > t"),
        (lambda: weighted(jnp.zeros((4, 5), int)), TypeError, "weights: got int64"),
        (lambda: weighted(jnp.full((4, 5), jnp.inf)), ValueError, "weights: got NaN"),
    ],
)
def test_bad_tables_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def weighted(table):
    model, data, _ = small()
    return truncation.weighted_gradient(model, *data, table)
