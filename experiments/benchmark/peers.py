"""The gradient of one case by everybody: each peer's own cell in its usual loop, with our params in its own form.

A maker (case) -> Contestant imports its package itself, so that a missing one is an ImportError of that peer alone.
"""

import os
import timeit

import jax
import jax.numpy as jnp

from jaxbptt import gradients, models
from jaxbptt.cells import ElmanParams, GRUParams, LSTMParams
from jaxbptt.models import Readout, SequenceParams

from .cases import OUTPUTS, Case
from .timing import Contestant, Unavailable


def ours(case: Case, **options) -> Contestant:
    """`gradients.bptt`, with its options."""
    model = case.model if case.batch == 1 else models.batched(case.model, case.batch)

    def gradient(params, inputs, targets):
        return gradients.bptt(model, params, inputs, targets, **options)

    return Contestant(gradient, (case.params, case.inputs, case.targets))


def autodiff(case: Case) -> Contestant:
    """`jax.value_and_grad` through a `lax.scan` of the step as anybody writes it."""
    step = {"tanh": _tanh_step, "lstm": _lstm_step, "gru": _gru_step}[case.cell]

    def loss(params, inputs, targets):
        zeros = jnp.zeros(case.units, inputs.dtype)
        start = (zeros, zeros) if case.cell == "lstm" else (zeros,)

        def body(state, x):
            state = step(params.cell, state, x)
            return state, state[-1]

        hidden = jax.lax.scan(body, start, inputs)[1]
        return _squared_error(hidden @ params.readout.w_yh.T + params.readout.b_y[None], targets)

    function = jax.value_and_grad(summed(loss, case))
    return Contestant(function, (case.params, case.inputs, case.targets), note="lax.scan")


def flax(case: Case) -> Contestant:
    """flax.linen.RNN of its own cell."""
    from flax import linen

    cells = {"tanh": linen.SimpleCell, "lstm": linen.OptimizedLSTMCell, "gru": linen.GRUCell}
    network = linen.RNN(cells[case.cell](case.units, param_dtype=case.inputs.dtype), time_major=case.batch > 1)
    gates = {"lstm": "ifgo", "gru": "rzn"}.get(case.cell)
    w_x, w_h, biases = case.params.cell.w_hx.T, case.params.cell.w_hh.T, _biases(case.params.cell)
    if gates is None:
        cell = {"i": {"kernel": w_x, "bias": biases[0]}, "h": {"kernel": w_h}}
    else:
        count = len(gates)
        split = [jnp.split(array, count, axis=-1) for array in (w_x, w_h, *biases)]
        cell = {}
        for place, gate in enumerate(gates):
            cell["i" + gate], cell["h" + gate] = {"kernel": split[0][place]}, {"kernel": split[1][place]}
            if case.cell == "lstm":
                cell["h" + gate]["bias"] = split[2][place]
            elif gate == "n":
                cell["in"]["bias"], cell["hn"]["bias"] = split[2][place], split[3][place]
            else:
                cell["i" + gate]["bias"] = split[2][place] + split[3][place]
    params = {"cell": cell, "kernel": case.params.readout.w_yh.T, "bias": case.params.readout.b_y}

    def loss(params, inputs, targets):
        hidden = network.apply({"params": {"cell": params["cell"]}}, inputs)
        return _squared_error(hidden @ params["kernel"] + params["bias"], targets)

    def convert(result):
        value, grads = result
        cell = grads["cell"]
        readout = Readout(grads["kernel"].T, grads["bias"])
        if gates is None:
            ours = ElmanParams(cell["i"]["kernel"].T, cell["h"]["kernel"].T, cell["i"]["bias"])
            return value, SequenceParams(ours, readout)
        w_hx, w_hh = (jnp.concatenate([cell[side + g]["kernel"].T for g in gates]) for side in "ih")
        if case.cell == "lstm":
            ours = LSTMParams(w_hx, w_hh, jnp.concatenate([cell["h" + g]["bias"] for g in gates]))
        else:
            shared = [cell["ir"]["bias"], cell["iz"]["bias"]]
            b_x, b_h = (jnp.concatenate([*shared, cell[side]["bias"]]) for side in ("in", "hn"))
            ours = GRUParams(w_hx, w_hh, b_x, b_h)
        return value, SequenceParams(ours, readout)

    note = f"linen.RNN of {cells[case.cell].__name__}"
    return Contestant(jax.value_and_grad(loss), (params, case.inputs, case.targets), convert, note=note)


def equinox(case: Case) -> Contestant:
    """eqx.nn cells in `lax.scan`, vmapped over a batch."""
    import equinox as eqx

    params, key = case.params.cell, jax.random.key(0)
    if case.cell == "tanh":
        cell = _equinox_tanh(eqx, params)
    elif case.cell == "lstm":
        cell = eqx.nn.LSTMCell(case.units, case.units, key=key)
        cell = eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias), cell, tuple(params))
    else:
        cell = eqx.nn.GRUCell(case.units, case.units, key=key)
        fixed = 2 * case.units  # the r and z parts of b_h have no place of their own
        bias, bias_n = params.b_x.at[:fixed].add(params.b_h[:fixed]), params.b_h[fixed:]
        fields = lambda c: (c.weight_ih, c.weight_hh, c.bias, c.bias_n)
        cell = eqx.tree_at(fields, cell, (params.w_hx, params.w_hh, bias, bias_n))
    readout = _equinox_linear(eqx, *case.params.readout)

    def loss(modules, inputs, targets):
        cell, readout = modules
        zeros = jnp.zeros(case.units, inputs.dtype)

        def body(state, x):
            state = cell(x, state)
            return state, state[0] if case.cell == "lstm" else state

        hidden = jax.lax.scan(body, (zeros, zeros) if case.cell == "lstm" else zeros, inputs)[1]
        return _squared_error(jax.vmap(readout)(hidden), targets)

    def convert(result):
        value, (cell, readout) = result
        if case.cell == "tanh":
            ours = ElmanParams(cell.inputs.weight, cell.hidden.weight, cell.inputs.bias)
        elif case.cell == "lstm":
            ours = LSTMParams(cell.weight_ih, cell.weight_hh, cell.bias)
        else:
            b_h = jnp.concatenate([cell.bias[: 2 * case.units], cell.bias_n])
            ours = GRUParams(cell.weight_ih, cell.weight_hh, cell.bias, b_h)
        return value, SequenceParams(ours, Readout(readout.weight, readout.bias))

    function = jax.value_and_grad(summed(loss, case))
    note = "two eqx.nn.Linear: there is no tanh cell" if case.cell == "tanh" else f"eqx.nn.{case.cell.upper()}Cell"
    return Contestant(function, ((cell, readout), case.inputs, case.targets), convert, note=note)


def torch(case: Case) -> Contestant:
    """PyTorch's fused layer on the CPU, eager, with one thread or all, whichever is faster here."""
    if jax.default_backend() != "cpu":
        raise Unavailable("a CPU peer")
    import torch

    network = {"tanh": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell](case.units, case.units)
    readout = torch.nn.Linear(case.units, OUTPUTS)
    params, biases = case.params, _biases(case.params.cell)
    biases = biases if len(biases) == 2 else (*biases, jnp.zeros_like(biases[0]))
    values = (params.cell.w_hx, params.cell.w_hh, *biases, *params.readout)
    as_tensor = lambda array: torch.tensor(jax.device_get(array))
    leaves = [*network.parameters(), *readout.parameters()]
    with torch.no_grad():
        for leaf, value in zip(leaves, values, strict=True):
            leaf.data = as_tensor(value)
    network.flatten_parameters()

    def gradient(inputs, targets):
        for leaf in leaves:
            leaf.grad = None
        loss = ((readout(network(inputs)[0]) - targets) ** 2).sum() / 2
        loss.backward()
        return loss, [leaf.grad for leaf in leaves]

    def convert(result):
        loss, grads = result
        w_hx, w_hh, b_x, b_h, w_yh, b_y = (grad.numpy() for grad in grads)
        if case.cell == "gru":
            ours = GRUParams(w_hx, w_hh, b_x, b_h)
        else:
            ours = type(params.cell)(w_hx, w_hh, b_x)
        return loss.item(), SequenceParams(ours, Readout(w_yh, b_y))

    arguments = (as_tensor(case.inputs), as_tensor(case.targets))

    def fastest_of_three(threads):
        torch.set_num_threads(threads)
        gradient(*arguments)
        return min(timeit.repeat(lambda: gradient(*arguments), number=1, repeat=3))

    torch.set_num_threads(min(sorted({1, os.cpu_count() or 1}), key=fastest_of_three))
    note = f"nn.{type(network).__name__}, {torch.get_num_threads()} threads"
    return Contestant(gradient, arguments, convert, traced=False, note=note)


def cudnn(case: Case) -> Contestant:
    """jax.experimental.rnn's LSTM. Its weights are one vector in an order of its own: results are not compared."""
    if jax.default_backend() != "gpu" or case.cell != "lstm":
        raise Unavailable("an LSTM on an NVIDIA GPU")
    from jax.experimental import rnn

    sizes = {"input_size": case.units, "hidden_size": case.units, "num_layers": 1, "bidirectional": False}
    batch_first = lambda array: jnp.swapaxes(array.reshape(case.length, case.batch, -1), 0, 1)
    weights = rnn.init_lstm_weight(jax.random.key(0), **sizes)
    lengths = jnp.full(case.batch, case.length, jnp.int32)
    zeros = jnp.zeros((1, case.batch, case.units), case.inputs.dtype)

    def loss(params, inputs, targets):
        weights, readout = params
        hidden = rnn.lstm(inputs, zeros, zeros, weights, lengths, dropout=0.0, **sizes)[0]
        return _squared_error(hidden @ readout.w_yh.T + readout.b_y, targets)

    arguments = ((weights, case.params.readout), batch_first(case.inputs), batch_first(case.targets))
    return Contestant(jax.value_and_grad(loss), arguments, None, note="weights of its own: not compared")


PEERS = {"autodiff": autodiff, "flax": flax, "equinox": equinox, "torch": torch, "cudnn": cudnn}


def _tanh_step(params, state, x):
    return (jnp.tanh(params.w_hx @ x + params.w_hh @ state[0] + params.b_h),)


def _lstm_step(params, state, x):
    cell, hidden = state
    i, f, g, o = jnp.split(params.w_hx @ x + params.w_hh @ hidden + params.b_h, 4)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return cell, jax.nn.sigmoid(o) * jnp.tanh(cell)


def _gru_step(params, state, x):
    u_r, u_z, u_n = jnp.split(params.w_hx @ x + params.b_x, 3)
    v_r, v_z, v_n = jnp.split(params.w_hh @ state[0] + params.b_h, 3)
    z = jax.nn.sigmoid(u_z + v_z)
    n = jnp.tanh(u_n + jax.nn.sigmoid(u_r + v_r) * v_n)
    return ((1 - z) * n + z * state[0],)


def _squared_error(outputs, targets):
    return jnp.sum((outputs - targets) ** 2) / 2


def summed(loss, case):
    """The loss of one sequence, or its sum over the batch."""
    if case.batch == 1:
        return loss
    return lambda params, *data: jnp.sum(jax.vmap(loss, in_axes=(None, 1, 1))(params, *data))


def _biases(params):
    return (params.b_x, params.b_h) if isinstance(params, GRUParams) else (params.b_h,)


def _equinox_linear(eqx, weight, bias):
    rows, columns = weight.shape
    linear = eqx.nn.Linear(columns, rows, use_bias=bias is not None, key=jax.random.key(0))
    fields = (lambda l: (l.weight, l.bias)) if bias is not None else (lambda l: (l.weight,))
    return eqx.tree_at(fields, linear, (weight,) if bias is None else (weight, bias))


def _equinox_tanh(eqx, params):
    class TanhCell(eqx.Module):
        inputs: eqx.nn.Linear
        hidden: eqx.nn.Linear

        def __call__(self, x, state):
            return jnp.tanh(self.inputs(x) + self.hidden(state))

    return TanhCell(_equinox_linear(eqx, params.w_hx, params.b_h), _equinox_linear(eqx, params.w_hh, None))
