"""The gradient's norm over the horizon, of nets that learned a chaotic orbit, free and forced; what is exact of it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import gradients, models, spectra, truncation
from jaxbptt.comparison import compare
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll

from . import nets

HORIZONS = nets.LYAPUNOV_TIME * np.array([1, 2, 3, 4, 6, 8, 10, 12])  # samples
SETTLED = slice(3, None)  # from 4 Lyapunov times on the free net's error has stopped growing
REGIMES = ("free", f"τ = {nets.LYAPUNOV_TIME}", f"τ = {nets.PREDICTABLE}", "α*")
STARTS = 64  # orbits a net
SAME = 1e-12


class Growth(NamedTuple):
    """D nets, trained at the predicted τ. Regimes Q, horizons E."""

    regimes: np.ndarray  # [Q] names
    horizons: np.ndarray  # [E] T, samples
    log_norms: np.ndarray  # [Q, D, E] mean over orbits of ln ‖dL_T/dθ‖, L_T of the last step alone
    strengths: np.ndarray  # [D] α*, mean over orbits
    exponents: np.ndarray  # [D] λ_1 of the free net, nats per sample
    exponent_errors: np.ndarray  # [D]
    orbits: np.ndarray  # [] a net


class Identities(NamedTuple):
    """What is exact, of D nets on one orbit each; rounding alone may differ."""

    chain: np.ndarray  # [D] J_t of the forced cell against 1 − α times that of the free one at the pulled state
    cut: np.ndarray  # [D] BPTT under sparse forcing against windows of τ steps, truncated
    teacher: np.ndarray  # [D] the same against the library's `models.teacher_forcing`
    largest: np.ndarray  # [D] max over all k < t of ln ‖dh_t/dh_k‖ at α*, at most 0


def measure_growth(config: Any, net: nets.NetParams, samples: Any, exponents: Any) -> Growth:
    """Every net on the same orbits, in float64 (the caller enables x64)."""
    free, length = nets.shallow(config.hidden), int(HORIZONS[-1])
    model = models.weighted(nets.forced_model(free))
    starts = np.linspace(0, len(samples) - length - 1, STARTS).astype(int)
    windows = jnp.asarray(np.asarray(samples)[starts[:, None] + np.arange(length + 1)])
    weights = jnp.asarray(np.arange(1, length + 1) == HORIZONS[:, None], float)
    intervals = length, nets.LYAPUNOV_TIME, nets.PREDICTABLE
    sparse = jnp.asarray(np.stack([nets.force_every(interval, length) for interval in intervals]))

    def measure(net, window):
        data = window[:-1]
        alpha = nets.strength_on_orbit(free, net, data)
        strengths = jnp.concatenate((sparse, jnp.broadcast_to(alpha, (1, length))))

        def log_norm(strength, weight):
            inputs, targets = nets.Forcing(data, strength), models.Weighted(window[1:], weight)
            grads = gradients.bptt(model, net, inputs, targets, initial=window[0])[1]
            return jnp.log(sum(jnp.sum(leaf**2) for leaf in grads)) / 2

        return jax.vmap(jax.vmap(log_norm, in_axes=(None, 0)), in_axes=(0, None))(strengths, weights), alpha

    of_net = lambda net: jax.lax.map(partial(measure, net), windows, batch_size=8)
    norms, alphas = (np.asarray(part) for part in jax.jit(lambda net: jax.lax.map(of_net, net))(net))
    log_norms, strengths = norms.mean(axis=1).swapaxes(0, 1), alphas.mean(axis=1)
    return Growth(np.array(REGIMES), HORIZONS, log_norms, strengths, *exponents, np.array(STARTS))


def measure_identities(config: Any, net: nets.NetParams, samples: Any) -> Identities:
    """Every net on the first three Lyapunov times of the samples, in float64."""
    free, length = nets.shallow(config.hidden), 3 * nets.LYAPUNOV_TIME
    model, cell = nets.forced_model(free), nets.forced(free)
    window = jnp.asarray(samples[: length + 1])
    data, targets = window[:-1], window[1:]
    taught = models.teacher_forcing(
        models.make_model(
            lambda params, state, inputs: free.step(params, inputs[1], inputs[0]),
            free.initial_state,
            lambda params, state: state,
            models.squared_error,
            reduction="mean",
        )
    )

    def measure(net):
        alpha = nets.strength_on_orbit(free, net, data)
        forcing = nets.Forcing(data, jnp.broadcast_to(alpha, (length,)))
        trajectory = unroll(cell, net, forcing, initial=window[0])
        chain = step_jacobians(cell, net, trajectory)
        pulled = jax.vmap(nets.pull)(trajectory.previous, forcing)
        own = jax.vmap(lambda state: jax.jacrev(lambda h: free.step(net, h, h[:0]))(state))(pulled)
        force = nets.force_every(nets.PREDICTABLE, length)
        call = net, nets.Forcing(data, jnp.asarray(force)), targets
        exact = gradients.bptt(model, *call, initial=window[0])[1]
        cut = truncation.windowed(model, *call, window=nets.PREDICTABLE, initial=window[0])[1]
        forced = models.Forced(jnp.zeros((length, 0)), data, jnp.asarray(force == 1))
        teacher = gradients.bptt(taught, net, forced, targets, initial=window[0])[1]
        norms = jnp.where(np.tri(length + 1, k=-1, dtype=bool), spectra.pair_norms(chain).log_spectral, -jnp.inf)
        return (chain, (1 - alpha) * own), (exact, cut), (exact, teacher), jnp.max(norms)

    measure, rows = jax.jit(measure), []
    for index in range(len(net.a)):
        *pairs, largest = measure(jax.tree.map(lambda leaf, index=index: leaf[index], net))
        rows.append([*(compare(*pair).relative for pair in pairs), float(largest)])
    return Identities(*np.array(rows).T)
