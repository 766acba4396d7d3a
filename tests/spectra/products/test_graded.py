"""The product in factors: a broken line changes singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt.spectra.products import graded
from jaxbptt.spectra.products.jacobi import graded_svd
from tests.mutation import mutate
from tests.spectra.chains import CHAINS, GROWN, REVERSED, SHIFT, A


def chains():
    """[chains, T, N, N]: what each line is there for."""
    rng = np.random.default_rng(3)
    zero_column, dense = rng.standard_normal((2, 24, 4, 4))
    zero_column[2, :, 1] = 0
    dense[1:] = np.eye(4)
    alternating = np.array([np.kron(A, np.eye(2)), np.kron(A.T, np.eye(2))] * 12)
    shifts = np.array([SHIFT] * 3 + [np.eye(4)] * 21)
    return jnp.asarray(np.array([dense, CHAINS["rows"][:24], alternating, shifts, zero_column]))


def factors_of(module, chain):
    multiply = lambda factors, jacobian: (module.multiply(jacobian, factors), None)
    return jax.lax.scan(multiply, module.identity(chain.shape[1], chain.dtype), chain)[0]


def values_of(module):
    """ln σ of all the chains, by one program."""

    def finished(chain):
        factors = factors_of(module, chain)
        return graded_svd(factors.log_scale + factors.log_carry, factors.t, directions=False)[1]

    return np.asarray(jax.jit(lambda chains: jax.lax.map(finished, chains))(chains()))


@pytest.fixture(scope="module")
def right():
    return values_of(graded)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ways = lambda q: jacobian @ q", "ways = lambda q: jacobian.T @ q"),
        ("b @ t, log_lead", "t, log_lead"),
        ("add_compensated(log_scale, log_carry, log_pivots)", "(log_scale, log_carry)"),
        ("return q[jnp.sort(order * len(rows) + index, stable=False) % len(rows)], r, order", "return q, r, order"),
        ("m = jnp.where(factors.log_scale == -jnp.inf, 0, m)[:, order]", "m = m[:, order]"),
        ("factors.t[order]", "factors.t"),
        ("jnp.where(pivots < 0, -1, 1)", "jnp.where(pivots < 0, 1, 1)"),
        ("return jnp.min(columns) * GRADED_COLUMNS < jnp.max(columns)", "return jnp.max(columns) < 0"),
    ],
)
def test_a_broken_line_is_seen(old, new, right):
    wrong = values_of(mutate(graded, old, new))
    assert not (np.array_equal(np.isfinite(right), np.isfinite(wrong)) and np.allclose(right, wrong, atol=1e-6))


def rounding_of(module):
    return np.asarray(jax.jit(jax.vmap(lambda chain: factors_of(module, chain).log_error.max()))(REVERSED))


def test_how_far_rounding_may_have_grown():
    np.testing.assert_allclose(rounding_of(graded), GROWN, rtol=0, atol=1e-3)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("alive, behind - log_lead", "alive, -log_lead"),
        ("jnp.maximum(log_mixed, behind)", "log_mixed"),
        ("jnp.maximum(log_mixed, behind)", "behind"),
        ("log_lead = jnp.minimum(log_lead, behind)", "log_lead = behind"),
        ("log_error = jnp.maximum(log_error, factors.log_error)", "log_error = factors.log_error"),
        ("factors.log_lead[order][:, order]", "factors.log_lead"),
    ],
)
def test_a_broken_estimate_of_rounding_is_seen(old, new):
    assert np.abs(rounding_of(mutate(graded, old, new)) - GROWN).max() > 3
