"""Windows of K steps: each its own exact gradient, the state carried into it or reset."""

import jax
import numpy as np
import pytest

from jaxbptt import gradients, truncation
from jaxbptt.comparison import compare
from jaxbptt.trajectories import unroll
from tests import cases
from tests.mutation import mutate_package
from tests.truncation.problems import KEY, T, model_of, of, small


def window_sum(model, params, inputs, targets, window, initial):
    """(loss, gradient) of every window on its own by autodiff, from its own h_0, added up; 1/T for the mean."""
    own = model._replace(reduction="sum")
    windows = [slice(start, start + window) for start in range(0, T, window)]
    parts = [
        gradients.autodiff(own, params, inputs[at], targets[at], initial=start)
        for at, start in zip(windows, initial, strict=True)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / T, *parts)


def test_windows_add_up():
    """Each window's own exact gradient, the state it was handed a constant, adds up to the windowed one."""
    model = model_of("custom", "mean")
    data = params, inputs, targets, _ = cases.instance(model, KEY)
    states = unroll(model, params, inputs).previous
    handed = [None] + [jax.tree.map(lambda leaf, s=s: leaf[s], states) for s in (2, 4)]
    total = jax.jit(lambda: window_sum(model, params, inputs, targets, 2, handed)[1])()
    _, actual = of(model, "windowed", own_initial=True, window=2)(*data)
    assert compare(total, actual).relative < 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "own_initial", "window"),
    [("custom", True, 2), ("custom", True, T + 1), ("custom", False, 2), ("lstm", False, 2)],
)
def test_zero_state_windows_are_sequences_of_their_own(name, own_initial, window):
    model = model_of(name, "mean")
    data = params, inputs, targets, initial = cases.instance(model, KEY, gain=1.5)
    starts = [None if own_initial else initial] * -(-T // window)
    loss, expected = jax.jit(lambda: window_sum(model, params, inputs, targets, window, starts))()
    actual_loss, actual = of(model, "windowed", own_initial, window=window, carry_state=False)(*data)
    np.testing.assert_allclose(actual_loss, loss, rtol=1e-13)
    assert compare(expected, actual).relative < 1e-12
    carried_loss, carried = of(model, "windowed", own_initial, window=window)(*data)
    assert (compare(carried, actual).relative < 1e-12) == (window > T)
    assert np.isclose(carried_loss, loss, rtol=1e-12) == (window > T)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jax.vmap(reset)(first, trajectory.previous)", "trajectory.previous"),
        ("jnp.sum(leaf, axis=0), carried", "leaf[0], carried"),
        ("% window == 0", "% window == 1"),
    ],
)
def test_a_broken_zero_state_is_seen(old, new):
    model, data, _ = small()
    run = lambda module: jax.jit(lambda: module.windowed(model, *data, window=2, carry_state=False))()
    assert compare(run(truncation), run(mutate_package(truncation, old, new))).relative > 1e-3
