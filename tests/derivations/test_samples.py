"""Instances drawn where none are given; what cannot be drawn is named."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt import cells, gradients, models
from jaxbptt.derivations import check, check_gradient
from tests.derivations.by_hand import O, make

CELL, KEY = make("elman"), jax.random.key(0)
OWN = cells.from_step(CELL.step, CELL.initial_state)
UNUSUAL = models.sequence_model(CELL, O, loss=lambda output, target: jnp.sum(output * target["weights"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check(OWN, CELL.derivation, key=KEY), "params: got None"),
        (lambda: check(OWN, CELL.derivation, key=KEY, params=CELL.init(KEY)), "inputs: got None"),
        (lambda: check_gradient(UNUSUAL, gradients.bptt, key=KEY), "targets: got None"),
        (lambda: check(CELL, CELL.derivation._replace(pullback=lambda *args: args[3]), key=KEY), "pullback: got"),
        (lambda: check_gradient(models.sequence_model(CELL, O), lambda *args: args[1].cell, key=KEY),
         "gradient: got structure"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_or_compared_is_named(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
