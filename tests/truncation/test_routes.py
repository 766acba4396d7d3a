"""The cheap ways, each against its own table of weights, term by term."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import gradients, models, truncation
from jaxbptt.comparison import compare
from tests import cases
from tests.truncation.problems import (
    CUTS,
    KEEP,
    KEY,
    PATTERNS,
    T,
    by_table,
    direct_part,
    model_of,
    of,
    small,
)

WINDOWS, SLIDING = (1, 2, T, T + 3), ((1, 1), (1, 3), (2, 3), (3, 2), (2, T + 3))
INSTANCES = [
    *itertools.product(cases.CELLS, ("sum", "mean"), (False,)),
    ("custom", "sum", True),
    ("custom", "mean", True),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "reduction", "own_initial"), INSTANCES)
def test_every_route_is_its_table(name, reduction, own_initial):
    model = model_of(name, reduction)
    data = cases.instance(model, KEY, gain=1.5)
    # Every cell sees sizes that do not divide T; one of them sees all sizes.
    windows, sliding = (WINDOWS, SLIDING) if own_initial and reduction == "mean" else (WINDOWS[1:2], SLIDING[2:3])
    tried = [("windowed", {"window": K}, truncation.window_weights(T, K)) for K in windows]
    tried += [("sliding", {"stride": k1, "num_lags": k2}, truncation.sliding_weights(T, k1, k2)) for k1, k2 in sliding]
    tried += [("randomised", {"keep": KEEP, "cuts": CUTS}, truncation.random_weights(CUTS, KEEP))]
    full = jnp.tril(jnp.ones((T, T + 1)), 1)
    tables = jnp.stack([table for _, _, table in tried] + [full])

    @jax.jit  # one program: they share the forward pass
    def run(*data):
        data, options = data[:3], {"initial": None if own_initial else data[3]}
        by_table = lambda table: truncation.weighted_gradient(model, *data, table, **options)
        cheap = [getattr(truncation, route)(model, *data, **options, **more) for route, more, _ in tried]
        return gradients.autodiff(model, *data, **options), jax.vmap(by_table)(tables), cheap

    (exact_loss, exact), (losses, expected), cheap = run(*data)
    at = lambda i: jax.tree.map(lambda leaf: leaf[i], expected)
    np.testing.assert_allclose(losses, exact_loss, rtol=1e-13)
    assert compare(exact, at(-1)).relative < 1e-12
    for i, ((route, options, table), (loss, actual)) in enumerate(zip(tried, cheap, strict=True)):
        np.testing.assert_allclose(loss, exact_loss, rtol=1e-13)
        assert compare(at(i), actual).relative < 1e-12, (route, options)
        assert np.array_equal(table, full) == (compare(exact, actual).relative < 1e-3), (route, options)


def test_lag_is_sliding_by_one_loss():
    model = model_of("elman", "sum")
    data = cases.instance(model, KEY)
    _, expected = of(model, "sliding", stride=1, num_lags=2)(*data)
    _, actual = of(model, "lag", num_lags=2)(*data)
    chex.assert_trees_all_equal(expected, actual)


def test_a_batch_is_the_sum_of_its_sequences():
    model, keys = model_of("gru", "sum"), jax.random.split(KEY, 2)
    drawn = [cases.instance(model, key) for key in keys]
    inputs, targets = (jnp.stack([one[i] for one in drawn], axis=1) for i in (1, 2))
    batch, each = models.batched(model, 2), of(model, "windowed", True, window=2)
    for name, options in {"windowed": {"window": 2}, "adaptive": {"tolerance": 0.9, "num_lags": 3}}.items():
        _, actual = of(batch, name, True, **options)(drawn[0][0], inputs, targets, None)
        chex.assert_trees_all_equal_shapes_and_dtypes(actual, drawn[0][0])
        if name == "windowed":  # the lag of a batch is chosen by the norms of its sum
            total = jax.tree.map(jnp.add, *(each(drawn[0][0], *one[1:])[1] for one in drawn))
            assert compare(total, actual).relative < 1e-12


def test_kept_and_dropped_terms_are_the_whole():
    model = model_of("custom", "sum")
    data = cases.instance(model, KEY)
    full = jnp.tril(jnp.ones((T, T + 1)), 1)
    _, exact = of(model, "bptt", True, gradients)(*data)
    direct = direct_part(model, data, True)
    kept = [
        of(model, "windowed", True, window=2)(*data)[1],
        of(model, "sliding", True, stride=2, num_lags=3)(*data)[1],
    ]
    dropped = [full - truncation.window_weights(T, 2), full - truncation.sliding_weights(T, 2, 3)]
    for one, other in zip(kept, by_table(model, True, data, dropped)[1], strict=True):
        assert compare(exact, jax.tree.map(lambda a, b, c: a + b - c, one, other, direct)).relative < 1e-12
        assert compare(exact, one).relative > 1e-2


def scalar_problem(reduction, at_end):
    """h_t = w h_{t−1} + x with w = 0.9, x = 1, T = 8: dC/dw of h_T, or of (1/T) Σ h_t."""
    model = models.Model(
        init=lambda key: jnp.ones(()),
        initial_state=lambda w: jnp.zeros(()),
        step=lambda w, h, x: w * h + x,
        readout=lambda w, h: h,
        loss=lambda o, y: o * y,
        reduction=reduction,
    )
    targets = jnp.zeros(8).at[-1].set(1) if at_end else jnp.ones(8)
    return model, jnp.array(0.9), jnp.ones(8), targets


def test_the_strategies_of_the_slide():
    """S3.7 in numbers; the standard deviations of the randomised one over all patterns of cuts."""
    problem = scalar_problem("sum", True)
    last = jax.jit(lambda: [truncation.lag(*problem, num_lags=steps)[1] for steps in (1, 2, 4, 8)])()
    np.testing.assert_allclose(last, [5.217, 9.434, 15.258, 18.690], atol=5e-4)
    patterns = jnp.array(list(itertools.product((False, True), repeat=8)))
    over_patterns = jax.jit(
        jax.vmap(lambda cuts, keep: truncation.randomised(*problem, keep=keep, cuts=cuts)[1], in_axes=(0, None))
    )
    for keep, deviation in ((0.5, 25.3), (0.9, 6.16)):
        grads = over_patterns(patterns, keep)
        chance = np.where(patterns, 1 - keep, keep).prod(1)
        mean = chance @ grads
        np.testing.assert_allclose([mean, np.sqrt(chance @ (grads - mean) ** 2)], [18.690, deviation], rtol=2e-3)
    problem = scalar_problem("mean", False)
    cuts = jnp.zeros(8, bool).at[jnp.array([3, 4])].set(True)
    strategies = lambda: [
        truncation.windowed(*problem, window=8),
        truncation.lag(*problem, num_lags=4),
        truncation.windowed(*problem, window=4),
        truncation.windowed(*problem, window=2),
        truncation.randomised(*problem, keep=1, cuts=cuts),
    ]
    found = [float(g) for _, g in jax.jit(strategies)()]
    np.testing.assert_allclose(found, [7.783, 7.042, 5.759, 4.009, 5.444], atol=5e-4)


def test_float32_and_a_batch():
    model = model_of("elman", "mean")
    data = cases.instance(model, KEY)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), data)

    def run(params, inputs, targets, initial):
        arguments = (model, params, inputs, targets)
        return (
            truncation.windowed(*arguments, initial=initial, window=2),
            truncation.windowed(*arguments, initial=initial, window=2, carry_state=False),
            truncation.sliding(*arguments, initial=initial, stride=2, num_lags=3),
            truncation.randomised(*arguments, initial=initial, cuts=CUTS, keep=KEEP),
            truncation.weighted_gradient(*arguments, truncation.window_weights(T, 2), initial=initial),
            truncation.adaptive(*arguments, initial=initial, tolerance=0.5, num_lags=4),
        )

    expected = jax.jit(run)(*data)
    batch = jax.tree.map(lambda leaf: jnp.stack((leaf, leaf)), single[1:3])
    actual = jax.jit(jax.vmap(run, in_axes=(None, 0, 0, None)))(single[0], *batch, single[3])
    chex.assert_trees_all_equal_structs(expected, actual)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype("float32")}
    for one, other in zip(expected, actual, strict=True):
        wide = jax.tree.map(lambda leaf: leaf[1].astype(jnp.float64), other)
        assert compare(one, wide).relative < 1e-5
    assert truncation.choose_lag(jnp.array([1, 0.5, 0.1], jnp.float32), 0.5).bound.dtype == jnp.float32


def scan_lengths(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["length"]
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                yield from scan_lengths(inner.jaxpr)


@pytest.mark.parametrize(
    ("route", "options", "reverse"),
    [
        ("windowed", {"window": 3}, [3]),
        ("windowed", {"window": 3, "carry_state": False}, [3]),
        ("windowed", {"window": 50}, ["T"]),
        ("sliding", {"stride": 2, "num_lags": 4}, [4]),
        ("randomised", {"keep": 0.5, "key": KEY}, ["T"]),
    ],
)
def test_one_forward_scan_and_one_reverse_scan(route, options, reverse):
    """And a program of one size at any T: nothing is unrolled over time."""
    model, sizes = model_of("elman", "sum"), set()
    for length in (7, 23):
        data = cases.instance(model, KEY, length=length)
        function = functools.partial(getattr(truncation, route), model, **options)
        jaxpr = jax.make_jaxpr(lambda *data, f=function: f(*data[:3], initial=data[3]))(*data).jaxpr
        expected = [length] + [length if steps == "T" else steps for steps in reverse]
        assert [steps for steps in scan_lengths(jaxpr) if steps > 1] == expected
        sizes.add(len(jaxpr.eqns))
    assert len(sizes) == 1


def test_truncated_gradients_can_be_differentiated():
    model, (params, inputs, targets), _ = small()
    table = truncation.sliding_weights(4, 2, 3)

    def slope(route):
        size = lambda x: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(route(model, params, x, targets)[1]))
        return jax.jit(jax.grad(size))(inputs)

    cheap = slope(functools.partial(truncation.sliding, stride=2, num_lags=3))
    slow = slope(lambda *data: truncation.weighted_gradient(*data, table))
    np.testing.assert_allclose(cheap, slow, rtol=1e-11)


MODEL, DATA, _ = small()
ROUTES = {
    "windowed": {"window": 2},
    "sliding": {"stride": 2, "num_lags": 3},
    "lag": {"num_lags": 2},
    "randomised": {"keep": 0.5, "key": KEY},
    "adaptive": {"tolerance": 0.1, "num_lags": 3},
    "lag_profile": {"num_lags": 3},
}


@pytest.mark.parametrize(
    ("route", "options", "error", "message"),
    [
        ("windowed", {"window": 0}, ValueError, "window: got 0, expected at least 1"),
        ("windowed", {"window": 2.0}, TypeError, "window: got float, expected an int"),
        ("windowed", {"carry_state": "no"}, ValueError, "carry_state: got 'no', expected one of True, False"),
        ("sliding", {"stride": 0}, ValueError, "stride: got 0, expected at least 1"),
        ("sliding", {"num_lags": -1}, ValueError, "num_lags: got -1, expected at least 1"),
        ("sliding", {"num_lags": jnp.array(2)}, TypeError, "num_lags: got ArrayImpl, expected an int"),
        ("lag", {"num_lags": 0}, ValueError, "num_lags: got 0"),
        ("randomised", {"keep": 0}, ValueError, r"keep: got 0, expected a number in \(0, 1\]"),
        ("randomised", {"keep": 1.5}, ValueError, r"keep: got 1.5, expected a number in \(0, 1\]"),
        ("randomised", {"keep": float("nan")}, ValueError, "keep: got nan"),
        ("randomised", {"keep": np.array([1, 1, 0.5, 0])}, ValueError, r"keep: got .*expected numbers in \(0, 1\]"),
        ("randomised", {"keep": jnp.ones(3)}, ValueError, r"keep: got shape \[3\], expected a scalar or \[4\]"),
        ("randomised", {"keep": "half"}, TypeError, "keep: got str, expected a number"),
        ("randomised", {"key": None}, TypeError, "key, cuts: got neither, expected exactly one"),
        ("randomised", {"cuts": PATTERNS[0]}, TypeError, "key, cuts: got both, expected exactly one"),
        ("randomised", {"key": None, "cuts": PATTERNS[0, 1:]}, ValueError, r"cuts: got shape \[3\], expected \[4\]"),
        ("randomised", {"key": None, "cuts": jnp.ones(4)}, TypeError, "cuts: got float64, expected bool"),
        ("randomised", {"key": 3}, TypeError, "key: got int, expected a typed key"),
        ("adaptive", {"tolerance": 0}, ValueError, r"tolerance: got 0, expected a number in \(0, 1\]"),
        ("adaptive", {"num_lags": 1}, ValueError, "num_lags: got 1, expected at least 2"),
        ("adaptive", {"num_lags": 5}, ValueError, "num_lags: got 5, expected at most 4"),
        ("lag_profile", {"num_lags": 0}, ValueError, "num_lags: got 0, expected at least 1"),
    ],
)
def test_bad_options_get_one_line(route, options, error, message):
    with pytest.raises(error, match=message) as caught:
        getattr(truncation, route)(MODEL, *DATA, **{**ROUTES[route], **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (DATA[1], DATA[2][:-1], "inputs: got 4 steps, expected 3|targets: got 3 steps, expected 4"),
        (DATA[1].at[2].set(jnp.nan), DATA[2], "inputs: got NaN or inf.*t = 3"),
        (DATA[1][:0], DATA[2][:0], "got T = 0"),
    ],
)
def test_bad_sequences_get_one_line(route, inputs, targets, message):
    with pytest.raises(ValueError, match=message) as caught:
        getattr(truncation, route)(MODEL, DATA[0], inputs, targets, **ROUTES[route])
    assert "\n" not in str(caught.value)
