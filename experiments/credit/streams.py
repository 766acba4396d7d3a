"""Streams that change in the middle: one number a step is seen, one number is asked."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import systems

PERIODS = (30, 18)  # steps, of the sine before and after the shift
AHEAD = 50  # steps
RHO = (28.0, 40.0)  # of Lorenz's system
SUBSTEPS = 5  # of 0.01 between two numbers seen of it
SCALE = 20.0  # they are divided by
BURN_IN = 1000  # substeps that bring it to its attractor
SHORT, LONG = 10, 50  # delays of copying


def draw_sine(key: jax.Array, steps: int, ahead: int) -> tuple[jax.Array, jax.Array]:
    """x_t = sin φ_t, φ_t = φ_{t−1} + ω_t; y_t = sin(φ_t + ahead · ω_t): x_{t+ahead} unless ω changes in between."""
    omega = 2 * np.pi / np.repeat(PERIODS, (steps // 2, steps - steps // 2))
    start = jax.random.uniform(key, (), jnp.float32, maxval=2 * np.pi)
    phase = start + jnp.asarray(np.cumsum(omega) % (2 * np.pi), jnp.float32)
    return jnp.sin(phase)[:, None], jnp.sin(phase + jnp.asarray(ahead * omega, jnp.float32))[:, None]


def draw_lorenz(key: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """x_t and x_{t+1}; ρ changes from RHO[0] to RHO[1] in the middle."""
    cell = systems.lorenz()
    params = cell.init(key).astype(jnp.float32)

    def advance(state, rho):
        now = params.at[1].set(rho)
        state = jax.lax.fori_loop(0, SUBSTEPS, lambda i, state: cell.step(now, state, None), state)
        return state, state[0] / SCALE

    rho = np.repeat(RHO, (steps // 2, steps - steps // 2)).astype(np.float32)
    start = cell.initial_state(params) + jax.random.normal(key, (3,), jnp.float32)
    start = jax.lax.fori_loop(0, BURN_IN, lambda i, state: cell.step(params, state, None), start)
    seen = jax.lax.scan(advance, start, jnp.concatenate((rho, rho[-1:])))[1][:, None]
    return seen[:-1], seen[1:]


def draw_copy(key: jax.Array, steps: int, delay: int) -> tuple[jax.Array, jax.Array]:
    """x_t = ±1 by chance; y_t = x_{t−delay} (0 before there is one), and −x_{t−delay} after the shift."""
    seen = jax.random.rademacher(key, (steps,), jnp.float32)
    turned = jnp.where(jnp.arange(steps) < steps // 2, jnp.float32(1), jnp.float32(-1))
    return seen[:, None], (turned * jnp.concatenate((jnp.zeros(delay, jnp.float32), seen))[:steps])[:, None]


def memoryless_loss(inputs: np.ndarray, targets: np.ndarray) -> float:
    """½ error² of the best a x_t + b on these steps: what an answer without memory costs, if it is affine."""
    known = np.stack((inputs[:, 0], np.ones(len(inputs))), axis=1).astype(float)
    residual = targets - known @ np.linalg.lstsq(known, targets.astype(float), rcond=None)[0]
    return float(np.mean(residual**2) / 2)


STREAMS: dict[str, Callable] = {  # (key, steps T) -> (inputs [T, 1], targets [T, 1]); the change comes after T/2 steps
    "sine": partial(draw_sine, ahead=1),
    "Lorenz": draw_lorenz,
    "50 ahead": partial(draw_sine, ahead=AHEAD),
    "copy 10": partial(draw_copy, delay=SHORT),
    "copy 50": partial(draw_copy, delay=LONG),
}
