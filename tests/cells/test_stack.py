"""Layers: the stack's own derivation against automatic differentiation, and what it refuses."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt import cells, derivations, gradients, jacobians, models, terms, trajectories
from jaxbptt.comparison import compare
from jaxbptt.partials import step_partials
from tests import cases

KEY = jax.random.key(7)
THREE = cells.stack(cells.lstm(2, 3), cells.gru(3, 2), cells.elman(2, 3))


@pytest.mark.sweep
@pytest.mark.parametrize("gain", cases.GAINS)
def test_a_stack_of_built_in_cells_keeps_its_factored_form(gain):
    model = models.sequence_model(THREE, cases.O)
    assert step_partials(model).source == "factored"
    params, inputs, targets, initial = cases.instance(model, KEY, gain=gain)

    @jax.jit
    def found(*data):
        steps = trajectories.unroll(model, params, data[1], initial=initial)
        chains = [jacobians.step_jacobians(model, params, steps, method=m) for m in ("closed", "reverse")]
        routes = (gradients.autodiff, gradients.bptt, gradients.double_sum)
        return [route(model, *data, initial=initial)[1] for route in routes], chains

    (expected, *rest), (closed, reverse) = found(params, inputs, targets)
    for grads in rest:
        assert compare(expected, grads).relative < 1e-12
    assert jnp.max(jnp.abs(closed - reverse)) < 1e-12 * jnp.max(jnp.abs(reverse))


@pytest.mark.slow
def test_its_derivation_holds_and_its_terms_add_up():
    assert derivations.check(THREE, THREE.derivation, key=KEY).ok
    model = models.sequence_model(THREE, cases.O)
    params, inputs, targets, initial = cases.instance(model, KEY)
    plain = model._replace(derivation=None)
    tables = [terms.gradient_terms(each, params, inputs, targets, initial=initial).norms for each in (model, plain)]
    assert jnp.max(jnp.abs(tables[0] - tables[1])) < 1e-12


def test_a_batch_of_stacks_equals_its_sequences():
    model = models.sequence_model(THREE, cases.O)
    data = [cases.instance(model, key) for key in jax.random.split(KEY, 2)]
    params = data[0][0]
    inputs, targets = (jnp.stack([each[i] for each in data], axis=1) for i in (1, 2))
    whole = gradients.bptt(models.batched(model, 2), params, inputs, targets)[1]
    alone = [gradients.bptt(model, params, *each[1:3])[1] for each in data]
    assert compare(jax.tree.map(jnp.add, *alone), whole).relative < 1e-12


def test_the_top_needs_no_hidden_part():
    top = cells.stack(cells.slstm(2, 2), cells.mlstm(2, 1, 1))
    params, inputs, _, initial = cases.instance(top, KEY)
    steps = trajectories.unroll(top, params, inputs, initial=initial)
    closed, forward = (jacobians.step_jacobians(top, params, steps, method=m) for m in ("closed", "forward"))
    assert jnp.max(jnp.abs(closed - forward)) < 1e-13 * jnp.max(jnp.abs(forward))


def test_a_stack_with_a_step_alone_is_a_step_alone():
    mixed = cells.stack(cells.gru(2, 3), cases.custom_cell(3), read=lambda state: getattr(state, "slow", state))
    assert mixed.derivation is None
    model = models.sequence_model(mixed, 2, read=lambda state: state[-1].slow)
    params = mixed.init(KEY)
    whole = models.SequenceParams(params, models.Readout(jnp.ones((2, 3)), jnp.zeros(2)))
    x, y = jnp.ones((4, 2)), jnp.ones((4, 2))
    expected, found = (route(model, whole, x, y)[1] for route in (gradients.autodiff, gradients.bptt))
    assert compare(expected, found).relative < 1e-12


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cells.stack(), ValueError, "cells: got none"),
        (lambda: cells.stack(cells.gru(2, 3), jnp.tanh), TypeError, "cell: got"),
        (
            lambda: trajectories.unroll(
                cells.stack(cells.gru(2, 3), cells.gru(4, 3)),
                cells.stack(cells.gru(2, 3), cells.gru(4, 3)).init(KEY),
                jnp.ones((2, 2)),
            ),
            ValueError,
            r"cells: got layer 2: it takes 4 inputs, expected as many as layer 1 gives \(\[3\]\)",
        ),
        (
            lambda: trajectories.unroll(
                cells.stack(cases.custom_cell(), cells.gru(3, 3)),
                cells.stack(cases.custom_cell(), cells.gru(3, 3)).init(KEY),
                jnp.ones((2, 2)),
            ),
            ValueError,
            "read: got None, expected a function of a state of",
        ),
    ],
)
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
