"""Singular values of dh_t/dh_0: of products of Gaussian matrices, and of nets as they are drawn."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import systems
from experiments.tasks import one_hot
from jaxbptt import cells, spectra
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll

from . import starts, theory

SYMBOLS = 6  # inputs M, one of which is 1 at every step
SMALL, DRAWS = 32, 512  # N and draws of the moments, whose exact values hold at every N
MOMENT_STEPS = 4
STEPS = (16, 32, 48, 64)  # t of the records, multiples of the first


class Products(NamedTuple):
    """Products of Gaussian matrices and powers of one: kinds "independent", "shared". K keys, R records."""

    steps: np.ndarray  # [R] t
    log_values: np.ndarray  # [2, K, R, N] ln σ_i, descending
    determinants: np.ndarray  # [K] Σ ln σ_i(W) of the shared matrix, by LU
    moments: np.ndarray  # [2, 2, t] first and second moment of σ² at t = 1 …, N = SMALL: independent; shared
    moment_errors: np.ndarray  # [2, 2, t] standard errors over DRAWS


class Spectra(NamedTuple):
    """Initialisations I as they are drawn, driven by random inputs."""

    starts: np.ndarray  # [I] names
    steps: np.ndarray  # [R] t
    log_values: np.ndarray  # [I, K, R, N] ln σ_i of dh_t/dh_0, descending


class Exact(NamedTuple):
    """Differences that rounding alone makes."""

    orthogonal: np.ndarray  # [] largest |ln σ_i(t) − t ln g| / t of an orthogonal linear net, g ≠ 1
    gated: np.ndarray  # [] largest |ln σ_i(t) − t ln|z + (1 − z) μ_i|| / t of the critical GRU at rest, μ_i = eig(Q)


def measure_products(config: Any, key: jax.Array, record: Callable) -> Products:
    """In float64 (the caller enables x64)."""
    chain_key, moment_key = jax.random.split(key)
    keys, rows = jax.random.split(chain_key, config.keys), []
    for shared in (False, True):
        draw = jax.jit(partial(gaussian_chain, steps=STEPS[-1], size=config.size, shared=shared))
        rows.append(np.stack([np.asarray(record(draw(key))) for key in keys]))
    determinant = lambda key: jnp.linalg.slogdet(gaussian_chain(key, 1, config.size, shared=True)[0])[1]
    found = np.asarray(jax.jit(jax.vmap(_moments))(jax.random.split(moment_key, DRAWS)))
    mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / DRAWS**0.5
    return Products(np.array(STEPS), np.stack(rows), np.asarray(jax.jit(jax.vmap(determinant))(keys)), mean, error)


def gaussian_chain(key: jax.Array, steps: int, size: int, *, shared: bool) -> jax.Array:
    """[T, N, N] Gaussian steps, N(0, 1/N): independent, or the same at every step as a recurrent net has them."""
    chain = systems.gaussian_chain(key, 1 if shared else steps, size)
    return jnp.broadcast_to(chain, (steps, size, size))


def _moments(key):
    """[2, 2, t] of one draw: moments of σ² of the first t matrices' product, of the first one's powers."""
    chain = gaussian_chain(key, MOMENT_STEPS, SMALL, shared=False)
    rows = []
    for steps in (chain, jnp.broadcast_to(chain[:1], chain.shape)):
        product, found = jnp.eye(SMALL), []
        for step in steps:
            product = step @ product
            square = product.T @ product
            found.append(jnp.stack((jnp.trace(square), jnp.sum(square**2))) / SMALL)
        rows.append(jnp.stack(found, axis=1))
    return jnp.stack(rows)


@cache
def make_record() -> Callable:
    """The compiled (chain [T, N, N]) -> ln σ_i of dh_t/dh_0 at t in STEPS, [R, N]: one program for all chains."""
    return jax.jit(partial(spectra.log_singular_values, every=STEPS[0]))


def measure_starts(config: Any, key: jax.Array, record: Callable, progress: Callable) -> Spectra:
    """Every initialisation on the same keys, driven by random symbols, in float64."""
    init_keys, drive_keys = (jax.random.split(each, config.keys) for each in jax.random.split(key))
    rows = []
    for kind in starts.KINDS:
        step_of_kind = starts.STARTS[kind[0]](SYMBOLS, config.size)
        chain = jax.jit(partial(_make_chain, step_of_kind, config.transient))
        for name in kind:
            progress(f"singular values, {name}")
            init = starts.STARTS[name](SYMBOLS, config.size).init
            found = [
                np.asarray(record(chain(init(key), drive))) for key, drive in zip(init_keys, drive_keys, strict=True)
            ]
            rows.append(np.stack(found))
    return Spectra(np.array(list(starts.STARTS)), np.array(STEPS), np.stack(rows))


def _make_chain(cell, transient, params, key):
    """J_t of the last steps of a trajectory of random symbols."""
    symbol_key, state_key = jax.random.split(key)
    symbols = jax.random.randint(symbol_key, (transient + STEPS[-1],), 0, SYMBOLS, jnp.int32)
    inputs, start = one_hot(symbols, SYMBOLS), cell.initial_state(params)
    start = starts.DRIVE**0.5 * jax.random.normal(state_key, start.shape)
    settled = unroll(cell, params, inputs[:transient], initial=start).states[-1]
    return step_jacobians(cell, params, unroll(cell, params, inputs[transient:], initial=settled))


def check_exact(config: Any, key: jax.Array, record: Callable) -> Exact:
    """A linear orthogonal net of gain 0.9 and the critical GRU at h = 0 without inputs, against their exact laws."""
    gain, size, steps = 0.9, config.size, np.array(STEPS)[:, None]
    linear = cells.linear(0, size, recurrent=cells.orthogonal(gain))
    gated = starts.critical_gru(0, size)
    nothing = jnp.zeros((STEPS[-1], 0))
    chain = lambda cell, params: step_jacobians(cell, params, unroll(cell, params, nothing, initial=jnp.zeros(size)))
    off = np.asarray(record(jax.jit(partial(chain, linear))(linear.init(key)))) / steps - np.log(gain)
    params = gated.init(key)
    found = np.asarray(record(jax.jit(partial(chain, gated))(params)))
    eigenvalues = np.linalg.eigvals(np.asarray(params.w_hh[2 * size :]) / starts.GATED_GAIN)
    known = np.sort(np.log(np.abs(starts.KEEP + (1 - starts.KEEP) * eigenvalues)))[::-1]
    return Exact(np.max(np.abs(off)), np.max(np.abs(found / steps - known)))


def distances(products: Products) -> np.ndarray:
    """[2, K, R] Kolmogorov distances of the singular values from the Fuss–Catalan law of the order t."""
    laws = [theory.fuss_catalan_law(int(order)) for order in products.steps]
    of_key = lambda rows: [theory.kolmogorov_distance(row, law) for row, law in zip(rows, laws, strict=True)]
    return np.array([[of_key(rows) for rows in kind] for kind in products.log_values])
