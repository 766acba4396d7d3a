"""PyTorch's weights: against loops in NumPy's notation of its documentation, and against PyTorch itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import adapters, gradients, models, terms
from jaxbptt.comparison import compare

T, M, H, O = 5, 3, 3, 2
GENERATOR = np.random.default_rng(0)
X = jnp.asarray(GENERATOR.standard_normal((T, M)))
SIZES = {"rnn": 1, "lstm": 4, "gru": 3}


def state_dict(kind, layers, both, bias=True, prefix="", linear=False):
    ways = ("", "_reverse") if both else ("",)
    found, rows = {}, SIZES[kind] * H
    for layer in range(layers):
        inputs = H * len(ways) if layer else M
        for way in ways:
            found[f"{prefix}weight_ih_l{layer}{way}"] = GENERATOR.standard_normal((rows, inputs))
            found[f"{prefix}weight_hh_l{layer}{way}"] = GENERATOR.standard_normal((rows, H))
            if bias:
                found |= {
                    f"{prefix}bias_{part}_l{layer}{way}": GENERATOR.standard_normal(rows) for part in ("ih", "hh")
                }
    if linear:
        found |= {"fc.weight": GENERATOR.standard_normal((O, H * len(ways))), "fc.bias": GENERATOR.standard_normal(O)}
    return found


def step(kind, own, state, x):
    """One step as PyTorch documents it; state (h, c)."""
    h, c = state
    a, b = own[0] @ x + own[2], own[1] @ h + own[3]
    if kind == "rnn":
        return jnp.tanh(a + b), c
    if kind == "lstm":
        i, f, g, o = jnp.split(a + b, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c
    (r_a, z_a, n_a), (r_b, z_b, n_b) = jnp.split(a, 3), jnp.split(b, 3)
    r, z = jax.nn.sigmoid(r_a + r_b), jax.nn.sigmoid(z_a + z_b)
    return (1 - z) * jnp.tanh(n_a + r * n_b) + z * h, c


def loop(kind, layers, both, weights, targets):
    inputs = list(X)
    for layer in range(layers):
        outputs = []
        for way in ("", "_reverse") if both else ("",):
            names = [f"{part}_l{layer}{way}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            own = [weights.get(name, jnp.zeros(SIZES[kind] * H)) for name in names]
            state, seen = (jnp.zeros(H), jnp.zeros(H)), []
            for x in inputs[::-1] if way else inputs:
                state = step(kind, own, state, x)
                seen.append(state[0])
            outputs.append(seen[::-1] if way else seen)
        inputs = [jnp.concatenate(each) for each in zip(*outputs, strict=True)]
    if "fc.weight" in weights:
        inputs = [weights["fc.weight"] @ h + weights["fc.bias"] for h in inputs]
    return sum(jnp.sum((out - y) ** 2) / 2 for out, y in zip(inputs, targets, strict=True)) / T


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("kind", "layers", "both", "bias"),
    [
        ("lstm", 2, True, True),
        ("gru", 2, False, True),
        ("rnn", 1, True, True),
        ("gru", 1, True, False),
        ("lstm", 1, False, False),
    ],
)
def test_weights_give_the_documented_gradient(kind, layers, both, bias):
    weights = jax.tree.map(jnp.asarray, state_dict(kind, layers, both, bias, linear=bias))
    targets = jnp.asarray(GENERATOR.standard_normal((T, O if bias else H * (1 + both))))
    found = adapters.torch_weights(
        weights, kind, loss=models.squared_error, reduction="mean", readout="fc" if bias else None
    )
    expected = jax.jit(jax.grad(lambda weights: loop(kind, layers, both, weights, targets)))(weights)
    grads = jax.jit(lambda params: gradients.bptt(found.model, params, X, targets)[1])(found.params)
    assert compare(expected, found.restore(grads)).relative < 1e-12
    assert compare(weights, found.values(found.params)).relative == 0
    if layers == 1 and both:
        assert len(terms.gradient_terms(found.model, found.params, X, targets)) == 2


@pytest.mark.parametrize(("kind", "name"), [("rnn", "RNN"), ("lstm", "LSTM"), ("gru", "GRU")])
@pytest.mark.parametrize("both", [False, True])
def test_weights_give_pytorchs_own_gradient(kind, name, both):
    torch = pytest.importorskip("torch")
    net = getattr(torch.nn, name)(M, H, num_layers=2, bidirectional=both, dtype=torch.float64)
    targets = GENERATOR.standard_normal((T, H * (1 + both)))
    output, _ = net(torch.tensor(np.asarray(X)))
    ((output - torch.tensor(targets)) ** 2).sum().div(2).backward()
    expected = {key: jnp.asarray(value.grad.numpy()) for key, value in net.named_parameters()}
    arrays = {f"rnn.{key}": value.numpy() for key, value in net.state_dict().items()}
    found = adapters.torch_weights(arrays, name, loss=models.squared_error, prefix="rnn.")
    restored = found.restore(gradients.bptt(found.model, found.params, X, jnp.asarray(targets))[1])
    assert compare(expected, {key.removeprefix("rnn."): leaf for key, leaf in restored.items()}).relative < 1e-12


LSTM = state_dict("lstm", 1, False)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (LSTM, {"kind": "conv"}, "kind: got 'conv', expected one of 'rnn', 'lstm', 'gru'"),
        (LSTM, {"prefix": "rnn."}, "state_dict: got weight_ih_l0, .*, expected rnn.weight_ih_l0 among them"),
        ({"weight_ih_l0": LSTM["weight_ih_l0"]}, {}, "state_dict: got no weight_hh_l0"),
        ({**LSTM, "weight_hr_l0": np.ones((2, 3))}, {}, "expected a module without projections"),
        (LSTM, {"readout": "fc"}, "state_dict: got no fc.weight"),
        (LSTM, {"nonlinearity": "sin"}, "nonlinearity: got 'sin'"),
    ],
)
def test_bad_arguments_get_one_line(arrays, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        adapters.torch_weights(arrays, **{"kind": "lstm", "loss": models.squared_error, **options})
    assert "\n" not in str(caught.value)
