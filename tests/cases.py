"""The cells, models and random instances the tests share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells, models

N, M, O, T = 3, 2, 4, 5
GAINS = (0.5, 1.0, 1.5)


class PairState(NamedTuple):
    slow: jax.Array
    fast: dict


def custom_cell(num_inputs=M):
    """A cell known by its step alone: nested state, h_0 a function of params."""

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "w": jax.random.normal(keys[0], (N, N)) * 0.7,
            "u": jax.random.normal(keys[1], (N, num_inputs)),
            "h_0": jax.random.normal(keys[2], (N,)),
        }

    def initial_state(params):
        return PairState(jnp.sin(params["h_0"]), {"a": params["h_0"][:1]})

    def step(params, state, x):
        drive = jnp.tanh(params["w"] @ state.slow + params["u"] @ x + state.fast["a"][0] * params["h_0"])
        return PairState(0.6 * state.slow + drive, {"a": jnp.cos(state.fast["a"]) * drive[:1]})

    return cells.from_step(step, initial_state, init=init, num_inputs=num_inputs)


def softplus_elman(num_inputs, num_hidden, **options):
    return cells.elman(num_inputs, num_hidden, activation=jax.nn.softplus, **options)


BUILT_IN = {
    "linear": cells.linear,
    "elman": cells.elman,
    "softplus": softplus_elman,
    "lstm": cells.lstm,
    "gru": cells.gru,
}
MODERN = {  # with their own tests: the conformance tests take CELLS alone
    "leaky": cells.leaky(M, N, leak=np.linspace(0.1, 0.9, N)),
    "lru": cells.lru(M, N),
    "min_gru": cells.min_gru(M, N),
    "min_lstm": cells.min_lstm(M, N),
    "rg_lru": cells.rg_lru(N),
    "selective_ssm": cells.selective_ssm(M, N),
    "slstm": cells.slstm(M, N),
    "mlstm": cells.mlstm(M, N, 2),
    "delta_net": cells.delta_net(M, N, 2),
    "gated_delta_net": cells.delta_net(M, N, 2, gated=True),
    "rwkv7": cells.rwkv7(M, N, 2),
}
CELLS = {**{name: make(M, N) for name, make in BUILT_IN.items()}, "custom": custom_cell()}


def shared_model():
    """θ = w is used by the step and by the readout: dC/dw has both parts."""
    cell = cells.elman(M, N)
    return models.Model(
        init=cell.init,
        initial_state=cell.initial_state,
        step=cell.step,
        readout=lambda params, state: jnp.sin(params.w_hh @ state),
        loss=models.squared_error,
        reduction="mean",
        derivation=cell.derivation,
        num_inputs=M,
    )


def instance(model, key, *, length=T, gain=None, classes=False, num_outputs=O):
    """(params with dense biases and scaled recurrent weights, inputs, targets, a non-zero h_0)."""
    keys = jax.random.split(key, 4)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.3, leaf.dtype) * jax.random.normal(keys[0], leaf.shape, leaf.dtype),
        model.init(keys[0]),
    )
    if gain is not None:
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * gain if "w_hh" in jax.tree_util.keystr(path) else leaf, params
        )
    inputs = jax.random.normal(keys[1], (length, model.num_inputs))
    if classes:
        targets = jax.random.randint(keys[2], (length,), 0, num_outputs)
    else:
        targets = jax.random.normal(keys[2], (length, num_outputs))
    flat = jax.eval_shape(model.initial_state, params)
    initial = jax.tree.map(lambda leaf: 0.5 * jax.random.normal(keys[3], leaf.shape, leaf.dtype), flat)
    return params, inputs, targets, initial
