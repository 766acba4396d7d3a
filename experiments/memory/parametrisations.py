"""h' = λ h + γ x as an LRU of real λ: how θ gives λ and γ, and the exact mean squares of h and dh/dθ."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells

NAMES = "γ = 1, in λ", "γ = √(1−λ²) fixed, in ν", "γ = √(1−λ²) tied, in ν"
CORRELATIONS = (0.0, 0.9)  # ρ of x
PHASE = -800.0  # theta_log of a phase e^−800 = 0


class Parametrisation(NamedTuple):
    """θ ↔ λ, one number each."""

    of_lambda: Any  # λ -> θ
    params: Any  # θ [n] -> LRUParams


def _lru_params(nu_log, gamma_log):
    zeros = jnp.zeros_like(nu_log)
    return cells.LRUParams(nu_log, zeros + PHASE, gamma_log, zeros[:, None] + 1, zeros[:, None])


def _log_gamma(nu_log):
    """½ ln(1 − λ²)."""
    return jnp.log(-jnp.expm1(-2 * jnp.exp(nu_log))) / 2


def _to_nu(decay):
    return jnp.log(-jnp.log(decay))


def _plain(decay):
    return _lru_params(_to_nu(decay), jnp.zeros_like(decay))


def _fixed(nu_log):
    return _lru_params(nu_log, jax.lax.stop_gradient(_log_gamma(nu_log)))


def _tied(nu_log):
    return _lru_params(nu_log, _log_gamma(nu_log))


PARAMETRISATIONS = dict(
    zip(
        NAMES,
        (Parametrisation(lambda decay: decay, _plain), *(Parametrisation(_to_nu, p) for p in (_fixed, _tied))),
        strict=True,
    )
)


class Exact(NamedTuple):
    """Mean squares of the stationary process, [n]."""

    state: np.ndarray  # E h², γ = 1
    sensitivities: dict[str, np.ndarray]  # E (dh/dθ)² of each parametrisation


def exact_moments(decay: np.ndarray, correlation: float) -> Exact:
    """E h² = (1 + ρλ)/((1 − ρλ)(1 − λ²)),  E (dh/dλ)² = [(1 + λ²)(1 − λ²ρ²) + 2(1 − λ²)λρ]/[(1 − λ²)³ (1 − λρ)²].

    Both at γ = 1. E h dh/dλ = ½ dE h²/dλ gives the third: dh/dν = λ ln λ (γ dh/dλ + h dγ/dλ), dγ/dλ = −λ/γ or 0.
    """
    product, one = correlation * decay, (1 - decay) * (1 + decay)
    state = (1 + product) / ((1 - product) * one)
    numerator = (1 + decay**2) * (1 - product**2) + 2 * one * product
    plain = numerator / (one**3 * (1 - product) ** 2)
    cross = state * (correlation / (1 + product) + correlation / (1 - product) + 2 * decay / one) / 2
    slope = (decay * np.log(decay)) ** 2
    fixed = slope * one * plain
    tied = fixed + slope * (decay**2 / one * state - 2 * decay * cross)
    return Exact(state, dict(zip(NAMES, (plain, fixed, tied), strict=True)))
