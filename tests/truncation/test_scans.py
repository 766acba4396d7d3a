"""Loops of anybody's, cut every K steps: `truncation.windowed` of the same recurrence, and what each border lost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import models, truncation
from jaxbptt.comparison import compare
from tests import cases
from tests.mutation import mutate_package
from tests.truncation.problems import KEY

LENGTH = 7
MODEL = models.sequence_model(cases.CELLS["custom"], cases.O, reduction="sum")  # a nested state, h_0 a function of θ
DATA = cases.instance(MODEL, KEY, length=LENGTH, gain=1.5)[:3]


def body_of(params, module=None):
    def body(carry, step):
        state, count, key = carry
        x, target = step
        state = MODEL.step(params, state, x)
        return (state, count + 1, jax.random.fold_in(key, count)), MODEL.loss(MODEL.readout(params, state), target)

    return body


def loss_of(scan, params, inputs, targets, remat=False):
    """C by a plain scan whose carry holds a counter and a key as well."""
    body = body_of(params)
    carry = MODEL.initial_state(params), jnp.asarray(0), jax.random.key(0)
    (_, count, _), losses = scan(jax.checkpoint(body) if remat else body, carry, (inputs, targets))
    return jnp.sum(losses) + 0.0 * count


def chained_losses(window, cut_at, params, inputs, targets):
    """Σ of a Python loop, μ handed in at each border: the gradient by the cut states gives what was lost."""
    state, total = MODEL.initial_state(params), 0.0
    for t in range(LENGTH):
        if t and t % window == 0:
            state = jax.tree.map(jnp.add, jax.lax.stop_gradient(state), cut_at[t // window - 1])
        state = MODEL.step(params, state, inputs[t])
        total = total + MODEL.loss(MODEL.readout(params, state), targets[t])
    return total


def zeros_at_borders(window):
    state = MODEL.initial_state(DATA[0])
    return [jax.tree.map(jnp.zeros_like, state)] * (-(-LENGTH // window) - 1)


@pytest.mark.sweep
@pytest.mark.parametrize("window", [1, 3, 6])
def test_windows_of_a_scan_are_those_of_the_model(window):
    expected = jax.jit(lambda *data: truncation.windowed(MODEL, *data, window=window))(*DATA)
    run = truncation.value_and_windowed_grad(lambda loops, *data: loss_of(loops.scan, *data), window=window)
    value, grads, (lost,) = jax.jit(run)(*DATA)
    np.testing.assert_allclose(value, expected[0], rtol=1e-14)
    assert compare(expected[1], grads).relative < 1e-12
    by_hand = jax.jit(jax.grad(lambda at: chained_losses(window, at, *DATA)))(zeros_at_borders(window))
    norms = [np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(each))) for each in by_hand]
    np.testing.assert_allclose(lost, norms, rtol=1e-12)
    assert np.all(lost > 0)


@pytest.mark.parametrize("window", [LENGTH, LENGTH + 1])
def test_one_window_is_the_gradient_bit_for_bit(window):
    whole = jax.jit(jax.value_and_grad(functools.partial(loss_of, jax.lax.scan)))(*DATA)
    run = truncation.value_and_windowed_grad(lambda loops, *data: loss_of(loops.scan, *data), window=window)
    value, grads, (lost,) = jax.jit(run)(*DATA)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, (value, grads)))
    assert lost.shape == (0,)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jnp.arange(count) < borders", "jnp.arange(count) < borders - 1"),
        ("jnp.where(primals[0], tangents[2], tangents[1])", "tangents[1]"),
        ("jnp.where(primals[0], tangents[2], tangents[1])", "jnp.where(primals[0], -tangents[2], tangents[1])"),
        ("return cut(carry, is_border, probe=probe), ys", "return cut(carry, ~is_border, probe=probe), ys"),
    ],
)
def test_a_broken_border_is_seen(old, new):
    """What a loop gives: its gradient, and the cotangents that were cut."""

    def run(module):
        def loss(params, probe):
            scan = functools.partial(module.windowed_scan, window=3, probe=probe)
            return loss_of(scan, params, *DATA[1:])

        carry = MODEL.initial_state(DATA[0]), jnp.asarray(0), jax.random.key(0)
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(DATA[0], module.make_probe(carry, LENGTH, 3))

    right = run(truncation)
    assert compare(right, run(mutate_package(truncation, old, new))).relative > 1e-3


def test_inside_a_batch_and_with_rematerialised_steps():
    run = truncation.value_and_windowed_grad(lambda loops, *data: loss_of(loops.scan, *data, remat=True), window=3)
    batch = jax.tree.map(lambda leaf: jnp.stack((leaf, 0.5 * leaf)), DATA[1:])
    values, grads, (lost,) = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))(DATA[0], *batch)
    assert lost.shape == (2, 2)
    for k in range(2):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], batch)
        expected = jax.jit(lambda *data: truncation.windowed(MODEL, *data, window=3))(DATA[0], *one)
        np.testing.assert_allclose(values[k], expected[0], rtol=1e-14)
        assert compare(expected[1], jax.tree.map(lambda leaf, k=k: leaf[k], grads)).relative < 1e-12


@pytest.mark.parametrize(("reverse", "inputs"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize("num_steps", [6, 7])
def test_values_are_those_of_the_scan(num_steps, reverse, inputs):
    """Bit for bit, in either direction, without inputs, with what has no derivative; a weak scalar as the carry."""
    xs = jax.random.normal(KEY, (num_steps,)) if inputs else None

    def body(carry, x):
        h, count = carry
        return (jnp.sin(h + (count if x is None else x)), count + 1), (h, count)

    options = {"reverse": reverse, "length": num_steps, "unroll": 2}
    expected = jax.jit(lambda: jax.lax.scan(body, (0.5, 0), xs, **options))()
    actual = jax.jit(lambda: truncation.windowed_scan(body, (0.5, 0), xs, **options, window=2))()
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    assert jax.tree.all(jax.tree.map(np.array_equal, expected, actual))


def test_windows_of_a_reverse_scan_begin_at_its_end():
    """The order of the loop counts: it is the scan over reversed inputs."""
    xs = jax.random.normal(KEY, (7,))
    body = lambda w: lambda h, x: (jnp.tanh(w * h + x),) * 2
    total = lambda w, scan: jnp.sum(jnp.arange(7.0) * scan(body(w), w, xs, reverse=True)[1])
    turned = lambda w, scan: jnp.sum(jnp.arange(7.0)[::-1] * scan(body(w), w, xs[::-1])[1])
    cut = functools.partial(truncation.windowed_scan, window=3)
    found = [float(jax.grad(each)(0.7, cut)) for each in (total, turned)]
    assert found[0] == pytest.approx(found[1], rel=1e-14)
    assert abs(found[0] - float(jax.grad(total)(0.7, jax.lax.scan))) > 1e-2


def test_both_modes_agree_and_the_last_carry_is_not_cut():
    """Forward mode too, where a loss that reads the last carry reaches back over the last window."""

    def last(w, window):
        body = lambda h, x: (jnp.sin(w * h + x), None)
        return truncation.windowed_scan(body, jnp.asarray(1.0), jnp.arange(6.0), window=window)[0]

    w = jnp.asarray(0.8)
    for window in (2, 4):
        reverse, forward = jax.grad(last)(w, window), jax.jacfwd(last)(w, window)
        assert float(reverse) == pytest.approx(float(forward), rel=1e-14)
        assert abs(reverse - jax.grad(last)(w, 6)) > 1e-3


def test_each_loop_says_what_it_lost():
    """Two loops, one after the other: layers. Losses do not change, and complex carries are cut as well."""

    def loss(loops, w):
        body = lambda h, x: (w.astype(complex) * h + x,) * 2
        first = loops.scan(body, jnp.asarray(0j), jnp.ones(4, complex))[1]
        second = loops.scan(lambda h, x: (0.5 * h + x,) * 2, 0.0, jnp.real(first))[1]
        return jnp.sum(second)

    value, grad, lost = truncation.value_and_windowed_grad(loss, window=2)(jnp.asarray(2.0))
    exact = truncation.Windows(jax.lax.scan, None)
    assert float(value) == float(loss(exact, jnp.asarray(2.0)))
    assert [each.shape for each in lost] == [(1,), (1,)]
    np.testing.assert_allclose(lost[1], 0.5 + 0.25)  # Σ of what a window's two losses pass to the state before it
    assert abs(grad - jax.grad(lambda w: loss(exact, w))(jnp.asarray(2.0))) > 1


@pytest.mark.parametrize("window", [2, 3])
def test_a_solver_cut_in_windows_is_the_recurrence_of_its_steps(window):
    """Heun's method of fixed steps, two an interval, as an ODE solver and as a model."""
    ts, num_steps = jnp.linspace(0.0, 3.0, 7), 6
    w, targets, initial = jax.random.normal(KEY, (3, 3)), jnp.ones((num_steps, 3)), jnp.array([0.3, -0.2, 0.5])
    model = models.make_model(
        lambda w, y, _: solve_by_hand(w, y, jnp.array([0.0, 0.5]))[-1], jnp.diag, lambda w, y: y, models.squared_error
    )

    def loss(w, cut):
        states = truncation.windowed_solve(lambda y, ts: solve_by_hand(w, y, ts), initial, ts, window=cut)
        return jnp.sum((states[1:] - targets) ** 2) / 2

    value, grads = jax.jit(jax.value_and_grad(loss), static_argnums=1)(w, window)
    run = lambda w: truncation.windowed(model, w, jnp.zeros((num_steps, 0)), targets, initial=initial, window=window)
    expected = jax.jit(run)(w)
    np.testing.assert_allclose(value, expected[0], rtol=1e-14)
    assert compare(expected[1], grads).relative < 1e-12
    whole = jax.jit(jax.value_and_grad(lambda w: jnp.sum((solve_by_hand(w, initial, ts)[1:] - targets) ** 2) / 2))(w)
    one = jax.jit(jax.value_and_grad(loss), static_argnums=1)(w, 6)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, one))


def solve_by_hand(w, initial, ts, substeps=2):
    field = lambda y: jnp.tanh(w @ y) - y

    def advance(y, interval):
        step = interval / substeps

        def heun(y, _):
            slope = field(y)
            return y + step / 2 * (slope + field(y + step * slope)), None

        y, _ = jax.lax.scan(heun, y, length=substeps)
        return y, y

    return jnp.concatenate((initial[None], jax.lax.scan(advance, initial, jnp.diff(ts))[1]))


@pytest.mark.sweep
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_diffrax_solve_is_cut_in_windows(adaptive):
    diffrax = pytest.importorskip("diffrax")
    w, initial, ts = jax.random.normal(KEY, (3, 3)), jnp.array([0.3, -0.2, 0.5]), jnp.linspace(0.0, 3.0, 7)
    term = diffrax.ODETerm(lambda t, y, w: jnp.tanh(w @ y) - y)
    steps = diffrax.PIDController(rtol=1e-8, atol=1e-8) if adaptive else diffrax.ConstantStepSize()
    solver = diffrax.Tsit5() if adaptive else diffrax.Heun()

    def solve(w):
        options = {"stepsize_controller": steps, "max_steps": 64}

        def run(y, ts):
            saved = diffrax.SaveAt(ts=ts)
            return diffrax.diffeqsolve(term, solver, ts[0], ts[-1], 0.25, y, w, saveat=saved, **options).ys

        return run

    whole = jax.jit(jax.value_and_grad(lambda w: jnp.sum(solve(w)(initial, ts) ** 2)))(w)
    loss = lambda loops, w: jnp.sum(loops.solve(solve(w), initial, ts) ** 2)
    value, grads, (lost,) = jax.jit(truncation.value_and_windowed_grad(loss, window=2))(w)
    np.testing.assert_allclose(value, whole[0], rtol=1e-7 if adaptive else 1e-14)
    assert lost.shape == (2,)
    assert np.all(lost > 0)
    heun = lambda w: functools.partial(solve_by_hand, w, substeps=400 if adaptive else 2)
    by_hand = lambda w: jnp.sum(truncation.windowed_solve(heun(w), initial, ts, window=2) ** 2)
    assert compare(jax.jit(jax.grad(by_hand))(w), grads).relative < (1e-5 if adaptive else 1e-12)
    assert compare(whole[1], grads).relative > 0.1
    if not adaptive:
        one = jax.jit(truncation.value_and_windowed_grad(loss, window=6))(w)
        assert jax.tree.all(jax.tree.map(np.array_equal, whole, one[:2]))


STEP, XS = lambda h, x: (h + x, h), jnp.ones(5)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: truncation.windowed_scan(STEP, 0.0, XS, window=0), ValueError, "window: got 0, expected at least 1"),
        (lambda: truncation.windowed_scan(STEP, 0.0, XS, window=2.0), TypeError, "window: got float, expected an int"),
        (lambda: truncation.windowed_scan(STEP, 0.0, window=2), TypeError, "length: got NoneType, expected an int"),
        (lambda: truncation.windowed_scan(STEP, 0.0, XS, 4, window=2), ValueError, "xs: got 5 steps, expected 4"),
        (
            lambda: truncation.windowed_scan(STEP, 0.0, XS, window=2, probe=jnp.zeros(3)),
            ValueError,
            r"probe: got shape \[3\], expected 2 rows, one a border",
        ),
        (
            lambda: truncation.windowed_scan(STEP, 0.0, XS, window=2, probe=jnp.zeros((2, 4))),
            ValueError,
            r"probe: got shape \[4\], expected \[\]",
        ),
        (lambda: truncation.windowed_solve(lambda y, ts: y, 0.0, jnp.arange(3), window=1), TypeError, "ts: got int64"),
        (
            lambda: truncation.windowed_solve(lambda y, ts: y, 0.0, jnp.arange(3.0), window=1),
            ValueError,
            r"solve's values: got shape \[\], expected \[2\]",
        ),
        (
            lambda: truncation.windowed_solve(lambda y, ts: y + ts[1:], 0.0, jnp.arange(3.0), window=2),
            ValueError,
            r"solve's values: got shape \[2\], expected \[3\]",
        ),
        (
            lambda: truncation.windowed_scan(STEP, 0.0, XS, window=5, probe=jnp.zeros(1)),
            ValueError,
            r"probe: got shape \[1\], expected 0 rows",
        ),
        (
            lambda: truncation.windowed_scan(STEP, 0.0, XS, window=2, probe=[0.0]),
            ValueError,
            r"probe: got shape \[\], expected 2 rows",
        ),
        (lambda: truncation.cut((1.0, 2.0), probe=(0.0,)), ValueError, "probe: got 1 arrays, expected 2"),
        (lambda: truncation.make_probe(0.0, 0, 1), ValueError, "num_steps: got 0, expected at least 1"),
        (lambda: truncation.lost_norms(()), ValueError, "cotangents: got no arrays"),
        (lambda: truncation.lost_norms("a"), TypeError, "cotangents: got str, expected an array"),
        (lambda: truncation.lost_norms(1.0), ValueError, r"cotangents: got shapes \[\], expected a row"),
        (lambda: truncation.lost_norms((jnp.ones(2), jnp.ones(3))), ValueError, r"cotangents: got shapes \[2\], \[3\]"),
        (lambda: truncation.cut({"a": "abc"}), TypeError, "tree.a: got str, expected an array"),
        (lambda: truncation.cut(1.0, probe="a"), TypeError, "probe: got str, expected an array"),
        (lambda: truncation.cut(1.0, 2), TypeError, "where: got int, expected a bool"),
        (lambda: truncation.cut(1.0, jnp.ones(2, bool)), ValueError, r"where: got shape \[2\], expected a scalar"),
        (lambda: truncation.make_probe("a", 5, window=2), TypeError, "carry: got str, expected an array"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(call, error, said):
    with pytest.raises(error, match=said) as raised:
        call()
    assert "\n" not in str(raised.value)
