"""Driven nets, and the bounds of their chains, that the tests of bounds and diagnosis share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import spectra

compiled = jax.jit(spectra.bounds)


def bounds(chain, weight=None, slope=1.0):
    """Compiled once a shape, with a weight or without."""
    return compiled(chain) if weight is None else compiled(chain, weight=weight, slope=slope)


def require_order(found, length, slack=1e-12, singular=False):
    """Every inequality the bounds promise, to rounding. Of singular steps without zeros the smallest are not known."""
    room = slack * np.arange(1, length + 1)
    assert (found.log_norm <= found.log_step_norms + room).all()
    if singular:
        assert np.isnan([found.log_smallest, found.log_condition, *found.log_step_minima]).all()
    else:
        assert (found.log_step_minima <= found.log_norm + room).all()
        assert found.log_step_minima[-1] <= found.log_smallest + 1e-9
        assert found.log_smallest <= found.log_norm[-1] + 1e-9
    if not np.isnan(found.log_gamma_sigma):
        steps = np.arange(1, length + 1)
        assert (found.log_step_norms <= steps * np.asarray(found.log_gamma_sigma) + room).all()


def with_radius(radius, size=5, seed=0):
    drawn = np.random.default_rng(seed).standard_normal((size, size))
    return jnp.asarray(drawn * radius / np.abs(np.linalg.eigvals(drawn)).max())


def repeated(matrix, length):
    return jnp.tile(jnp.asarray(matrix, float)[None], (length, 1, 1))


def logistic(a):
    h = 1 / (1 + np.exp(-a))
    return h, h * (1 - h)


PHI = {
    "tanh": lambda a: (np.tanh(a), 1 - np.tanh(a) ** 2),
    "logistic": logistic,
    "relu": lambda a: (np.maximum(a, 0), 1.0 * (a > 0)),
}
GAMMA = {"tanh": 1.0, "logistic": 0.25, "relu": 1.0}


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
