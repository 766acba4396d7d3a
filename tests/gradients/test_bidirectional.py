"""Both directions: every route against a loop, the tables' terms, and what refuses such a model."""

import jax
import jax.numpy as jnp
import pytest

from jaxbptt import cells, gradients, models, online, terms, trajectories, truncation
from jaxbptt.comparison import compare
from tests import cases

T, M, H, O, KEY = 5, 2, 3, 2, jax.random.key(12)


def hidden(state):
    return getattr(state, "hidden", state)


def readout(params, forward, backward):
    return params.readout["v"] @ jnp.concatenate((hidden(forward), hidden(backward))) * jnp.sum(params.readout["s"])


def build(depth, reduction="mean"):
    layers = [(cells.lstm(M, H), cells.gru(M, H)), (cells.elman(2 * H, H), cases.custom_cell(2 * H))][:depth]
    model = models.bidirectional(
        layers, readout if depth == 1 else last_readout, models.squared_error, reduction=reduction
    )
    keys = jax.random.split(KEY, 6)
    owns = tuple(tuple(cell.init(key) for cell, key in zip(pair, keys, strict=False)) for pair in layers)
    size = 2 * H
    own = {"v": jax.random.normal(keys[2], (O, size)), "s": jnp.array([0.4, 0.9])}
    params = jax.tree.map(lambda leaf: leaf + 0.1, models.BidirectionalParams(owns, own))
    return model, params, jax.random.normal(keys[3], (T, M)), jax.random.normal(keys[4], (T, O))


def last_readout(params, forward, backward):
    return readout(params, forward, backward.slow)


def loop(model, params, inputs, targets):
    """C by plain loops over steps."""
    for cells_of_layer, owns in zip(model.layers, params.layers, strict=True):
        found = []
        for backward, (cell, own) in enumerate(zip(cells_of_layer, owns, strict=True)):
            state, states = cell.initial_state(own), []
            for t in reversed(range(T)) if backward else range(T):
                state = cell.step(own, state, inputs[t])
                states.append(state)
            found.append(states[::-1] if backward else states)
        both = list(zip(*found, strict=True))
        if cells_of_layer is not model.layers[-1]:
            inputs = [jnp.concatenate((hidden(f), hidden(b))) for f, b in both]
    losses = [model.loss(model.readout(params, *pair), y) for pair, y in zip(both, targets, strict=True)]
    return sum(losses) / (T if model.reduction == "mean" else 1)


@pytest.mark.sweep
@pytest.mark.parametrize(("depth", "reduction"), [(1, "mean"), (2, "mean"), (2, "sum")])
def test_routes_equal_the_loop(depth, reduction):
    model, *data = build(depth, reduction)
    expected_loss, expected = jax.jit(jax.value_and_grad(lambda *data: loop(model, *data)))(*data)
    routes = [gradients.autodiff, gradients.bptt]
    routes += [gradients.forward_sensitivity, gradients.double_sum] * (depth == 1)
    for loss, grads in jax.jit(lambda *data: [route(model, *data) for route in routes])(*data):
        assert abs(loss - expected_loss) < 1e-12 * abs(expected_loss)
        assert compare(expected, grads).relative < 1e-12


def row(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.mark.slow
def test_terms_are_a_pair_of_tables():
    """Row t of the forward table is ‖∂L_t/∂θ_k‖ with the readout's states moved by the forward cell alone."""
    model, params, inputs, targets = build(1, "sum")
    tables = terms.gradient_terms(model, params, inputs, targets)
    for backward, table in enumerate(tables):
        cell, own = model.layers[0][backward], params.layers[0][backward]
        other = trajectories.unroll(
            model.layers[0][1 - backward], params.layers[0][1 - backward], inputs if backward else inputs[::-1]
        ).states

        def losses(owns, cell=cell, own=own, other=other, backward=backward):
            state, found = cell.initial_state(own), []
            for k in range(T):
                t = T - 1 - k if backward else k
                state = cell.step(row(owns, k), state, inputs[t])
                beside = row(other, T - 1 - k)
                pair = (beside, state) if backward else (state, beside)
                found.append(model.loss(model.readout(params, *pair), targets[t]))
            return jnp.stack(found)

        every = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (T, *leaf.shape)), own)
        rows = jax.tree.leaves(jax.jacrev(losses)(every))
        norms = jnp.sqrt(sum(jnp.sum(leaf**2, axis=tuple(range(2, leaf.ndim))) for leaf in rows))
        assert jnp.max(jnp.abs(norms - table.norms)) < 1e-12


MODEL, PARAMS, X, Y = build(2)
MISFIT = MODEL._replace(layers=(MODEL.layers[0], (cells.elman(5, H), cells.elman(6, H))))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradients.double_sum(MODEL, PARAMS, X, Y), ValueError, r"model.layers: got 2, expected 1"),
        (lambda: terms.gradient_terms(MODEL, PARAMS, X, Y), ValueError, r"model.layers: got 2, expected 1"),
        (lambda: gradients.bptt(MODEL, PARAMS, X, Y, block=2), ValueError, "model: got a BidirectionalModel"),
        (lambda: gradients.bptt(MODEL, PARAMS, X, Y, initial=X), ValueError, "initial: got a state, expected None"),
        (lambda: gradients.bptt(MODEL, PARAMS.layers, X, Y), TypeError, "params: got tuple, expected models.Bidi"),
        (lambda: gradients.bptt(MODEL, PARAMS, X, Y[:2]), ValueError, "targets: got 2 steps, expected 5"),
        (lambda: truncation.lag(MODEL, PARAMS, X, Y, num_lags=2), TypeError, "model: got BidirectionalModel, expected"),
        (lambda: online.run(online.rtrl(), MODEL, PARAMS, X, Y), TypeError, "model: got BidirectionalModel, expected"),
        (lambda: trajectories.unroll(MODEL, PARAMS, X), TypeError, "cell: got BidirectionalModel, expected"),
        (
            lambda: gradients.bptt(MISFIT, PARAMS, X, Y),
            ValueError,
            "layer 2: it takes 5 inputs, expected 6",
        ),
        (lambda: gradients.bptt(MODEL, PARAMS, X, Y.at[2].set(jnp.inf)), ValueError, "targets: got NaN or inf"),
        (lambda: models.bidirectional([], readout, models.squared_error), ValueError, "layers: got 0 of them"),
        (
            lambda: models.bidirectional([(cells.gru(2, 2), 3)], readout, models.squared_error),
            TypeError,
            "cell: got int",
        ),
    ],
)
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
