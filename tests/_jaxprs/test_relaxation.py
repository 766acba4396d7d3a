"""The derivative of a relaxed program shows, at one point, each entry that differs from zero at any argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxbptt._jaxprs import mixtures, relaxation
from jaxbptt._jaxprs.relaxation import relax
from jaxbptt.partials import jacobian
from tests.mutation import mutate

N = 4
KEY = jax.random.key(3)
rows = lambda text: np.array([[int(entry) for entry in row] for row in text.split()])
EYE, FLIP = np.eye(N, dtype=int), np.eye(N, dtype=int)[::-1]
BOTH, ALL = EYE | FLIP, np.ones((N, N), int)
PAIRS = np.kron(np.eye(2, dtype=int), np.ones((2, 2), int))
TRIPLE = rows("1110 1110 0010 0001")
H, X, INDEX = np.zeros(N), np.zeros(2), np.int32(0)
flip = lambda h: h[::-1]
first = lambda h, rest: jnp.concatenate((h, rest))


@jax.custom_vjp
def spike(h):
    return jnp.asarray(h > 1, h.dtype)


spike.defvjp(lambda h: (spike(h), h), lambda h, cotangent: (cotangent / (1 + jnp.abs(h)) ** 2,))


@jax.custom_vjp
def mixing(h):
    """Elementwise, but its rule is not."""
    return jnp.sin(h)


mixing.defvjp(lambda h: (mixing(h), None), lambda _, cotangent: (jnp.cumsum(cotangent),))


@jax.custom_jvp
def gate(h, x):
    """A branch in a rule: the pullback at x_0 ≤ 1 never shows the other slope."""
    return jnp.tanh(h)


gate.defjvp(lambda at, by: (gate(*at), jnp.where(at[1][0] > 1, by[0], jnp.zeros(N))))


def uses_alternate_signs(h):
    """Σ_t (−1)^t max(h, s_t): shares that were the same in every iteration would cancel."""
    body = lambda total, s: (total + s * jnp.maximum(h, s), None)
    return lax.scan(body, jnp.zeros(N), jnp.array([1.0, -1.0]))[0]


def counts(h, x):
    """A count that varies through another one, both from a later iteration on; a third that does not vary."""

    def body(carry, t):
        h, n, late, known = carry
        new = jnp.where(late > 0, jnp.roll(h, 1), h)
        return (new, n + jnp.asarray(x[0] > t, jnp.int32), late + n, known + 1), jnp.where(known > 0, h, jnp.zeros(N))

    (h, *_), seen = lax.scan(body, (h, jnp.int32(0), jnp.int32(0), jnp.int32(0)), jnp.arange(2.0))
    return h + jnp.roll(seen[0], 3)


def known_branch(h):
    return lax.scan(lambda h, on: (lax.cond(on, flip, jnp.sin, h), None), h, np.array([True]))[0]


def unknown_length(h):
    return jnp.concatenate((lax.while_loop(lambda c: c[0] < 3, lambda c: c * c + 1, h[:2]), h[2:]))


CASES = {  # name: (function, arguments after h, dh_new/dh)
    "where": (lambda h, x: jnp.where(x[0] == 1, flip(h), h), [X], BOTH),
    "where, opposite branches": (lambda h: jnp.where(h > 0, h, -h), [], EYE),
    "a constant where": (lambda h: jnp.where(np.arange(N) < 2, flip(h), h), [], rows("0001 0010 0010 0001")),
    "a constant mask": (lambda h: np.tril(np.ones((N, N))) @ h, [], np.tril(ALL)),
    "mask of the state": (lambda h: flip(h) * jnp.asarray(h > 9, h.dtype), [], FLIP),
    "dead units": (lambda h: jax.nn.relu(h) * jax.nn.relu(flip(h)), [], BOTH),
    "clip": (lambda h: jnp.clip(h, 0, 1) * jnp.minimum(flip(h), 0), [], BOTH),
    "|h|": (lambda h: flip(h) + jnp.abs(flip(h)), [], FLIP),
    "floor": (lambda h: jnp.floor(flip(h)) * h, [], EYE),
    "remainder": (lambda h: lax.rem(h, 2 + flip(h) ** 2), [], BOTH),
    "a large constant": (lambda h, x: jnp.exp(h + jnp.where(x[0] > 9, 0.0, -1e30)), [X], EYE),
    "a drowned term": (lambda h: jnp.tanh(1e3 * h), [], EYE),
    "domains": (lambda h: jnp.log(h) + jnp.sqrt(h) + jnp.arccos(h), [], EYE),
    "extremum": (lambda h: jnp.repeat(jnp.max(h.reshape(2, 2), axis=1), 2), [], PAIRS),
    "opposite extremes": (lambda h: jnp.max(jnp.stack((h, -h)), axis=0), [], EYE),
    "sort": (lambda h: jnp.sort(h.reshape(2, 2), axis=1).ravel(), [], PAIRS),
    "cummax": (lambda h: lax.cummax(h.reshape(2, 2), axis=1).ravel(), [], PAIRS),
    "argmax": (lambda h: h * jax.nn.one_hot(jnp.argmax(h), N, dtype=h.dtype), [], EYE),
    "top_k": (lambda h: first(lax.top_k(h[:3], 2)[0], h[2:]), [], TRIPLE),
    "take, by float": (lambda h, x: h.reshape(2, 2)[x.astype(int)].ravel(), [X], rows("1010 0101 1010 0101")),
    "one of each row": (
        lambda h, i: jnp.repeat(jnp.take_along_axis(h.reshape(2, 2), i[:, None], 1).ravel(), 2),
        [np.zeros(2, int)],
        PAIRS,
    ),
    "dynamic_slice": (lambda h, i: first(lax.dynamic_slice(h[:3], (i,), (2,)), h[2:]), [INDEX], TRIPLE),
    "dynamic_update": (lambda h, i: lax.dynamic_update_slice(h, h[:1], (i,)), [INDEX], rows("1000 1100 1010 1001")),
    "set": (lambda h, i: h.at[i].set(h[0]), [INDEX], rows("1000 1100 1010 1001")),
    "set rows": (lambda h, i: h.reshape(2, 2).at[i].set(h[:2]).ravel(), [INDEX], rows("1000 0100 1010 0101")),
    "set, index known": (lambda h: h.at[1].set(h[0]), [], rows("1000 1000 0010 0001")),
    "max at an index": (lambda h: h.at[1].max(h[0]), [], rows("1000 1100 0010 0001")),
    "bernoulli": (lambda h, key: jnp.where(jax.random.bernoulli(key, 0.3, (N,)), h, flip(h)), [KEY], BOTH),
    "normal": (lambda h, key: h * jax.random.normal(key, (N,)), [KEY], EYE),
    "cond": (lambda h, x: lax.cond(x[0] > 1, flip, lambda h: h, h), [X], BOTH),
    "cond, known": (known_branch, [], FLIP),
    "switch": (lambda h, i: lax.switch(i, [flip, lambda h: h, jnp.zeros_like], h), [INDEX], BOTH),
    "scan": (uses_alternate_signs, [], EYE),
    "scan with counters": (counts, [X], 1 - np.roll(EYE, 3, axis=0)),
    "fori_loop": (lambda h: lax.fori_loop(0, N, lambda i, h: h.at[i].multiply(2.0), h), [], EYE),
    "while_loop": (unknown_length, [], rows("1100 1100 0010 0001")),
    "remat, jit": (lambda h: jax.checkpoint(jax.jit(jnp.sin))(h), [], EYE),
    "custom_jvp": (lambda h: jax.nn.silu(h) + jax.nn.softplus(h) + jax.nn.gelu(h), [], EYE),
    "custom_vjp": (lambda h: spike(h) * h[0], [], rows("1000 1100 1010 1001")),
    "a rule that mixes": (mixing, [], ALL),
    "a rule with a branch": (gate, [X], ALL),
    "softmax": (jax.nn.softmax, [], ALL),
    "solve": (lambda h: jnp.linalg.solve(2 * jnp.eye(N) + jnp.outer(h, h), h), [], ALL),
    "fft": (lambda h: jnp.abs(jnp.fft.fft(h[:2], 2)).repeat(2), [], rows("1100 1100 1100 1100")),
}  # fmt: skip


def pattern_of(function, rest, module=relaxation):
    floats = lambda a: jax.random.normal(KEY, a.shape) if jnp.issubdtype(a.dtype, jnp.floating) else None
    relaxed, drawn = module.relax(function, H, *rest), jax.tree.map(floats, rest)
    derivative = jax.jacrev(lambda h: relaxed(jnp.float64(0.3), h, *drawn))
    return np.asarray(jax.jit(derivative)(jax.random.normal(jax.random.key(4), (N,))) != 0)


def draw(key, argument):
    """50 values of one argument."""
    if jnp.issubdtype(argument.dtype, jax.dtypes.prng_key):
        return jax.random.split(key, 50)
    if jnp.issubdtype(argument.dtype, jnp.integer):
        return jax.random.randint(key, (50, *argument.shape), 0, 2, argument.dtype)
    return 2 * jax.random.normal(key, (50, *argument.shape))


@pytest.mark.sweep
@pytest.mark.parametrize("name", CASES)
def test_the_pattern_is_that_of_all_routes(name):
    function, rest, expected = CASES[name]
    np.testing.assert_array_equal(pattern_of(function, rest), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_run_has_another_entry(name):
    function, rest, expected = CASES[name]
    keys = jax.random.split(KEY, len(rest) + 1)
    points = [draw(key, argument) for key, argument in zip(keys, (H, *rest), strict=True)]
    derivative = jax.jit(jax.vmap(lambda h, *rest: jacobian(lambda h: function(h, *rest), h, prefer="reverse")))
    seen = np.any(np.abs(derivative(*points)) > 0, axis=0)
    assert not np.any(seen & ~expected.astype(bool))


@pytest.mark.parametrize(
    ("module", "old", "new", "name"),
    [
        (relaxation, "shares.within(phase)", "shares", "scan"),
        (relaxation, "shares.mix([one.value for one in each], aval)", "each[0].value", "switch"),
        (relaxation, "elif operation.name not in ELEMENTWISE", "elif False", "a rule that mixes"),
        (mixtures, "[shares.like(result) * result]", "[result]", "|h|"),
        (mixtures, "values = [inside(values[0]), *values[1:]]", "pass", "a drowned term"),
        (mixtures, "[shares.like(taken) * taken]", "[0 * taken]", "take, by float"),
    ],
)
def test_a_lost_route_is_seen(module, old, new, name, monkeypatch):
    function, rest, expected = CASES[name]
    mutant = mutate(module, old, new)
    if module is mixtures:
        monkeypatch.setattr(relaxation, "mixed", mutant.mixed)
        mutant = relaxation
    assert not np.array_equal(pattern_of(function, rest, mutant), expected)


@pytest.mark.parametrize(
    "function", [lambda h, i: h.at[i].apply(jnp.cos), lambda h, i: lax.pow(h, jnp.broadcast_to(i, h.shape))]
)
def test_an_operation_that_is_not_known_in_detail_reads_everything(function):
    np.testing.assert_array_equal(pattern_of(function, [INDEX]), ALL)


def test_results_that_do_not_depend_on_the_arguments_are_as_they_are():
    relaxed = relax(lambda h, i: {"sum": h + 1, "one": jnp.where(np.eye(2) > 0, 3.0, 0.0)}, H, INDEX)
    results = relaxed(jnp.float64(0.0), np.arange(4.0), None)
    np.testing.assert_array_equal(results["sum"], np.arange(1.0, 5))
    np.testing.assert_array_equal(results["one"], 3 * np.eye(2))
