"""The gradient of any step by the stages of its program is the gradient of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import gradients, models
from jaxbptt._jaxprs import stages
from jaxbptt._jaxprs.program import Unreadable
from jaxbptt._jaxprs.stages import StagedStep
from jaxbptt.comparison import compare
from jaxbptt.gradients import deferred, sequence
from tests.gradients.problems import BATCH, KEY
from tests.mutation import mutate, mutate_package

LENGTH, N, M = 5, 3, 2
SHAPES = {"w": (N, N), "u": (N, N), "m": (N, M), "b": (N,), "g": (N,), "v": (2, 2, N), "k": (2, N, N), "s": ()}
PARAMS = {k: 0.6 * jax.random.normal(jax.random.fold_in(KEY, i), s) for i, (k, s) in enumerate(SHAPES.items())}
MASK = np.tril(np.ones((N, N)))


@jax.custom_vjp
def reverse_sin(a):
    return jnp.sin(a)


reverse_sin.defvjp(lambda a: (jnp.sin(a), a), lambda a, bar: (jnp.cos(a) * bar,))


@jax.custom_jvp
def forward_sin(a):
    return jnp.sin(a)


forward_sin.defjvp(lambda at, along: (jnp.sin(*at), jnp.cos(*at) * along[0]))


def elman(p, h, x):
    return jnp.tanh(p["w"] @ h + p["m"] @ x + p["b"])


def merged(p, h, x):
    r, z = jax.nn.sigmoid(p["w"] @ h + p["m"] @ x), jax.nn.sigmoid(p["u"] @ h + p["b"])
    return z * h + (1 - z) * jnp.tanh(p["k"][0] @ (r * h) - p["g"])


def split(p, h, x):
    w = jnp.concatenate((p["w"], p["u"]))
    i, f = jnp.split(w @ h + jnp.concatenate((p["b"], p["g"])), 2)
    j, o = jnp.split(w @ jnp.cos(h), 2)
    return jnp.tanh(i) * jax.nn.sigmoid(f) + jnp.sin(j + p["m"] @ x) * (p["g"] - o)


def masked(p, h, x):
    w = p["w"] * MASK + jnp.outer(p["b"], p["g"])
    a = w @ h + x @ p["m"].T + w.T @ jnp.sin(h) * p["s"]
    a = jax.nn.relu(a) + jax.lax.cond(x[0] > 0, lambda h: p["w"] @ h, lambda h: h, h)
    return jnp.tanh(a + jnp.diag(p["w"]) + p["w"][0])


def deep(p, h, x):
    a = jnp.sin(p["w"] @ h + p["m"] @ x)
    a = jnp.tanh(p["u"] @ a + p["b"] + h)
    return jnp.tanh(p["k"][0] @ a + p["k"][1] @ h)


def normalised(p, h, x):
    a = p["w"] @ h + p["m"] @ x
    a = (a - jnp.mean(a)) / jnp.sqrt(jnp.var(a) + 0.1)
    return jnp.tanh(p["g"] * a + p["b"])


def read_twice(p, h, x):
    a, e, n = p["w"] @ h, p["u"] @ h + p["b"], p["k"][0] @ h
    t, s, n = jnp.tanh(a), jax.nn.sigmoid(e), jnp.exp(-jax.nn.softplus(n))
    return t * s + jnp.sin(t) - s**2 * n + 0.1 * a + p["m"] @ x


def exponential(p, h, x):
    e = jnp.exp(0.1 - p["w"] @ h)
    return jnp.sin(e) + jnp.exp(p["u"] @ jnp.tanh(h)) * 0.1 + p["m"] @ x


def pair(p, state, x):
    y = jnp.tanh(p["w"] @ state["h"] + p["m"] @ x)
    return {"h": jnp.sin(y - state["n"]["a"]), "n": {"a": y}}


def passes_on(p, state, x):
    return {"h": p["u"] @ jnp.sin(state["h"]) + state["n"]["a"], "n": {"a": jnp.tile(x, 2)[:N]}}


def swaps(p, state, x):
    return {"h": state["n"]["a"], "n": {"a": jnp.sin(p["w"] @ state["h"] + p["m"] @ x)}}


def typed(p, h, x):
    keep = jax.random.bernoulli(x["key"], 0.7, (N,)).astype(h.dtype)
    a = p["w"] @ (h * keep) + jnp.where(x["reset"], p["b"], 0 * p["b"]) + p["k"][0][x["token"]]
    return jnp.tanh(a) * jnp.where(x["reset"], 0.3, 1.0) + p["u"][x["token"]] * h


def fixed_integers(p, h, x):
    order = (jnp.arange(N) + 1) % N
    return jnp.tanh(p["w"] @ h[order] + p["m"] @ x + p["b"][order] * h)


def complex_weights(p, h, x):
    w = jax.lax.complex(p["w"], p["u"])
    a = w @ jax.lax.complex(h, jnp.sin(h)) + jax.lax.complex(p["b"], p["g"])
    return jnp.tanh(a).real + jnp.exp(-jnp.abs(a)) + p["m"] @ x


def convolved(p, h, x):
    a = jax.lax.conv(h[None, None], p["k"][:1, :1], (1,), "SAME")[0, 0]
    return jnp.tanh(a + jnp.convolve(h, p["g"], mode="same") + p["w"] @ h + p["m"] @ x)


def three_axes(p, h, x):
    a = jnp.tensordot(p["v"], h, axes=([2], [0])), jnp.tensordot(p["k"], jnp.outer(h, h), axes=([1, 2], [0, 1]))
    return jnp.sin(jnp.sum(a[0] @ jnp.cos(a[1])) * p["b"]) + jnp.tanh(jnp.einsum("kij,i->j", p["k"], h)) + p["m"] @ x


def to_scalar(p, h, x):
    return jnp.tanh((p["g"] @ h - p["s"]) * p["b"] + p["m"] @ x + h @ p["b"])


def outer_product(p, h, x):
    a = jax.lax.dot_general(p["g"], h, (((), ()), ((), ())))
    return jnp.tanh(jnp.sum(jnp.sin(a), axis=0) + p["w"] @ h + p["m"] @ x)


def counted(p, h, x):
    over = np.arange(9).reshape(N, N) @ (h > 0).astype(int)
    return jnp.tanh(p["w"] @ h + p["m"] @ x + over.astype(h.dtype) * 0.1 * p["b"])


def in_integers(p, h, x):
    whole = (10 * p["w"] @ h).astype(int) + (3 * x[0]).astype(int)
    return jnp.tanh(whole.astype(h.dtype) * p["b"] + p["m"] @ x + h)


def in_half(p, h, x):
    a = (p["w"] @ h).astype(jnp.float32) + p["b"].astype(jnp.float32)
    u = jnp.dot(p["u"].astype(jnp.float32), h.astype(jnp.float32), preferred_element_type=jnp.float64)
    return jnp.tanh(a).astype(h.dtype) + jnp.sin(u) + p["m"] @ x


def on_the_right(p, h, x):
    return jnp.tanh(h @ p["w"] + x @ p["m"].T) + jnp.einsum("ij,i->j", p["u"], h) + jnp.einsum("j,ij->i", h, p["u"])


def rows(p, state, x):
    """A state that is a matrix, weights on either side of it."""
    return jnp.tanh(p["w"] @ state + state @ p["u"] + (p["m"] @ x)[:, None] + jnp.sum(p["k"][0] @ state.T, 0)[None])


def constants(p, h, x):
    return jnp.sin(MASK @ h + (MASK + 1) @ h * p["b"]) + p["m"] @ x


def reshaped(p, h, x):
    a = (jnp.concatenate((p["w"], p["u"])) @ h).reshape(2, N) + jnp.stack((p["b"], p["g"]))
    c = (p["k"][0] @ h)[:, None] + (p["m"] @ x)[None]
    return jnp.tanh(a[0]) * jax.nn.sigmoid(a[1]) + jnp.sum(c, axis=1)


def custom(p, h, x):
    return reverse_sin(p["w"] @ h + p["m"] @ x) + forward_sin(p["u"] @ h) + jax.nn.relu(p["g"] * h)


def inner_scan(p, h, x):
    one = lambda h, b: (jnp.tanh(p["w"] @ h + b), None)
    return jax.lax.scan(one, p["u"] @ h + p["m"] @ x, p["k"][0])[0]


def looped(p, h, x):
    h = jnp.tanh(p["w"] @ h + p["m"] @ x)
    return jax.lax.while_loop(lambda at: at[0] < 2, lambda at: (at[0] + 1, jnp.sin(at[1] * p["b"])), (0, h))[1]


def remembered(p, h, x):
    return jax.checkpoint(lambda h: jnp.tanh(p["w"] @ h + p["b"]))(jnp.tanh(p["u"] @ h)) + p["m"] @ x


def sends_to_itself(p, h, x):
    a = p["w"] @ h
    p["u"] @ h  # nobody reads it
    return a + a - (p["m"] @ x - a)


def alone(p, h, x):
    return jnp.tanh(p["w"] @ h + p["b"])


def without_state(p, h, x):
    return jnp.tanh(p["m"] @ x + p["b"])


def still(p, h, x):
    return jnp.sin(p["b"])


def without_weights(p, h, x):
    return 0.5 * h + jnp.tile(x, 2)[:N]


def nothing(p, h, x):
    return h


H, PAIR, ROWS = jnp.zeros(N), {"h": jnp.zeros(N), "n": {"a": jnp.zeros(N)}}, jnp.zeros((N, N))
# step, h_0, products of each group, how deep each group is
STEPS = [
    (elman, H, (1,), (0,)), (merged, H, (2, 1), (0, 1)), (split, H, (1, 1), (0, 0)), (masked, H, (1, 1), (0, 0)),
    (deep, H, (2, 1, 1), (0, 1, 2)), (normalised, H, (1,), (0,)), (read_twice, H, (3,), (0,)),
    (exponential, H, (1, 1), (0, 0)), (pair, PAIR, (1,), (0,)), (passes_on, PAIR, (1,), (0,)),
    (swaps, PAIR, (1,), (0,)), (typed, H, (1,), (0,)), (fixed_integers, H, (1,), (0,)),
    (complex_weights, H, (1,), (0,)), (convolved, H, (1,), (0,)), (three_axes, H, (1, 1, 1), (0, 0, 0)),
    (to_scalar, H, (1, 1), (0, 0)), (outer_product, H, (1,), (0,)), (counted, H, (1,), (0,)),
    (in_integers, H, (1,), (0,)), (in_half, H, (1, 1), (0, 0)), (on_the_right, H, (1, 1, 1), (0, 0, 0)),
    (rows, ROWS, (1, 1, 1), (0, 0, 0)), (constants, H, (2,), (0,)), (reshaped, H, (2,), (0,)),
    (custom, H, (2,), (0,)), (inner_scan, H, (1,), (0,)), (looped, H, (1,), (0,)), (remembered, H, (1,), (0,)),
    (sends_to_itself, H, (2,), (0,)), (alone, H, (1,), (0,)), (without_state, H, (), ()), (still, H, (), ()),
    (without_weights, H, (), ()), (nothing, H, (), ()),
]  # fmt: skip


def problem_of(step, zero, batch, reads="state"):
    """(model, data): dense params, h_0 dependent on θ."""
    start = lambda p: jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.sin(p["b"]), leaf.shape), zero)
    seen = lambda p, state, *rest: jax.tree.map(lambda *each: sum(map(jnp.sin, each)), state, *rest[1:])
    loss = lambda output, target: sum(jnp.sum((leaf - target) ** 2) for leaf in jax.tree.leaves(output))
    model = models.Model(None, start, step, seen, loss, reads=reads)
    keys, shape = jax.random.split(KEY, 4), (LENGTH,) if batch is None else (LENGTH, batch)
    inputs = jax.random.normal(keys[0], (*shape, M))
    if step is typed:
        token, reset = jax.random.randint(keys[1], shape, 0, N), jax.random.bernoulli(keys[2], 0.5, shape)
        inputs = {"key": jax.random.split(keys[3], shape), "token": token, "reset": reset}
    model = model if batch is None else models.batched(model, batch)
    return model, (PARAMS, inputs, jnp.linspace(-1.0, 1.0, LENGTH * (batch or 1)).reshape(shape))


def staged_of(model, data):
    at = data[0], model.initial_state(data[0]), jax.tree.map(lambda leaf: leaf[0], data[1])
    batched = model.batch is not None
    return deferred.stage(model.step.one if batched else model.step, *at, batched=batched)


@functools.cache
def expected_of(step, batch, reads="state"):
    model, data = problem_of(step, {step: zero for step, zero, *_ in STEPS}[step], batch, reads)
    return model, data, jax.jit(functools.partial(gradients.autodiff, model))(*data)


def bptt(module, model, data, **options):
    return jax.jit(functools.partial(module.bptt, model, **options))(*data)


@pytest.mark.sweep(10)
@pytest.mark.parametrize("batch", [None, BATCH], ids=["one", "batch"])
@pytest.mark.parametrize(("step", "zero", "products", "depths"), STEPS, ids=[each[0].__name__ for each in STEPS])
def test_a_step_in_stages_has_the_gradient_of_the_whole(monkeypatch, step, zero, products, depths, batch):
    model, data, (loss, expected) = expected_of(step, batch)
    staged = staged_of(model, data)
    assert isinstance(staged, StagedStep), staged
    groups = sorted((group.depth, -len(group.products)) for group in staged.affine)
    assert groups == sorted(zip(depths, [-each for each in products], strict=True))
    if step is not looped:  # which has no reverse mode
        monkeypatch.setattr(sequence, "UNREADABLE", ())  # a gradient by the plain way would hide what is wrong
    actual_loss, actual = bptt(gradients, model, data, block=2)
    np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
    assert compare(expected, actual).relative < (1e-6 if step is in_half else 1e-12)


@pytest.mark.sweep
@pytest.mark.parametrize("batch", [None, BATCH], ids=["one", "batch"])
@pytest.mark.parametrize("options", [{"memory": 1}, {"block": 2}, {"block": LENGTH}], ids=str)
def test_outputs_that_read_more_than_the_state(options, batch):
    model, data, (_, expected) = expected_of(merged, batch, "state, x, previous")
    assert compare(expected, bptt(gradients, model, data, **options)[1]).relative < 1e-12


@pytest.mark.parametrize("step", [split, read_twice, deep])
def test_what_is_kept_is_what_the_rest_reads(step):
    """σ(a) in the place of a where nothing else reads a; the parts of a product that are read apart."""
    bends = [group.bends for group in staged_of(*problem_of(step, H, None)).affine]
    assert (
        bends
        == {
            split: [("tanh", "logistic"), (None, None)],
            read_twice: [(None, "logistic", None)],
            deep: [(None, None), (None,), (None,)],
        }[step]
    )


@pytest.mark.sweep
@pytest.mark.parametrize("step", [elman, merged, read_twice, rows], ids=lambda step: step.__name__)
def test_params_of_float32_keep_their_dtype(monkeypatch, step):
    monkeypatch.setattr(sequence, "UNREADABLE", ())
    model, data, _ = expected_of(step, None)
    single = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
    _, expected = jax.jit(functools.partial(gradients.autodiff, model))(*single(data))
    _, actual = bptt(gradients, model, single(data), block=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype("float32")}
    assert compare(expected, actual).relative < 1e-5


def test_the_gradient_is_differentiated_again():
    model, data, _ = expected_of(merged, None)
    along = jax.tree.map(jnp.sin, data[0])
    push = lambda route: jax.jit(lambda p: jax.jvp(lambda p: route(model, p, *data[1:])[1], (p,), (along,))[1])(data[0])
    assert compare(push(gradients.autodiff), push(gradients.bptt)).relative < 1e-11


def test_an_effect_is_seen_at_every_step(capsys):
    def step(p, h, x):
        jax.debug.print("h {}", h[0])
        jax.debug.print("x {}", x[0])
        return elman(p, h, x)

    model, data = problem_of(step, H, None)
    assert isinstance(staged_of(model, data), StagedStep)
    actual = bptt(gradients, model, data)[1]
    jax.effects_barrier()
    printed = capsys.readouterr().out
    assert printed.count("h ") == LENGTH
    assert printed.count("x ") >= LENGTH
    assert compare(expected_of(elman, None)[2][1], actual).relative < 1e-12


def test_a_program_that_cannot_be_staged_goes_the_plain_way(monkeypatch):
    monkeypatch.setattr(deferred, "run_stages", lambda *at: 1 / 0)
    model, data, (_, expected) = expected_of(elman, None)
    assert isinstance(staged_of(model, data), Unreadable)
    assert compare(expected, bptt(gradients, model, data)[1]).relative < 1e-12


DEFERRED = [  # each gives other numbers: a line that raised would only send everything the plain way
    (deep, "sorted({group.depth for group in staged.affine}, reverse=True)", "sorted({group.depth for group in staged.affine})"),  # noqa: E501
    (deep, "total = jax.tree.map(jnp.add, total, pull_rest(vectors, of_vectors))", "total = pull_rest(vectors, of_vectors)"),  # noqa: E501
    (normalised, "jax.tree.map(jnp.add, of_held, held)), (found.kept", "held), (found.kept"),
    (normalised, "found, leading = [*of_held.items()], ", "found, leading = [], "),
    (elman, "(*found, *pull_drive(of_driven)[0].items())", "found"),
    (elman, "found += [*by_shared.items(), *", "found += [*"),
    (reshaped, "of_driven = jax.tree.map(jnp.add, of_driven, by_driven)", "pass"),
    (read_twice, "of_driven |= {slot: of_driven[slot] + own for", "of_driven |= {slot: of_driven[slot] + 0 * own for"),
    (merged, "return total._replace(kept=[bar for group in staged.affine for bar in straighten(group, total.kept, kept)])",  # noqa: E501
     "return total"),
    (merged, "return pull_shared(of_shared)[0], earlier", "return pull_shared(of_shared)[0], later"),
    (three_axes, "jax.vjp(run, _join(product, shared))[1](results)", "jax.vjp(run, _join(product, shared))[1](0 * results)"),  # noqa: E501
]  # fmt: skip
STAGES = [
    (merged, '"logistic": lambda s: s * (1 - s)', '"logistic": lambda s: s * (1 + s)'),
    (elman, '"tanh": lambda s: (1 - s) * (1 + s)', '"tanh": lambda s: 1 - s'),
    (exponential, '"exp": lambda s: s', '"exp": lambda s: 1 + s'),
    (read_twice, "if len(read_by) == 1 and read_by[0] >= 0 else None", "if read_by and read_by[0] >= 0 else None"),
    (deep, "depths[slot] = depth + (", "depths[slot] = 0 * depth * ("),
    (merged, "jnp.split(joined, list(itertools.accumulate(sizes))[:-1], axis=axis)",
     "jnp.split(joined, list(itertools.accumulate(sizes))[:-1], axis=axis)[::-1]"),
]  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize(("step", "old", "new"), DEFERRED)
def test_a_broken_line_of_the_passes_is_seen(step, old, new):
    model, data, (_, expected) = expected_of(step, None)
    assert compare(expected, bptt(mutate_package(gradients, old, new), model, data, block=2)[1]).relative > 1e-3


@pytest.mark.sweep
@pytest.mark.parametrize(("step", "old", "new"), STAGES)
def test_a_broken_line_of_the_reading_is_seen(monkeypatch, step, old, new):
    model, data, (_, expected) = expected_of(step, None)
    mutant = mutate(stages, old, new)
    for name in ("Affine", "StagedStep", "Product"):
        setattr(mutant, name, getattr(stages, name))
    monkeypatch.setattr(stages, "_part", mutant._part)
    for name in ("SLOPES", "execute", "needed_for", "product_of", "read_stages"):
        monkeypatch.setattr(deferred, name, getattr(mutant, name))
    assert compare(expected, bptt(gradients, model, data, block=2)[1]).relative > 1e-3
