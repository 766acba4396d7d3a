"""The target, the net that learns it, and its forcing: the state is pulled towards the data before each step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import systems
from jaxbptt import cells
from jaxbptt.cells import Cell
from jaxbptt.jacobians import step_jacobians
from jaxbptt.models import Model, make_model, squared_error
from jaxbptt.trajectories import unroll

SIZE = 3  # entries of the state, all of them observed
STEP = 0.05  # time between samples
SUBSTEPS = 5  # of the integrator within it
RATE = systems.LORENZ_EXPONENTS[0] * STEP  # λ_1 of the data, nats per sample
LYAPUNOV_TIME = round(1 / RATE)  # samples
PREDICTABLE = round(np.log(2) / RATE)  # samples in which an error doubles


class NetParams(NamedTuple):
    """h' = a ⊙ h + W_1 relu(W_2 h + b_2) + b_1."""

    a: Any  # [N]
    w_1: Any  # [N, H]
    w_2: Any  # [H, N]
    b_1: Any  # [N]
    b_2: Any  # [H]


class Forcing(NamedTuple):
    """What pulls the state before each step: h_{t−1} becomes (1 − α_t) h_{t−1} + α_t y_{t−1}."""

    data: Any  # [T, N] y_0 … y_{T−1}
    strength: Any  # [T] α_1 … α_T; sparse forcing: 1 at every τ-th step, 0 between


def shallow(hidden: int) -> Cell:
    """The shallow piecewise-linear net of H hidden units, left to itself.

    Reference: Hess, Monfared, Brenner & Durstewitz (2023), arXiv:2306.04406.
    """

    def init(key):
        keys = jax.random.split(key, 3)
        uniform = lambda key, shape, most: jax.random.uniform(key, shape, minval=-most, maxval=most)
        return NetParams(
            jnp.full(SIZE, 0.9),
            uniform(keys[0], (SIZE, hidden), hidden**-0.5),
            uniform(keys[1], (hidden, SIZE), SIZE**-0.5),
            jnp.zeros(SIZE),
            uniform(keys[2], (hidden,), 1.0),
        )

    def step(params, state, x):
        return params.a * state + params.w_1 @ jax.nn.relu(params.w_2 @ state + params.b_2) + params.b_1

    return cells.from_step(step, lambda params: jnp.zeros_like(params.b_1), init=init, num_inputs=0)


def forced(free: Cell) -> Cell:
    """h_t = f((1 − α_t) h_{t−1} + α_t y_{t−1}): J_t is 1 − α_t times the free step's Jacobian at the pulled state."""

    def step(params, state, forcing):
        return free.step(params, pull(state, forcing), forcing.data[:0])

    return cells.from_step(step, free.initial_state, init=free.init)


def pull(state: jax.Array, forcing: Forcing) -> jax.Array:
    """(1 − α_t) h_{t−1} + α_t y_{t−1}."""
    alpha = forcing.strength[..., None]
    return (1 - alpha) * state + alpha * forcing.data


def forced_model(free: Cell) -> Model:
    """Its model: the state is the output, ½‖h_t − y_t‖² the loss, C its mean over t."""
    cell = forced(free)
    readout = lambda params, state: state
    return make_model(cell.step, cell.initial_state, readout, squared_error, init=cell.init, reduction="mean")


def force_every(interval: int, length: int) -> np.ndarray:
    """[T] α of sparse forcing: 1 at steps 1, 1 + τ, 1 + 2τ, … before which the state is replaced by the data."""
    return (np.arange(length) % interval == 0).astype(float)


def largest_growth(jacobians: jax.Array) -> jax.Array:
    """σ̃: the largest singular value of any step."""
    return jnp.max(jnp.linalg.norm(jacobians, ord=2, axis=(-2, -1)))


def strength_at_data(free: Cell, params: NetParams, data: jax.Array) -> jax.Array:
    """α = 1 − 1/σ̃, at least 0, of the Jacobians at the data [T, N]."""
    jacobians = jax.vmap(lambda state: jax.jacfwd(lambda h: free.step(params, h, h[:0]))(state))(data)
    return jnp.maximum(0, 1 - 1 / largest_growth(jacobians))


def strength_on_orbit(free: Cell, params: NetParams, data: jax.Array, rounds: int = 60) -> jax.Array:
    """The α* that suffices on the orbit which it makes itself, (1 − α*) σ̃ ≤ 1: raised where it does not."""
    cell = forced(free)

    def raise_(alpha, _):
        inputs = Forcing(data, jnp.full(len(data), alpha))
        jacobians = step_jacobians(cell, params, unroll(cell, params, inputs, initial=data[0]))
        return 1 - (1 - alpha) / jnp.maximum(1, largest_growth(jacobians)), None

    return jax.lax.scan(raise_, strength_at_data(free, params, data), None, length=rounds)[0]


def lorenz_data(key: jax.Array, length: int, transient: int = 500) -> jax.Array:
    """[S, 3] samples of the Lorenz system every `STEP`, each coordinate to mean 0 and variance 1."""
    cell = systems.lorenz(STEP / SUBSTEPS)
    params = cell.init(key)
    start = cell.initial_state(params) + jax.random.normal(key, (SIZE,))
    inputs = jnp.zeros((SUBSTEPS * (length + transient), 0))
    samples = unroll(cell, params, inputs, initial=start).states[SUBSTEPS * transient :: SUBSTEPS]
    return (samples - jnp.mean(samples, axis=0, keepdims=True)) / jnp.std(samples, axis=0, keepdims=True)
