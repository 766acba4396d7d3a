"""What holds for the xLSTM's cells, DeltaNet and RWKV-7 alike: derivations, parts, routes, batches, layers, dtypes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, derivations, gradients, models
from jaxbptt.comparison import compare
from tests import cases
from tests.cells import matrix_cells
from tests.cells.matrix_cells import KEY, NAMES

ROUTES = (gradients.autodiff, gradients.bptt, gradients.forward_sensitivity, gradients.double_sum)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_hand_derivation_equals_automatic(name):
    cell = cases.MODERN[name]
    assert matrix_cells.step_errors(cell, matrix_cells.points(cell)).max() < 1e-13


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("slstm", "carried * state.normaliser - written,", "carried * state.normaliser,"),
        ("slstm", "log_forget=jax.nn.sigmoid(-f)", "log_forget=jax.nn.sigmoid(f)"),
        ("slstm", "n = cotangent.normaliser + factors.hidden[1] * cotangent.hidden", "n = cotangent.normaliser"),
        ("slstm", "m = w_i + factors.carried", "m = factors.carried"),
        ("mlstm", "return (1 - self.carried) * self.forget", "return self.forget"),
        ("mlstm", "i=(1 - factors.carried) * of_m - gamma,", "i=of_m - gamma,"),
        ("mlstm", "of_k = of_cell @ factors.v + of_normaliser", "of_k = of_cell @ factors.v"),
        ("delta_net", " - _decayed(drive, state @ value)", ""),
        ("delta_net", "raw = pull_to_unit(drive.key, drive.inverse, key)", "raw = drive.inverse * key"),
        ("gated_delta_net", "- jnp.sum(value * held)", ""),
        ("gated_delta_net", "jnp.exp(drive.decay.log) * leaf", "jnp.exp(drive.decay.log) * leaf - leaf + leaf * 1.01"),
        ("rwkv7", "removed = drive.rate * of_b - pulled @ state", "removed = drive.rate * of_b + pulled @ state"),
        ("rwkv7", "value @ cotangent + drive.xi * raw", "value @ cotangent"),
        ("rwkv7", "b[None, :, None], -drive.removed[None, :, None]", "-drive.removed[None, :, None], b[None, :, None]"),
    ],
)
def test_a_broken_derivation_is_seen(name, old, new):
    assert matrix_cells.mutant_error(name, old, new) > 1e-3


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_parts_multiply_as_the_jacobian(name):
    cell = cases.MODERN[name]
    params, inputs, _, state = matrix_cells.instance(cell, KEY)
    jacobian = cell.derivation.state_jacobian(params, state, inputs[0])
    matrix = jax.random.normal(KEY, (len(jacobian), 2))
    left, right = matrix_cells.products(cell, params, state, inputs[0], matrix)
    np.testing.assert_allclose(left, jacobian @ matrix, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(right, matrix.T @ jacobian, rtol=1e-12, atol=1e-14)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_exact_routes_agree(name):
    """From a given h_0, and from the cell's own, at which nothing is stored."""
    model = models.sequence_model(cases.MODERN[name], cases.O)
    params, inputs, targets, initial = matrix_cells.instance(model, KEY, length=4)

    @jax.jit
    def found(*data):
        given = [route(model, *data, initial=initial)[1] for route in ROUTES]
        return given, [route(model, *data)[1] for route in ROUTES[:2]]

    for expected, *others in found(params, inputs, targets):
        for grads in others:
            assert compare(expected, grads).relative < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_sequences_and_so_is_vmap(name):
    model = models.sequence_model(cases.MODERN[name], 2)
    params, inputs, targets, _ = matrix_cells.instance(model, KEY, length=3, num_outputs=2)
    xs, ys = (jnp.stack((leaf, jnp.cos(leaf)), axis=1) for leaf in (inputs, targets))

    @jax.jit
    def found(params, xs, ys):
        mapped = jax.vmap(lambda *data: gradients.bptt(model, params, *data)[1], in_axes=1)(xs, ys)
        return gradients.bptt(models.batched(model, 2), params, xs, ys)[1], mapped

    whole, mapped = found(params, xs, ys)
    assert compare(jax.tree.map(lambda leaf: leaf.sum(0), mapped), whole).relative < 1e-12


@pytest.mark.parametrize("name", ["slstm", "mlstm"])
def test_layers(name):
    """Above a GRU a cell keeps its derivation; what one with an output passes on to a GRU reads x_t, too."""
    cell, width = cases.MODERN[name], cases.N if name == "slstm" else 2
    above = models.sequence_model(cells.stack(cells.gru(cases.M, cases.M), cell), 2)
    below = models.sequence_model(cells.stack(cell, cells.gru(width, 2)), 2)
    assert above.derivation is not None
    assert (below.derivation is None) == (name != "slstm")
    for model in (above, below):
        params, inputs, targets, _ = matrix_cells.instance(model, KEY, length=2, num_outputs=2)
        pair = jax.jit(lambda *data, model=model: [route(model, *data)[1] for route in ROUTES[:2]])
        expected, grads = pair(params, inputs, targets)
        assert compare(expected, grads).relative < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32(name):
    model = models.sequence_model(cases.MODERN[name], 2)
    data = matrix_cells.instance(model, KEY, length=3, num_outputs=2)
    params, inputs, targets, initial = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), data)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model.initial_state(params)))
    call = jax.jit(lambda *data: [route(model, *data, initial=initial)[1] for route in ROUTES[:2]])
    expected, grads = call(params, inputs, targets)
    chex.assert_trees_all_equal_dtypes(params, grads)
    assert compare(expected, grads).relative < 1e-5


def test_check_finds_nothing_and_takes_scalar_leaves():
    cell = cases.MODERN["mlstm"]
    assert derivations.check(cell, cell.derivation, key=KEY).ok


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_no_inputs(name):
    """M = 0: a recurrence of its biases alone. A key of zeros is left without a direction, and with derivative 0."""
    make = {
        "slstm": lambda: cells.slstm(0, 2),
        "rwkv7": lambda: cells.rwkv7(0, 2, 2),
        "mlstm": lambda: cells.mlstm(0, 2, 2),
    }
    cell = make.get(name, lambda: cells.delta_net(0, 2, 2, gated=name.startswith("gated")))()
    params, state, x = cell.init(KEY), cell.initial_state(cell.init(KEY)), jnp.zeros(0)
    state = jax.tree.map(lambda leaf: leaf + 1, state)
    assert matrix_cells.step_errors(cell, [(params, state, x)]).max() < 1e-13


def test_initialisation_is_as_stated():
    np.testing.assert_allclose(cells.slstm(2, 3).init(KEY).b_h, [*[0] * 6, 3, 4.5, 6, *[0] * 3])
    mlstm, rwkv7 = cells.mlstm(100, 50, 50).init(KEY), cells.rwkv7(100, 3, 50).init(KEY)
    assert not any(np.any(leaf) for leaf in (mlstm.w_i, mlstm.w_f, mlstm.b_q, mlstm.b_k, mlstm.b_v, mlstm.b_o))
    assert (float(mlstm.b_f), 0 < abs(float(mlstm.b_i)) < 0.5) == (3, True)
    np.testing.assert_allclose((rwkv7.b_w, rwkv7.b_a, rwkv7.xi), ([-5.5, -2.5, 0.5], [-0.19] * 3, [0.71] * 3))
    for leaf in (mlstm.w_q, mlstm.w_k, mlstm.w_v, mlstm.w_o, rwkv7.w_v):
        assert abs(np.std(leaf) - 0.1) < 0.01
    gated = jax.vmap(cells.delta_net(2, 2, 2, gated=True).init)(jax.random.split(KEY, 200))
    rate, first = np.exp(gated.a_log), np.log1p(np.exp(gated.b_g))
    assert 0 < rate.min() < 1 < 15 < rate.max() <= 16
    assert 0.001 <= first.min() < 0.0012 < 0.08 < first.max() <= 0.1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cells.slstm(2, 0), ValueError, "num_hidden: got 0, expected at least 1"),
        (lambda: cells.slstm(-1, 2), ValueError, "num_inputs: got -1, expected at least 0"),
        (lambda: cells.mlstm(2, 2.0, 2), TypeError, "num_keys: got float, expected an int"),
        (lambda: cells.delta_net(2, 2, 0), ValueError, "num_values: got 0, expected at least 1"),
        (lambda: cells.delta_net(2, 2, 2, gated=1), TypeError, "gated: got int, expected a bool"),
        (lambda: cells.rwkv7(True, 2, 2), TypeError, "num_inputs: got bool, expected an int"),
        (lambda: cells.rwkv7(2, 2, 2).init(0), TypeError, "key: got int, expected a typed key"),
    ],
)
def test_bad_arguments_get_one_line(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
