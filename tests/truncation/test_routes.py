import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, gradients, models, terms, truncation
from jaxbptt.comparison import compare
from jaxbptt.trajectories import unroll
from jaxbptt.truncation import lags, replay, routes, weights
from tests import cases
from tests.mutation import mutate

KEY = jax.random.key(11)
T = cases.T
CUTS, KEEP = jnp.array([False, True, False, False, False]), jnp.array([0.9, 0.5, 0.8, 1.0, 0.7])
WINDOWS, SLIDING = (1, 2, T, T + 3), ((1, 1), (1, 3), (2, 3), (3, 2), (2, T + 3))


@functools.cache
def model_of(name, reduction):
    return models.sequence_model(cases.CELLS[name], cases.O, reduction=reduction)


def given(function, own_initial=False, **options):
    """One jitted call (params, inputs, targets, h_0); own_initial: h_0 is the model's own."""
    return jax.jit(lambda *data: function(*data[:3], initial=None if own_initial else data[3], **options))


def of(model, name, own_initial=False, module=truncation, **options):
    return given(functools.partial(getattr(module, name), model), own_initial, **options)


def by_table(model, own_initial, data, tables):
    """Gradients of many [T, T + 1] tables, leading axis of the tables, and C."""
    run = lambda *data, initial: jax.vmap(  # noqa: E731
        lambda table: truncation.weighted_gradient(model, *data, table, initial=initial)
    )(jnp.stack(tables))
    loss, grads = given(run, own_initial)(*data)
    return loss, [jax.tree.map(lambda leaf, i=i: leaf[i], grads) for i in range(len(tables))]


def direct_part(model, data, own_initial=False):
    return gradients.run_forward(model, *data[:3], None if own_initial else data[3])[3]


def combine(f, *trees):
    return jax.tree.map(f, *trees)


def test_a_batch_is_the_sum_of_its_sequences():
    model, keys = model_of("gru", "sum"), jax.random.split(KEY, 2)
    drawn = [cases.instance(model, key) for key in keys]
    inputs, targets = (jnp.stack([one[i] for one in drawn], axis=1) for i in (1, 2))
    options = {"windowed": {"length": 2}, "adaptive": {"tolerance": 0.9, "lags": 3}}
    for name, option in options.items():
        _, actual = of(models.batched(model, 2), name, True, **option)(drawn[0][0], inputs, targets, None)
        if name == "windowed":  # the lag of a batch is chosen by the norms of its sum
            each = [of(model, name, True, **option)(drawn[0][0], *one[1:])[1] for one in drawn]
            assert compare(combine(jnp.add, *each), actual).relative < 1e-12


# The table and the cheap ways


INSTANCES = [
    *itertools.product(cases.CELLS, ("sum", "mean"), (False,)),
    ("custom", "sum", True),
    ("custom", "mean", True),
]


@pytest.mark.parametrize(("name", "reduction", "own_initial"), INSTANCES)
def test_every_route_is_its_table(name, reduction, own_initial):
    model = model_of(name, reduction)
    data = cases.instance(model, KEY, gain=1.5)
    # Every cell sees sizes that do not divide T; one of them sees all sizes.
    windows, sliding = (WINDOWS, SLIDING) if own_initial and reduction == "mean" else (WINDOWS[1:2], SLIDING[2:3])
    tried = [("windowed", {"length": K}, truncation.window_weights(T, K)) for K in windows]
    tried += [("sliding", {"losses": k1, "steps": k2}, truncation.sliding_weights(T, k1, k2)) for k1, k2 in sliding]
    tried += [("randomised", {"keep": KEEP, "cuts": CUTS}, truncation.random_weights(CUTS, KEEP))]
    full = jnp.tril(jnp.ones((T, T + 1)), 1)
    losses, expected = by_table(model, own_initial, data, [table for _, _, table in tried] + [full])
    exact_loss, exact = of(model, "autodiff", own_initial, gradients)(*data)
    np.testing.assert_allclose(losses, exact_loss, rtol=1e-13)
    assert compare(exact, expected[-1]).relative < 1e-12
    for (route, options, table), grads in zip(tried, expected, strict=False):
        loss, actual = of(model, route, own_initial, **options)(*data)
        np.testing.assert_allclose(loss, exact_loss, rtol=1e-13)
        assert compare(grads, actual).relative < 1e-12, (route, options)
        assert np.array_equal(table, full) == (compare(exact, actual).relative < 1e-3), (route, options)


def test_lag_is_sliding_by_one_loss_and_a_table_of_lags():
    model = model_of("elman", "sum")
    data = cases.instance(model, KEY)
    _, expected = of(model, "sliding", losses=1, steps=2)(*data)
    _, actual = of(model, "lag", steps=2)(*data)
    assert compare(expected, actual).relative == 0
    t, k = np.arange(1, T + 1)[:, None], np.arange(T + 1)[None, :]
    age = t - np.maximum(k, 1)
    np.testing.assert_array_equal(truncation.sliding_weights(T, 1, 2), (k <= t) & (age < 2))


def test_tables_by_hand():
    np.testing.assert_array_equal(
        truncation.window_weights(5, 2),
        [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]],
    )
    np.testing.assert_array_equal(
        truncation.sliding_weights(5, 2, 3),
        [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]],
    )
    cuts = jnp.array([False, True, False])
    np.testing.assert_array_equal(
        truncation.random_weights(cuts, jnp.array([0.5, 0.9, 0.25])), [[2, 1, 0, 0], [0, 0, 1, 0], [0, 0, 4, 1]]
    )
    np.testing.assert_array_equal(truncation.one_link_weights(cuts, 0.5), [[2, 1, 0, 0], [0, 0, 1, 0], [2, 2, 2, 1]])
    for length, window in ((4, 2), (4, 4), (4, 9), (1, 1)):  # an empty tail, one window, K > T, T = 1
        table = truncation.window_weights(length, window)
        np.testing.assert_array_equal(table[:, 1:].sum(1), np.arange(length) % window + 1)


# Sums


def window_sum(model, params, inputs, targets, length, initial):
    """(loss, gradient) of every window on its own by autodiff, from its own h_0, added up; 1/T for the mean."""
    own = model._replace(reduction="sum")
    windows = [slice(start, start + length) for start in range(0, T, length)]
    parts = [
        gradients.autodiff(own, params, inputs[window], targets[window], initial=start)
        for window, start in zip(windows, initial, strict=True)
    ]
    return combine(lambda *leaves: sum(leaves[1:], leaves[0]) / T, *parts)


def test_windows_add_up():
    """Each window's own exact gradient, the state it was handed a constant, adds up to the windowed one."""
    model = model_of("custom", "mean")
    data = params, inputs, targets, _ = cases.instance(model, KEY)
    states = unroll(model, params, inputs).previous
    handed = [None] + [jax.tree.map(lambda leaf, s=s: leaf[s], states) for s in (2, 4)]
    total = jax.jit(lambda: window_sum(model, params, inputs, targets, 2, handed)[1])()
    _, actual = of(model, "windowed", own_initial=True, length=2)(*data)
    assert compare(total, actual).relative < 1e-12


def test_kept_and_dropped_terms_are_the_whole():
    model = model_of("custom", "sum")
    data = cases.instance(model, KEY)
    full = jnp.tril(jnp.ones((T, T + 1)), 1)
    _, exact = of(model, "bptt", True, gradients)(*data)
    direct = direct_part(model, data, True)
    kept = [
        of(model, "windowed", True, length=2)(*data)[1],
        of(model, "sliding", True, losses=2, steps=3)(*data)[1],
    ]
    dropped = [full - truncation.window_weights(T, 2), full - truncation.sliding_weights(T, 2, 3)]
    for one, other in zip(kept, by_table(model, True, data, dropped)[1], strict=True):
        assert compare(exact, combine(lambda a, b, c: a + b - c, one, other, direct)).relative < 1e-12
        assert compare(exact, one).relative > 1e-2


@pytest.mark.parametrize(
    ("name", "own_initial", "length"),
    [("custom", True, 2), ("custom", True, T + 1), ("custom", False, 2), ("lstm", False, 2)],
)
def test_zero_state_windows_are_sequences_of_their_own(name, own_initial, length):
    model = model_of(name, "mean")
    data = params, inputs, targets, initial = cases.instance(model, KEY, gain=1.5)
    initial = None if own_initial else initial
    starts = [initial] * -(-T // length)
    loss, expected = jax.jit(lambda: window_sum(model, params, inputs, targets, length, starts))()
    actual_loss, actual = of(model, "windowed", own_initial, length=length, carry_state=False)(*data)
    np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-12
    carried_loss, carried = of(model, "windowed", own_initial, length=length)(*data)
    assert (compare(carried, actual).relative < 1e-12) == (length > T)
    assert np.isclose(carried_loss, loss, rtol=1e-12) == (length > T)


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
    last = [float(truncation.lag(*problem, steps=steps)[1]) for steps in (1, 2, 4, 8)]
    np.testing.assert_allclose(last, [5.217, 9.434, 15.258, 18.690], atol=5e-4)
    patterns = jnp.array(list(itertools.product((False, True), repeat=8)))
    for keep, deviation in ((0.5, 25.3), (0.9, 6.16)):
        grads = jax.vmap(lambda cuts, keep=keep: truncation.randomised(*problem, keep=keep, cuts=cuts)[1])(patterns)
        chance = np.where(patterns, 1 - keep, keep).prod(1)
        mean = chance @ grads
        np.testing.assert_allclose([mean, np.sqrt(chance @ (grads - mean) ** 2)], [18.690, deviation], rtol=2e-3)
    problem = scalar_problem("mean", False)
    cuts = jnp.zeros(8, bool).at[jnp.array([3, 4])].set(True)
    gradients_ = [
        truncation.windowed(*problem, length=8),
        truncation.lag(*problem, steps=4),
        truncation.windowed(*problem, length=4),
        truncation.windowed(*problem, length=2),
        truncation.randomised(*problem, keep=1, cuts=cuts),
    ]
    np.testing.assert_allclose([float(g) for _, g in gradients_], [7.783, 7.042, 5.759, 4.009, 5.444], atol=5e-4)


# Unbiasedness


PATTERNS = jnp.array(list(itertools.product((False, True), repeat=4)))


@functools.cache
def small():
    """N = 2, T = 4, h_0 a function of θ."""
    cell = cells.elman(1, 2)
    cell = cell._replace(initial_state=lambda params: jnp.sin(params.b_h + 1))
    model = models.sequence_model(cell, 1, reduction="mean")
    data = cases.instance(model, KEY, length=4, gain=1.5, num_outputs=1)[:3]
    return model, data, gradients.autodiff(model, *data)[1]


def chances(kind):
    """(probability of every pattern, π [2^T, T])."""
    if kind == "same":
        keep = jnp.full((16, 4), 0.6)
    elif kind == "schedule":
        keep = jnp.tile(jnp.array([0.5, 0.9, 0.3, 1.0]), (16, 1))
    else:
        keep = jax.vmap(lambda cuts: truncation.renewal_keep(cuts, mean_length=2.5, exponent=4.0))(PATTERNS)
    return np.where(PATTERNS, 1 - keep, keep).prod(1), keep


def expectation(estimate, kind):
    chance, keep = chances(kind)
    np.testing.assert_allclose(chance.sum(), 1, rtol=1e-14)
    grads = jax.jit(jax.vmap(estimate))(PATTERNS, keep)
    return jax.tree.map(lambda leaf: jnp.tensordot(jnp.asarray(chance), leaf, 1), grads)


def by_weights(maker, module=weights):
    model, data, _ = small()
    return lambda cuts, keep: truncation.weighted_gradient(model, *data, getattr(module, maker)(cuts, keep))[1]


def by_scan(module=routes):
    model, data, _ = small()
    return lambda cuts, keep: module.randomised(model, *data, cuts=cuts, keep=keep)[1]


@pytest.mark.parametrize("kind", ["same", "schedule", "renewal"])
@pytest.mark.parametrize("how", ["scan", "random_weights", "one_link_weights"])
def test_all_patterns_of_cuts_average_to_the_gradient(kind, how):
    estimate = by_scan() if how == "scan" else by_weights(how)
    assert compare(small()[2], expectation(estimate, kind)).relative < 1e-12


SLIPS = [
    ("routes", "jnp.add, local, from_later", "lambda a, b: a + 0.95 * b, local, from_later"),
    ("routes", "scale.astype(leaf.dtype) * leaf", "jnp.where(scale > 0, 1, 0).astype(leaf.dtype) * leaf"),
    ("routes", "if initial is None else None\n    result", "if initial else None\n    result"),
    ("weights", "(~cuts).astype(keep.dtype) / keep", "1.05 * (~cuts).astype(keep.dtype) / keep"),
    ("weights", "jnp.where(columns < t, factor * row, 0)", "jnp.where(columns < t, 0.95 * factor * row, 0)"),
    ("weights", "jnp.where(columns < t, factor * row, 0)", "jnp.where(columns < t - 1, factor * row, 0)"),
]


@pytest.mark.parametrize(("where", "old", "new"), SLIPS)
def test_a_slip_of_five_per_cent_breaks_it(where, old, new):
    if where == "routes":
        estimate = by_scan(mutate(routes, old, new))
    else:
        estimate = by_weights("random_weights", mutate(weights, old, new))
    assert compare(small()[2], expectation(estimate, "same")).relative > 5e-3


def z_scores(module):
    """z of the mean of ⟨ĝ, g⟩/‖g‖² − 1 per leaf over 10,000 keys; no z where nothing is random."""
    model, data, exact = small()
    keys = jax.random.split(jax.random.key(3), 10_000)
    grads = jax.jit(jax.vmap(lambda key: module.randomised(model, *data, keep=0.7, key=key)[1]))(keys)
    for leaf, g in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        along = np.tensordot(leaf, g, g.ndim) / np.sum(g * g)
        if np.ptp(along) < 1e-12:
            np.testing.assert_allclose(along[0], 1, rtol=1e-12)
        else:
            yield (along.mean() - 1) / (along.std() / np.sqrt(len(along)))


def test_keys_average_to_the_gradient():
    z = list(z_scores(routes))
    assert len(z) == 3
    assert max(map(abs, z)) < 4
    slip = mutate(routes, "jnp.add, local, from_later", "lambda a, b: a + 0.95 * b, local, from_later")
    assert max(map(abs, z_scores(slip))) > 6


def test_renewal_cuts_have_their_mean_and_tell_their_probabilities():
    options = {"mean_length": 6.0, "exponent": 4.0}
    cuts, keep = jax.jit(lambda key: truncation.renewal_cuts(key, 5000, **options))(KEY)
    np.testing.assert_allclose(truncation.renewal_keep(cuts, **options), keep, rtol=1e-14)
    ages = np.arange(1, 200_000)
    survival = np.cumprod(1 - 3 / (2 * 6.0 + ages))
    np.testing.assert_allclose(1 + survival.sum(), 6, rtol=1e-6)  # exactly ℓ_0
    np.testing.assert_allclose(5000 / np.sum(cuts), 6, rtol=0.1)
    windows = np.diff(np.flatnonzero(cuts))
    np.testing.assert_allclose(np.mean(windows > 3), survival[2], atol=0.05)
    np.testing.assert_allclose(keep[0], 1 - 3 / (2 * 6.0 + 1), rtol=1e-14)


def test_draws_follow_keep():
    assert not truncation.draw_cuts(KEY, 50, 1).any()
    cuts = truncation.draw_cuts(KEY, 4000, jnp.tile(jnp.array([0.9, 0.2]), 2000))
    np.testing.assert_allclose([cuts[::2].mean(), cuts[1::2].mean()], [0.1, 0.8], atol=0.03)
    model, data, _ = small()
    _, drawn = truncation.randomised(model, *data, keep=0.5, key=KEY)
    _, same = truncation.randomised(model, *data, keep=0.5, cuts=truncation.draw_cuts(KEY, 4, 0.5))
    assert compare(same, drawn).relative == 0


# The chosen lag


@pytest.mark.parametrize(("name", "own_initial"), [("lstm", False), ("custom", False), ("custom", True)])
def test_lag_profile_is_the_table_by_lag(name, own_initial):
    model = model_of(name, "mean")
    data = cases.instance(model, KEY, gain=1.5)
    profile = of(model, "lag_profile", own_initial, lags=4)(*data)
    table = of(model, "gradient_terms", own_initial, terms)(*data).profile()[:4]
    if own_initial:
        assert np.all(profile.norms > table)  # with the terms of h_0
    else:
        np.testing.assert_allclose(profile.norms, table, rtol=1e-12)
    direct = direct_part(model, data, own_initial)
    tables = [truncation.sliding_weights(T, 1, steps) for steps in (1, 2, 3, 4)]
    for kept, grads in zip(profile.kept, by_table(model, own_initial, data, tables)[1], strict=True):
        recurrent = ravel_pytree(combine(jnp.subtract, grads, direct))[0]
        np.testing.assert_allclose(kept, jnp.linalg.norm(recurrent), rtol=1e-12)


@pytest.mark.parametrize("moving_start", [False, True])
def test_the_bound_holds_and_adaptive_keeps_to_it(moving_start):
    model = model_of("elman", "sum")
    if moving_start:
        model = model._replace(initial_state=lambda params: jnp.sin(params.cell.b_h + 1))
    params, *rest = cases.instance(model, KEY, length=24)
    data = combine(lambda leaf: 0.5 * leaf, params), *rest
    exact = combine(
        jnp.subtract, of(model, "autodiff", True, gradients)(*data)[1], direct := direct_part(model, data, True)
    )
    profile = of(model, "lag_profile", True, lags=12)(*data)
    chosen = truncation.choose_lag(profile.norms, 0.05, kept=profile.kept)
    assert 1 < chosen.lag < 12
    assert chosen.bound[chosen.lag - 1] <= 0.05 < chosen.bound[chosen.lag - 2]
    tables = [truncation.sliding_weights(24, 1, steps) for steps in range(1, 13)]
    size = jnp.linalg.norm(ravel_pytree(exact)[0])
    kept = by_table(model, True, data, tables)[1]
    for bound, grads in zip(chosen.bound, kept, strict=True):
        bias = ravel_pytree(combine(lambda a, b, c: a - b - c, grads, direct, exact))[0]
        assert jnp.linalg.norm(bias) <= bound * size
    _, actual = of(model, "adaptive", True, tolerance=0.05, lags=12)(*data)  # L traced
    assert compare(kept[int(chosen.lag) - 1], actual).relative < 1e-12
    assert compare(kept[int(chosen.lag)], actual).relative > 1e-8


def test_choose_lag_on_a_geometric_profile():
    """φ_ℓ = β^ℓ: the bound is β^L / (1 − 2 β^R) exactly."""
    norms = 0.5 ** jnp.arange(10.0)
    chosen = truncation.choose_lag(norms, 0.01)
    np.testing.assert_allclose(chosen.decay, 0.5, rtol=1e-13)
    np.testing.assert_allclose(chosen.bound, 0.5 ** np.arange(1, 11) / (1 - 2 * 0.5**10), rtol=1e-12)
    assert int(chosen.lag) == 7
    assert int(truncation.choose_lag(3 * norms, 0.3).lag) == 2
    # An envelope, not the fit alone: later norms above the line lift the whole tail.
    lifted = truncation.choose_lag(norms.at[7].mul(2), 0.01)
    slope = np.polyfit(np.arange(4, 10), np.log(norms.at[7].mul(2)[4:]), 1)[0]
    np.testing.assert_allclose(lifted.decay, np.exp(slope), rtol=1e-12)
    tail = norms[7] * 2 * lifted.decay**3 / (1 - lifted.decay)
    error = np.append(np.cumsum(norms.at[7].mul(2)[::-1])[::-1][1:], 0) + tail
    np.testing.assert_allclose(lifted.bound[4] / lifted.bound[8], error[4] / error[8], rtol=1e-12)


CHOICE_SLIPS = [
    ("[1:], 0) + tail", "[1:], 0)"),
    ("[1:], 0) + tail", "[:-1], 0) + tail"),
    ("size * jnp.log(decay)", "(size - 1) * jnp.log(decay)"),
    ("jnp.max(kept - error)", "jnp.max(kept)"),
    ("jnp.log1p(-jnp.minimum(decay, 1))", "jnp.zeros(())"),
]


@pytest.mark.parametrize(("old", "new"), CHOICE_SLIPS)
def test_a_broken_choice_is_seen(old, new):
    bound = mutate(lags, old, new).choose_lag(0.5 ** jnp.arange(10.0), 0.01).bound
    assert not np.allclose(bound, 0.5 ** np.arange(1, 11) / (1 - 2 * 0.5**10), rtol=1e-6, atol=0)


PROFILE_SLIPS = [
    ("leaf.at[offset].set(0), cotangents", "leaf, cotangents"),
    ("jnp.maximum(steps - offset, 0)", "steps"),
    ("norm = norm + _norm(from_initial)", "norm = norm"),
    ("(norm, _norm(gradient))", "(norm, norm)"),
]


@pytest.mark.parametrize(("old", "new"), PROFILE_SLIPS)
def test_a_broken_profile_is_seen(old, new):
    model, data, _ = small()
    right = truncation.lag_profile(model, *data, lags=4)
    wrong = mutate(lags, old, new).lag_profile(model, *data, lags=4)
    assert max(np.abs(a / b - 1).max() for a, b in zip(wrong, right, strict=True)) > 1e-3


def test_choose_lag_where_nothing_is_known():
    growing = truncation.choose_lag(2.0 ** jnp.arange(6.0), 0.5)
    assert int(growing.lag) == 6
    assert growing.decay > 1
    assert np.all(np.isinf(growing.bound))
    finished = truncation.choose_lag(jnp.array([1.0, 0.5, 0, 0, 0, 0]), 0.1)
    assert int(finished.lag) == 2
    np.testing.assert_array_equal(finished.bound[1:], 0)
    assert int(truncation.choose_lag(jnp.zeros(3), 0.1).lag) == 1
    cancelled = truncation.choose_lag(jnp.array([1.0, 0.5, 0.1]), 0.1, kept=jnp.zeros(3))
    assert np.all(np.isinf(cancelled.bound))
    bad = jax.jit(lambda norms: truncation.choose_lag(norms, 0.5))(jnp.array([1.0, jnp.nan, 0.1]))
    assert np.all(np.isnan(bad.bound))
    assert np.isnan(bad.decay)


# Mutants, dtypes, the door


SMALL = ((2, 3), (3, 2))


@functools.cache
def small_tables():
    model, data, _ = small()
    tables = [truncation.sliding_weights(4, k1, k2) for k1, k2 in SMALL]
    return jax.jit(lambda: [truncation.weighted_gradient(model, *data, table)[1] for table in tables])()


MUTANTS = [
    ("index >= first, leaf[at], 0", "index >= starts, leaf[at], 0"),
    ("_select(inside, own + later, 0)", "own + later"),
    ("_select(inside, new, old), pulled, carried", "_select(inside, 0.95 * new, old), pulled, carried"),
    ("_select(inside, new, old), pulled, carried", "new, pulled, carried"),
    ("total.at[at].add(adjoint)", "total.at[at].set(adjoint)"),
    ("jax.tree.map(jnp.add, direct,", "jax.tree.map(lambda _, new: new, direct,"),
    ("jnp.sum(_select(reach, leaf, 0), axis=0)", "jnp.sum(leaf, axis=0)"),
    ("ends - steps, 0)", "ends - steps - 1, 0)"),
    ("ends = np.minimum(first + losses, num_steps)", "ends = first + losses"),
]


@pytest.mark.parametrize(("old", "new"), MUTANTS)
def test_a_broken_replay_is_seen(old, new, monkeypatch):
    model, data, _ = small()
    mutant = mutate(replay, old, new)
    for name in ("replayed_gradient", "sliding_blocks"):
        monkeypatch.setattr(routes, name, getattr(mutant, name))
    actual = jax.jit(lambda: [routes.sliding(model, *data, losses=k1, steps=k2)[1] for k1, k2 in SMALL])()
    assert max(compare(a, b).relative for a, b in zip(small_tables(), actual, strict=True)) > 1e-3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("previous = jax.vmap(lambda first, state: reset(first, begin(params), state))(first, trajectory.previous)",
         "previous = trajectory.previous"),
        ("jnp.sum(leaf, axis=0), carried", "leaf[0], carried"),
        ("% window == 0", "% window == 1"),
    ],
)  # fmt: skip
def test_a_broken_zero_state_is_seen(old, new):
    model, data, _ = small()
    expected = truncation.windowed(model, *data, length=2, carry_state=False)
    actual = mutate(routes, old, new).windowed(model, *data, length=2, carry_state=False)
    assert compare(expected, actual).relative > 1e-3


def test_float32_and_a_batch():
    model = model_of("gru", "mean")
    data = cases.instance(model, KEY)
    single = combine(lambda leaf: leaf.astype(jnp.float32), data)

    def run(params, inputs, targets, initial):
        arguments = (model, params, inputs, targets)
        return (
            truncation.windowed(*arguments, initial=initial, length=2),
            truncation.windowed(*arguments, initial=initial, length=2, carry_state=False),
            truncation.sliding(*arguments, initial=initial, losses=2, steps=3),
            truncation.randomised(*arguments, initial=initial, cuts=CUTS, keep=KEEP),
            truncation.weighted_gradient(*arguments, truncation.window_weights(T, 2), initial=initial),
            truncation.adaptive(*arguments, initial=initial, tolerance=0.5, lags=4),
        )

    expected = jax.jit(run)(*data)
    batch = combine(lambda leaf: jnp.stack((leaf, leaf)), single[1:3])
    actual = jax.jit(jax.vmap(run, in_axes=(None, 0, 0, None)))(single[0], *batch, single[3])
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype("float32")}
    for one, other in zip(expected, actual, strict=True):
        wide = combine(lambda leaf: leaf[1].astype(jnp.float64), other)
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
        ("windowed", {"length": 3}, [3]),
        ("windowed", {"length": 3, "carry_state": False}, [3]),
        ("windowed", {"length": 50}, ["T"]),
        ("sliding", {"losses": 2, "steps": 4}, [4]),
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
    size = lambda grads: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads))  # noqa: E731
    table = truncation.sliding_weights(4, 2, 3)
    cheap = jax.jit(jax.grad(lambda x: size(truncation.sliding(model, params, x, targets, losses=2, steps=3)[1])))(
        inputs
    )
    slow = jax.jit(jax.grad(lambda x: size(truncation.weighted_gradient(model, params, x, targets, table)[1])))(inputs)
    np.testing.assert_allclose(cheap, slow, rtol=1e-11)


def test_bad_keep_under_jit_is_nan_throughout():
    model, data, _ = small()
    run = jax.jit(lambda keep: truncation.randomised(model, *data, cuts=PATTERNS[3], keep=keep))
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(run(0.0)))
    assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(run(0.5)))


MODEL, DATA, _ = small()
ROUTES = {
    "windowed": {"length": 2},
    "sliding": {"losses": 2, "steps": 3},
    "lag": {"steps": 2},
    "randomised": {"keep": 0.5, "key": KEY},
    "adaptive": {"tolerance": 0.1, "lags": 3},
    "lag_profile": {"lags": 3},
}


@pytest.mark.parametrize(
    ("route", "options", "error", "message"),
    [
        ("windowed", {"length": 0}, ValueError, "length: got 0, expected at least 1"),
        ("windowed", {"length": 2.0}, TypeError, "length: got float, expected an int"),
        ("windowed", {"carry_state": "no"}, ValueError, "carry_state: got 'no', expected one of True, False"),
        ("sliding", {"losses": 0}, ValueError, "losses: got 0, expected at least 1"),
        ("sliding", {"steps": -1}, ValueError, "steps: got -1, expected at least 1"),
        ("sliding", {"steps": jnp.array(2)}, TypeError, "steps: got ArrayImpl, expected an int"),
        ("lag", {"steps": 0}, ValueError, "steps: got 0"),
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
        ("adaptive", {"lags": 1}, ValueError, "lags: got 1, expected at least 2"),
        ("adaptive", {"lags": 5}, ValueError, "lags: got 5, expected at most 4"),
        ("lag_profile", {"lags": 0}, ValueError, "lags: got 0, expected at least 1"),
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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: truncation.window_weights(4, 0), ValueError, "length: got 0"),
        (lambda: truncation.window_weights(0, 2), ValueError, "num_steps: got 0"),
        (lambda: truncation.sliding_weights(4, 0, 2), ValueError, "losses: got 0"),
        (lambda: truncation.sliding_weights(4, 1, 0), ValueError, "steps: got 0"),
        (lambda: truncation.random_weights(PATTERNS[0], 0.0), ValueError, "keep: got 0.0"),
        (lambda: truncation.draw_cuts(KEY, 0, 0.5), ValueError, "num_steps: got 0"),
        (lambda: truncation.renewal_cuts(KEY, 4, mean_length=1, exponent=4), ValueError, "mean_length: .* above 1"),
        (lambda: truncation.renewal_cuts(KEY, 4, mean_length=3, exponent=2.0), ValueError, "exponent: .* above 2"),
        (lambda: truncation.renewal_keep(PATTERNS[0], mean_length="3", exponent=4), TypeError, "mean_length: got str"),
        (lambda: truncation.weighted_gradient(MODEL, *DATA, jnp.ones((4, 4))), ValueError, r"weights: got shape"),
        (lambda: truncation.weighted_gradient(MODEL, *DATA, jnp.ones((4, 5))), ValueError, "weights: .* k > t"),
        (lambda: truncation.weighted_gradient(MODEL, *DATA, jnp.zeros((4, 5), int)), TypeError, "weights: got int64"),
        (lambda: truncation.weighted_gradient(MODEL, *DATA, jnp.full((4, 5), jnp.inf)), ValueError, "weights: got NaN"),
        (lambda: truncation.choose_lag(jnp.ones(1), 0.5), ValueError, "R, the size of norms: got 1"),
        (lambda: truncation.choose_lag(-jnp.ones(3), 0.5), ValueError, "norms: got a negative"),
        (lambda: truncation.choose_lag(jnp.ones(3), 1.1), ValueError, "tolerance: got 1.1"),
        (lambda: truncation.choose_lag(jnp.ones(3), 0.5, kept=jnp.ones(2)), ValueError, r"kept: got shape \[2\]"),
        (lambda: jax.jit(lambda t: truncation.choose_lag(jnp.ones(3), t))(0.5), TypeError, "tolerance: got a traced"),
    ],
)  # fmt: skip
def test_bad_tables_and_draws_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
