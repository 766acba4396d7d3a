"""Newton's method on all steps at once: the scan's states and gradients, or NaN."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, comparison, gradients, jacobians, models, trajectories
from tests import cases

KEY = jax.random.key(11)


def tanh_net(size, gain, length, key=KEY, num_inputs=1):
    cell = cells.elman(num_inputs, size, recurrent=cells.gaussian(gain))
    keys = jax.random.split(key)
    return cell, cell.init(keys[0]), jax.random.normal(keys[1], (length, num_inputs))


def newton(cell, *data, **options):
    options = {"initial": data[2] if len(data) > 2 else None, **options}
    return trajectories.unroll(cell, *data[:2], method="newton", **options)


def gradient_of(cell, data, method):
    """d/d(θ, x, h_0) of a nonlinear function of all states, and the states."""

    def total(params, inputs, initial):
        states = trajectories.unroll(cell, params, inputs, initial=initial, method=method).states
        flat = trajectories.flatten_steps(states)
        return jnp.sum(jnp.sin(flat * jnp.arange(1.0, 1 + flat.size).reshape(flat.shape))), states

    return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*data)


@pytest.mark.sweep
@pytest.mark.parametrize("name", cases.CELLS)
def test_states_and_gradients_are_those_of_the_scan(name):
    cell = cases.CELLS[name]
    params, inputs, _, initial = cases.instance(cell, KEY, length=12, gain=0.7)
    data = params, inputs, initial
    (expected, states), (grads, found) = gradient_of(cell, data, "sequential"), gradient_of(cell, data, "newton")
    assert comparison.compare(states, found).relative < 1e-13
    assert comparison.compare(expected, grads).relative < 1e-10
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (expected, grads)), strict=True))


def test_it_is_a_trajectory_to_every_function():
    model = models.sequence_model(cases.CELLS["lstm"], cases.O)
    params, inputs, _, initial = cases.instance(model, KEY)
    found = newton(model, params, inputs, initial)
    assert bool(found.converged)
    assert 0 < int(found.iterations) <= cases.T
    assert float(found.residual) < 1e-14
    chain = jacobians.step_jacobians(model, params, found)
    expected = jacobians.step_jacobians(model, params, trajectories.unroll(model, params, inputs, initial=initial))
    np.testing.assert_allclose(chain, expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(jacobians.structured_jacobians(model, params, found).assemble().shape, chain.shape)


def test_inputs_may_hold_integers_and_close_over_what_is_not_differentiated():
    scale = jnp.array(0.7)
    cell = cells.from_step(
        lambda p, s, x: jnp.tanh(p * s + scale * x["a"] * (x["b"] % 3).astype(float)), lambda p: p * jnp.ones(2)
    )
    inputs = {"a": jnp.linspace(0, 1, 8)[:, None] * jnp.ones((1, 2)), "b": jnp.arange(8)[:, None]}

    def total(method):
        return lambda p, a: jnp.sum(trajectories.unroll(cell, p, {**inputs, "a": a}, method=method).states ** 2)

    for argument in (0, 1):
        expected, actual = (
            jax.grad(total(method), argument)(jnp.array(0.9), inputs["a"]) for method in ("sequential", "newton")
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.sweep
@pytest.mark.parametrize("length", [1, 2, 40])
def test_a_chaotic_net_takes_at_most_t_iterations(length):
    cell, *data = tanh_net(20, 3.0, length)
    found = newton(cell, *data)
    assert bool(found.converged)
    assert int(found.iterations) <= length
    if length == 40:
        assert int(found.iterations) > 20
        np.testing.assert_allclose(found.states, trajectories.unroll(cell, *data).states, atol=1e-9)


def test_what_is_not_settled_is_nan_and_so_is_its_gradient():
    cell, params, inputs = tanh_net(20, 3.0, 40)
    with pytest.warns(RuntimeWarning, match=r"^states: Newton's method did not converge in 5 iterations .* t = \d+ on"):
        found = newton(cell, params, inputs, max_iterations=5)
    assert not bool(found.converged)
    assert int(found.iterations) == 5
    assert float(found.residual) > 1e-3
    known = np.isfinite(np.asarray(found.states)).all(axis=1)
    count = int(known.argmin())
    assert 5 <= count < 40
    assert not np.isfinite(np.asarray(found.states[count:])).any(), "no state after the first one in doubt"
    expected = trajectories.unroll(cell, params, inputs).states
    np.testing.assert_allclose(found.states[:count], expected[:count], atol=1e-10)

    early = jax.grad(
        lambda p: jnp.sum(trajectories.unroll(cell, p, inputs, method="newton", max_iterations=5).states[0])
    )
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(jax.jit(early)(params)))


@pytest.mark.parametrize("power", [1, 3])
def test_overflow_on_the_way_ends_well_or_is_told(power):
    """h' = −c h^p + x is finite only up to some step; a linear one is found at once, as far as floats reach."""
    cell = cells.from_step(lambda p, s, x: -p * s**power + x, lambda p: jnp.ones(1))
    inputs = jnp.linspace(1.0, 2.0, 30)[:, None]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = newton(cell, jnp.array(1e30 if power == 1 else 3.0), inputs)
    states = [jnp.ones(1)]
    for x in inputs:
        states.append(cell.step(jnp.array(1e30 if power == 1 else 3.0), states[-1], x))
    right = np.asarray(states[1:])[:, 0]
    given = np.asarray(found.states)[:, 0]
    known = np.isfinite(given)
    assert known.sum() >= 4
    assert not known.all()
    assert not bool(found.converged)
    np.testing.assert_allclose(given[known], right[known], rtol=1e-10)


def test_a_last_step_that_reads_no_state_does_not_settle_those_before():
    cell = cells.from_step(lambda p, s, x: jnp.sin(p * s) * x, lambda p: 0.3 * jnp.ones(1))
    inputs = jnp.ones((20, 1)).at[-1].set(0)
    found = jax.jit(lambda p: newton(cell, p, inputs, max_iterations=3))(jnp.array(9.0))
    assert not bool(found.converged)
    assert np.isnan(found.states[-1]).all()


def test_products_that_overflow_do_not_stop_it():
    """J_t is of the order of 50,000: in float32 a product of nine of them is infinite."""
    cell = cells.from_step(lambda p, s, x: jnp.sin(p * s + x), lambda p: jnp.full(1, 0.3, p.dtype))
    inputs = jnp.linspace(0, 1, 90, dtype=jnp.float32)[:, None]
    found = newton(cell, jnp.array(5e4, jnp.float32), inputs)
    assert bool(found.converged)
    assert float(found.residual) < 1e-5


def test_it_maps_over_sequences_and_keeps_the_dtype():
    cell, params, inputs = tanh_net(5, 0.9, 9)
    found = jax.jit(jax.vmap(lambda x: newton(cell, params, x)))(jnp.stack((inputs, 2 * inputs)))
    np.testing.assert_allclose(found.states[1], trajectories.unroll(cell, params, 2 * inputs).states, atol=1e-13)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, inputs))
    found = newton(cell, *single)
    assert bool(found.converged)
    assert {leaf.dtype for leaf in (found.states, found.residual)} == {jnp.dtype(jnp.float32)}


def test_its_second_derivative_is_exact():
    cell, params, inputs = tanh_net(3, 0.9, 4)

    def slope(method):
        def total(h):
            return jnp.sum(trajectories.unroll(cell, params, inputs, initial=h, method=method).states ** 2)

        return jax.grad(lambda h: jnp.sum(jax.grad(total)(h) ** 2))

    h_0 = jnp.array([0.1, -0.4, 0.7])
    np.testing.assert_allclose(jax.jit(slope("newton"))(h_0), jax.jit(slope("sequential"))(h_0), rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "quasi"}, ValueError, "method: got 'quasi', expected one of 'sequential', 'parallel', 'newton'"),
        ({"max_iterations": 3}, ValueError, "max_iterations: got 3 for method 'sequential'"),
        ({"method": "newton", "max_iterations": 0}, ValueError, "max_iterations: got 0, expected at least 1"),
        ({"method": "newton", "max_iterations": 2.5}, TypeError, "max_iterations: got float, expected an int"),
    ],
)
def test_bad_options_get_one_line(options, error, message):
    cell, params, inputs = tanh_net(3, 0.9, 4)
    with pytest.raises(error, match=message):
        trajectories.unroll(cell, params, inputs, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gain", "published"), [(0.5, (4, 4, 4)), (0.9, (6, 6, 6)), (1.1, (7, 11)), (1.5, (8, 28)), (2.0, (9, 57))]
)
def test_iterations_are_the_published_ones(gain, published):
    """tanh, N = 100, no input, h_0 normal; one more in six or a quarter more is another net or tolerance."""
    cell = cells.elman(0, 100, recurrent=cells.gaussian(gain))
    params, h_0 = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (100,))
    for length, expected in zip((10, 100, 1000), published, strict=False):
        inputs = jnp.zeros((length, 0))
        found = jax.jit(lambda params, x: newton(cell, params, x, h_0))(params, inputs)
        assert bool(found.converged)
        assert abs(int(found.iterations) - expected) <= max(1, expected // 4)


def test_gradients_of_a_loss_through_newton_are_those_of_bptt():
    model = models.sequence_model(cells.gru(2, 3), 4)
    params, inputs, targets, initial = cases.instance(model, KEY, length=9)

    def loss(params):
        steps = newton(model, params, inputs, initial)
        return jnp.sum(models.step_losses(model, params, steps.states, targets))

    expected = gradients.bptt(model, params, inputs, targets, initial=initial)[1]
    assert comparison.compare(expected, jax.jit(jax.grad(loss))(params)).relative < 1e-10
