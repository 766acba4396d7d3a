"""What moving params do to an online rule."""

import jax
import numpy as np
import optax

from jaxbptt import online
from jaxbptt.comparison import compare
from tests.online.problems import instance_of, model_of


def test_stale_sensitivities_cost_what_the_params_move():
    """RTRL against a replay at the params of each time: zero for fixed params, of first order in the learning rate."""
    model, data = model_of("elman"), instance_of("elman", gain=1.2, length=8)

    @jax.jit
    def of(rate):
        return online.staleness(online.rtrl(), model, *data[:3], optimizer=optax.sgd(rate))

    fixed, small, large = of(0.0), of(1e-5), of(1e-4)
    assert fixed.error.max() < 1e-12
    assert fixed.cosine.min() > 1 - 1e-12
    assert large.error[0] < 1e-12
    assert large.error[1:].min() > 1e-7
    np.testing.assert_allclose(large.error[1:] / small.error[1:], 10, rtol=0.1)
    assert compare(data[0], fixed.params).relative == 0
