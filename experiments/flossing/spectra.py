"""What the chain of Jacobians of a net is like: its leading exponents and how unequally it passes gradients back."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import tasks
from jaxbptt.jacobians import step_jacobians
from jaxbptt.spectra import log_singular_values
from jaxbptt.trajectories import unroll

from .training import leading_exponents, make_net, make_task

SEQUENCES = 4  # of the mean


class Spectra(NamedTuple):
    """S starts, D keys; means over held-out sequences."""

    starts: np.ndarray  # [S] names
    exponents: np.ndarray  # [S, D, k] λ_i, descending, nats per step
    log_singular: np.ndarray  # [S, D, k] ln σ_i of dh_T/dh_{T−d}, nats, d the delay


def measure_spectra(config: Any, starts: dict[str, Any]) -> Spectra:
    """Of every start's params [D, ...]."""
    measure = _make_measure(config)
    exponents, log_singular = map(np.stack, zip(*(measure(params) for params in starts.values()), strict=True))
    return Spectra(np.array(list(starts)), exponents, log_singular)


@functools.cache
def _make_measure(config):
    """params [D, ...] -> the two [D, k] of one start, compiled."""
    model, k = make_net(config), config.exponents
    inputs = tasks.draw_batch(make_task(config), jax.random.key(config.seed + 2), SEQUENCES)[0]

    def of_sequence(params, inputs):
        jacobians = step_jacobians(model, params, unroll(model, params, inputs))[-config.delay :]
        # With errors: in float32 they confirm values that the cheap test alone would give up as NaN.
        return leading_exponents(model, params, inputs, k), log_singular_values(jacobians, errors=True).log_sigma[0, :k]

    def of_net(params):
        found = jax.lax.map(lambda one: of_sequence(params, one), inputs)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), found)

    return jax.jit(lambda params: jax.lax.map(of_net, params))
