import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import jacobians
from tests import references
from tests.mutation import mutate

module = importlib.import_module("jaxbptt.spectra.bounds")
compiled = jax.jit(module.bounds)
INF = np.inf


def bounds(chain, weight=None, slope=1.0):
    """Compiled once a shape, with a weight or without."""
    return compiled(chain) if weight is None else compiled(chain, weight=weight, slope=slope)


def logistic(a):
    h = 1 / (1 + np.exp(-a))
    return h, h * (1 - h)


PHI = {
    "tanh": lambda a: (np.tanh(a), 1 - np.tanh(a) ** 2),
    "logistic": logistic,
    "relu": lambda a: (np.maximum(a, 0), 1.0 * (a > 0)),
}
GAMMA = {"tanh": 1.0, "logistic": 0.25, "relu": 1.0}


def repeated(matrix, length):
    return jnp.tile(jnp.asarray(matrix, float)[None], (length, 1, 1))


def with_radius(radius, size=5, seed=0):
    drawn = np.random.default_rng(seed).standard_normal((size, size))
    return jnp.asarray(drawn * radius / np.abs(np.linalg.eigvals(drawn)).max())


def driven(activation, weight, length=30, bias=0.0, initial=None, drive=0.5):
    """J_t = diag(φ'(a_t)) W of a driven net."""
    rng, chain = np.random.default_rng(3), []
    weight = np.asarray(weight)
    h = rng.standard_normal(len(weight)) if initial is None else np.asarray(initial, float)
    for _ in range(length):
        a = weight @ h + bias + drive * rng.standard_normal(len(weight))
        h, slope = PHI[activation](a)
        chain.append(slope[:, None] * weight)
    return jnp.asarray(np.array(chain))


def require_order(found, length, slack=1e-12):
    """Every inequality the bounds promise, to rounding."""
    room = slack * np.arange(1, length + 1)
    assert (found.log_norm <= found.log_step_norms + room).all()
    assert (found.log_step_minima <= found.log_norm + room).all()
    assert found.log_step_minima[-1] <= found.log_smallest + 1e-9
    assert found.log_smallest <= found.log_norm[-1] + 1e-9
    if not np.isnan(found.log_gamma_sigma):
        steps = np.arange(1, length + 1)
        assert (found.log_step_norms <= steps * np.asarray(found.log_gamma_sigma) + room).all()


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


NILPOTENT = 2 * np.array([[1.0, -1], [1, -1]])


def test_x1_a_nilpotent_weight_whose_gradient_grows():
    chain = driven("tanh", NILPOTENT, 12, np.array([-2.0, -8]), [0.0, -1], drive=0)
    found = bounds(chain, weight=jnp.asarray(NILPOTENT))
    np.testing.assert_allclose(np.exp(found.log_norm[-1]), 5772, atol=0.5)
    assert found.log_gamma_radius < -30
    np.testing.assert_allclose(found.log_gamma_sigma, np.log(4), atol=1e-14)
    require_order(found, 12)
    words = " ".join(found.diagnosis())
    assert "The gradient exploded: ‖dh_T/dh_0‖ = 5772 at T = 12" in words
    assert "γ·σ_max(W) = 4 > 1, necessary for exploding" in words
    assert "< 1 is no bound: ‖dh_12/dh_0‖ = 5772 exceeds 1" in words


def test_x4_eigenvalues_of_the_steps_say_nothing():
    step = np.array([[0.0, 2], [0, 0]])
    found = bounds(jnp.asarray(np.array([step, step.T] * 6)))
    np.testing.assert_allclose(found.log_norm, np.arange(1, 13) * np.log(2), atol=1e-13)
    np.testing.assert_array_equal([found.log_smallest, found.log_condition], [-INF, INF])
    np.testing.assert_array_equal(found.log_step_minima, -INF)
    words = " ".join(found.diagnosis())
    assert "exploded: ‖dh_T/dh_0‖ = 4096" in words
    assert "singular: its smallest singular value is exactly 0" in words
    assert "W" not in words


@pytest.mark.parametrize(
    ("radius", "norm", "verdict"),
    [(0.9, 0.0148, "vanished"), (1.0, 1.0, "neither vanished nor exploded"), (1.1, 45.3, "exploded")],
)
def test_symmetric_weights_keep_every_bound_tight(radius, norm, verdict):
    drawn = np.random.default_rng(0).standard_normal((100, 100))
    drawn = drawn + drawn.T
    weight = jnp.asarray(drawn * radius / np.abs(np.linalg.eigvalsh(drawn)).max())
    found = bounds(repeated(weight, 40), weight=weight)
    np.testing.assert_allclose(np.exp(found.log_norm[-1]), norm, rtol=5e-3)
    np.testing.assert_allclose(found.log_norm, np.arange(1, 41) * np.log(radius), atol=1e-11)
    np.testing.assert_allclose(found.log_gamma_radius, found.log_gamma_sigma, atol=1e-12)
    require_order(found, 40)
    words = found.diagnosis()
    assert words[0].startswith(f"The gradient {verdict}")
    assert any("assembled product has lost all 15.7 digits" in line for line in words)


def test_a_transient_is_told_from_the_end():
    weight = [[0.5, 10.0], [0.0, 0.5]]
    found = bounds(repeated(weight, 12), weight=jnp.array(weight))
    assert (found.log_norm[:4] > np.log(5)).all()
    assert found.log_norm[4] < np.log(5)
    np.testing.assert_allclose(found.log_gamma_radius, np.log(0.5), atol=1e-12)
    words = " ".join(found.diagnosis())
    assert "vanished" in words
    assert "Transient growth: ‖dh_t/dh_0‖ reached 10.02 at t = 1, " in words
    assert "γ·ρ(W) = 0.5 < 1 is no bound: ‖dh_1/dh_0‖ = 10.02 exceeds 1" in words
    assert "necessary for exploding but not sufficient: it may shrink all the same (here it shrank)" in words


def test_the_sufficient_condition_is_named_with_its_rate():
    weight = 0.5 * jnp.eye(2)
    found = bounds(repeated(weight, 12), weight=weight)
    words = " ".join(found.diagnosis())
    assert "γ·σ_max(W) = 0.5 < 1, sufficient for vanishing: every dh_t/dh_k shrinks by at least 0.693 nats" in words
    assert "-0.693 nats a step over the second half" in words
    assert "Transient" not in words
    assert "Π‖J_t‖ is 0 nats above the truth (0 a step), (γ σ_max(W))^T 0 (0 a step)" in words
    assert "lost about 0.0 of 15.7 digits" in words
    words = " ".join(bounds(repeated(jnp.eye(2), 12), weight=jnp.eye(2)).diagnosis())
    assert "neither vanished nor exploded" in words
    assert "no norm exceeds 1, so nothing can explode" in words


def test_a_slope_that_cannot_be_right_is_told():
    chain = driven("tanh", with_radius(1.5))
    words = " ".join(bounds(chain, weight=with_radius(1.5), slope=0.25).diagnosis())
    assert "bounds nothing here" in words
    assert "wrong weight or slope" in words


def test_zero_steps_are_minus_infinity():
    chain = repeated(np.eye(2), 12).at[2].set(0)
    found = bounds(chain, weight=jnp.zeros((2, 2)), slope=0.0)
    for field in (found.log_norm, found.log_step_norms, found.log_step_minima):
        np.testing.assert_array_equal(field, [0, 0, *[-INF] * 10])
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


def dense_log_singular_values(chain):
    return jnp.log(jnp.linalg.svd(jacobians.prefix_products(chain)[-1:], compute_uv=False))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_rescale(jacobian @ product)", "_rescale(product @ jacobian)"),
        ("(log_first + log_second,", "(log_second,"),
        ("jnp.log(gamma) + _log_spectral_norm(weight)", "_log_spectral_norm(weight)"),
        ("jnp.log(gamma) + _log_radius(weight)", "jnp.log(gamma) + _log_spectral_norm(weight)"),
        ("log_step_norms=jnp.cumsum(largest)", "log_step_norms=largest"),
        ("log_step_minima=jnp.cumsum(smallest)", "log_step_minima=jnp.cumsum(largest)"),
        ("log_smallest=ends[-1]", "log_smallest=ends[0]"),
        ("ends[0] - ends[-1])", "ends[-1] - ends[0])"),
    ],
)
def test_a_broken_bound_is_seen(old, new):
    def found(text):
        mutant = mutate(module, old, text)
        mutant.log_singular_values = dense_log_singular_values  # quick to compile
        return mutant.bounds(TALL[:6], weight=with_radius(1.5), slope=0.9)

    right, wrong = found(old), found(new)
    differences = [np.abs(np.subtract(a, b)).max() for a, b in zip(right, wrong, strict=True)]
    assert max(differences) > 1e-2 or np.isnan(differences).any()


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
        module.bounds(**({"jacobians": TALL} | arguments))
    assert "\n" not in str(caught.value)


def test_a_diagnosis_is_eager():
    with pytest.raises(TypeError, match="bounds: got traced arrays"):
        jax.jit(lambda found: len(found.diagnosis()))(bounds(TALL))
