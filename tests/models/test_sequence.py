"""A cell with an affine readout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, models
from tests import cases

KEY = jax.random.key(2)


def test_sequence_model_reads_an_lstm_from_its_hidden_part():
    model = models.sequence_model(cells.lstm(2, 3), 4)
    params = model.init(KEY)
    assert params.readout.w_yh.shape == (4, 3)
    state = cells.LSTMState(jnp.full(3, 7.0), jnp.array([0.1, 0.2, 0.3]))
    expected = params.readout.w_yh @ state.hidden + params.readout.b_y
    np.testing.assert_allclose(model.readout(params, state), expected, rtol=1e-15)


def test_sequence_model_reads_any_other_state_flattened():
    model = models.sequence_model(cases.custom_cell(), 4)
    params = model.init(KEY)
    assert params.readout.w_yh.shape == (4, cases.N + 1)
    assert model.readout(params, model.initial_state(params)).shape == (4,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.sequence_model(cells.gru(1, 2), 2, reduction="avg"), ValueError, "reduction: got 'avg'"),
        (lambda: models.sequence_model(cells.gru(1, 2), 0), ValueError, "num_outputs: got 0"),
        (lambda: models.sequence_model(cells.gru(1, 2), 2).init(0), TypeError, "key: got int, expected a typed key"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
