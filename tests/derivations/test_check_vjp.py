"""Backward passes of anybody's: published mistakes are found, where and from which length on; correct ones pass."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt.derivations import check_vjp
from tests.derivations.pairs import LSTM, PAIRS, Batch, Decay, Delta, Elman, Reflections

KEY = jax.random.key(3)
BOTH = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
# name: the pair, its mistake, the lengths, leaves that are wrong, words that the report must have
MISTAKES = {
    "transition on the value side": (Delta, {"on_values": True}, None, "k v beta", "output[1]"),
    "reflections entry by entry": (Reflections, {"elementwise": True}, None, "k h", ""),
    "index of a block as a time": (
        Decay,
        {"block_as_time": True},
        (1, 3, 4, 5),
        "a x",
        "Right up to T = 4, wrong from T = 5",
    ),
    "clipped cotangent": (Elman, {"carried": lambda c: np.clip(c, -0.3, 0.3)}, None, "w_hx w_hh b x", "not linear"),
    "part of a batch": (Batch, {"error": 0.03}, None, "w x", "output[4], output[5] (2 of 6"),
    "slope at the activated value": (Elman, {"slope": lambda h: 1 - np.tanh(h) ** 2}, None, "w_hx w_hh b x", ""),
    "square of a difference": (Elman, {"slope": lambda h: (1 - h) ** 2}, None, "w_hx w_hh b x", ""),
    "i for g": (LSTM, {"swapped": True}, None, "w_hx w_hh b x", ""),
}


def arguments_of(kind, dtype=np.float64, seed=0, **sizes):
    return tuple(each.astype(dtype) for each in kind.arguments(np.random.default_rng(seed), **sizes))


def altered(backward, leaf, change):
    """backward with one cotangent changed: `change` returns it, or works in place."""

    def wrong(*arguments):
        result = [each.copy() for each in backward(*arguments)]
        changed = change(result[leaf])
        result[leaf] = result[leaf] if changed is None else changed
        return tuple(result)

    return wrong


@pytest.mark.sweep
@BOTH
@pytest.mark.parametrize("name", MISTAKES)
def test_a_published_mistake_is_found_and_its_correct_twin_passes(name, dtype):
    kind, mistake, lengths, wrong, words = MISTAKES[name]
    arguments = arguments_of(kind, dtype)
    right = check_vjp(kind.forward, kind.backward, arguments, key=KEY, lengths=lengths)
    assert right.ok, right
    assert "extended precision" in right.checked or np.finfo(np.longdouble).eps > 1e-18
    report = check_vjp(kind.forward, functools.partial(kind.backward, **mistake), arguments, key=KEY, lengths=lengths)
    assert {finding.piece for finding in report.findings} == set(wrong.split())
    assert all(words in finding.sentence for finding in report.findings), report


def test_a_bounded_derivative_is_reported_as_a_difference():
    a, x = arguments_of(Decay)
    a[2, 1] = 1 - 1e-8
    bounded = functools.partial(Decay.backward, bound=1000.0)
    assert check_vjp(Decay.forward, Decay.backward, (a, x), key=KEY).ok
    (finding,) = check_vjp(Decay.forward, bounded, (a, x), key=KEY).findings
    assert (finding.piece, finding.step, finding.entry) == ("a", 3, (1,))
    assert abs(finding.expected) > 5 * abs(finding.actual)
    for near in (np.nextafter(np.float32(1), np.float32(0)), 0.9999):  # at the domain's edge, and where 1 − a² is rough
        a[2, 1] = near
        arguments = (a.astype(np.float32), x.astype(np.float32))
        assert check_vjp(Decay.forward, Decay.backward, arguments, key=KEY).ok


def put(place, factor):
    def change(cotangent):
        cotangent[place] *= factor

    return change


@BOTH
@pytest.mark.parametrize(
    ("leaf", "change", "piece", "slip", "step", "entry"),
    [
        (1, lambda c: -c, "w_hh", "sign", None, (0, 0)),
        (0, lambda c: c / 2, "w_hx", "half", None, (0, 0)),
        (3, lambda c: 2 * c, "x", "double", 1, (0,)),
        (1, lambda c: c.T, "w_hh", "transposed_jacobian", None, (0, 1)),
        (1, put((2, 3), 1.02), "w_hh", None, None, (2, 3)),
        (3, put((4, 1), 1.02), "x", None, 5, (1,)),
        (3, put(3, 0), "x", None, 4, (0,)),
        (2, put(1, 1.02), "b", None, None, (1,)),
    ],
)
def test_a_wrong_leaf_row_or_entry_is_located(leaf, change, piece, slip, step, entry, dtype):
    arguments = arguments_of(Elman, dtype)
    report = check_vjp(Elman.forward, altered(Elman.backward, leaf, change), arguments, key=KEY)
    (finding,) = report.findings
    assert (finding.piece, finding.slip, finding.step, finding.entry) == (piece, slip, step, entry), report
    result = Elman.backward(*arguments, np.zeros((6, 4), dtype))[leaf]
    assert result.shape == arguments[leaf].shape
    place = entry if step is None else (step - 1, *entry)
    name = f"{piece}[{', '.join(map(str, place))}]"
    assert name in str(finding)
    assert np.isfinite([finding.expected, finding.actual, finding.relative]).all()
    assert finding.expected != finding.actual


def test_the_numbers_of_a_finding_are_those_of_the_entry():
    arguments = arguments_of(Elman)
    (finding,) = check_vjp(Elman.forward, altered(Elman.backward, 1, put((2, 3), 1.001)), arguments, key=KEY).findings
    assert finding.actual == pytest.approx(1.001 * finding.expected, rel=1e-9)
    (finding,) = check_vjp(Elman.forward, altered(Elman.backward, 1, lambda c: -c), arguments, key=KEY).findings
    assert finding.relative == pytest.approx(2, rel=1e-9)
    assert finding.actual == pytest.approx(-finding.expected, rel=1e-9)


def test_a_row_is_found_among_many_in_float32():
    x = np.random.default_rng(0).normal(size=(2000, 2)).astype(np.float32)
    total = lambda x: x.sum(axis=0)
    backward = lambda x, c, factor=1.0: c * np.where(np.arange(len(x)) == 0, factor, 1)[:, None].astype(x.dtype)
    assert check_vjp(total, backward, (x,), key=KEY).ok
    (finding,) = check_vjp(total, functools.partial(backward, factor=1.05), (x,), key=KEY).findings
    assert (finding.step, finding.entry) == (1, (0,))


def test_transposed_vector_jacobian_product():
    w = np.random.default_rng(0).normal(size=(3, 3))
    report = check_vjp(lambda h: w @ h, lambda h, c: w @ c, (np.ones(3),), key=KEY)
    assert [finding.slip for finding in report.findings] == ["transposed_jacobian"]


def scaled(x, w):
    return x * w


NAN = np.array([[0, np.nan], [0, 0], [0, 0]])
CONTRACT = {  # backward of x [3, 2] ⊙ w [2]: piece, words
    "None": (lambda x, w, c: (None, (c * x).sum(0)), "x", "is None, expected"),
    "too few": (lambda x, w, c: (c * w,), "backward", "expected a tuple of 2"),
    "no tuple": (lambda x, w, c: {"x": c * w}, "backward", "expected a tuple of 2"),
    "shape": (lambda x, w, c: (c * w, c * x), "w", "has shape [3, 2], expected [2]"),
    "structure": (lambda x, w, c: ([c * w, c], (c * x).sum(0)), "x", "structure [*, *], expected *"),
    "dtype": (lambda x, w, c: (c * w, np.ones(2, int)), "w", "dtype int64"),
    "no array": (lambda x, w, c: (c * w, "w"), "w", "cotangent"),
    "NaN": (lambda x, w, c: (c * w + NAN, (c * x).sum(0)), "x", "not finite: first at x[0, 1]"),
    "offset": (lambda x, w, c: (c * w + 1e-3, (c * x).sum(0)), "x", "not linear"),
    "noise": (lambda x, w, c: (c * w * (1 + next(NOISE)), (c * x).sum(0)), "x", "not the same twice"),
    "all rows or none": (lambda x, w, c: (c * w * np.all(c != 0), (c * x).sum(0)), "x", "single rows"),
    "clipped far out": (lambda x, w, c: (np.clip(c * w, -200, 200), (c * x).sum(0)), "x", "backward(1024 c) / 1024"),
    "nothing": (lambda x, w, c: (np.zeros_like(x), (c * x).sum(0)), "x", "got 0, expected"),
}
NOISE = iter(1e-6 * np.random.default_rng(0).normal(size=1000))


@pytest.mark.parametrize("name", CONTRACT)
def test_a_result_that_cannot_be_right_is_a_finding(name):
    backward, piece, words = CONTRACT[name]
    x, w = np.random.default_rng(0).normal(size=(3, 2)), np.array([0.5, 2.0])
    (finding,) = check_vjp(scaled, backward, (x, w), key=KEY).findings
    assert finding.piece == piece
    assert words in finding.sentence, finding


def test_changes_in_place_are_found():
    def backward(x, w, c):
        result = c * w, (c * x).sum(0)
        x *= 2
        c += 1
        return result

    def forward(x, w):
        w[0] = 3.0
        return x * w

    x, w = np.ones((3, 2)), np.array([3.0, 2.0])
    report = check_vjp(scaled, backward, (x, w), key=KEY)
    assert {finding.piece for finding in report.findings} == {"x", "cotangent"}
    assert all("backward changes it in place" in finding.sentence for finding in report.findings)
    assert np.all(x == 1)
    right = lambda x, w, c: (c * [3, w[1]], (c * x).sum(0) * [0, 1])
    (finding,) = check_vjp(forward, right, (x, w + 1), key=KEY).findings
    assert (finding.piece, "forward changes it in place" in finding.sentence) == ("w", True)


def test_forward_itself_is_watched():
    state = {"factor": 1.0}

    def backward(x, c):
        state["factor"] += 0.1
        return c * 1.0

    (finding,) = check_vjp(lambda x: x * state["factor"], backward, (np.ones(3),), key=KEY).findings[:1]
    assert (finding.piece, "once backward has run" in finding.sentence) == ("forward", True)
    noise = np.random.default_rng(0)
    (finding,) = check_vjp(lambda x: x + noise.normal(), lambda x, c: c, (np.ones(3),), key=KEY).findings
    assert "forward is not the same twice" in finding.sentence
    (finding,) = check_vjp(lambda x: x / 0 if len(x) else x, lambda x, c: c, (jnp.ones(3),), key=KEY).findings
    assert "forward gives NaN or inf, first in output[0]" in finding.sentence
    (finding,) = check_vjp(np.floor, lambda x, c: 0 * c, (np.arange(3.0),), key=KEY).findings
    assert "forward jumps along it" in finding.sentence


def centred(x):
    return x - np.mean(x, axis=0)


def test_a_forward_whose_prefix_changes_is_found():
    x = np.random.default_rng(0).normal(size=(5, 2))
    assert check_vjp(centred, lambda x, c: centred(c), (x,), key=KEY).ok
    report = check_vjp(centred, lambda x, c: centred(c), (x,), key=KEY, lengths=(2, 5))
    (finding,) = report.findings
    assert (finding.piece, finding.step, finding.entry) == ("forward", 1, (0,))
    assert "on the first 2 of 5 steps" in finding.sentence
    assert "T = 2, 5" in report.checked


def test_an_index_that_wraps_is_found_from_its_length_on():
    def backward(x, c, kind=np.int8):
        result = np.zeros(x.size)
        for t in range(len(x)):
            offset = int(np.array(40, kind) * np.array(t, kind))  # 160 is −96 in 8 bits
            result[offset : offset + 40] = 2 * x[t] * c[t]
        return result.reshape(x.shape)

    x = np.random.default_rng(0).normal(size=(6, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy sees the overflow of a scalar
        report = check_vjp(np.square, backward, (x,), key=KEY, lengths=(1, 4, 5))
        assert check_vjp(np.square, functools.partial(backward, kind=np.int16), (x,), key=KEY, lengths=(1, 4, 5)).ok
    (finding,) = report.findings
    assert finding.sentence.startswith("Right up to T = 4, wrong from T = 5: x is off")
    assert (finding.step, finding.entry) == (3, (24,))  # what step 5 writes over


def jax_step(params, state, x):
    return jnp.tanh(params["w_hh"] @ state + params["w_hx"] @ x)


def jax_forward(params, start, x):
    def step(state, x):
        state = jax_step(params, state, x)
        return state, state

    return jax.lax.scan(step, start, x)


def jax_backward(params, start, x, cotangent):
    return jax.vjp(jax_forward, params, start, x)[1](cotangent)


def jax_arguments(dtype):
    random = np.random.default_rng(0)
    params = {"w_hh": random.normal(size=(3, 3)), "w_hx": random.normal(size=(3, 2))}
    arguments = params, random.normal(size=3), random.normal(size=(5, 2))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), arguments)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16], ids=str)
def test_jitted_functions_of_pytrees(dtype):
    arguments, forward = jax_arguments(dtype), jax.jit(jax_forward)
    report = check_vjp(forward, jax.jit(jax_backward), arguments, key=KEY)
    assert report.ok, report
    assert "params.w_hh" in report.checked

    @jax.jit
    def wrong(params, start, x, cotangent):
        of_params, of_start, of_x = jax_backward(params, start, x, cotangent)
        return of_params | {"w_hh": -of_params["w_hh"]}, of_start, of_x

    (finding,) = check_vjp(forward, wrong, arguments, key=KEY).findings
    assert (finding.piece, finding.slip) == ("params.w_hh", "sign" if dtype != jnp.bfloat16 else None)


def test_without_x64_the_report_says_what_cannot_be_seen():
    with jax.enable_x64(False):
        arguments = jax_arguments(jnp.float32)
        report = check_vjp(jax.jit(jax_forward), jax.jit(jax_backward), arguments, key=KEY)
        half = lambda *given: jax.tree.map(lambda leaf: leaf / 2, jax_backward(*given))
        found = check_vjp(jax.jit(jax_forward), jax.jit(half), arguments, key=KEY).findings
    assert report.ok, report
    assert "differences in float32, errors below" in report.checked
    assert float(report.checked.split("errors below ")[1].split(" ")[0]) < 1e-2
    assert [finding.slip for finding in found] == ["half"] * 4


def test_a_kernel_behind_a_callback():
    def call(function, *arguments, like):
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
        return jax.pure_callback(lambda *given: function(*map(np.asarray, given)), shapes, *arguments)

    w, x = map(jnp.asarray, arguments_of(Batch, np.float32))
    forward = lambda w, x: call(Batch.forward, w, x, like=x)
    backward = lambda w, x, c, error=0.0: call(functools.partial(Batch.backward, error=error), w, x, c, like=(w, x))
    forward, wrong = jax.jit(forward), jax.jit(functools.partial(backward, error=0.03))
    assert check_vjp(forward, jax.jit(backward), (w, x), key=KEY).ok
    report = check_vjp(forward, wrong, (w, x), key=KEY)
    assert [finding.piece for finding in report.findings] == ["w", "x"]


def test_the_rule_of_a_custom_vjp_takes_its_arguments_as_residuals():
    x = np.random.default_rng(0).normal(size=(3, 2))
    assert check_vjp(scaled, lambda residuals, c: (c * residuals[1], (c * residuals[0]).sum(0)), (x, x[0]), key=KEY).ok
    assert check_vjp(np.sin, lambda x, c: c * np.cos(x), [x], key=KEY).ok  # a bare cotangent; no signature
    assert check_vjp(lambda x: {"y": x[0]}, lambda x, c: ((c["y"], 0 * x[1]),), ((x, x[0]),), key=KEY).ok
    assert check_vjp(lambda x: x.sum(), lambda x, c: c + 0 * x, (x,), key=KEY).ok  # a NumPy scalar
    assert check_vjp(
        lambda a, x: float(a * x[0, 0]),
        lambda a, x, c: (c * x[0, 0], c * a * np.eye(3, 2)[:1] * [[1], [0], [0]]),
        (x[0, 0], x),
        key=KEY,
    ).ok


def test_integers_bools_and_keys_are_constants():
    def forward(table, tokens, mask, key, size):
        return jnp.where(mask[:, None], table[tokens], 0.0) + jax.random.normal(key, (3, size)), tokens

    def backward(table, tokens, mask, key, size, c):
        of_table = jnp.zeros_like(table).at[tokens].add(jnp.where(mask[:, None], c[0], 0.0))
        return of_table, np.zeros(3, jax.dtypes.float0), None, None, None

    table = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
    arguments = (table, jnp.array([1, 1, 3]), np.array([True, True, False]), jax.random.key(0), 2)
    report = check_vjp(forward, backward, arguments, key=KEY)
    assert report.ok, report
    assert "1 leaf of the arguments (table)" in report.checked


def test_kinks_and_saturation_raise_no_alarm_and_are_said():
    relu = lambda x: np.maximum(x, 0)
    x = np.array([[1.0, -2.0], [0.0, 3.0]])
    for at_zero in (0, 0.5, 1):
        slope = lambda x, c, at_zero=at_zero: c * np.where(x == 0, at_zero, x > 0)
        report = check_vjp(relu, slope, (x,), key=KEY)
        assert report.ok, report
        assert "errors of x below" in str(report)
        assert "forward has a kink there" in str(report)
    assert not check_vjp(relu, lambda x, c: c * np.where(x == 0, 1.5, x > 0), (x,), key=KEY).ok
    x = np.array([12.0, 0.3, -20.0], np.float32)  # 1 − tanh² has no digits left there
    assert check_vjp(np.tanh, lambda x, c: c * (1 - np.tanh(x) ** 2), (x,), key=KEY).ok
    softmax = lambda x: np.exp(x - np.logaddexp.reduce(x, axis=-1, keepdims=True))
    hot = 30 * np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    slope = lambda x, c: softmax(x) * (c - np.sum(softmax(x) * c, axis=-1, keepdims=True))
    assert check_vjp(softmax, slope, (hot,), key=KEY).ok
    shifted = lambda x, b: softmax(x + b[:, None])  # of b the derivative is zero, and what is computed is rounding

    random = np.random.default_rng(2)

    def backward(x, b, c):  # sums in any order, as kernels do
        of_x = slope(x + b[:, None], c)
        return of_x, of_x[:, random.permutation(3)].sum(axis=1)

    arguments = np.random.default_rng(0).normal(size=(80, 3)), np.random.default_rng(1).normal(size=80)
    assert check_vjp(shifted, backward, arguments, key=KEY).ok
    fast = lambda x: np.sin(1000 * x) / 1000  # its slope is rounded far more coarsely than itself
    x = np.random.default_rng(0).normal(size=8).astype(np.float32)
    assert check_vjp(fast, lambda x, c: c * np.cos(1000 * x), (x,), key=KEY).ok
    assert check_vjp(np.log, lambda x, c: c / x, (np.array([1e-12, 1e-3, 1.0, 1e6]),), key=KEY).ok


ARGUMENTS = {
    "forward: got int, expected a function": {"forward": 3},
    "backward: got NoneType, expected a function": {"backward": None},
    "forward: got (x, w, b), expected one that takes the 2 arguments": {"forward": lambda x, w, b: x},
    "backward: got (x), expected (*arguments, cotangent), here 3": {"backward": lambda x: x},
    "arguments: got ndarray, expected a tuple of arrays": {"arguments": np.ones(3)},
    "arguments: got none, expected a tuple of arrays": {"arguments": ()},
    "x: got float, expected an array of NumPy, JAX or PyTorch": {"arguments": (1.0, np.ones(2))},
    "x: got complex128, expected a real dtype": {"arguments": (np.ones((3, 2), complex), np.ones(2))},
    "w: got NaN or inf, expected finite numbers": {"arguments": (np.ones((3, 2)), np.array([1, np.nan]))},
    "arguments: got no float arrays": {"arguments": (np.ones((3, 2), int), np.ones(2, int))},
    "key: got int, expected a typed key": {"key": 0},
    "forward: got an output without floats": {"forward": lambda x, w: 3},
    "lengths: got 3, expected a tuple of ints": {"lengths": 3},
    "lengths: got 1.5, expected ints": {"lengths": (1.5,)},
    "lengths: got True, expected ints": {"lengths": (True,)},
    "lengths: got 4, expected 1 … T = 3, the leading size of x": {"lengths": (2, 4)},
    "lengths: got 0, expected 1 … T = 3": {"lengths": (0,)},
    "lengths: got 2, but forward refuses x cut to it": {
        "forward": lambda x, w: x * np.ones((3, 2)) * w,
        "lengths": (2,),
    },
}


@pytest.mark.parametrize("message", ARGUMENTS)
def test_bad_arguments_are_named_in_one_line(message):
    given = {
        "forward": scaled,
        "backward": lambda x, w, c: (c * w, (c * x).sum(0)),
        "arguments": (np.ones((3, 2)), np.ones(2)),
        "key": KEY,
    }
    given |= ARGUMENTS[message]
    with pytest.raises((TypeError, ValueError)) as caught:
        check_vjp(given.pop("forward"), given.pop("backward"), given.pop("arguments"), **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lengths_need_an_axis_and_a_backward_pass_that_takes_them():
    with pytest.raises(ValueError, match="no argument has a leading axis to cut"):
        check_vjp(lambda x: x * 2, lambda x, c: c * 2, (np.array(1.0),), key=KEY, lengths=(1,))

    def backward(x, c):
        if len(x) % 2:
            raise ValueError("odd")
        return c * 2

    (finding,) = check_vjp(lambda x: x * 2, backward, (np.ones((4, 1)),), key=KEY, lengths=(2, 3)).findings
    assert (finding.piece, finding.sentence) == (
        "backward",
        "Right up to T = 2, wrong from T = 3: backward fails (odd).",
    )
    final = lambda w, x: (np.tanh(x.sum(0) @ w), np.tanh(x @ w))  # the final state first, as lax.scan returns it

    def pull(w, x, c):
        last, each = (c * (1 - y**2) for c, y in zip(c, final(w, x), strict=True))
        return np.outer(x.sum(0), last) + x.T @ each, (last @ w.T + each @ w.T)

    report = check_vjp(final, pull, arguments_of(Batch), key=KEY, lengths=(2, 4))
    assert report.ok, report
    assert "T = 2, 4, 6" in report.checked


def test_pytorch():
    torch = pytest.importorskip("torch")
    w, x = (torch.tensor(each) for each in arguments_of(Batch))

    def forward(w, x):
        return torch.tanh(x @ w.T)

    def backward(w, x, c, factor=1.0):
        w, x = w.detach().requires_grad_(), x.detach().requires_grad_()
        of_w, of_x = torch.autograd.grad(forward(w, x), (w, x), c)
        return of_w * factor, of_x

    for arguments in ((w, x), (w.float(), x.float()), (w.bfloat16(), x.bfloat16()), (w.clone().requires_grad_(), x)):
        report = check_vjp(forward, backward, arguments, key=KEY, lengths=(2,))
        assert report.ok, report
        assert "differences in float64" in report.checked
        (finding,) = check_vjp(forward, functools.partial(backward, factor=-1), arguments, key=KEY).findings
        assert (finding.piece, finding.slip) == ("w", None if arguments[0].dtype == torch.bfloat16 else "sign")

    def in_place(w, x, c):
        result = backward(w, x, c)
        x.zero_()
        return result

    (finding,) = check_vjp(forward, in_place, (w.detach(), x), key=KEY).findings
    assert "x: backward changes it in place" in finding.sentence


PLANTED = ("sign", "half", "entry", "row")


def plant(kind, slip, leaf, arguments, random):
    """backward with one slip: a 1e-3 error of one entry in float64, 5e-2 in float32."""
    shape, is_double = arguments[leaf].shape, arguments[leaf].dtype == np.float64
    place = tuple(int(random.integers(size)) for size in shape)
    changes = {
        "sign": lambda c: -c,
        "half": lambda c: c / 2,
        "entry": put(place, 1.001 if is_double else 1.05),
        "row": put(place[0], 0),
    }
    return altered(kind.backward, leaf, changes[slip])


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_random_pairs_are_not_blamed_and_planted_slips_are_found(name):
    kind, random = PAIRS[name], np.random.default_rng([7, len(name)])
    for number in range(16):
        dtype = (np.float64, np.float32)[number // 4 % 2]
        seed, size, length = int(random.integers(2**31)), int(random.integers(2, 6)), int(random.integers(2, 14))
        arguments = arguments_of(kind, dtype, seed, size=size, length=length)
        key, leaf, slip = jax.random.key(seed), int(random.integers(len(arguments))), PLANTED[number % 4]
        report = check_vjp(kind.forward, kind.backward, arguments, key=key)
        assert report.ok, report
        report = check_vjp(kind.forward, plant(kind, slip, leaf, arguments, random), arguments, key=key)
        (finding,) = report.findings
        assert finding.slip == (slip if slip in ("sign", "half") else None), report
