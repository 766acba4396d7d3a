"""Mistakes planted by hand in a derivation: each is seen and named, and no correct one blamed."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells
from jaxbptt.derivations import Derivation, check
from tests import cases
from tests.derivations.by_hand import LOCAL, Knobs, M, N, drawn, flat, hand_jacobian, hand_pull, make, planted


def rate(slip, count, *, seed=0, dtypes=(np.float64,)):
    """(detected, named, what was not) of `count` random instances."""
    random, detected, named, misses = np.random.default_rng([seed, *map(ord, slip)]), 0, 0, []
    for number in range(count):
        name = LOCAL[slip][number % len(LOCAL[slip])]
        cell, dtype = make(name), dtypes[number // len(LOCAL[slip]) % len(dtypes)]
        derivation, pieces = planted(name, slip, random)
        key = jax.random.key(random.integers(2**31))
        params, inputs = drawn(cell, key, dtype, gain=random.choice(cases.GAINS))
        report = check(cell, derivation, key=key, params=params, inputs=inputs)
        wrong = {finding.piece: finding.slip for finding in report.findings}
        detected += bool(wrong) and set(wrong) <= set(pieces)
        right = bool(wrong) and set(wrong.values()) == {slip}
        named += right
        if not right or set(wrong) != set(pieces):
            misses.append((name, dtype.__name__, pieces, str(report)))
    return detected, named, misses


@pytest.mark.sweep
@pytest.mark.parametrize("slip", LOCAL)
def test_a_planted_slip_of_a_piece_is_named(slip):
    count = 2 * len(LOCAL[slip])
    detected, named, misses = rate(slip, count)
    assert (detected, named) == (count, count), misses


@pytest.mark.slow
@pytest.mark.parametrize("slip", LOCAL)
def test_planted_slips_are_named_in_either_dtype(slip):
    count = 16 * len(LOCAL[slip])
    detected, named, misses = rate(slip, count, seed=1, dtypes=(np.float64, np.float32))
    assert detected == count, misses
    assert named >= 0.95 * count, misses


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["linear", "elman", "softplus", "gru", "lstm"])
def test_correct_derivations_are_not_blamed(name):
    cell = cases.BUILT_IN[name](M, N)
    for number, gain in enumerate((0.1, 1.0, 3.0, 20.0)):
        params, inputs = drawn(cell, jax.random.key(number), np.float64, gain)
        report = check(cell, cell.derivation, key=jax.random.key(number), params=params, inputs=inputs)
        assert report.ok, report


def by_vjp(cell):
    """A derivation that is right whatever the cell."""

    def state_jacobian(params, state, x):
        flat, unravel = ravel_pytree(state)
        return jax.jacrev(lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0])(flat)

    return Derivation(state_jacobian, lambda *args: jax.vjp(cell.step, *args[:3])[1](args[3]))


def test_correct_in_float32_a_nested_state_and_no_inputs():
    params, inputs = drawn(make("elman"), jax.random.key(0), np.float32, 20.0)
    for number in range(3):
        key = jax.random.key(number)
        assert check(make("elman"), make("elman").derivation, key=key, params=params, inputs=inputs).ok
    assert check(cases.CELLS["custom"], by_vjp(cases.CELLS["custom"]), key=key).ok
    assert check(cells.elman(0, N), cells.elman(0, N).derivation, key=key).ok


def test_a_factored_pullback_that_advances_otherwise_than_its_step_is_seen():
    cell = make("lstm")
    right = cell.derivation.pullback
    wrong = right._replace(advance=lambda params, state, drive: right.advance(params, state, 1.01 * drive))
    report = check(cell, cell.derivation._replace(pullback=wrong), key=jax.random.key(0))
    assert "advance" in [finding.piece for finding in report.findings]


def test_one_entry_off_by_a_factor_is_seen():
    cell = make("elman")
    right = cell.derivation.state_jacobian
    derivation = cell.derivation._replace(state_jacobian=lambda *args: right(*args).at[1, 2].mul(2))
    (finding,) = check(cell, derivation, key=jax.random.key(0)).findings
    assert finding.entry == (1, 2)


def test_the_lstm_with_h_frozen():
    """∂C_t/∂C_{t−1} = f alone, the path through the gates forgotten, is a dropped path."""
    pull = hand_pull("lstm", Knobs(factor=(0, 0, 0, 0, 1)))

    def state_jacobian(params, state, x):
        return hand_jacobian(pull, [np.asarray(leaf) for leaf in params], flat(state), np.asarray(x))

    derivation = make("lstm").derivation._replace(state_jacobian=state_jacobian)
    (finding,) = check(make("lstm"), derivation, key=jax.random.key(1)).findings
    assert finding.slip == "dropped_gate_path"
