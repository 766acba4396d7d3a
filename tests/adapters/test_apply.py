"""Outputs read from the new carry wherever the program allows, and the way back to the user's tree."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxbptt import adapters, gradients, jacobians, models, spectra, terms, trajectories
from jaxbptt.comparison import compare

T, N, KEY = 5, 3, jax.random.key(2)
X, Y = jax.random.normal(KEY, (T, N)), jax.random.normal(jax.random.key(1), (T, N))


def weights(*names):
    return {name: jax.random.normal(jax.random.key(i), (N, N)) for i, name in enumerate(names)}


def plain(p, h, x):
    h = jnp.tanh(p["w"] @ h + p["u"] @ x)
    return h, p["v"] @ h


def itself(p, h, x):
    h = jnp.tanh(p["w"] @ h + p["u"] @ x)
    return h, h


def jitted(p, h, x):
    return jax.jit(plain)(p, h, x)


def remat(p, h, x):
    return jax.checkpoint(plain)(p, h, x)


def remat_of_jit(p, h, x):
    return jax.checkpoint(jax.jit(lambda *at: jax.checkpoint(plain)(*at)))(p, h, x)


def nested(p, h, x):
    """A carry in parts, and an output of both."""
    first = jnp.tanh(p["w"] @ h["a"] + p["u"] @ x)
    second = jnp.sin(p["v"] @ first + h["b"])
    return {"a": first, "b": second}, first * second


def concatenated(p, h, x):
    """Two layers in one vector; the output is of the upper one alone."""
    first = jnp.tanh(p["w"] @ h[:N] + p["u"] @ x)
    second = jnp.sin(p["v"] @ first + h[N:])
    return jnp.concatenate((first, second)), 2 * second


def stacked(p, h, x):
    first = jnp.tanh(p["w"] @ h[0] + p["u"] @ x)
    second = jnp.sin(p["v"] @ first + h[1])
    return jnp.stack((first, second)), first - second


def reshaped(p, h, x):
    h = jnp.tanh(p["w"] @ h.reshape(N) + p["u"] @ x)
    return h.reshape(1, N, 1), p["v"] @ h


def transposed(p, h, x):
    h = jnp.tanh(p["w"] @ h.T + p["u"] @ jnp.outer(x, x))
    return h.T, jnp.sum(p["v"] @ h, axis=1)


def unused(p, h, x):
    h = jnp.tanh(p["w"] @ h + p["u"] @ x)
    return h, jnp.sum(p["v"]) * jnp.ones(N)


def skip(p, h, x):
    h = jnp.tanh(p["w"] @ h + p["u"] @ x)
    return h, p["v"] @ h + x


def gate(p, h, x):
    """An output gate that reads h_{t−1}, as Haiku's and Flax's LSTM would without h in the carry."""
    new = jnp.tanh(p["w"] @ h + p["u"] @ x)
    return new, jax.nn.sigmoid(p["v"] @ h) * new


def opaque(p, h, x):
    """A custom rule around the whole step hides what the output is made of."""
    return hidden(p, h, x)


@jax.custom_jvp
def hidden(p, h, x):
    return plain(p, h, x)


@hidden.defjvp
def _push(primals, tangents):
    return jax.jvp(plain, primals, tangents)


CASES = {
    "plain": (plain, jnp.ones(N), "state"),
    "itself": (itself, jnp.ones(N), "state"),
    "jitted": (jitted, jnp.ones(N), "state"),
    "remat": (remat, jnp.ones(N), "state"),
    "remat of jit": (remat_of_jit, jnp.ones(N), "state"),
    "nested": (nested, {"a": jnp.ones(N), "b": jnp.zeros(N)}, "state"),
    "concatenated": (concatenated, jnp.ones(2 * N), "state"),
    "stacked": (stacked, jnp.ones((2, N)), "state"),
    "reshaped": (reshaped, jnp.ones((1, N, 1)), "state"),
    "transposed": (transposed, jnp.ones((N, N)), "state"),
    "unused": (unused, jnp.ones(N), "state"),
    "skip": (skip, jnp.ones(N), "state, x"),
    "gate": (gate, jnp.ones(N), "state, x, previous"),
    "opaque": (opaque, jnp.ones(N), "state, x, previous"),
}


def loop(apply, carry, p):
    total = 0.0
    for x, y in zip(X, Y, strict=True):
        carry, output = apply(p, carry, x)
        total = total + jnp.sum((output - y) ** 2) / 2
    return total / T


@pytest.mark.sweep
@pytest.mark.parametrize("name", CASES)
def test_an_output_reads_what_it_must(name):
    apply, carry, reads = CASES[name]
    params = weights("w", "u", "v")
    make = functools.partial(adapters.from_apply, apply, params, carry, loss=models.squared_error, reduction="mean")
    model, own, restore, _ = make(x=X[0])
    assert model.reads == reads
    expected = jax.jit(jax.grad(functools.partial(loop, apply, carry)))(params)
    found = jax.jit(lambda own: [route(model, own, X, Y)[1] for route in (gradients.autodiff, gradients.bptt)])(own)
    for grads in found:
        assert compare(expected, restore(grads)).relative < 1e-12
    if reads == "state, x, previous":
        with pytest.raises(ValueError, match="x: got None, expected an example of one input"):
            gradients.bptt(make().model, own, X, Y)
    else:
        late = make()
        assert late.model.reads == "state, x"
        assert compare(expected, gradients.bptt(late.model, own, X, Y)[1]).relative < 1e-12


def test_spectra_are_of_the_carry_alone():
    """An output kept in the state would add exact zeros to every J_t."""
    model, own, _, _ = adapters.from_apply(gate, weights("w", "u", "v"), jnp.ones(N), loss=models.squared_error, x=X[0])
    chain = jacobians.step_jacobians(model, own, trajectories.unroll(model, own, X))
    assert chain.shape == (T, N, N)
    assert jnp.isfinite(spectra.log_singular_values(chain)).all()
    assert terms.gradient_terms(model, own, X, Y).norms.shape == (T, T)


def test_other_leaves_are_constants_and_carry_may_depend_on_params():
    tree = {**weights("w", "u", "v"), "h_0": jnp.ones(N), "steps": jnp.arange(2), "f": jnp.tanh, "n": 3}
    apply = lambda p, h, x: plain({**p, "u": p["u"] * p["n"]}, p["f"](h), x)
    floats = {name: tree[name] for name in ("w", "u", "v", "h_0")}
    expected = jax.grad(lambda own: loop(lambda p, h, x: apply({**tree, **p}, h, x), own["h_0"], own))(floats)
    start = lambda p: p["h_0"]
    model, own, restore, values = adapters.from_apply(apply, tree, start, loss=models.squared_error, reduction="mean")
    restored = restore(gradients.bptt(model, own, X, Y)[1])
    assert restored["steps"] is restored["f"] is restored["n"] is None
    assert compare(expected, {name: restored[name] for name in floats}).relative < 1e-12
    assert values(own)["f"] is jnp.tanh
    only = adapters.from_apply(apply, tree, start, loss=models.squared_error, select=lambda path, _: "w" in str(path))
    assert len(jax.tree.leaves(only.params)) == 1


def test_h_0_is_cast_to_the_params():
    half = adapters.from_apply(plain, weights("w", "u", "v"), jnp.ones(N, jnp.float32), loss=models.squared_error)
    assert half.model.initial_state(half.params).dtype == jnp.float64


def test_complex_weights_and_carries():
    turns = jnp.arange(float(N)).astype(complex)
    params = {"a": jnp.exp(1j * turns) * 0.8, "v": jax.lax.complex(*jax.random.normal(KEY, (2, N, N)))}

    def apply(p, h, x):
        h = p["a"] * h + x.astype(complex)
        return h, jnp.real(p["v"] @ h)

    carry = turns * (1 + 0.5j)
    model, own, restore, values = adapters.from_apply(
        apply, params, carry, loss=models.squared_error, reduction="mean", x=X[0]
    )
    assert model.reads == "state"
    expected = jax.grad(functools.partial(loop, apply, carry))(params)
    for route in (gradients.bptt, gradients.forward_sensitivity):
        assert compare(expected, restore(route(model, own, X, Y)[1])).relative < 1e-12
    assert compare(params, values(own)).relative == 0


def nothing(p, h, x):
    return h, p["u"] @ x


P = weights("w", "u", "v")
MAKE = functools.partial(adapters.from_apply, loss=models.squared_error)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MAKE(3, P, X[0]), TypeError, "apply: got int, expected a function"),
        (lambda: run(lambda p, h, x: h), TypeError, r"apply: got \w+, expected \(carry, output\)"),
        (lambda: run(lambda p, h, x: (h[:1], h)), ValueError, r"apply's new carry: got shape \[1\], expected \[3\]"),
        (lambda: MAKE(plain, P, X[0], reduction="max"), ValueError, "reduction: got 'max'"),
        (lambda: MAKE(plain, {"n": 3}, X[0]), ValueError, "params: got no leaf to train"),
        (lambda: run(lambda p, h, x: (h.astype(jnp.float32), h)), TypeError, "got float32, expected float64 like h_0"),
        (lambda: MAKE(plain, P, X[0], x=jnp.ones(N + 1)), TypeError, "x: raised TypeError where it was traced"),
        (lambda: MAKE(plain, P, "abc"), TypeError, "carry: got str, expected an array"),
        (lambda: gradients.bptt(*MAKE(nothing, P, ())[:2], X, Y), ValueError, "got no arrays, expected a state"),
        (lambda: run(plain, (jnp.ones(N), jnp.asarray(0))), TypeError, "compute them beforehand"),
    ],
)
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def run(apply, carry=X[0]):
    wrapped = (lambda p, h, x: ((h[0], h[1]), h[0])) if isinstance(carry, tuple) else apply
    model, own, _, _ = MAKE(wrapped, P, carry)
    return gradients.bptt(model, own, X, Y)


def test_a_framework_that_is_not_installed_is_named():
    from jaxbptt.adapters import _apply

    with pytest.raises(
        ImportError, match=r"no_such_framework: not installed, expected it \(pip install 'jaxbptt\[any\]'\)"
    ):
        _apply.import_framework("no_such_framework", "any")
