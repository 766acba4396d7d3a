"""Mistakes planted by hand in a whole gradient: each is seen and named, and no correct one blamed."""

import functools

import jax
import numpy as np
import pytest

from jaxbptt import gradients, models
from jaxbptt.derivations import check_gradient
from tests import cases
from tests.derivations.by_hand import ANY, LOCAL, N, O, T, make
from tests.derivations.gradients_by_hand import hand_gradient

GRADIENT = {
    **LOCAL,
    "double_path": ANY,
    "reversed_product": ANY,
    "lost_mean": ANY,
    "double_mean": ANY,
    "missing_direct_term": ("shared",),
    "last_term_only": ANY,
    "truncated": ANY,
    "clipped_adjoint": ANY,
}


ONE = {"dropped_gate_path": ("gru",), "swapped_gates": ("gru",), "missing_direct_term": ("shared",)}


@functools.cache
def model_of(name):
    return cases.shared_model() if name == "shared" else models.sequence_model(make(name), O, reduction="mean")


def rate(slip, count, names, *, seed=0, dtypes=(np.float64,)):
    """(detected, named, what was not) of `count` random instances."""
    random, detected, named, misses = np.random.default_rng([seed, *map(ord, slip)]), 0, 0, []
    for number in range(count):
        name = names[number % len(names)]
        key, dtype = jax.random.key(random.integers(2**31)), dtypes[number // len(names) % len(dtypes)]
        model = model_of(name)
        params, inputs, targets, _ = cases.instance(
            model, key, length=T, gain=random.choice(cases.GAINS), num_outputs=N if name == "shared" else O
        )
        params, inputs, targets = jax.tree.map(lambda leaf, to=dtype: leaf.astype(to), (params, inputs, targets))
        gradient = hand_gradient("elman" if name == "shared" else name, slip, random)
        report = check_gradient(model, gradient, key=key, params=params, inputs=inputs, targets=targets)
        found = {finding.slip for finding in report.findings}
        detected, named = detected + (not report.ok), named + (found == {slip})
        if found != {slip}:
            misses.append((name, dtype.__name__, str(report)))
    return detected, named, misses


@pytest.mark.parametrize("slip", GRADIENT)
def test_a_planted_slip_of_a_gradient_is_named(slip):
    count = 2  # compiling for another cell takes longer than all else: one cell a kind
    names = ONE.get(slip, ("elman",))
    detected, named, misses = rate(slip, count, names)
    assert (detected, named) == (count, count), misses


@pytest.mark.slow
@pytest.mark.parametrize("slip", GRADIENT)
def test_planted_slips_are_named_in_every_cell_and_either_dtype(slip):
    count = 16 * len(GRADIENT[slip])
    detected, named, misses = rate(slip, count, GRADIENT[slip], seed=1, dtypes=(np.float64, np.float32))
    assert detected == count, misses
    assert named >= 0.95 * count, misses


def test_a_correct_gradient_is_not_blamed():
    model = models.sequence_model(make("elman"), O, reduction="mean")
    random = np.random.default_rng(0)
    for gradient in (gradients.bptt, gradients.forward_sensitivity, hand_gradient("elman", "", random)):
        report = check_gradient(model, gradient, key=jax.random.key(0))
        assert report.ok, report
    classes = models.sequence_model(make("elman"), O, loss=models.softmax_cross_entropy)
    assert check_gradient(classes, gradients.bptt, key=jax.random.key(0)).ok  # targets are classes: found out
