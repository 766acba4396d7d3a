"""Periodic orbits at a held and at a periodic input: known ones, all of a period, their multipliers and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, fixed_points
from tests import cases
from tests.mutation import mutate_package

LOGISTIC = cells.from_step(lambda r, h, x: r * h * (1 - h), jnp.zeros_like)
TENT = cells.from_step(lambda s, h, x: jnp.where(h < 0.5, s * h, s * (1 - h)), jnp.zeros_like)
STARTS = jnp.linspace(0.02, 0.98, 60)
HELD = jnp.zeros((1, 0))


def find(cell, parameter, period, starts=STARTS, module=fixed_points, **options):
    call = jax.jit(lambda r, starts: module.find_cycles(cell, r, starts, HELD, period=period, **options))
    found = call(jnp.asarray(parameter), starts)
    return found, module.merge_cycles(found).found


def test_the_two_cycle_of_the_logistic_map():
    r = 3.2
    found, unique = find(LOGISTIC, r, 2)
    assert found.is_cycle.all()
    row = np.asarray(unique.period).tolist().index(2)
    root = np.sqrt((r + 1) * (r - 3))
    np.testing.assert_allclose(
        np.sort(unique.states[row]), [(r + 1 - root) / (2 * r), (r + 1 + root) / (2 * r)], rtol=1e-14
    )
    np.testing.assert_allclose(unique.multipliers[row, 0], 4 + 2 * r - r**2, rtol=0, atol=1e-13)
    off = np.linalg.norm(np.sort(unique.states[row]) - [(r + 1 - root) / (2 * r), (r + 1 + root) / (2 * r)])
    assert off <= unique.error[row] < 1e-12
    assert unique.multiplier_error[row, 0] < 1e-11
    fixed = np.asarray(unique.multipliers[:, 0])[np.asarray(unique.period) == 1]
    np.testing.assert_allclose(np.sort(fixed.real), [(2 - r) ** 2, r**2], rtol=1e-13)  # of two steps
    assert np.unique(unique.period).tolist() == [1, 2], "a fixed point is no 2-cycle"


def test_the_window_of_period_three():
    _, unique = find(LOGISTIC, 3.83, 3)
    three = np.asarray(unique.period) == 3
    assert three.sum() == 2
    multipliers = np.sort(np.asarray(unique.multipliers)[three, 0].real)
    orbits = np.asarray(unique.states)[three]
    np.testing.assert_allclose(multipliers, np.sort(np.prod(3.83 * (1 - 2 * orbits), axis=1)), rtol=1e-12)
    assert abs(multipliers[0]) < 1 < multipliers[1]
    np.testing.assert_allclose(3.83 * orbits * (1 - orbits), np.roll(orbits, -1, axis=1), rtol=0, atol=1e-14)


@pytest.mark.sweep
@pytest.mark.parametrize(("cell", "parameter"), [(LOGISTIC, 4.0), (TENT, 1.99)], ids=["logistic", "tent"])
@pytest.mark.parametrize(("period", "count"), [(2, 1), (3, 2), (4, 3), (5, 6)])
def test_all_of_a_period_are_found(cell, parameter, period, count):
    """Of the 2^p points of h_p = h_0 those of no smaller period, by p: 1, 2, 3, 6."""
    _, unique = find(cell, parameter, period, jnp.linspace(0.003, 0.997, 400))
    of_period = np.asarray(unique.period) == period
    assert of_period.sum() == count
    if cell is TENT:
        multipliers = np.asarray(unique.multipliers)[np.asarray(unique.is_cycle), 0]
        np.testing.assert_allclose(np.abs(multipliers), parameter**period, rtol=1e-12)
        right = (np.asarray(unique.states) > 0.5).sum(axis=1)
        np.testing.assert_array_equal(np.sign(np.asarray(unique.multipliers)[:, 0].real), (-1.0) ** right)


def turning():
    """h' = W h tanh(‖h‖)/‖h‖, W twice a turn by 120°: every orbit on its circle has period 3."""
    angle = 2 * np.pi / 3
    weights = 2 * jnp.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    norm = lambda h: jnp.sqrt(jnp.sum(h * h) + 1e-300)
    cell = cells.from_step(lambda w, h, x: w @ h * (jnp.tanh(norm(h)) / norm(h)), lambda w: jnp.zeros(2))
    radius = 2.0
    for _ in range(200):
        radius = 2 * np.tanh(radius)
    return cell, weights, radius


def test_a_net_with_a_known_cycle():
    """Its radius is r = 2 tanh r, at any angle: a circle of 3-cycles, so that none is the only one near."""
    cell, weights, radius = turning()
    starts = jnp.array([[1.0, 0.5], [-1.0, 2.0]])
    found = fixed_points.find_cycles(cell, weights, starts, jnp.zeros((1, 0)), period=3)
    assert found.is_cycle.all()
    assert found.period.tolist() == [3, 3]
    np.testing.assert_allclose(np.linalg.norm(found.states, axis=2), radius, rtol=1e-12)
    slope = (2 / np.cosh(radius) ** 2) ** 3
    np.testing.assert_allclose(found.multipliers, [[1, slope]] * 2, rtol=0, atol=1e-12)
    assert np.isposinf(found.error).all()


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "custom"])
@pytest.mark.parametrize("length", [1, 2])
def test_the_step_takes_each_state_to_the_next(name, length):
    cell = cases.CELLS[name]
    params, inputs, *_ = cases.instance(cell, jax.random.key(2), length=2, gain=0.5)
    own = jax.eval_shape(cell.initial_state, params)
    states = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), (3, *leaf.shape)), own)
    inputs = inputs[:length]
    search = lambda params, states, inputs: fixed_points.find_cycles(cell, params, states, inputs, period=4)
    found = jax.jit(search)(params, states, inputs)
    assert found.is_cycle.all() if name != "custom" else found.is_cycle.any()
    assert set(found.period.tolist()) <= ({0, 1, 2, 4} if length == 1 else {0, 2, 4})
    k = int(np.argmin(found.error))
    orbit = [jax.tree.map(lambda leaf, j=j: leaf[k, j], found.states) for j in range(4)]
    unravel = ravel_pytree(orbit[0])[1]
    flat = lambda state: ravel_pytree(state)[0]
    monodromy = np.eye(len(flat(orbit[0])))
    for j in range(4):
        x = inputs[j % length]
        np.testing.assert_allclose(flat(cell.step(params, orbit[j], x)), flat(orbit[(j + 1) % 4]), rtol=0, atol=1e-10)
        step = lambda h, x=x: flat(cell.step(params, unravel(h), x))
        monodromy = np.asarray(jax.jacrev(step)(flat(orbit[j]))) @ monodromy
    expected = np.linalg.eigvals(monodromy)
    np.testing.assert_allclose(np.abs(found.multipliers[k]), np.sort(np.abs(expected))[::-1], rtol=0, atol=1e-9)
    if length == 2:
        apart = np.linalg.norm(flat(orbit[0]) - flat(orbit[1]))
        assert apart > 1e-3, "driven from one state to the other"


def test_shifts_merge_where_they_leave_the_input_as_it_is():
    found, _ = find(LOGISTIC, 3.2, 2, jnp.array([0.5, 0.8]))
    assert np.abs(found.states[0] - found.states[1]).max() > 0.1
    merged = fixed_points.merge_cycles(found)
    assert merged.multiplicity.tolist() == [2]
    assert not merged.blurred.any()
    driven = fixed_points.merge_cycles(found._replace(input_period=jnp.asarray(2)))
    assert driven.multiplicity.tolist() == [1, 1]
    assert fixed_points.merge_cycles(found, distance=0.0).multiplicity.sum() == 2


def test_an_input_that_repeats_early_has_its_least_period():
    """The same input given as one, two or four steps: the same periods, the same orbits in one."""
    starts = jnp.array([0.5, 0.8, 0.69])
    for inputs, least in ((jnp.ones((1, 1)), 1), (jnp.ones((2, 1)), 1), (jnp.array([[1.0], [2.0]] * 2), 2)):
        step = lambda r, h, x: r * h * (1 - h) * jnp.sum(x) / jnp.sum(x)
        cell = cells.from_step(step, jnp.zeros_like, num_inputs=1)
        found = fixed_points.find_cycles(cell, jnp.array(3.2), starts, inputs, period=4)
        assert found.input_period == least
        assert found.period.tolist() == ([2, 2, 1] if least == 1 else [2, 2, 2])
        assert fixed_points.merge_cycles(found).multiplicity.tolist() == ([2, 1] if least == 1 else [1, 1, 1])


def test_a_ghost_carries_no_error():
    """Just before the 3-cycles are born at r = 1 + √8, orbits nearly close."""
    ghost, _ = find(LOGISTIC, 1 + np.sqrt(8) - 1e-6, 3, jnp.array([0.514355]))
    assert not ghost.is_cycle.any()
    assert ghost.speed < 1e-10
    assert ghost.period.tolist() == [0]
    assert np.isposinf(ghost.error).all()


def test_float32_and_nan():
    single, unique = find(LOGISTIC, np.float32(3.2), 2, STARTS.astype(np.float32))
    assert single.states.dtype == single.error.dtype == np.float32
    row = np.asarray(unique.period).tolist().index(2)
    assert np.abs(unique.multipliers[row, 0] - 0.16) <= unique.multiplier_error[row, 0] < 1e-3
    bad = jax.jit(lambda r: fixed_points.find_cycles(LOGISTIC, r, STARTS, HELD, period=2))(jnp.asarray(jnp.nan))
    assert np.isnan(bad.states).all()
    assert np.isnan(bad.multipliers).all()
    assert not bad.is_cycle.any()
    assert (bad.period == 0).all()


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(orbit_of(z), xs), 1, axis=0)", "(orbit_of(z), xs), -1, axis=0)"),
        ("after = (np.arange(period) + 1) % period", "after = (np.arange(period) - 1) % period"),
        ("after = lambda total, factor: (factor @ total, total)", "after = lambda total, factor: (total, total)"),
        ("own = moved + OPERATION", "own = 1e5 * moved + 1e5 * OPERATION"),
        ("(apart <= allowed) &", "(apart <= 1e3 * allowed + 1) &"),
        ("np.roll(orbits[i], -shift, axis=0)", "orbits[i]"),
    ],
)
def test_a_broken_search_is_seen(old, new):
    right, unique = find(LOGISTIC, 3.83, 3)
    wrong, other = find(LOGISTIC, 3.83, 3, module=mutate_package(fixed_points, old, new), polish_steps=30)
    same = len(unique.speed) == len(other.speed)
    for name in ("states", "multipliers", "period", "is_cycle"):
        same = same and np.allclose(getattr(right, name), getattr(wrong, name), atol=1e-9)
    assert not same or np.median(wrong.multiplier_error) > 10 * np.median(right.multiplier_error)


ELMAN = cases.CELLS["elman"]
PARAMS = ELMAN.init(jax.random.key(0))
GOOD = {"params": PARAMS, "states": jnp.ones((2, cases.N)), "inputs": jnp.ones((2, cases.M)), "period": 4}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"period": 3}, ValueError, "inputs: got 2 steps, expected a number that divides the period 3"),
        ({"period": 0}, ValueError, "period: got 0, expected at least 1"),
        ({"period": 2.0}, TypeError, "period: got float, expected an int"),
        ({"states": jnp.ones(cases.N)}, ValueError, r"states: got shape \[3\], expected \[K, 3\]"),
        ({"inputs": jnp.ones(cases.M)}, ValueError, r"inputs: got shape \[2\]"),
        ({"inputs": jnp.ones((2, cases.M)).at[1, 0].set(jnp.inf)}, ValueError, "inputs: got NaN or inf"),
        ({"polish_steps": -1}, ValueError, "polish_steps: got -1"),
        ({"tolerance": -1.0}, ValueError, "tolerance: got -1.0, expected a scalar ≥ 0"),
        ({"tolerance": "a"}, TypeError, "tolerance: got str, expected a scalar ≥ 0"),
        ({"tolerance": 1j}, TypeError, "tolerance: got complex, expected a scalar ≥ 0"),
        ({"tolerance": True}, TypeError, "tolerance: got bool, expected a scalar ≥ 0"),
        ({"tolerance": np.nan}, ValueError, "tolerance: got nan, expected a scalar ≥ 0"),
        ({"tolerance": jnp.ones(2)}, ValueError, "tolerance: got .* expected a scalar ≥ 0"),
    ],
)
def test_bad_input_gets_one_line(change, error, message):
    with pytest.raises(error, match=message) as caught:
        fixed_points.find_cycles(ELMAN, **(GOOD | change))
    assert "\n" not in str(caught.value)


def test_merging_refuses_what_it_cannot_merge():
    found, _ = find(LOGISTIC, 3.2, 2, jnp.array([0.5, 0.8]))
    with pytest.raises(TypeError, match="found: got traced arrays"):
        jax.jit(lambda found: fixed_points.merge_cycles(found).multiplicity)(found)
    with pytest.raises(ValueError, match="distance: got -1, expected a number ≥ 0"):
        fixed_points.merge_cycles(found, distance=-1)
    for merge in (fixed_points.merge_cycles, fixed_points.merge_points):
        with pytest.raises(TypeError, match=r"found: got \w+, expected (Cycles|FixedPoints)"):
            merge(found if merge is fixed_points.merge_points else "a")
    with pytest.raises(TypeError, match="distance: got str, expected a number ≥ 0"):
        fixed_points.merge_cycles(found, distance="a")
    with pytest.raises(ValueError, match=r"found.states: got NaN or inf"):
        fixed_points.merge_cycles(found._replace(states=found.states * jnp.nan))
