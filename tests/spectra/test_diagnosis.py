"""What happened to the gradient, in sentences that the numbers bear out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt.spectra import Bounds, diagnosis
from tests.mutation import mutate
from tests.spectra.chains import INF, A
from tests.spectra.nets import bounds, driven, repeated, require_order, with_radius

NILPOTENT = 2 * np.array([[1.0, -1], [1, -1]])


def test_x1_a_nilpotent_weight_whose_gradient_grows():
    chain = driven("tanh", NILPOTENT, 12, np.array([-2.0, -8]), [0.0, -1], drive=0)
    found = bounds(chain, weight=jnp.asarray(NILPOTENT))
    np.testing.assert_allclose(np.exp(found.log_norm[-1]), 5772, atol=0.5)
    assert found.log_gamma_radius < -30
    np.testing.assert_allclose(found.log_gamma_sigma, np.log(4), atol=1e-14)
    require_order(found, 12, singular=True)  # J_t has rank 1: its zero is not an entry, and comes out as rounding
    words = " ".join(found.diagnosis())
    assert "The condition of dh_T/dh_0 is not known: its smallest singular value is lost in rounding" in words
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


@pytest.mark.sweep
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
    assert "over the second half it shrank, -0.693 nats a step" in words
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


def planted(log_norm, log_sigma=np.nan, log_radius=np.nan, dtype=np.float64):
    """Sentences about norms as given, all steps being equally long."""
    log_norm = np.asarray(log_norm, dtype)
    steps = np.where(np.isfinite(log_norm), log_norm, -700)
    one = [np.asarray(number, dtype) for number in (steps[-1], 0.0, log_sigma, log_radius)]
    return Bounds(log_norm, *one[:2], steps, steps, *one[2:]).diagnosis()


@pytest.mark.parametrize(
    ("log_norm", "verdict", "course"),
    [
        (np.linspace(0, -60, 100), "vanished", "it shrank, -0.606"),
        (np.r_[np.linspace(0, -60, 50), np.full(50, -60.0)], "vanished", "it held, +0 nats"),  # 10^-26.1, and stays
        (np.r_[np.linspace(0, -60, 50), np.linspace(-60, -50, 50)], "vanished", "it grew, +0.2 nats"),
        (np.r_[np.linspace(0, 60, 50), np.full(50, 60.0)], "exploded", "it held"),
        (np.r_[np.linspace(0, 60, 50), np.linspace(60, 50, 50)], "exploded", "it shrank"),
        (np.r_[np.linspace(0, 60, 50), np.linspace(60, 0, 50)], "neither vanished nor exploded", "it shrank"),
        (np.full(100, 0.999), "neither vanished nor exploded", "it held"),
        (np.full(100, 1.001), "exploded", "it held"),
        (np.full(100, -0.999), "neither vanished nor exploded", "it held"),
        (np.full(100, -1.001), "vanished", "it held"),
        (np.r_[np.zeros(50), np.full(50, -0.999)], "neither vanished nor exploded", "it held"),
        (np.r_[np.zeros(50), np.full(50, -1.001)], "vanished", "it shrank"),
        ([-1.001], "vanished", "it shrank"),
    ],
)
def test_the_verdict_is_that_of_the_whole_span(log_norm, verdict, course):
    first = planted(log_norm)[0]
    assert first.startswith(f"The gradient {verdict}: ‖dh_T/dh_0‖ = ")
    assert f"over the second half {course}" in first


@pytest.mark.parametrize(
    ("log_norm", "words"),
    [
        ([0.5, 1.1, 0.0], "Transient growth: ‖dh_t/dh_0‖ reached 3.004 at t = 2, 1.1 nats above its end"),
        ([0.5, 0.9, 0.0], None),
        ([0.5, 3.1, 2.0], "Transient growth"),
        ([0.5, 2.9, 2.0], None),
        ([-0.5, -1.1, 0.0], "Transient decay: ‖dh_t/dh_0‖ fell to 0.3329 at t = 2, 1.1 nats below its end"),
        ([-0.5, -0.9, 0.0], None),
        ([-0.5, -3.1, -2.0], "Transient decay"),
        ([-0.5, -2.9, -2.0], None),
        ([2.0, -INF, -INF], "Transient growth: ‖dh_t/dh_0‖ reached 7.389 at t = 1."),
    ],
)
def test_what_was_on_the_way_is_told_only_where_it_stands_out(log_norm, words):
    found = " ".join(planted(log_norm))
    assert ("Transient" in found) == (words is not None)
    assert words is None or words in found


@pytest.mark.parametrize(
    ("dtype", "log_sigma", "log_radius", "there", "absent"),
    [
        (np.float64, 1e-16, 1e-16, "γ·σ_max(W) = 1: no norm exceeds 1", "1 > 1"),  # rounding of an orthogonal W
        (np.float64, -1e-16, -1e-16, "γ·σ_max(W) = 1: no norm exceeds 1", "sufficient"),
        (np.float32, 5e-7, 5e-7, "γ·σ_max(W) = 1: no norm exceeds 1", "necessary"),
        (np.float64, 1e-6, 1e-6, "γ·σ_max(W) = 1+1e-06 > 1, necessary", "no norm exceeds"),
        (np.float64, -1e-6, -1e-6, "γ·σ_max(W) = 1-1e-06 < 1, sufficient", "no norm exceeds"),
        (np.float64, 0.1, 0.05, "γ·ρ(W) = 1.051 > 1 is no bound from below", "1 < 1"),
        (np.float64, 0.1, 1e-12, "γ·ρ(W) = 1 is no bound, whatever", "from below"),
    ],
)
def test_rounding_does_not_decide_what_the_weight_allows(dtype, log_sigma, log_radius, there, absent):
    words = " ".join(planted(np.linspace(-0.1, -3, 30), log_sigma, log_radius, dtype))
    assert there in words
    assert absent not in words


def test_a_norm_of_one_exceeds_nothing():
    assert "exceeds 1" not in " ".join(planted(np.full(30, 1e-15), 0.5, -0.5))
    assert "exceeds 1" in " ".join(planted(np.full(30, 1e-3), 0.5, -0.5))


@pytest.mark.parametrize(
    ("old", "new", "log_norm"),
    [
        ("if abs(end) <= HELD else", "if abs(change) <= HELD else", np.r_[np.linspace(0, -60, 50), np.full(50, -60.0)]),
        ("if end < 0 else", "if change < 0 else", np.r_[np.linspace(0, 60, 50), np.linspace(60, 50, 50)]),
        (
            '"it shrank" if change < 0',
            '"it shrank" if end < 0',
            np.r_[np.linspace(0, -60, 50), np.linspace(-60, -50, 50)],
        ),
    ],
)
def test_a_false_sentence_is_caught(old, new, log_norm):
    mutant = mutate(diagnosis, old, new)
    assert mutant._what_happened(log_norm) != diagnosis._what_happened(log_norm)


def test_a_diagnosis_is_eager():
    with pytest.raises(TypeError, match="bounds: got traced arrays"):
        jax.jit(lambda found: len(found.diagnosis()))(bounds(driven("tanh", with_radius(1.5)), with_radius(1.5), 0.25))
