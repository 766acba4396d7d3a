"""Exponents of a random net left to itself, h_t = tanh(W h_{t−1}), in float64, against clvlib, lyapax and chaotax."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells, jacobians, spectra
from jaxbptt.cells import ElmanParams
from jaxbptt.trajectories import unroll

from .timing import Contestant, race

GAIN = 1.5  # chaotic: λ_1 ≈ 0.05
UNITS = (64, 128)
STEPS = 500  # trajectories of two programs part after ln(1/eps)/λ_1 steps, about 700
RECORDS = 10  # of `log_singular_values`
INTERVALS = 1, 2, 5, 10, 20, 50  # steps between factorisations
ROUNDING = 1e-6  # nats per step: what another interval may change
FRAMES = 10.0  # nats: what starting from another frame may change of T λ_i (measured: up to 6)


def spectrum_rows(config: Any, progress: Callable) -> Iterator[dict]:
    """All N exponents by everybody, and `log_singular_values` against a bare QR scan of the same Jacobians."""
    steps = min(STEPS, max(config.lengths))
    with jax.enable_x64(True):
        for units in sorted({min(n, max(config.sizes)) for n in UNITS}):
            label = {"cell": "tanh", "T": steps, "N": units, "B": 1, "dtype": "float64"}
            w_hh = jax.random.normal(jax.random.key(0), (units, units), jnp.float64) * (GAIN / units**0.5)
            start = jax.random.normal(jax.random.key(1), (units,), jnp.float64)
            progress(f"spectra: exponents, T {steps}, N {units}")
            yield from ({"suite": "exponents", **label, **row} for row in _race_exponents(w_hh, start, steps, config))
            progress(f"spectra: intervals, T {steps}, N {units}")
            yield from ({"suite": "intervals", **label, **row} for row in _race_intervals(w_hh, start, steps, config))
            progress(f"spectra: singular values, T {steps}, N {units}")
            chain = jax.jit(partial(_chain, cells.elman(0, units), steps))(w_hh, start)
            makers = [(name, partial(make, chain)) for name, make in SINGULAR_VALUES.items()]
            rows = race(makers, seconds=config.seconds, tolerance=0.0)
            yield from ({"suite": "singular values", **label, **row} for row in rows)


def _race_exponents(w_hh, start, steps, config):
    makers = [(name, partial(make, w_hh, start, steps)) for name, make in EXPONENTS.items()]
    return race(makers, seconds=config.seconds, tolerance=FRAMES / steps, difference=_largest)


def _race_intervals(w_hh, start, steps, config):
    """Our choice of the interval against fixed ones; an interval that is too long loses digits, and so differs."""
    makers = [("jaxbptt", partial(_stored, w_hh, start, steps))]
    makers += [(f"interval {n}", partial(_stored, w_hh, start, steps, interval=n)) for n in INTERVALS if n <= steps]
    return race(makers, seconds=config.seconds, tolerance=ROUNDING, difference=_largest)


def _largest(expected, actual):
    """Largest difference of an exponent, nats per step; NaN is no agreement."""
    return float(np.max(np.abs(expected[0] - actual[0])))


def _params(w_hh):
    return ElmanParams(jnp.zeros((len(w_hh), 0), w_hh.dtype), w_hh, jnp.zeros(len(w_hh), w_hh.dtype))


def _chain(net, steps, w_hh, start):
    params = _params(w_hh)
    trajectory = unroll(net, params, jnp.zeros((steps, 0), w_hh.dtype), initial=start)
    return jacobians.step_jacobians(net, params, trajectory)


def _stored(w_hh, start, steps, **options):
    net = cells.elman(0, len(w_hh))

    def function(w_hh, start):
        chain = _chain(net, steps, w_hh, start)
        return spectra.lyapunov_exponents(chain, warm_up=0, **options).exponents

    return Contestant(function, (w_hh, start), note="forward, Jacobians, lyapunov_exponents")


def _stream(w_hh, start, steps):
    net = cells.elman(0, len(w_hh))

    def function(w_hh, start):
        inputs = jnp.zeros((steps, 0), w_hh.dtype)
        return spectra.stream_exponents(net, _params(w_hh), inputs, initial=start, warm_up=0).exponents

    return Contestant(function, (w_hh, start), note="stream_exponents: memory without T")


def _clvlib(w_hh, start, steps):
    import clvlib

    def function(w_hh, start):
        follow = lambda t, h: np.tanh(w_hh @ h)
        tangent = lambda t, h: (1 - np.tanh(w_hh @ h) ** 2)[:, None] * w_hh
        states = [start]
        for _ in range(steps):
            states.append(follow(0, states[-1]))

        def stepper(f, df, t, h, v, dt, *rest):
            return f(t, h), df(t, h) @ v

        times = np.arange(steps + 1.0)
        return clvlib.lyap_exp(follow, tangent, np.array(states), times, stepper=stepper)[0]

    return Contestant(function, (np.asarray(w_hh), np.asarray(start)), _descending, traced=False, note="NumPy")


def _lyapax(w_hh, start, steps):
    import lyapax

    def function(w_hh, start):
        return lyapax.lyapunov_spectrum(lambda h: jnp.tanh(w_hh @ h), start, 1.0, steps).exponents

    return Contestant(function, (w_hh, start), _descending, note="QR every step")


def _chaotax(w_hh, start, steps):
    import chaotax

    options = {"rollout_steps": steps, "warmup_steps": 0, "discard_steps": 0}

    def function(w_hh, start, noise):
        # its size arithmetic is traced under jit, so that only its own scan is compiled
        return chaotax.lyapunov_spectrum(lambda h: jnp.tanh(w_hh @ h), **options)(start, noise)

    noise = jax.random.normal(jax.random.key(2), w_hh.shape, w_hh.dtype)
    finished = lambda *arguments: jax.block_until_ready(function(*arguments))
    return Contestant(finished, (w_hh, start, noise), _descending, traced=False, note="QR every step; cannot be jitted")


EXPONENTS = {
    "jaxbptt": _stored,
    "jaxbptt stream": _stream,
    "jaxbptt, QR every step": partial(_stored, interval=1),
    "clvlib": _clvlib,
    "lyapax": _lyapax,
    "chaotax": _chaotax,
}


def _descending(exponents):
    return np.sort(np.asarray(exponents))[::-1]


def _log_singular_values(chain):
    every = max(1, len(chain) // RECORDS)
    function = lambda chain: spectra.log_singular_values(chain, every=every)
    return Contestant(function, (chain,), note=f"log_singular_values, a record every {every} steps")


def _bare_qr(chain):
    def function(chain):
        def body(q, jacobian):
            q, r = jnp.linalg.qr(jacobian @ q)
            return q, jnp.log(jnp.abs(jnp.diag(r)))

        return jax.lax.scan(body, jnp.eye(chain.shape[1], dtype=chain.dtype), chain)[1]

    return Contestant(function, (chain,), None, note="no singular values: the least such a method can cost")


SINGULAR_VALUES = {"jaxbptt": _log_singular_values, "bare QR scan": _bare_qr}
