"""Every framework's cells and modules against `jax.grad` of the user's own loop: gradients, J_t, what the state is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import adapters, gradients, jacobians, models, trajectories
from jaxbptt.comparison import compare

SIZE, STEPS = 4, 5  # M = H: a wrong order of arguments has the right shapes


class Case(NamedTuple):
    """An adapter's result, and the user's own way: step(theirs, carry, x) -> (carry, output)."""

    adapted: models.Adapted
    theirs: Any
    carry: Any
    step: Any
    shape: tuple = (SIZE,)  # of one input


@pytest.fixture(autouse=True)
def as_frameworks_promote():
    """Frameworks do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _floats(tree):
    """Weights without zeros, in float64."""
    leaves, structure = jax.tree.flatten(tree)
    drawn = [
        jnp.asarray(leaf, float) + jax.random.normal(jax.random.key(i), leaf.shape) * 0.4
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


def _started(carry):
    return jax.tree.map(lambda leaf: jnp.linspace(-0.5, 0.6, leaf.size).reshape(leaf.shape), carry)


def _linen(name):
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            scale = self.variable("constants", "scale", lambda: jnp.full((), 0.7))
            carry, h = nn.GRUCell(SIZE)(carry, nn.LayerNorm()(x))
            return carry, nn.Dense(3)(h) * scale.value

    cells = {
        "SimpleCell": nn.SimpleCell(SIZE),
        "GRUCell": nn.GRUCell(SIZE),
        "LSTMCell": nn.LSTMCell(SIZE),
        "OptimizedLSTMCell": nn.OptimizedLSTMCell(SIZE),
        "MGUCell": nn.MGUCell(SIZE),
        "ConvLSTMCell": nn.ConvLSTMCell(2, (3,)),
        "Net": Net(),
    }
    key = jax.random.key(1)
    if name in ("RNN", "stack"):
        cell = nn.RNN(nn.LSTMCell(SIZE))
        variables = _floats(cell.init(key, jnp.ones((STEPS, SIZE), jnp.float32)))
        carry = _started(nn.LSTMCell(SIZE).initialize_carry(key, (SIZE,)))
        layer = lambda own, carry, x: nn.LSTMCell(SIZE).apply({"params": own["params"]["cell"]}, carry, x)
        if name == "RNN":
            return Case(adapters.linen(cell, variables, carry, **LOSS), variables, carry, layer)
        several = [variables, jax.tree.map(jnp.cos, variables)]

        def both(theirs, carry, x):
            first, x = layer(theirs[0], carry[0], x)
            second, x = layer(theirs[1], carry[1], x)
            return [first, second], x

        carries = [carry, jax.tree.map(jnp.negative, carry)]
        return Case(adapters.linen([cell, cell], several, carries, **LOSS), several, carries, both)
    module = cells[name]
    shape = (3, 2) if name == "ConvLSTMCell" else (SIZE,)
    start = nn.GRUCell(SIZE) if name == "Net" else module
    carry = _started(start.initialize_carry(key, shape))
    variables = _floats(module.init(key, carry, jnp.ones(shape)))
    return Case(adapters.linen(module, variables, carry, **LOSS), variables, carry, module.apply, shape)


def _nnx(name):
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.cell = nnx.LSTMCell(SIZE, SIZE, rngs=rngs)
            self.norm, self.head = nnx.LayerNorm(SIZE, rngs=rngs), nnx.Linear(SIZE, 3, rngs=rngs)

        def __call__(self, carry, x):
            carry, h = self.cell(carry, x)
            return carry, self.head(self.norm(h))

    rngs = nnx.Rngs(0)
    kind = nnx.GRUCell if name in ("RNN", "stack", "Net") else getattr(nnx, name)
    options = {"dtype": jnp.float64} if name == "SimpleCell" else {}  # its default is float32
    cell = Net(rngs) if name == "Net" else kind(SIZE, SIZE, rngs=rngs, **options)
    graph, own, rest = nnx.split(cell, nnx.Param, ...)
    theirs = _floats(own)
    cell = nnx.merge(graph, theirs, rest)
    start = cell.cell if name == "Net" else cell
    carry = _started(start.initialize_carry((SIZE,), rngs))
    step = lambda own, carry, x: nnx.merge(graph, own, rest)(carry, x)
    if name == "stack":
        wrapped = [nnx.RNN(nnx.clone(cell), rngs=rngs) for _ in range(2)]

        def both(theirs, carry, x):
            first, x = step(theirs[0], carry[0], x)
            second, x = step(theirs[1], carry[1], x)
            return (first, second), x

        carries = (carry, jnp.negative(carry))
        return Case(adapters.nnx(wrapped, carries, **LOSS), [theirs, theirs], carries, both)
    module = nnx.RNN(cell, rngs=rngs) if name == "RNN" else cell
    return Case(adapters.nnx(module, carry, **LOSS), theirs, carry, step)


def _equinox(name):
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(2), 4)

    class Net(eqx.Module):
        lower: Any
        upper: Any
        norm: Any
        head: Any
        activation: Any = jnp.tanh
        depth: int = 2

        def __call__(self, x, carry):
            first = self.lower(x, carry[0])
            second = self.upper(self.activation(first), carry[1])
            return (first, second), self.head(self.norm(second[0]))

    gru, lstm = eqx.nn.GRUCell(SIZE, SIZE, key=keys[0]), eqx.nn.LSTMCell(SIZE, SIZE, key=keys[1])
    h = jnp.linspace(-0.5, 0.6, SIZE)
    net = Net(gru, lstm, eqx.nn.LayerNorm(SIZE), eqx.nn.Linear(SIZE, 3, key=keys[3]))
    module = {"GRUCell": gru, "LSTMCell": lstm, "Net": net, "stack": [gru, lstm]}[name]
    module = jax.tree.map(lambda leaf: jnp.asarray(leaf, float) if eqx.is_inexact_array(leaf) else leaf, module)
    carry = {"GRUCell": h, "LSTMCell": (h, h * 2), "Net": (h, (h, h * 2)), "stack": [h, (h, h * 2)]}[name]
    arrays, static = eqx.partition(module, eqx.is_inexact_array)

    def step(arrays, carry, x):
        whole = eqx.combine(arrays, static)
        if name == "Net":
            return whole(x, carry)
        if name == "stack":
            first = whole[0](x, carry[0])
            second = whole[1](first, carry[1])
            return [first, second], second[0]
        new = whole(x, carry)
        return new, new[0] if name == "LSTMCell" else new

    return Case(adapters.equinox(module, carry, **LOSS), arrays, carry, step)


def _haiku(name):
    hk = pytest.importorskip("haiku")

    def core():
        if name == "DeepRNN":
            return hk.DeepRNN([hk.LSTM(SIZE), jnp.tanh, hk.GRU(SIZE)])
        return getattr(hk, {"with_state": "GRU", "with_rng": "GRU"}.get(name, name))(SIZE)

    def forward(x, carry):
        if name == "with_state":
            x = x * hk.get_state("scale", (), init=lambda *_: jnp.asarray(0.7))
        return core()(x, carry)

    key, x = jax.random.key(3), jnp.ones(SIZE)
    carry = _started(hk.without_apply_rng(hk.transform(lambda: core().initial_state(None))).apply({}))
    if name == "with_state":
        transformed = hk.transform_with_state(forward)
        theirs, state = transformed.init(key, x, carry)
        theirs = _floats(theirs)
        adapted = adapters.haiku(transformed, theirs, carry, state=state, **LOSS)
        step = lambda own, carry, x: transformed.apply(own, state, None, x, carry)[0][::-1]
        return Case(adapted, theirs, carry, step)
    transformed = hk.transform(forward)
    theirs = _floats(transformed.init(key, x, carry))
    transformed = transformed if name == "with_rng" else hk.without_apply_rng(transformed)
    rng = (None,) if name == "with_rng" else ()
    step = lambda own, carry, x: transformed.apply(own, *rng, x, carry)[::-1]
    return Case(adapters.haiku(transformed, theirs, carry, **LOSS), theirs, carry, step)


def squares(output, target):
    return jnp.sum((output - target) ** 2) / 2


LOSS: Any = {"loss": squares, "reduction": "mean"}
CASES = [
    *[(_linen, name) for name in ("SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell", "MGUCell", "ConvLSTMCell")],
    *[(_linen, name) for name in ("RNN", "stack", "Net")],
    *[(_nnx, name) for name in ("SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell", "RNN", "stack", "Net")],
    *[(_equinox, name) for name in ("GRUCell", "LSTMCell", "Net", "stack")],
    *[(_haiku, name) for name in ("VanillaRNN", "GRU", "LSTM", "DeepRNN", "with_state", "with_rng")],
]


@pytest.mark.sweep
@pytest.mark.parametrize(("make", "name"), CASES, ids=[f"{make.__name__[1:]}-{name}" for make, name in CASES])
def test_a_module_equals_its_own_loop(make, name):
    adapted, theirs, carry, step, shape = make(name)
    inputs = jax.random.normal(jax.random.key(9), (STEPS, *shape))
    output = jax.eval_shape(step, theirs, carry, inputs[0])[1]
    targets = jax.random.normal(jax.random.key(8), (STEPS, *output.shape))

    def loop(theirs):
        state, total = carry, 0.0
        for x, target in zip(inputs, targets, strict=True):
            state, out = step(theirs, state, x)
            total = total + squares(out, target)
        return total / STEPS

    expected_loss, expected = jax.jit(jax.value_and_grad(loop))(theirs)
    model, params = adapted.model, adapted.params
    loss, grads = jax.jit(lambda p: gradients.bptt(model, p, inputs, targets))(params)
    assert abs(loss - expected_loss) < 1e-12 * abs(expected_loss)
    restored = adapted.restore(grads)
    expected = {"params": expected["params"]} if name == "Net" and make is _linen else expected
    assert compare(jax.tree.leaves(expected), jax.tree.leaves(restored)).relative < 1e-12
    _, other = jax.jit(lambda p: gradients.autodiff(model, p, inputs, targets))(params)
    assert compare(other, grads).relative < 1e-12

    flat, unravel = ravel_pytree(carry)
    assert ravel_pytree(model.initial_state(params))[0].size == flat.size  # the carry alone

    @jax.jit
    def chains(params):
        steps = trajectories.unroll(model, params, inputs)
        after = lambda state, x: lambda h: ravel_pytree(step(theirs, unravel(h), x)[0])[0]
        own = jax.vmap(lambda state, x: jax.jacrev(after(state, x))(ravel_pytree(state)[0]))(steps.previous, inputs)
        return jacobians.step_jacobians(model, params, steps), own

    chain, own = chains(params)
    assert jnp.max(jnp.abs(chain - own)) < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize(("make", "name"), [(_linen, "Net"), (_equinox, "Net"), (_nnx, "Net")])
def test_values_give_the_whole_object_back(make, name):
    adapted, _, carry, _, shape = make(name)
    moved = jax.tree.map(lambda leaf: leaf + 1, adapted.params)
    whole = adapted.values(moved)
    x = jnp.ones(shape)
    if make is _linen:
        assert set(whole) == {"params", "constants"}
        assert adapted.restore(moved)["constants"] == {"scale": None}
    elif make is _equinox:
        assert whole(x, carry)[1].shape == (3,)
        assert whole.depth == 2
    else:
        assert whole(carry, x)[1].shape == (3,)


@pytest.mark.parametrize(
    ("make", "name", "reads"),
    [(_linen, "LSTMCell", "state"), (_equinox, "Net", "state"), (_haiku, "DeepRNN", "state"), (_nnx, "Net", "state")],
)
def test_outputs_are_read_from_the_carry(make, name, reads):
    """With an example of x the readout is of the state alone, which `feedback` needs."""
    LOSS["x"] = jnp.ones(SIZE)
    try:
        assert make(name).adapted.model.reads == reads
    finally:
        del LOSS["x"]
