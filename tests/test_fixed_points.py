"""Fixed and slow points of a step at a held input, found, polished and told apart."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, fixed_points
from tests import cases
from tests.mutation import mutate_package

KEY = jax.random.key(11)
CELLS = {**cases.CELLS, "relu": cells.elman(cases.M, cases.N, activation=jax.nn.relu)}


def problem(name, gain=1.0, count=4):
    """(cell, params, candidates, x) around the origin."""
    cell = CELLS[name]
    params, inputs, *_ = cases.instance(cell, KEY, gain=gain, length=1)
    own = jax.eval_shape(cell.initial_state, params)
    draw = lambda leaf: jax.random.normal(KEY, (count, *leaf.shape), leaf.dtype)
    return cell, params, jax.tree.map(draw, own), inputs[0]


def scalar_cell(step):
    """h' = step(h) on one number, no params, no input."""
    return cells.from_step(lambda params, h, x: step(h), lambda params: jnp.zeros(1))


def find_scalar(step, starts, module=fixed_points, **options):
    cell = scalar_cell(step)
    find = jax.jit(lambda states: module.find_fixed_points(cell, (), states, (), **options))
    return find(jnp.array(starts)[:, None])


def contraction(module=fixed_points, **options):
    cell, params, states, x = problem("linear")
    params = params._replace(w_hh=jnp.array([[0.6, -0.9, 0.2], [0.7, 0.4, -0.3], [0.1, 0.5, 0.5]]))
    found = jax.jit(lambda *arrays: module.find_fixed_points(cell, *arrays, **options))(params, states, x)
    truth = jnp.linalg.solve(jnp.eye(cases.N) - params.w_hh, params.w_hx @ x + params.b_h)
    return params, states, truth[None], found


def test_a_linear_cell_has_the_one_that_a_solve_gives():
    params, states, truth, found = contraction()
    np.testing.assert_allclose(found.points, np.tile(truth, (4, 1)), rtol=0, atol=1e-12)
    assert found.is_fixed.all()
    assert (found.speed <= 1e-28).all()
    np.testing.assert_allclose(found.distance, np.linalg.norm(truth - states, axis=1), atol=1e-12)
    expected = np.linalg.eigvals(params.w_hh)
    assert np.abs(expected.imag).max() > 0.1, "a complex pair is in the instance"
    for eigenvalues in np.asarray(found.eigenvalues):
        assert (np.diff(np.abs(eigenvalues)) <= 0).all()
        np.testing.assert_allclose(np.sort_complex(eigenvalues), np.sort_complex(expected), atol=1e-12)
    merged = fixed_points.merge_points(found)
    assert merged.multiplicity.tolist() == [4]
    assert merged.found.points.shape == (1, cases.N)


def test_a_scalar_tanh_has_three():
    found = find_scalar(lambda h: jnp.tanh(1.5 * h), [-1.0, -0.7, -0.02, 0.01, 0.7, 2.0])
    root = 1.0
    for _ in range(200):
        root = np.tanh(1.5 * root)
    assert root == pytest.approx(0.858559, abs=1e-6)
    merged = fixed_points.merge_points(found)
    order = np.argsort(merged.found.points[:, 0])
    assert merged.found.is_fixed.all()
    assert merged.multiplicity[order].tolist() == [2, 2, 2]
    np.testing.assert_allclose(merged.found.points[order, 0], [-root, 0, root], atol=1e-12)
    slopes = [1.5 * (1 - root**2), 1.5, 1.5 * (1 - root**2)]
    np.testing.assert_allclose(merged.found.eigenvalues[order, 0], slopes, atol=1e-12)


@pytest.mark.sweep
@pytest.mark.parametrize("name", [name for name in CELLS if name != "linear"])
def test_one_step_leaves_a_fixed_point_where_it_is(name):
    cell, params, states, x = problem(name, gain=0.3)
    found = jax.jit(lambda *arrays: fixed_points.find_fixed_points(cell, *arrays))(params, states, x)
    assert found.is_fixed.any()
    assert jax.tree.structure(found.points) == jax.tree.structure(states)
    for k in range(4):
        point = jax.tree.map(lambda leaf, k=k: leaf[k], found.points)
        flat, unravel = ravel_pytree(point)
        step = lambda h, unravel=unravel: ravel_pytree(cell.step(params, unravel(h), x))[0]
        if found.is_fixed[k]:
            np.testing.assert_allclose(step(flat), flat, rtol=0, atol=1e-10)
        np.testing.assert_allclose(found.speed[k], np.sum((step(flat) - flat) ** 2) / 2, rtol=1e-10, atol=1e-30)
        start = ravel_pytree(jax.tree.map(lambda leaf, k=k: leaf[k], states))[0]
        np.testing.assert_allclose(found.distance[k], np.linalg.norm(flat - start), rtol=1e-12)
        expected = np.linalg.eigvals(jax.jacrev(step)(flat))
        np.testing.assert_allclose(np.sort_complex(found.eigenvalues[k]), np.sort_complex(expected), atol=1e-9)
        np.testing.assert_allclose(np.abs(found.eigenvalues[k]), np.sort(np.abs(expected))[::-1], atol=1e-9)


EPSILON = 1e-3


def test_a_slow_point_is_not_called_fixed():
    found = find_scalar(lambda h: h + EPSILON + h * h, [-0.3, -0.05, 0.2])
    assert not found.is_fixed.any()
    np.testing.assert_allclose(found.points, np.zeros((3, 1)), atol=1e-5)
    np.testing.assert_allclose(found.speed, EPSILON**2 / 2, rtol=1e-6)
    np.testing.assert_allclose(found.eigenvalues, np.ones((3, 1)), atol=1e-5)
    merged = fixed_points.merge_points(found)
    assert merged.multiplicity.tolist() == [3]
    loose = find_scalar(lambda h: h + EPSILON + h * h, [0.2], tolerance=1e-6)
    assert loose.is_fixed.all(), "½ε² is below the tolerance asked for"


def valley(h):
    """Slow at 0, and ever slower far away: exp(−h²)."""
    return h + (h * h + EPSILON) * jnp.exp(-h * h)


def test_polishing_does_not_jump_from_a_slow_point_to_a_far_one():
    found = find_scalar(valley, [1e-4, -0.2, 0.2])
    np.testing.assert_allclose(found.points, np.zeros((3, 1)), atol=1e-4)
    assert not found.is_fixed.any()
    undamped = mutate_package(fixed_points, "mu = damping * jnp.sum", "mu = 0 * damping * jnp.sum")
    assert find_scalar(valley, [1e-4], undamped, num_steps=0).polish_distance > 1


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(3))
def test_no_polishing_step_is_longer_than_half_the_scale(seed):
    cell, params, states, x = problem("gru", gain=4.0)
    states = 3 * jax.random.normal(jax.random.key(seed), states.shape)
    found = fixed_points.find_fixed_points(cell, params, states, x, num_steps=0, polish_steps=1)
    scale = np.sqrt(np.maximum(1, np.mean(np.asarray(states) ** 2, axis=1)))
    assert (found.polish_distance <= 0.5 * scale * (1 + 1e-12)).all()
    assert found.polish_distance.max() > 0
    np.testing.assert_array_equal(found.polish_distance, found.distance)


def test_the_speed_never_ends_above_its_start():
    def wild(h):
        return h + 1 + h**2 * jnp.exp(h)

    starts = np.linspace(-4, 6, 6)
    found = find_scalar(wild, list(starts), optimizer=optax.sgd(10.0), num_steps=50, polish_steps=5)
    before = (1 + starts**2 * np.exp(starts)) ** 2 / 2
    assert np.isfinite(found.points).all()
    assert (found.speed <= before).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_points_carry_their_distance_to_a_fixed_one(dtype):
    """A fold at b = √½·2 − artanh √½: before it h is fixed nowhere near, but moves by less than rounding allows."""
    root = np.sqrt(0.5)
    fold = np.arctanh(root) - 2 * root

    def found(offset, start):
        cell = cells.from_step(lambda b, h, x: jnp.tanh(2 * h + b), lambda b: jnp.zeros_like(b))
        states = jnp.full((1, 1), start, dtype)
        find = jax.jit(lambda b: fixed_points.find_fixed_points(cell, b, states, jnp.zeros(0, dtype)))
        return find(jnp.asarray([fold + offset], dtype))

    ghost = found(-1e-6 if dtype == np.float32 else -1e-14, root)
    assert ghost.is_fixed.all(), "by the tolerance of 100 eps"
    assert np.isposinf(ghost.error).all()
    truth = 1.0
    for _ in range(2000):
        truth = np.tanh(2 * truth + fold + 0.01)
    pair = found(0.01, truth + 1e-3)
    eps = np.finfo(dtype).eps
    off = np.abs(np.asarray(pair.points, np.float64)[0, 0] - truth)
    error, eigenvalue, eigenvalue_error = (np.asarray(field)[0] for field in (pair.error, *pair[3:4], pair[-1]))
    assert off <= error < 1e3 * eps
    slope = 2 * (1 - truth**2)
    assert np.abs(np.complex128(eigenvalue[0]) - slope) <= eigenvalue_error[0] < 1e4 * eps


def test_eigenvalues_of_a_matrix_far_from_normal_are_not_said_to_be_exact():
    """[[a, 1], [0, a]] moved by δ: its eigenvalues move by √δ."""
    weights = jnp.array([[0.5, 1.0], [1e-14, 0.5]])
    cell = cells.from_step(lambda w, h, x: w @ h, lambda w: jnp.zeros(2))
    found = fixed_points.find_fixed_points(cell, weights, jnp.ones((1, 2)), jnp.zeros(0), num_steps=1)
    assert (found.eigenvalue_error > 1e-9).all()
    assert (found.error < 1e-13).all()


def test_points_on_a_line_attractor_stay_beside_their_candidates():
    cell = cells.linear(0, 2)
    params = cells.ElmanParams(jnp.zeros((2, 0)), jnp.diag(jnp.array([1.0, 0.5])), jnp.zeros(2))
    states = jnp.array([[-1.0, 0.5], [0.3, -1.0], [2.0, 0.0]])
    found = jax.jit(lambda states: fixed_points.find_fixed_points(cell, params, states, jnp.zeros(0)))(states)
    np.testing.assert_allclose(found.points, states * jnp.array([[1.0, 0.0]]), atol=1e-12)
    assert found.is_fixed.all()
    np.testing.assert_allclose(found.eigenvalues, np.tile([1, 0.5], (3, 1)), atol=1e-14)
    assert np.isposinf(found.error).all(), "none is the only one near"
    assert (found.eigenvalue_error < 1e-14).all()


def test_the_held_input_moves_the_point():
    cell, params, states, x = problem("elman", gain=0.3)
    find = jax.jit(lambda x: fixed_points.find_fixed_points(cell, params, states, x))
    here, there = find(x), find(x + 1)
    assert here.is_fixed.all()
    assert there.is_fixed.all()
    assert np.linalg.norm(here.points[0] - there.points[0]) > 0.1
    np.testing.assert_allclose(there.points[0], cell.step(params, there.points[0], x + 1), atol=1e-12)


def test_options_and_no_steps_at_all():
    *_, states, truth, found = contraction(optimizer=optax.chain(optax.clip(1.0), optax.sgd(0.3)), num_steps=50)
    np.testing.assert_allclose(found.points, np.tile(truth, (4, 1)), atol=1e-12)
    *_, found = contraction(num_steps=0, polish_steps=0)
    np.testing.assert_array_equal(found.points, states)
    np.testing.assert_array_equal(found.distance, 0)
    assert not found.is_fixed.any()


def test_float32_stays_float32():
    cell, params, states, x = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if isinstance(leaf, jax.Array) else leaf, problem("gru")
    )
    found = jax.jit(lambda *arrays: fixed_points.find_fixed_points(cell, *arrays))(params, states, x)
    assert {leaf.dtype for leaf in found if leaf.dtype != bool} == {np.dtype(np.float32), np.dtype(np.complex64)}
    assert found.is_fixed.all()
    np.testing.assert_allclose(cell.step(params, found.points[0], x), found.points[0], atol=2e-6)


def test_nan_in_is_nan_out_under_jit():
    cell, params, states, x = problem("elman")
    find = jax.jit(lambda x, states: fixed_points.find_fixed_points(cell, params, states, x, num_steps=5))
    for found in (find(x, states.at[1, 0].set(jnp.nan)), find(x.at[0].set(jnp.inf), states)):
        assert not found.is_fixed.any()
        for field in found._replace(is_fixed=jnp.nan):
            assert np.isnan(field).all()
    assert find(x, states).is_fixed.any()


def test_merging_keeps_the_slowest_of_each_group():
    points = jnp.array([[0.0, 0.0], [5.0, 0.0], [0.0, 0.06], [5.0, 0.04], [9.0, 9.0], [0.0, 0.12]])
    speed = jnp.array([3.0, 0.0, 2.0, 1e-9, 0.0, 2.5])
    eigenvalues = jnp.arange(6)[:, None].astype(complex)
    error = jnp.array([0.05, 0.03, 0.05, 0.0, 0.1, 0.05])
    found = fixed_points.FixedPoints({"h": points}, speed, speed == 0, eigenvalues, speed, speed, error, speed)
    merged = fixed_points.merge_points(found, distance=0.1)
    assert merged.rows.tolist() == [1, 4, 2]
    assert merged.multiplicity.tolist() == [2, 1, 3]
    assert merged.blurred.tolist() == [True, False, False], "0.04 apart with errors of 0.03 together"
    np.testing.assert_array_equal(merged.found.points["h"], points[np.array([1, 4, 2])])
    np.testing.assert_array_equal(merged.found.eigenvalues[:, 0], [1, 4, 2])
    assert fixed_points.merge_points(found, distance=0).multiplicity.tolist() == [1] * 6


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x))[0] - h\n", "x))[0] - 0.9 * h\n"),
        ("a = jacobian(h) - jnp.eye", "a = jacobian(h).T - jnp.eye"),
        ("accepted = speed_of(trial_r) < speed_of(r)", "accepted = speed_of(trial_r) > speed_of(r)"),
        ("jnp.abs(eigenvalues), descending=True", "jnp.abs(eigenvalues), descending=False"),
        ("find_eigenvalues(at, moved)\n", "find_eigenvalues(at / 2, moved)\n"),
        ("first = (jnp.linalg.norm(r) + rounding)", "first = (jnp.linalg.norm(r) + 1e4 * rounding)"),
        ("inv(vectors), axis=1)", "inv(vectors), axis=1) * 100"),
        ("jnp.linalg.norm(points - start", "jnp.linalg.norm(points - optimised"),
    ],
)
def test_a_broken_search_is_seen(old, new):
    # A few rounds of each: enough for the right one, not to hide a wrong one.
    options = {"num_steps": 20, "polish_steps": 30}
    _, _, truth, right = contraction(**options)
    wrong = contraction(mutate_package(fixed_points, old, new), **options)[-1]
    assert np.abs(right.points - truth).max() < 1e-12
    differences = [np.abs(a - b).max() for a, b in zip(right._replace(is_fixed=0), wrong._replace(is_fixed=0))]  # noqa: B905
    assert max(differences) > (1e-15 if "rounding" in old or "inv" in old else 1e-6)


def test_a_lost_best_is_seen():
    mutant = mutate_package(fixed_points, "better = q < best[1]", "better = q > best[1]")
    fast = find_scalar(jnp.tanh, [0.5], mutant, polish_steps=0).speed
    assert fast > 10 * find_scalar(jnp.tanh, [0.5], polish_steps=0).speed


ELMAN = CELLS["elman"]
PARAMS = ELMAN.init(KEY)
X = jnp.ones(cases.M)
STATES = jnp.ones((2, cases.N))
GOOD = {"params": PARAMS, "states": STATES, "x": X}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[None]}, ValueError, r"x: got shape \[1, 2\], expected \[2\] \(the input of one step\)"),
        ({"x": 1.0}, TypeError, "x: got float, expected an array"),
        ({"x": X.astype(jnp.float32)}, TypeError, "x: got float32, expected float64 like params"),
        ({"x": X.at[1].set(jnp.nan)}, ValueError, "x: got NaN or inf"),
        ({"states": STATES[0]}, ValueError, r"states: got shape \[3\], expected \[K, 3\]"),
        ({"states": STATES[:0]}, ValueError, "states: got K = 0 candidates"),
        ({"states": (STATES,)}, ValueError, "states: got structure"),
        ({"states": STATES.astype(jnp.float32)}, TypeError, "states: got float32, expected float64"),
        ({"states": STATES.at[1].set(jnp.inf)}, ValueError, "states: got NaN or inf.*first in row 1"),
        ({"params": PARAMS._replace(b_h=jnp.full(3, jnp.inf))}, ValueError, "params.b_h: got NaN or inf"),
        ({"params": PARAMS._replace(b_h=jnp.ones(4))}, ValueError, r"params.b_h: got shape \[4\]"),
        ({"optimizer": 0.1}, TypeError, "optimizer: got float, expected an optax"),
        ({"num_steps": -1}, ValueError, "num_steps: got -1, expected at least 0"),
        ({"polish_steps": 1.0}, TypeError, "polish_steps: got float, expected an int"),
        ({"tolerance": -1.0}, ValueError, "tolerance: got -1.0, expected a scalar ≥ 0"),
    ],
)
def test_bad_input_gets_one_line(change, error, message):
    with pytest.raises(error, match=message) as caught:
        fixed_points.find_fixed_points(ELMAN, **(GOOD | change))
    assert "\n" not in str(caught.value)


def test_a_step_that_is_not_finite_names_the_candidate():
    with pytest.raises(ValueError, match=r"the step from states: got NaN or inf.*first in row 1"):
        fixed_points.find_fixed_points(scalar_cell(jnp.log), (), jnp.array([[1.0], [-1.0]]), ())


def test_merging_refuses_what_it_cannot_merge():
    found = fixed_points.FixedPoints(STATES, *[jnp.ones(2)] * 2, jnp.ones((2, 3)), *[jnp.ones(2)] * 3, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="found: got traced arrays"):
        jax.jit(lambda found: fixed_points.merge_points(found).multiplicity)(found)
    with pytest.raises(ValueError, match=r"found.points: got NaN or inf.*first in row 0"):
        fixed_points.merge_points(found._replace(points=STATES.at[0].set(jnp.nan)))
    with pytest.raises(ValueError, match="distance: got -1, expected a number ≥ 0"):
        fixed_points.merge_points(found, distance=-1)


def test_importing_it_does_not_import_optax():
    code = "import sys, jaxbptt.fixed_points; sys.exit('optax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
