"""B sequences as one model: what it refuses. That its gradient is the sum of theirs is shown in tests/gradients."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt import gradients, models
from tests import cases

MODEL = models.sequence_model(cases.CELLS["gru"], cases.O)
BATCH = models.batched(MODEL, 3)
BOTH = models.bidirectional([(cases.CELLS["gru"],) * 2], max, max)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.batched(MODEL, 0), ValueError, "size: got 0, expected at least 1"),
        (lambda: models.batched(MODEL, 2.0), TypeError, "size: got float, expected an int"),
        (lambda: models.batched(BATCH, 2), ValueError, "model: got a batch of 3, expected a model of one sequence"),
        (
            lambda: models.batched(models.bidirectional([(cases.CELLS["gru"],) * 2], max, max), 2),
            TypeError,
            "model: got Bi",
        ),
        (lambda: of_batch(sequences=2), ValueError, r"x: got shape \[2, 2\] at one step, expected 3 sequences first"),
        (
            lambda: of_batch(targets=2),
            ValueError,
            r"target: got shape \[2, 4\] at one step, expected 3",
        ),
    ],
)
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def of_batch(sequences=3, targets=3):
    params = MODEL.init(jax.random.key(0))
    return gradients.bptt(BATCH, params, jnp.ones((cases.T, sequences, cases.M)), jnp.ones((cases.T, targets, cases.O)))
