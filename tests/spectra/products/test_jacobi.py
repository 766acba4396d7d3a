"""One-sided Jacobi in logs, by itself: close values, values far apart, and rows that are zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt.spectra.products import jacobi
from tests.mutation import mutate

SIZE = 16


def close_values():
    """T whose singular values lie within half a nat: the hardest to tell apart, five sweeps."""
    rng = np.random.default_rng(SIZE)
    u, v = (np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0] for _ in range(2))
    return np.zeros(SIZE), u @ np.diag(np.linspace(1, 1.5, SIZE)) @ v


def graded_rows():
    """diag(e^ℓ) T over e^40, T far from triangular."""
    rng = np.random.default_rng(1)
    return np.linspace(0, -40, SIZE), np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0] + 0.3 * np.eye(SIZE)


def errors(module, log_scale, t):
    """Of ln σ against LAPACK's (relative to σ_1), and of U diag(σ) Vᵀ and of the orthogonality."""
    left, log_sigma, right = jax.jit(module.graded_svd)(jnp.asarray(log_scale), jnp.asarray(t))
    matrix, sigma = np.diag(np.exp(log_scale)) @ t, np.exp(log_sigma)
    expected = np.linalg.svd(matrix, compute_uv=False)
    return max(
        np.abs(sigma - expected).max(),
        np.abs(left @ np.diag(sigma) @ np.asarray(right).T - matrix).max(),
        *(np.abs(basis.T @ basis - np.eye(SIZE)).max() for basis in (left, right)),
    )


@pytest.mark.parametrize("make", [close_values, graded_rows])
def test_against_lapack(make):
    assert errors(jacobi, *make()) < 1e-13


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("MAX_SWEEPS = 30", "MAX_SWEEPS = 0"),
        ("MAX_SWEEPS = 30", "MAX_SWEEPS = 3"),
        ("y - tau[:, None] * x", "y - tangent[:, None] * x"),
        ("(u + t * v) / shrink", "(u - t * v) / shrink"),
    ],
)
def test_a_broken_line_is_seen(old, new):
    mutant = mutate(jacobi, old, new)
    assert max(errors(mutant, *close_values()), errors(mutant, *graded_rows())) > 1e-9
