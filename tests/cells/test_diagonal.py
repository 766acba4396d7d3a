"""Cells with a diagonal J_t, and the leaky one: their derivations, and what is exact about their chains."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt import partials
from tests import cases
from tests.cells.hand_derived import largest_disagreement, step_errors

NAMES = ("leaky", "lru", "min_gru", "min_lstm", "rg_lru", "selective_ssm")
SPREAD = jnp.array([-25.0, 0.4, 25.0])  # pre-activations of gates that are shut, half open and open
EXTREME = {  # gates and decays near 0 and near 1
    "leaky": lambda params: params._replace(leak=jnp.array([1e-9, 0.5, 1.0])),
    "lru": lambda params: params._replace(nu_log=jnp.array([-25.0, 0.4, 3.5])),
    "min_gru": lambda params: params._replace(b_z=SPREAD),
    "min_lstm": lambda params: params._replace(b_f=SPREAD, b_i=jnp.array([-25.0, 0.2, -25.0])),
    "rg_lru": lambda params: params._replace(lambda_=SPREAD / 2, b_a=SPREAD[::-1] / 5, b_i=SPREAD),
    "selective_ssm": lambda params: params._replace(b_delta=SPREAD[1:] / 2, a_log=params.a_log + SPREAD[None] / 4),
}


def instance(name, seed, gates="drawn"):
    cell = cases.MODERN[name]
    params, inputs, targets, initial = cases.instance(cell, jax.random.key(seed))
    return cell, (params if gates == "drawn" else EXTREME[name](params)), inputs, targets, initial


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gates", ["drawn", "extreme"])
@pytest.mark.parametrize("name", NAMES)
def test_hand_derivation_equals_automatic(name, gates, seed):
    cell, params, inputs, _, state = instance(name, seed, gates)
    errors = step_errors(cell, cell.derivation, params, state, inputs[0], jax.random.key(seed + 10))
    assert errors.max() < 1e-13


@pytest.mark.parametrize("gates", ["drawn", "extreme"])
@pytest.mark.parametrize("name", NAMES)
def test_all_exact_routes_agree(name, gates):
    assert partials.step_partials(cases.MODERN[name]).source == "factored"
    assert largest_disagreement(*instance(name, 5, gates)) < 1e-12
