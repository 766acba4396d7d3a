"""The adjoint carried forward in time: equal to bptt while rounding lets it be, NaN from then on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import gradients, models
from jaxbptt.comparison import compare
from tests import cases
from tests.gradients.problems import KEY, model_of

STARTS = ["backward", "warm-up"]
SCALAR = models.make_model(lambda p, h, x: p * h, lambda p: jnp.zeros((), p.dtype), lambda p, h: h, lambda o, y: o * y)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", ["linear", "elman", "gru", "lstm", "custom"])
def test_it_is_bptt_on_short_sequences(name, start):
    """To 1e-9: eps times e^(10 nats), the most that these chains of four inverses bring back."""
    model = model_of(name)
    data = cases.instance(model, KEY, gain=1.5)
    call = lambda route, **options: jax.jit(lambda *at: route(model, *at[:3], initial=at[3], **options))(*data)
    loss, expected = call(gradients.bptt)
    actual_loss, actual = call(gradients.forward_adjoint, start=start)
    np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-9
    found = call(gradients.propagate_errors, start=start)
    right = call(gradients.adjoints)
    error = np.linalg.norm(found.adjoints - right, axis=1) / np.linalg.norm(right, axis=1)
    print(name, start, compare(expected, actual).relative, error, np.exp(found.log_error))
    assert int(found.horizon) == cases.T + 1
