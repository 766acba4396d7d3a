"""Two gradients compared leaf by leaf: every figure is its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt.comparison import compare


def test_figures_are_their_definitions():
    expected = {"w": jnp.array([[3.0, 4.0]]), "zero": jnp.zeros(2)}
    actual = {"w": jnp.array([[3.0, 4.5]]), "zero": jnp.array([0.0, 1e-3])}
    report = compare(expected, actual)
    w, zero = report.leaves
    assert (w.path, w.max_abs, w.relative) == ("w", 0.5, pytest.approx(0.1))
    assert w.cosine == pytest.approx(27 / 5 / np.hypot(3, 4.5))
    assert zero.relative > 1e300
    assert np.isnan(zero.cosine)
    assert report.relative == zero.relative
    lines = str(report).splitlines()
    assert len(lines) == 3
    assert lines[2].endswith("(expected is zero)")


def test_equal_and_extreme():
    tree = [jnp.full(3, 1e200), jnp.zeros(0)]
    assert compare(tree, tree).relative == 0
    assert compare(tree, tree).leaves[0].cosine == pytest.approx(1)
    assert np.isnan(compare([jnp.ones(2)], [jnp.array([1.0, jnp.nan])]).relative)


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        ({"w": jnp.ones(2), "b": jnp.ones(1)}, "actual: got structure"),
        ({"w": jnp.ones(3)}, r"actual.w: got shape \[3\]"),
    ],
)
def test_different_trees_are_refused(actual, message):
    with pytest.raises(ValueError, match=message):
        compare({"w": jnp.ones(2)}, actual)


def test_traced_values_are_refused():
    with pytest.raises(TypeError, match="got traced values"):
        jax.jit(lambda a: compare(a, a).relative)(jnp.ones(2))
