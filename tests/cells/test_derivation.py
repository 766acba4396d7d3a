"""The hand derivations of the built-in cells, against automatic differentiation of one step."""

import importlib

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests import cases
from tests.mutation import mutate

KEY = jax.random.key(1)


def step_errors(cell, derivation, gain=1.0):
    """Relative errors of the hand derivation against vjp and jacfwd of one step, at a random point and cotangent."""
    params, inputs, _, state = cases.instance(cell, KEY, gain=gain)
    x = inputs[0]
    out, pull = jax.vjp(cell.step, params, state, x)
    cotangent = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape) + 0.1, out)
    flat, unravel = ravel_pytree(state)
    jacobian = jax.jacfwd(lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0])(flat)
    expected = (*pull(cotangent), jacobian)
    actual = (*derivation.pullback(params, state, x, cotangent), derivation.state_jacobian(params, state, x))
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])


@pytest.mark.sweep
@pytest.mark.parametrize("gain", cases.GAINS)
@pytest.mark.parametrize("name", cases.BUILT_IN)
def test_hand_derivation_equals_automatic(name, gain):
    cell = cases.CELLS[name]
    assert step_errors(cell, cell.derivation, gain).max() < 1e-13


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("elman", "delta: delta @ params.w_hh", "delta: cotangent @ params.w_hh"),
        ("elman", "delta: delta @ params.w_hh", "delta: delta @ params.w_hh.T"),
        ("elman", "cotangent: slope * cotangent", "cotangent: cotangent"),
        ("elman", "slope[:, None] * params.w_hh", "slope[None, :] * params.w_hh"),
        ("lstm", "return cotangent.cell + factors.output * cotangent.hidden", "return cotangent.cell"),
        ("lstm", "g * i * (1 - i)", "g * i"),
        ("lstm", "zip(scales, jnp.split(", "zip(scales[::-1], jnp.split("),
        ("gru", "through_n), through_n * r)", "through_n), through_n)"),
        ("gru", "(state - n) * z * (1 - z)", "(n - state) * z * (1 - z)"),
        ("gru", "return factors.carry, r + z + n", "return factors.carry, z + n"),
    ],
)
def test_a_broken_derivation_is_seen(module, old, new):
    mutant = mutate(importlib.import_module(f"jaxbptt.cells._{module}"), old, new)
    broken = getattr(mutant, module)(cases.M, cases.N).derivation
    assert step_errors(cases.CELLS[module], broken).max() > 1e-3
