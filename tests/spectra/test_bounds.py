"""What step norms and W alone allow is never exceeded, and the norms are right or NaN."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import jacobians, spectra
from tests import references
from tests.mutation import mutate
from tests.spectra.chains import INF
from tests.spectra.nets import GAMMA, bounds, driven, repeated, require_order, with_radius

module = importlib.import_module("jaxbptt.spectra._bounds")  # not the function of that name


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("activation", GAMMA)
def test_no_bound_is_ever_violated_in_a_driven_net(activation, radius):
    gamma = GAMMA[activation]
    for seed in range(5):
        weight = with_radius(radius, seed=seed)
        chain = driven(activation, weight)
        found = bounds(chain, weight=weight, slope=gamma)
        require_order(found, 30)
        dense = np.eye(5)
        for t, jacobian in enumerate(np.asarray(chain)):
            dense = jacobian @ dense
            norm = np.linalg.norm(dense, 2)
            np.testing.assert_allclose(found.log_norm[t], np.log(norm) if norm else -INF, atol=1e-11)
        np.testing.assert_allclose(found.log_gamma_sigma, np.log(gamma * np.linalg.norm(weight, 2)), atol=1e-13)
        np.testing.assert_allclose(found.log_gamma_radius, np.log(gamma * radius), atol=1e-12)


@pytest.mark.sweep
@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5])
def test_random_chains_keep_the_order_and_the_truth(radius):
    rng = np.random.default_rng(8)
    chain = jnp.asarray(rng.standard_normal((30, 5, 5)) * radius / 5**0.5)
    found = bounds(chain)
    require_order(found, 30)
    for t in (1, 2, 15, 30):
        np.testing.assert_allclose(found.log_norm[t - 1], references.log_singular_values(chain[:t], 300)[0], atol=1e-12)
    truth = references.log_singular_values(chain, 300)
    np.testing.assert_allclose(found.log_smallest, truth[-1], atol=1e-10)
    np.testing.assert_allclose(found.log_condition, truth[0] - truth[-1], atol=1e-10)
    steps = np.linalg.svd(chain, compute_uv=False)
    np.testing.assert_allclose(found.log_step_norms, np.cumsum(np.log(steps[:, 0])), atol=1e-12)
    np.testing.assert_allclose(found.log_step_minima, np.cumsum(np.log(steps[:, -1])), atol=1e-9)
    assert np.isnan(found.log_gamma_sigma)
    assert np.isnan(found.log_gamma_radius)


def test_magnitudes_outside_the_float_range():
    rng = np.random.default_rng(1)
    for size in (1e100, 1e-100):
        chain = jnp.asarray(rng.standard_normal((30, 5, 5)) * size)
        found = bounds(chain, weight=chain[0])
        scaled = bounds(chain / size, weight=chain[0] / size)
        shift = np.arange(1, 31) * np.log(size)
        for name in ("log_norm", "log_step_norms", "log_step_minima"):
            np.testing.assert_allclose(getattr(found, name), getattr(scaled, name) + shift, rtol=1e-13)
        np.testing.assert_allclose(found.log_condition, scaled.log_condition, atol=1e-9)
        np.testing.assert_allclose(found.log_gamma_radius, scaled.log_gamma_radius + shift[0], rtol=1e-13)


def test_badly_scaled_steps_keep_their_smallest_value():
    """Saturated units: LAPACK's σ_min of diag(φ') W is rounding noise of σ_max."""
    weight = with_radius(1.5)
    chain = jnp.array([1.0, 1e-30, 1e-8, 1.0, 1e-20])[:, None] * weight
    found = bounds(repeated(np.eye(5), 30).at[7].set(chain))
    truth = references.log_singular_values(chain[None], 300)[-1]
    np.testing.assert_allclose(found.log_step_minima[7], truth, atol=1e-9)
    np.testing.assert_allclose(found.log_smallest, truth, atol=1e-9)
    assert abs(np.log(np.linalg.svd(chain, compute_uv=False)[-1]) - truth) > 1


def test_zero_steps_are_minus_infinity():
    chain = repeated(np.eye(5), 30).at[2].set(0)
    found = bounds(chain, weight=jnp.zeros((5, 5)), slope=0.0)
    for field in (found.log_norm, found.log_step_norms, found.log_step_minima):
        np.testing.assert_array_equal(field, [0, 0, *[-INF] * 28])
    np.testing.assert_array_equal([found.log_smallest, found.log_condition], [-INF, INF])
    np.testing.assert_array_equal([found.log_gamma_sigma, found.log_gamma_radius], [-INF, -INF])
    assert "vanished exactly: dh_t/dh_0 = 0 from t = 3 on" in bounds(chain).diagnosis()[0]


def test_float32_stays_float32_and_close():
    weight = with_radius(1.2)
    chain = driven("tanh", weight)
    small = bounds(chain.astype(jnp.float32), weight=weight.astype(jnp.float32))
    for name, field, expected in zip(small._fields, small, bounds(chain, weight=weight), strict=True):
        assert field.dtype == jnp.float32
        np.testing.assert_allclose(field, expected, rtol=2e-5, atol=1e-4, err_msg=name)
    assert "of 6.9 digits" in small.diagnosis()[-1] or "all 6.9 digits" in small.diagnosis()[-1]


def test_a_batch_is_a_vmap():
    chains = jnp.stack([driven("tanh", with_radius(1.5, seed=seed)) for seed in (1, 2)])
    found = jax.jit(jax.vmap(module.bounds))(chains)
    for i, chain in enumerate(chains):
        for field, expected in zip(found, bounds(chain), strict=True):
            np.testing.assert_allclose(field[i], expected, atol=1e-9)
    with pytest.raises(ValueError, match=r"log_norm: got shape \[2, 30\], expected \[T\]"):
        found.diagnosis()


def test_bad_numbers_under_jit_are_nan_throughout():
    weight = with_radius(1.0)
    chain = driven("tanh", weight, 30)
    for found in (
        bounds(chain.at[3, 0, 0].set(jnp.nan), weight=weight),
        bounds(chain, weight=weight.at[0, 0].set(jnp.inf)),
        bounds(chain, weight=weight, slope=jnp.nan),
    ):
        assert all(np.isnan(field).all() for field in found)
    assert "not known" in found.diagnosis()[0]


def test_a_chain_that_undoes_itself_is_not_answered_wrongly():
    step = np.random.default_rng(4).standard_normal((5, 5)) * np.array([10, 3, 1, 0.3, 0.1])
    chain = np.concatenate([np.tile(step, (15, 1, 1)), np.tile(np.linalg.inv(step), (15, 1, 1))])
    assert np.isnan(bounds(jnp.asarray(chain)).log_norm).all()


TALL = driven("tanh", with_radius(1.5))


def quick_bounds(old="", new="", off=0.0):
    """The bounds of a mutant (of the module itself by default); its other route an assembled product, quick to compile,
    that is off by `off` nats."""
    mutant = mutate(module, old, new)
    mutant.log_singular_values = lambda chain: (
        off + jnp.log(jnp.linalg.svd(jacobians.prefix_products(chain)[-1:], compute_uv=False))
    )
    return jax.jit(mutant.bounds)(TALL[:6], weight=with_radius(1.5), slope=0.9)


@pytest.fixture(scope="module")
def right():
    return quick_bounds()


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_rescale(jacobian @ product)", "_rescale(product @ jacobian)"),
        ("(log_first + log_second,", "(log_second,"),
        ("jnp.log(gamma) + _log_spectral_norm(", "_log_spectral_norm("),
        ("jnp.log(gamma) + _log_radius(", "jnp.log(gamma) + _log_spectral_norm("),
        ("log_step_norms=jnp.cumsum(largest)", "log_step_norms=largest"),
        ("log_step_minima=jnp.cumsum(smallest)", "log_step_minima=jnp.cumsum(largest)"),
        ("log_smallest=ends[-1]", "log_smallest=ends[0]"),
        ("ends[0] - ends[-1])", "ends[-1] - ends[0])"),
    ],
)
def test_a_broken_bound_is_seen(old, new, right):
    differences = [np.abs(np.subtract(a, b)).max() for a, b in zip(right, quick_bounds(old, new), strict=True)]
    assert max(differences) > 1e-2 or np.isnan(differences).any()


def test_a_norm_that_two_routes_do_not_agree_on_is_nan(right):
    near, far = quick_bounds(off=1e-9), quick_bounds(off=1e-5)
    np.testing.assert_array_equal(near.log_norm, right.log_norm)
    assert np.isnan(far.log_norm).all()
    assert all(np.isfinite(field).all() for field in far._replace(log_norm=right.log_norm))


@pytest.mark.parametrize("new", ["return 1", "return close | (log_norm > ends[-1])"])
def test_routes_that_need_not_agree_are_seen(new):
    assert np.isfinite(quick_bounds("return close | (log_norm == ends[0])", new, off=1e-5).log_norm).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"jacobians": TALL[0]}, ValueError, r"jacobians: got shape \[5, 5\], expected \[T, N, N\]"),
        ({"jacobians": TALL.astype(jnp.bfloat16)}, TypeError, "jacobians: got bfloat16"),
        ({"jacobians": TALL.at[1, 0, 0].set(jnp.inf)}, ValueError, "jacobians: got NaN or inf.*t = 2"),
        ({"weight": TALL}, ValueError, r"weight: got shape \[30, 5, 5\], expected \[5, 5\]"),
        ({"weight": TALL[0].astype(jnp.float32)}, TypeError, "weight: got float32, expected float64"),
        ({"weight": TALL[0].at[0, 0].set(jnp.nan)}, ValueError, "weight: got NaN or inf"),
        ({"slope": 1.0}, ValueError, "slope: got one without weight, expected both or neither"),
        ({"weight": TALL[0], "slope": -1.0}, ValueError, "slope: got -1.0, expected a finite scalar ≥ 0"),
        ({"weight": TALL[0], "slope": np.ones(2)}, ValueError, "slope: got .*, expected a finite scalar ≥ 0"),
    ],
)
def test_bad_input_gets_one_line(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        spectra.bounds(**({"jacobians": TALL} | arguments))
    assert "\n" not in str(caught.value)
