"""ln r_ii step by step, and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxbptt import spectra
from tests.mutation import mutate_package
from tests.spectra.chains import TANH, growth_by_qr


def test_log_growth_is_the_exponents_step_by_step():
    chain = TANH[1.0][:80]
    growth = spectra.log_growth(jnp.asarray(chain), k=2)
    np.testing.assert_allclose(growth, growth_by_qr(chain, 2), atol=1e-11)


@pytest.mark.parametrize("k", [None, 2])
def test_log_growth_has_its_derivative(k):
    chain = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3, 3)))
    check_grads(
        lambda chain: spectra.log_growth(chain, k=k), (chain,), order=1, modes=("fwd", "rev"), rtol=1e-4, atol=1e-6
    )
    total = jax.grad(lambda chain: jnp.sum(spectra.log_growth(chain)))(chain)
    np.testing.assert_allclose(total, np.linalg.inv(chain).swapaxes(1, 2), rtol=1e-9)


def test_log_growth_that_rounding_decides_is_nan():
    """Blocks that alternate, in general position: from where one has caught up, rounding turns the directions."""
    drive = np.where(np.arange(200) // 50 % 2 == 0, 1.5, -2.0)
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    chain = frame @ np.array([np.diag([np.exp(x), np.exp(-0.5 - x)]) for x in drive]) @ frame.T
    growth = jax.jit(spectra.log_growth)(jnp.asarray(chain))
    assert np.isnan(growth).all()
    assert np.isfinite(jax.jit(spectra.log_growth)(jnp.asarray(chain[:50]))).all()


def test_what_was_mixed_up_long_ago_is_not_forgotten():
    """One direction gains 80 nats on the other, which then gains 160; nothing happens for a long time after."""
    drive = np.r_[np.full(80, 0.5), np.full(80, -1.0), np.zeros(40_000)]
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    chain = frame @ (np.exp(drive[:, None] * [1, -1])[:, :, None] * np.eye(2)) @ frame.T
    assert np.isnan(jax.jit(spectra.log_growth)(chain)).all()
    forgetful = mutate_package(spectra, "jnp.maximum(rounding.worst, mixed)", "mixed").log_growth
    assert np.isfinite(jax.jit(forgetful)(chain)).all()
