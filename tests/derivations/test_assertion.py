"""The checks as one line of a test suite."""

import jax
import pytest

from jaxbptt import gradients, models
from jaxbptt.derivations import assert_correct
from tests import cases
from tests.derivations.by_hand import O, make

CELL, KEY = make("elman"), jax.random.key(0)
MODEL = models.sequence_model(CELL, O)
PARAMS, INPUTS, TARGETS, _ = cases.instance(MODEL, KEY, length=6, num_outputs=O)


def test_what_is_correct_passes():
    assert_correct(CELL, CELL.derivation, key=KEY)
    assert_correct(MODEL, gradients.bptt, key=KEY)
    assert_correct(MODEL, gradients.bptt, key=KEY, params=PARAMS, inputs=INPUTS, targets=TARGETS)


def test_what_is_wrong_raises_the_report():
    wrong = CELL.derivation._replace(state_jacobian=lambda *args: 2 * CELL.derivation.state_jacobian(*args))
    with pytest.raises(AssertionError, match=r"state_jacobian.*\[double\]"):
        assert_correct(CELL, wrong, key=KEY)
    with pytest.raises(AssertionError, match="no known slip"):
        assert_correct(MODEL, lambda *args: jax.tree.map(lambda leaf: leaf + 1, gradients.bptt(*args)[1]), key=KEY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: assert_correct(CELL, None, key=KEY), "candidate: got NoneType, expected a Derivation or a function"),
        (lambda: assert_correct(CELL, CELL.derivation, key=KEY, targets=TARGETS), "targets: got some for a derivation"),
        (lambda: assert_correct(CELL, CELL.derivation, key=KEY, lengths=3), "lengths"),
        (lambda: assert_correct(CELL, CELL.derivation), "key"),
    ],
)
def test_bad_arguments_get_one_line(call, message):
    with pytest.raises(TypeError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
