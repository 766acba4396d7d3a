import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, models
from tests import cases

KEY = jax.random.key(2)


def test_losses_are_their_formulas():
    output, target = jnp.array([0.3, -2.0, 1.5]), jnp.array([1.0, 0.0, -1.0])
    np.testing.assert_allclose(models.squared_error(output, target), 0.5 * (0.49 + 4 + 6.25), rtol=1e-15)
    expected = -np.log(np.exp(-2.0) / np.exp(np.asarray(output)).sum())
    np.testing.assert_allclose(models.softmax_cross_entropy(output, jnp.int32(1)), expected, rtol=1e-14)
    assert np.isfinite(models.softmax_cross_entropy(1e4 * output, jnp.int32(1)))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_poisons_loss_and_gradient(label):
    value, gradient = jax.value_and_grad(models.softmax_cross_entropy)(jnp.ones(3), jnp.int32(label))
    assert np.isnan(value)
    assert np.isnan(gradient).all()


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


@pytest.mark.parametrize("plain", [False, True])
def test_lifted_derivation_is_the_cells_with_a_zero_readout(plain):
    cell = cases.CELLS["gru"]
    if plain:  # a user's pullback, not factored
        factored = cell.derivation.pullback
        cell = cell._replace(derivation=cell.derivation._replace(pullback=lambda *arguments: factored(*arguments)))
    model = models.sequence_model(cell, 2)
    params, inputs, _, state = cases.instance(model, KEY)
    ours = model.derivation.pullback(params, state, inputs[0], jnp.ones(cases.N))
    cells_own = cell.derivation.pullback(params.cell, state, inputs[0], jnp.ones(cases.N))
    jax.tree.map(np.testing.assert_array_equal, ours[0].cell, cells_own[0])
    jax.tree.map(np.testing.assert_array_equal, ours[1:], cells_own[1:])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(ours[0].readout))
    np.testing.assert_array_equal(
        model.derivation.state_jacobian(params, state, inputs[0]),
        cell.derivation.state_jacobian(params.cell, state, inputs[0]),
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: models.sequence_model(cells.gru(1, 2), 2, reduction="avg"),
            ValueError,
            "reduction: got 'avg', expected",
        ),
        (lambda: models.sequence_model(cells.gru(1, 2), 0), ValueError, "num_outputs: got 0"),
        (
            lambda: models.squared_error(jnp.ones(3), jnp.ones(1)),
            ValueError,
            r"target: got shape \[1\], expected \[3\]",
        ),
        (lambda: models.squared_error(jnp.ones(3), jnp.ones(3, int)), TypeError, "target: got int64, expected float64"),
        (lambda: models.softmax_cross_entropy(jnp.ones(3), jnp.ones(())), TypeError, "target: got float64"),
        (lambda: models.softmax_cross_entropy(jnp.ones(3), jnp.zeros(3, int)), ValueError, "target: got shapes"),
    ],
)
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message):
        call()
