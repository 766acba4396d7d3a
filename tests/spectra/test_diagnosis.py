"""What happened to the gradient, in sentences that the numbers bear out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.spectra.chains import INF, A
from tests.spectra.nets import bounds, driven, repeated, require_order, with_radius

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
    found = bounds(jnp.asarray(np.array([A, A.T] * 6)))
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
    drawn = np.random.default_rng(0).standard_normal((20, 20))
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


def test_a_diagnosis_is_eager():
    with pytest.raises(TypeError, match="bounds: got traced arrays"):
        jax.jit(lambda found: len(found.diagnosis()))(bounds(driven("tanh", with_radius(1.5))))
