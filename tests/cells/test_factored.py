"""Cotangents kept as vectors, and pullbacks in parts."""

import chex
import jax
import numpy as np
import pytest

from jaxbptt.cells.factored import Outer, norms, sum_over_steps
from tests import cases

KEY = jax.random.key(1)


def test_rank_one_cotangents_sum_and_measure_like_matrices():
    left, right = jax.random.normal(KEY, (4, 3)), jax.random.normal(KEY, (4, 2))
    dense = left[:, :, None] * right[:, None, :]
    np.testing.assert_allclose(sum_over_steps(Outer(left, right)), dense.sum(0), rtol=1e-14)
    np.testing.assert_allclose(norms([Outer(left, right)])[0], np.linalg.norm(dense, axis=(1, 2)), rtol=1e-14)
    several = Outer(left[None], right[None]), dense.sum(0)
    np.testing.assert_allclose(norms([several[0]])[0], [np.linalg.norm(several[1])], rtol=1e-13)
    np.testing.assert_allclose(norms([dense])[0], np.linalg.norm(dense, axis=(1, 2)), rtol=1e-14)


@pytest.mark.parametrize("name", cases.BUILT_IN)
def test_a_factored_pullback_advances_as_its_step(name):
    cell = cases.CELLS[name]
    params, inputs, _, state = cases.instance(cell, KEY, gain=1.5)
    pullback = cell.derivation.pullback
    actual = pullback.advance(params, state, pullback.drive(params, inputs[0]))[0]
    chex.assert_trees_all_close(actual, cell.step(params, state, inputs[0]), rtol=1e-13)
