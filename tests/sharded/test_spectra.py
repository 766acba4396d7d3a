"""Singular values and exponents over devices against those of one device, at their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, sharded, spectra
from tests.mutation import mutate_package
from tests.sharded.devices import collectives, compiled, mesh_of

SIZE, LENGTH = 4, 48
METHODS = "sequential", "parallel"


def chain_of(gain, length=LENGTH, size=SIZE, dtype=jnp.float64):
    return jnp.asarray(gain / size**0.5, dtype) * jax.random.normal(jax.random.key(3), (length, size, size), dtype)


def graded_chain():
    """Directions that differ by e^100 within a span, which no product in floats holds."""
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (LENGTH, SIZE, SIZE)))[0]
    return turn @ jnp.diag(jnp.exp(jnp.array([12.0, 3.0, -4.0, -15.0])))


@pytest.mark.sweep
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("gain", "devices", "every"), [(0.5, 8, None), (1.0, 4, 6), (1.5, 4, 7), (1.5, 2, 48), (1.0, 8, 20)]
)
def test_singular_values_are_those_of_one_device(gain, devices, every, method):
    chain = chain_of(gain)
    expected = spectra.log_singular_values(chain, every=every, errors=True)
    find = jax.jit(lambda chain: sharded.log_singular_values(chain, mesh=mesh_of(devices), every=every, method=method))
    off = np.abs(find(chain) - expected.log_sigma)
    assert off.max() < 1e-12 if method == "parallel" else off.max() == 0
    assert (off <= 3 * expected.error).all()


def test_values_that_no_float_holds_are_joined():
    chain = graded_chain()
    expected = spectra.log_singular_values(chain, errors=True)
    actual = sharded.log_singular_values(chain, mesh=mesh_of(4))
    assert np.abs(expected.log_sigma).max() > 300
    assert (np.abs(actual - expected.log_sigma) <= 3 * expected.error).all()


def undone_chain():
    """Expands in one direction and then undoes it: rounding makes the values."""
    grows = jnp.diag(jnp.array([8.0, 0.125]))
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (2, 2)))[0]
    there, back = turn @ grows @ turn.T, turn @ jnp.linalg.inv(grows) @ turn.T
    return jnp.concatenate((jnp.tile(there, (24, 1, 1)), jnp.tile(back, (24, 1, 1))))


HARD = {
    "shrinks": lambda: chain_of(0.5),
    "grows": lambda: chain_of(1.5),
    "grows, float32": lambda: chain_of(1.5, dtype=jnp.float32),  # corrected to first order
    "undone": undone_chain,
    "far apart": graded_chain,  # in which directions change places
    "period of three": lambda: jnp.tile(chain_of(1.0)[:3], (16, 1, 1)),  # rounded alike
    "columns far apart": lambda: chain_of(1.0) @ jnp.diag(jnp.array([1.0, 1e-5, 1e3, 0.1])),  # two QR steps each
    "a step of rank three": lambda: chain_of(1.0).at[20, :, 1].set(0.0),
}


def values_and_errors(package, chain, every):
    find = lambda chain: package.log_singular_values(chain, mesh=mesh_of(4), every=every, errors=True)
    return jax.jit(find)(chain)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("every", [None, 7, 24])
@pytest.mark.parametrize("name", HARD)
def test_errors_are_those_of_one_device(name, every):
    chain = HARD[name]()
    expected = jax.jit(lambda chain: spectra.log_singular_values(chain, every=every, errors=True))(chain)
    actual = values_and_errors(sharded, chain, every)
    eps = jnp.finfo(chain.dtype).eps
    for field in ("log_sigma", "rest"):
        np.testing.assert_allclose(getattr(actual, field), getattr(expected, field), rtol=4 * eps, atol=4 * eps)
    np.testing.assert_allclose(actual.error, expected.error, rtol=1e-4)
    np.testing.assert_array_equal(actual.resolved, expected.resolved)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("grows", "jax.lax.cond(axis.index() == 0, pass_back, lambda same: same, state)", "state"),
        ("grows", "stop_here = jnp.clip(stop - offset, 0, steps)", "stop_here = jnp.asarray(steps)"),
        ("period of three", "jax.lax.all_gather(_marks(chain), axis.name, tiled=True)", "jnp.arange(9)[:, None]"),
        ("grows", "relay(pass_back, begun.directions, axis, reverse=True)", "begun.directions"),
    ],
)
def test_a_broken_pass_back_is_seen(name, old, new):
    chain = HARD[name]()
    expected = spectra.log_singular_values(chain, every=24, errors=True)
    actual = values_and_errors(mutate_package(sharded, old, new), chain, 24)
    assert np.abs(actual.error / expected.error - 1).max() > 0.01


def test_a_value_that_rounding_may_have_made_is_nan_with_a_warning():
    chain = undone_chain()
    with pytest.warns(RuntimeWarning, match="2 of 2 values at t = 48 are NaN"):
        found = sharded.log_singular_values(chain, mesh=mesh_of(4))
    assert np.isnan(found).all()


@pytest.mark.sweep
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("gain", "devices", "k", "warm_up"), [(0.5, 8, None, 0), (1.0, 4, 2, 13), (1.5, 4, None, 30)])
def test_exponents_are_those_of_one_device(gain, devices, k, warm_up, method):
    chain, options = chain_of(gain), {"k": k, "warm_up": warm_up, "blocks": 5}
    expected = spectra.lyapunov_exponents(chain, interval=1, **options)
    find = jax.jit(lambda chain: sharded.lyapunov_exponents(chain, mesh=mesh_of(devices), method=method, **options))
    actual = find(chain)
    # With k < N the direction beside them enters the error of the warm-up, and is another after a join.
    whole = k is None or method == "sequential"
    for field in ("exponents", "standard_error", "local", "correlation_time", *(("warm_up_error",) if whole else ())):
        np.testing.assert_allclose(getattr(actual, field), getattr(expected, field), rtol=1e-11, atol=1e-12)
    assert (actual.rounding_error >= 0.99 * expected.rounding_error).all()
    assert (actual.rounding_error < 1e-12).all()


@pytest.mark.slow
def test_exponents_far_apart_are_joined():
    chain = graded_chain()
    expected = spectra.lyapunov_exponents(chain, interval=1)
    actual = sharded.lyapunov_exponents(chain, mesh=mesh_of(4), method="parallel")
    np.testing.assert_allclose(actual.exponents, expected.exponents, atol=1e-12)


LOST = {  # the chain loses two directions exactly, all of them, or by a step of small rank
    "two rows of a step": lambda chain: chain.at[5, 1:].set(0.0),
    "a step": lambda chain: chain.at[5].set(0.0),
    "rows of all steps": lambda chain: chain.at[:, 1:].set(0.0),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", LOST)
def test_directions_that_are_lost_leave_the_others(name):
    chain = LOST[name](chain_of(1.0))
    expected = spectra.lyapunov_exponents(chain, interval=1).exponents
    actual = sharded.lyapunov_exponents(chain, mesh=mesh_of(4), method="parallel").exponents
    np.testing.assert_allclose(actual, expected, rtol=1e-10)
    values = sharded.log_singular_values(chain, mesh=mesh_of(4))
    np.testing.assert_allclose(values, spectra.log_singular_values(chain), rtol=1e-10)


@pytest.mark.slow
def test_where_a_join_is_uncertain_the_factors_are_relayed():
    """Steps of rank one: rounding makes the rest, but not the first value."""
    left, right = jax.random.normal(jax.random.key(7), (2, 12, 3))
    chain = jnp.einsum("ti,tj->tij", left, right)
    find = lambda method: sharded.log_singular_values(chain, mesh=mesh_of(3), method=method)
    with pytest.warns(RuntimeWarning, match="2 of 3 values"):
        found = find("auto")
    with pytest.warns(RuntimeWarning, match="3 of 3 values"):
        find("parallel")
    with pytest.warns(RuntimeWarning, match="2 of 3 values"):
        expected = spectra.log_singular_values(chain)
    np.testing.assert_allclose(found[0, 0], expected[0, 0], rtol=1e-12)


@pytest.mark.sweep
@pytest.mark.parametrize("method", METHODS)
def test_a_stream_is_the_chain_of_its_own_states(method):
    cell = cells.gru(0, 3, recurrent=cells.gaussian(4.0))
    params, initial, inputs = cell.init(jax.random.key(0)), jnp.array([0.5, -0.2, 0.1]), jnp.zeros((LENGTH, 0))
    expected = spectra.stream_exponents(cell, params, inputs, initial=initial, interval=1)
    find = lambda *at: sharded.stream_exponents(cell, *at, initial=initial, mesh=mesh_of(4), method=method)
    actual = jax.jit(find)(params, inputs)
    np.testing.assert_allclose(actual.exponents, expected.exponents, atol=1e-12)


@pytest.mark.slow
def test_float32_keeps_its_digits():
    chain = chain_of(1.0, dtype=jnp.float32)
    expected = spectra.log_singular_values(chain.astype(jnp.float64))
    actual = sharded.log_singular_values(chain, mesh=mesh_of(4))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_the_program_sends_what_the_docstring_says():
    """Factors have seven leaves; log₂ 8 + 1 hops of each, one gathering of the values."""
    chain = chain_of(1.0)
    find = lambda chain: sharded.log_singular_values(chain, mesh=mesh_of(8), method="parallel")
    parallel = collectives(compiled(find, chain))
    assert 4 <= parallel["collective-permute"] <= 7 * 4
    assert parallel["all-gather"] <= 1
    relayed = lambda chain: sharded.log_singular_values(chain, mesh=mesh_of(8), method="sequential")
    assert collectives(compiled(relayed, chain))["collective-permute"] <= 7  # in one loop over the devices
    certified = lambda chain: sharded.log_singular_values(chain, mesh=mesh_of(8), errors=True)
    found = collectives(compiled(certified, chain))
    assert found["collective-permute"] <= 7 + 12  # forwards, and the twelve parts of the directions back
    assert found["all-gather"] == 1


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("join(a, b, first.q), last, axis)\n    join_one", "join(b, a, first.q), last, axis)\n    join_one"),
        ("join(before, one, first.q)", "join(one, before, first.q)"),
        ("return fields[devices, :, slot], finite", "return fields[devices * 0, :, slot], finite"),
    ],
)
def test_a_broken_join_is_seen(old, new):
    chain = chain_of(1.0)
    expected = spectra.log_singular_values(chain)
    broken = mutate_package(sharded, old, new)
    actual = jax.jit(lambda chain: broken.log_singular_values(chain, mesh=mesh_of(4)))(chain)
    assert not np.abs(actual - expected).max() < 1e-6


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_frame_after(select(started, before, first), first.q.T @ q_0)", "q_0"),
        ("jax.lax.psum((total + rest, series[:-1]), axis.name)", "total + rest, series[:-1]"),
        ("times = axis.index() * count + jnp.arange(count)", "times = jnp.arange(count)"),
    ],
)
def test_a_broken_frame_is_seen(old, new):
    chain = chain_of(1.0)
    expected = spectra.lyapunov_exponents(chain, interval=1)
    broken = mutate_package(sharded, old, new)
    actual = jax.jit(lambda chain: broken.lyapunov_exponents(chain, mesh=mesh_of(4), method="parallel"))(chain)
    off = np.abs(actual.exponents - expected.exponents).max(), np.abs(actual.local - expected.local).max()
    assert not max(off) < 1e-6
