"""Chains of Jacobians, and compiled calls on them, that the tests of spectra share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import spectra

OPTIONS = ("every", "start", "stop", "method")
log_singular_values = jax.jit(spectra.log_singular_values, static_argnames=OPTIONS)
singular_decomposition = jax.jit(spectra.singular_decomposition, static_argnames=OPTIONS)
exponents = jax.jit(spectra.lyapunov_exponents, static_argnames=("k", "warm_up", "interval", "blocks"))
METHODS = ("sequential", "parallel")
INF = np.inf
A = np.array([[0.0, 2.0], [0.0, 0.0]])
SHIFT = np.eye(4, k=-1)


def last(chain, **options):
    return np.asarray(log_singular_values(jnp.asarray(chain), **options))[-1]


def tanh_chain(rng, size, length, gain):
    """diag(φ'(a_t)) W of a driven tanh net: saturated units make badly scaled rows."""
    weights = rng.standard_normal((size, size)) * gain / size**0.5
    h, chain = rng.standard_normal(size), []
    for _ in range(length):
        h = np.tanh(weights @ h + 0.5 * rng.standard_normal(size))
        chain.append((1 - h**2)[:, None] * weights)
    return np.array(chain)


def gaussian_chain(size, length, gain, seed=0):
    return np.random.default_rng(seed).standard_normal((length, size, size)) * gain / size**0.5


def turning(logs, seed=0):
    """O_t diag(e^logs_t) O_{t−1}ᵀ, the O_t random orthogonal: a product with the diagonals' own singular values."""
    rng, size = np.random.default_rng(seed), np.shape(logs)[1]
    frames = [np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(len(logs) + 1)]
    return np.array([frames[t + 1] @ np.diag(np.exp(log)) @ frames[t].T for t, log in enumerate(logs)])


def driven(rng, size, length, gain):
    chain = tanh_chain(rng, size, length, gain)
    half = tanh_chain(rng, size // 2, length, gain)
    return {
        "rows": chain,
        "columns": chain.swapaxes(1, 2)[::-1],
        "duplicates": np.array([np.kron(np.eye(2), jacobian) for jacobian in half]),
        "growing": rng.standard_normal((length, size, size)) * 300.0,
        "shrinking": rng.standard_normal((length, size, size)) * 1e-3,
        "repeated": np.broadcast_to(rng.standard_normal((size, size)) * gain / 2, (length, size, size)),
    }


def growth_by_qr(chain, k):
    """[T, k] of ln|r_ii|: QR at every step, in NumPy, without a permutation anywhere."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal(chain[0].shape))[0][:, :k]
    logs = []
    for jacobian in chain:
        q, r = np.linalg.qr(jacobian @ q)
        logs.append(np.log(np.abs(np.diag(r))))
    return np.array(logs)


CHAINS = driven(np.random.default_rng(7), 4, 300, 5.0)
TANH = {gain: tanh_chain(np.random.default_rng(1), 6, 600, gain) for gain in (0.5, 1.0, 1.5, 4.0)}

# One direction gains nats on another, which then gains as many, fewer or more: (gained, lost).
REVERSALS = np.array([(8, 8), (14, 14), (20, 20), (40, 15), (40, 22), (60, 32), (10, 30)])
REVERSED = np.array([turning([[up / 4, 0, 0]] * 4 + [[0, down / 4, 0]] * 4) for up, down in REVERSALS])


def grown_rounding(gained, lost):
    """ln of the error that eps becomes: δ max(δ, e^−d), δ = eps e^D, D nats regained, d still missing; at least eps."""
    log_eps, regained = np.log(np.finfo(float).eps), np.minimum(gained, lost)
    return np.maximum(log_eps, regained + log_eps + np.maximum(regained + log_eps, regained - gained))


GROWN = grown_rounding(*REVERSALS.T)
