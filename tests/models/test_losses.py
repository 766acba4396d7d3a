"""Losses are their formulas, and take one kind of target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import models


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: models.squared_error(jnp.ones(3), jnp.ones(1)),
            ValueError,
            r"target: got shape \[1\], expected \[3",
        ),
        (lambda: models.squared_error(jnp.ones(3), jnp.ones(3, int)), TypeError, "target: got int64, expected float64"),
        (lambda: models.softmax_cross_entropy(jnp.ones(3), jnp.ones(())), TypeError, "target: got float64"),
        (lambda: models.softmax_cross_entropy(jnp.ones(3), jnp.zeros(3, int)), ValueError, "target: got shapes"),
    ],
)
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
