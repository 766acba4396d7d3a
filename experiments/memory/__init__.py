"""The curse of memory: how sensitive a recurrence with a long memory is to its parameters, though nothing explodes.

Hypothesis: for h' = λ h + γ x with x a stationary AR(1) of unit variance, E (dh/dλ)² grows as (1 − λ)⁻³ when λ → 1,
while dh_t/dh_0 = λ^t only shrinks; with γ = √(1 − λ²) and the derivative taken in ν, λ = exp(−e^ν), it stays bounded,
and with γ tied to λ, so that ν moves it too, it is half as large. Every mean square is known exactly; it is measured
on simulated sequences, dh_t/dθ by forward-mode differentiation of `unroll`.

Reference: Zucchet & Orvieto (2024), arXiv:2405.21064; the parametrisations: Orvieto et al. (2023), arXiv:2303.06349.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import harness, options
from jaxbptt import cells, gradients, models, spectra
from jaxbptt.jacobians import structured_jacobians
from jaxbptt.trajectories import unroll

from .figure import plot
from .parametrisations import CORRELATIONS, NAMES, PARAMETRISATIONS, Parametrisation, exact_moments

FORGETTING = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # 1 − λ
DECADES = slice(1, None, 2)  # of them: 0.1, 0.01, 0.001
MEMORIES = 20  # of 1/(1 − λ) steps: what is left of h_0 = 0 in a mean square is e^(−2·20) of it or so
FARTHEST = 4.0  # standard errors between what is measured and what is exact
SAME = 1e-12
BATCH = 8  # sequences simulated side by side


@options.config
class Config:
    keys: int = options.size(128, "simulated sequences", least=2)
    memories: int = options.size(60, "length of each after the start, in longest 1/(1 − λ) steps")
    seed: int = options.seed("seed of the sequences")
    out: str = options.out("memory")


class Sensitivity(NamedTuple):
    """One parametrisation under one ρ. n values of λ; mean squares of the stationary process."""

    forgetting: np.ndarray  # [n] 1 − λ
    exact: np.ndarray  # [n] E (dh/dθ)²
    measured: np.ndarray  # [n] its mean over keys and time
    standard_error: np.ndarray  # [n] from the spread over keys
    exact_state: np.ndarray  # [n] E h²
    measured_state: np.ndarray  # [n]
    state_error: np.ndarray  # [n]
    derivative_error: np.ndarray  # [] of dh_T/dθ against `gradients.forward_sensitivity`, relative
    keys: np.ndarray  # [] simulated sequences
    length: np.ndarray  # [] steps of each over which the mean is taken


class Growth(NamedTuple):
    """The chain of Jacobians of the same cell. R records."""

    forgetting: np.ndarray  # [n] 1 − λ
    steps: np.ndarray  # [R] t
    log_norms: np.ndarray  # [R, n] ln ‖dh_t/dh_0‖ of each λ
    exponents: np.ndarray  # [n] nats per step


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Sensitivity | Growth]:
    """Every parametrisation under every ρ, and the chain's growth, in float64 (the caller enables x64)."""
    forgetting = np.array(FORGETTING)
    decay, cell = 1 - forgetting, cells.lru(1, len(FORGETTING))
    start = round(MEMORIES / forgetting.min())
    length = start + round(config.memories / forgetting.min())
    sample = np.array(config.keys), np.array(length - start)
    results: dict[str, Sensitivity | Growth] = {}
    exact = {correlation: exact_moments(decay, correlation) for correlation in CORRELATIONS}
    for index, (name, parametrisation) in enumerate(PARAMETRISATIONS.items()):
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        wrong = np.array(check_derivative(cell, parametrisation, decay, key))
        measure = jax.jit(partial(_measure, cell, parametrisation, decay, start, length))
        for correlation, key_here in zip(CORRELATIONS, jax.random.split(key, len(CORRELATIONS)), strict=True):
            progress(f"{name}, ρ = {correlation:g}")
            keys = jax.random.split(key_here, config.keys)
            squares = np.asarray(measure(jnp.asarray(correlation), keys))
            mean, error = squares.mean(axis=0), squares.std(axis=0, ddof=1) / config.keys**0.5
            exact_state = exact[correlation].state * (1 if name == NAMES[0] else (1 - decay) * (1 + decay))
            found = (
                exact[correlation].sensitivities[name],
                mean[1],
                error[1],
                exact_state,
                mean[0],
                error[0],
                wrong,
                *sample,
            )
            results[f"{name}, ρ = {correlation:g}"] = Sensitivity(forgetting, *found)
    progress("growth")
    return results | {"growth": measure_growth(cell, decay, length)}


def draw_inputs(key: jax.Array, correlation: Any, length: int) -> jax.Array:
    """[T, 1] a stationary Gaussian AR(1) of unit variance: x' = ρ x + √(1 − ρ²) ξ."""
    noise = jax.random.normal(key, (length + 1,))
    new = lambda x, xi: (carried := correlation * x + (1 - correlation**2) ** 0.5 * xi, carried)
    return jax.lax.scan(new, noise[0], noise[1:])[1][:, None]


def _measure(cell, parametrisation, decay, start, length, correlation, keys):
    """[B, 2, n] means over time of h² and (dh/dθ)² of each sequence."""
    theta = parametrisation.of_lambda(jnp.asarray(decay))

    def measure(key):
        x = draw_inputs(key, correlation, length)
        states = lambda theta: unroll(cell, parametrisation.params(theta), x).states.re[start:]
        # The entries are on their own, so that one tangent of ones gives every dh_i/dθ_i.
        state, sensitivity = jax.jvp(states, (theta,), (jnp.ones_like(theta),))
        return jnp.stack([jnp.mean(values**2, axis=0) for values in (state, sensitivity)])

    return jax.lax.map(measure, keys, batch_size=BATCH)


def check_derivative(cell: cells.Cell, parametrisation: Parametrisation, decay: np.ndarray, key: jax.Array) -> float:
    """Largest relative difference of dh_T/dθ, T = 50, between `_measure`'s way and `gradients.forward_sensitivity`.

    The latter differentiates C = Σ_i h_T,i on the cell's own params; the chain rule leads from them to θ.
    """
    x = draw_inputs(key, CORRELATIONS[-1], 50)
    theta = parametrisation.of_lambda(jnp.asarray(decay))
    last = lambda theta: unroll(cell, parametrisation.params(theta), x).states.re[-1]
    _, tangent = jax.jvp(last, (theta,), (jnp.ones_like(theta),))
    model = models.weighted(
        models.make_model(
            cell.step, cell.initial_state, lambda params, state: state.re, lambda output, target: jnp.sum(output)
        )
    )
    targets = models.Weighted(jnp.zeros(len(x)), (jnp.arange(len(x)) == len(x) - 1).astype(x.dtype))
    params, pull = jax.vjp(parametrisation.params, theta)
    _, grads = jax.jit(lambda params: gradients.forward_sensitivity(model, params, x, targets))(params)
    (expected,) = pull(grads)
    return float(jnp.max(jnp.abs(tangent / expected - 1)))


def measure_growth(cell: cells.Cell, decay: np.ndarray, length: int) -> Growth:
    """ln ‖dh_t/dh_0‖ and the exponents of every λ, from the cell's structured chain."""
    every = max(1, length // 8000)

    def measure(params):
        chain = structured_jacobians(cell, params, length)
        return spectra.log_singular_values(chain, every=every), spectra.lyapunov_exponents(chain).exponents

    log_values, exponents = jax.jit(measure)(PARAMETRISATIONS[NAMES[0]].params(jnp.asarray(decay)))
    order = np.argsort(-decay)  # both are descending, and hold each λ twice
    steps = np.minimum(every * np.arange(1, len(log_values) + 1), length)
    of_lambda = lambda values: np.asarray(values)[..., ::2][..., np.argsort(order)]
    return Growth(1 - decay, steps, of_lambda(log_values), of_lambda(exponents))


def summarise(results: dict[str, Any], config: Config) -> harness.Summary:
    """Exact and measured sensitivities at the longest memory, local slopes, and the largest distances."""
    growth, sensitivities = results["growth"], {k: v for k, v in results.items() if k != "growth"}
    judged = {name: judge(result) for name, result in sensitivities.items()}
    lines = [f"mean square of dh/dθ at 1 − λ = {min(FORGETTING):g}: exact, measured; slopes over the decades of 1 − λ"]
    for name, entry in judged.items():
        said = f"{entry['exact'][-1]:.6g}, {entry['measured'][-1]:.4g} ± {entry['standard_error'][-1]:.1g}"
        lines.append(f"  {name:34} {said}; {', '.join(f'{slope:+.3f}' for slope in entry['slopes'])}")
    farthest = max(entry["farthest"] for entry in judged.values())
    wrong = max(float(result.derivative_error) for result in sensitivities.values())
    exponent_error = float(np.max(np.abs(growth.exponents - np.log1p(-growth.forgetting))))
    largest = float(growth.log_norms.max())
    count = 2 * sum(len(result.exact) for result in sensitivities.values())
    lines += [
        f"farthest of {count} mean squares from the exact one: {farthest:.1f} standard errors (expected at most 4)",
        f"dh_T/dθ against forward_sensitivity: {wrong:.0e}, relative",
        f"exponents of the chain against ln λ: {exponent_error:.0e}; largest ln ‖dh_t/dh_0‖: {largest:.2g} (below 0)",
    ]
    failed = farthest > FARTHEST or max(wrong, exponent_error) > SAME or largest >= 0
    numbers = {**judged, "farthest": farthest, "derivative_error": wrong, "exponent_error": exponent_error}
    return harness.Summary(lines, numbers, int(failed))


def judge(result: Sensitivity) -> dict[str, Any]:
    """Exact and measured, distances in standard errors, d ln E(dh/dθ)²/d ln(1 − λ) over the last decades."""
    distances = np.stack(
        (
            (result.measured - result.exact) / result.standard_error,
            (result.measured_state - result.exact_state) / result.state_error,
        )
    )
    return {
        "forgetting": result.forgetting.tolist(),
        "exact": result.exact.tolist(),
        "measured": result.measured.tolist(),
        "standard_error": result.standard_error.tolist(),
        "slopes": (np.diff(np.log(result.exact[DECADES])) / np.diff(np.log(result.forgetting[DECADES]))).tolist(),
        "farthest": float(np.max(np.abs(distances))),
    }


EXPERIMENT = harness.Experiment(
    name="memory",
    purpose="sensitivity of a long memory to its parameters, three parametrisations, against the exact laws",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="30 s",
    alt={
        "figure.png": (
            "Left, the mean square of dh/dθ over 1 − λ on logarithmic axes: with γ = 1 it grows with slope −3 towards "
            "long memories, normalised it stays level; measured points lie on the exact lines, and their ratio is "
            "drawn below with two standard errors. Right, ‖dh_t/dh_0‖ over the step, which only shrinks, and minus the "
            "Lyapunov exponent over 1 − λ on the line −ln λ."
        ),
    },
)
