"""Steps of many kinds: a correct derivation or gradient is never blamed."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt import gradients
from jaxbptt.derivations import check, check_gradient
from tests.derivations.random_steps import STEPS, branches, draw, layer_norm, make, masked

ROUTES = (gradients.bptt, gradients.forward_sensitivity, gradients.double_sum)


def blamed(step, count, dtypes):
    """What correct derivations and gradients are blamed for."""
    model, cell, derivation = make(step)
    routes = [jax.jit(lambda params, *data, route=route: route(model, params, *data)[1]) for route in ROUTES]
    found = []
    for number in range(count):
        key, dtype = jax.random.key(number), dtypes[number % len(dtypes)]
        params, inputs, targets = draw(key, dtype, (0.5, 1.0, 1.5)[number % 3])
        route = routes[number % 3] if count > 3 else routes[0]
        of_step = check(cell, derivation, key=key, params=params, inputs=inputs)
        gradient = lambda _, *at, route=route: route(*at)
        whole = check_gradient(model, gradient, key=key, params=params, inputs=inputs, targets=targets)
        found += [str(report) for report in (of_step, whole) if not report.ok]
    return found


@pytest.mark.sweep
@pytest.mark.parametrize("step", [branches, layer_norm, masked])
def test_correct_steps_are_not_blamed(step):
    assert not blamed(step, 2, (jnp.float64,))


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_thousand_correct_steps_are_not_blamed(step):
    assert not blamed(step, 72, (jnp.float64, jnp.float32))
