"""Other people's models: `gradients.bptt` of an adapted cell against automatic differentiation of the usual loop.

A maker (units, length, batch, dtype) -> (ours, theirs) builds one cell of a framework, or two on top of each other, and
both contestants from the same params. The loss is the squared error of what the top cell gives, summed over all steps
and sequences; theirs is the loop of the framework's own tutorial: `nn.RNN`, `nnx.RNN`, `hk.dynamic_unroll`, for Equinox
a `lax.scan` under `vmap`. Both give the gradient in the tree of the user's own params.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import adapters, gradients, models

from .cases import TOLERANCES, precision
from .timing import PEERS_ERRORS, Contestant, explain_absence, race

SIZES, LENGTH = (64, 256), 1024  # N = M and T
SEQUENCE = models.squared_error


class Kind(NamedTuple):
    """A model of a framework."""

    make: Callable[["Sizes"], tuple[Contestant, Contestant]]
    gates: int
    layers: int = 1

    def flops(self, sizes: "Sizes") -> float:
        """As `Case.flops`: five products a layer, six where the layer's inputs have an adjoint."""
        products = 5 + 6 * (self.layers - 1)
        return 2 * products * self.gates * sizes.units**2 * sizes.length * sizes.batch


class Sizes(NamedTuple):
    length: int  # T
    units: int  # N = M
    batch: int  # B
    dtype: Any

    @property
    def several(self) -> bool:
        """Whether the data are [T, B, N], else [T, N]."""
        return self.batch > 1

    def data(self) -> tuple[jax.Array, jax.Array]:
        """Inputs and targets."""
        shape = (self.length, self.batch, self.units) if self.several else (self.length, self.units)
        return tuple(jax.random.normal(jax.random.key(seed), shape, self.dtype) for seed in (1, 2))

    def zeros(self) -> jax.Array:
        """h_0 of one sequence."""
        return jnp.zeros(self.units, self.dtype)


def adapter_rows(config: Any, progress: Callable) -> Iterator[dict]:
    """Every kind of model at every size."""
    sizes = sorted({min(n, max(config.sizes)) for n in SIZES})
    length = min(LENGTH, max(config.lengths))
    for dtype in config.dtypes:
        for name, kind in KINDS.items():
            for batch in config.batches:
                for units in sizes:
                    progress(f"adapters: {name}, T {length}, N {units}, B {batch}, {dtype}")
                    with precision(dtype):
                        yield from _race(name, kind, Sizes(length, units, batch, jnp.dtype(dtype)), config)


def _race(name, kind, sizes, config):
    label = {"cell": name, "T": sizes.length, "N": sizes.units, "B": sizes.batch, "dtype": sizes.dtype.name}
    try:
        made = kind.make(sizes)
    except PEERS_ERRORS as error:
        yield {"suite": "adapters", **label, "contestant": "own loop", **explain_absence(error)}
        return
    makers = [(who, lambda one=one: one) for who, one in zip(("jaxbptt", "own loop"), made, strict=True)]
    tolerance = TOLERANCES[sizes.dtype.name]
    rows = race(makers, seconds=config.seconds / 2, tolerance=tolerance, flops=kind.flops(sizes))
    yield from ({"suite": "adapters", **label, **row} for row in rows)


def _ours(adapted, sizes, note):
    model = models.batched(adapted.model, sizes.batch) if sizes.several else adapted.model

    def gradient(params, inputs, targets):
        loss, grads = gradients.bptt(model, params, inputs, targets)
        return loss, adapted.restore(grads)

    return Contestant(gradient, (adapted.params, *sizes.data()), note=note)


def _theirs(run, params, sizes, note):
    """run(params, inputs) -> outputs, shaped like the targets."""

    def loss(params, inputs, targets):
        return jnp.sum((run(params, inputs) - targets) ** 2) / 2

    return Contestant(jax.value_and_grad(loss), (params, *sizes.data()), note=note)


def _linen(name, layers, sizes):
    from flax import linen

    stack = [getattr(linen, name)(sizes.units, param_dtype=sizes.dtype) for _ in range(layers)]
    carry = stack[0].initialize_carry(jax.random.key(0), (sizes.units,))
    keys = jax.random.split(jax.random.key(3), layers)
    variables = [cell.init(key, carry, sizes.zeros()) for cell, key in zip(stack, keys, strict=True)]
    rnns = [linen.RNN(cell, time_major=sizes.several) for cell in stack]

    def run(variables, hidden):
        for rnn, own in zip(rnns, variables, strict=True):
            hidden = rnn.apply({"params": {"cell": own["params"]}}, hidden)
        return hidden

    if layers == 1:
        adapted = adapters.linen(stack[0], variables[0], carry, loss=SEQUENCE)
        return _ours(adapted, sizes, "adapters.linen"), _theirs(lambda v, x: run([v], x), variables[0], sizes, "nn.RNN")
    adapted = adapters.linen(stack, variables, [carry] * layers, loss=SEQUENCE)
    return _ours(adapted, sizes, "adapters.linen"), _theirs(run, variables, sizes, "nn.RNN")


def _nnx(name, sizes):
    from flax import nnx

    rngs = nnx.Rngs(3)
    cell = getattr(nnx, name)(sizes.units, sizes.units, param_dtype=sizes.dtype, rngs=rngs)
    rnn = nnx.RNN(cell, time_major=sizes.several, rngs=rngs)
    graph, params, rest = nnx.split(cell, nnx.Param, ...)
    carry = cell.initialize_carry((sizes.units,), rngs)

    def run(params, inputs):
        return nnx.RNN(nnx.merge(graph, params, rest), time_major=sizes.several, rngs=nnx.Rngs(3))(inputs)

    adapted = adapters.nnx(rnn, carry, loss=SEQUENCE)
    return _ours(adapted, sizes, "adapters.nnx"), _theirs(run, params, sizes, "nnx.RNN")


def _equinox(name, layers, sizes):
    import equinox

    keys = jax.random.split(jax.random.key(3), layers)
    make = partial(getattr(equinox.nn, name), sizes.units, sizes.units, dtype=sizes.dtype)
    stack = [make(key=key) for key in keys]
    has_memory = name == "LSTMCell"
    carry = (sizes.zeros(),) * 2 if has_memory else sizes.zeros()

    def one_layer(cell, inputs):
        def body(state, x):
            state = cell(x, state)
            return state, state[0] if has_memory else state

        return jax.lax.scan(body, carry, inputs)[1]

    def run(stack, inputs):
        def one_sequence(hidden):
            for cell in stack:
                hidden = one_layer(cell, hidden)
            return hidden

        return jax.vmap(one_sequence, in_axes=1, out_axes=1)(inputs) if sizes.several else one_sequence(inputs)

    if layers == 1:
        adapted = adapters.equinox(stack[0], carry, loss=SEQUENCE)
        theirs = _theirs(lambda cell, inputs: run([cell], inputs), stack[0], sizes, "lax.scan")
    else:
        adapted = adapters.equinox(stack, [carry] * layers, loss=SEQUENCE)
        theirs = _theirs(run, stack, sizes, "lax.scan a layer")
    return _ours(adapted, sizes, "adapters.equinox"), theirs


def _haiku(make, sizes):
    """make(haiku, units) -> a core, within a transformed function."""
    import haiku

    step = haiku.without_apply_rng(haiku.transform(lambda x, carry: make(haiku, sizes.units)(x, carry)))

    def unroll(inputs, carry):
        return haiku.dynamic_unroll(make(haiku, sizes.units), inputs, carry)[0]

    whole = haiku.without_apply_rng(haiku.transform(unroll))
    start = haiku.without_apply_rng(haiku.transform(lambda size: make(haiku, sizes.units).initial_state(size)))
    as_ours = partial(jax.tree.map, lambda leaf: leaf.astype(sizes.dtype))
    one, every = (as_ours(start.apply({}, size)) for size in (None, sizes.batch))
    params = as_ours(step.init(jax.random.key(3), sizes.zeros(), one))
    adapted = adapters.haiku(step, params, one, loss=SEQUENCE)

    def run(params, inputs):  # one sequence as a batch of one, as usual: its LSTM is 5 times faster so than on a vector
        batch = inputs if sizes.several else inputs[:, None]
        return whole.apply(params, batch, every).reshape(inputs.shape)

    theirs = _theirs(run, params, sizes, "hk.dynamic_unroll")
    return _ours(adapted, sizes, "adapters.haiku"), theirs


KINDS = {
    "linen SimpleCell": Kind(partial(_linen, "SimpleCell", 1), gates=1),
    "linen GRUCell": Kind(partial(_linen, "GRUCell", 1), gates=3),
    "linen LSTMCell": Kind(partial(_linen, "LSTMCell", 1), gates=4),
    "linen OptimizedLSTMCell": Kind(partial(_linen, "OptimizedLSTMCell", 1), gates=4),
    "linen GRUCell, 2 layers": Kind(partial(_linen, "GRUCell", 2), gates=3, layers=2),
    "nnx GRUCell": Kind(partial(_nnx, "GRUCell"), gates=3),
    "nnx LSTMCell": Kind(partial(_nnx, "LSTMCell"), gates=4),
    "nnx OptimizedLSTMCell": Kind(partial(_nnx, "OptimizedLSTMCell"), gates=4),
    "equinox GRUCell": Kind(partial(_equinox, "GRUCell", 1), gates=3),
    "equinox LSTMCell": Kind(partial(_equinox, "LSTMCell", 1), gates=4),
    "equinox LSTM, 2 layers": Kind(partial(_equinox, "LSTMCell", 2), gates=4, layers=2),
    "haiku VanillaRNN": Kind(partial(_haiku, lambda hk, n: hk.VanillaRNN(n)), gates=1),
    "haiku GRU": Kind(partial(_haiku, lambda hk, n: hk.GRU(n)), gates=3),
    "haiku LSTM": Kind(partial(_haiku, lambda hk, n: hk.LSTM(n)), gates=4),
    "haiku DeepRNN, 2 LSTMs": Kind(
        partial(_haiku, lambda hk, n: hk.DeepRNN([hk.LSTM(n), hk.LSTM(n)])), gates=4, layers=2
    ),
}
