"""QR along a chain, at intervals that the chain sets: a broken line changes exponents or their measured error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import spectra
from tests.mutation import mutate_package
from tests.spectra.chains import TANH, exponents


def chains():
    """[chains, T, N, N]: badly scaled columns now and then; a step that is nearly singular now and then."""
    graded_steps = TANH[1.0].copy()
    graded_steps[::5] *= np.array([1, 1e-5, 1, 1e3, 1, 1])
    sudden = 0.1 * np.random.default_rng(0).standard_normal((600, 6, 6)) + np.eye(6)
    sudden[50::90] -= np.linalg.eigvals(sudden[50::90]).real.min(axis=1)[:, None, None] * (1 - 1e-10) * np.eye(6)
    return jnp.asarray(np.array([graded_steps, sudden]))


def found_by(module):
    return jax.jit(lambda chains: jax.lax.map(lambda c: module.lyapunov_exponents(c, warm_up=0), chains))(chains())


@pytest.fixture(scope="module")
def right():
    return found_by(spectra)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("one.log_pending + log_pivots, rounding", "log_growth + log_pivots, rounding"),
        ("block.log_pending + log_pivots", "log_pivots"),
        ("columns[:, None] * m", "m"),
        ("reach / d, log_pending + log_pivots", "reach / d, log_pending"),
        ("difference = jnp.where(checked, difference, 0)", "difference = 0 * jnp.where(checked, difference, 0)"),
        ("wide = (spread > LIMIT * _digits(chain))", "wide = (spread < 0)"),
        ("jax.lax.fori_loop(0, block.steps, body", "jax.lax.fori_loop(1, block.steps, body"),
    ],
)
def test_a_broken_line_is_seen(old, new, right):
    wrong = found_by(mutate_package(spectra, old, new))
    same = np.allclose(right.exponents, wrong.exponents, atol=1e-9)
    assert not (same and np.allclose(right.interval_error, wrong.interval_error, atol=0))


@pytest.mark.parametrize("stretch", [1e2, 1e5])
def test_steps_that_undo_each_other_hide_nothing(stretch):
    """BA = I: ln r_ii of a block of two is zero, whatever its rounding."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    step = u @ np.diag([stretch, 1, 1 / stretch]) @ v
    chain = np.array([step, v.T @ np.diag([1 / stretch, 1, stretch]) @ u.T, 0.5 * np.eye(3)] * 100)
    result = exponents(chain, warm_up=0)
    np.testing.assert_allclose(result.exponents, np.log(0.5) / 3, atol=2e-3)
