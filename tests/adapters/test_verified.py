"""`verify` on a model of every adapter: no row fails."""

import jax
import jax.numpy as jnp
import pytest

import jaxbptt
from jaxbptt import adapters, models
from tests.adapters.test_frameworks import SIZE, _equinox, _haiku, _linen, _nnx, as_frameworks_promote  # noqa: F401
from tests.adapters.test_torch import state_dict

KEY = jax.random.key(3)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("make", "name"),
    [(_linen, "Net"), (_linen, "OptimizedLSTMCell"), (_nnx, "GRUCell"), (_equinox, "Net"), (_haiku, "DeepRNN")],
)
def test_an_adapted_model_is_verified(make, name):
    case = make(name)
    inputs = jax.random.normal(KEY, (4, SIZE))
    output = jax.eval_shape(case.step, case.theirs, case.carry, inputs[0])[1]
    targets = jax.random.normal(KEY, (4, *output.shape))
    jaxbptt.assert_verified(case.adapted.model, case.adapted.params, inputs, targets)


def test_torchs_weights_are_verified():
    found = adapters.torch_weights(
        state_dict("lstm", 2, False, linear=True), "lstm", loss=models.squared_error, readout="fc"
    )
    verdict = jaxbptt.verify(found.model, found.params, jax.random.normal(KEY, (4, 3)), jnp.zeros((4, 2)))
    assert verdict.ok, str(verdict)
    assert next(check for check in verdict.checks if check.name == "hand derivation").status == "passed"


@pytest.mark.slow
def test_a_composed_complex_model_is_verified():
    from tests.models.test_composed import build

    model, params, _, *data = build(("feedback", "resetting", "weighted", "batched", "penalised"), "mean")
    verdict = jaxbptt.verify(model, params, *data)
    assert verdict.ok, str(verdict)
