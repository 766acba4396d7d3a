"""The curse of memory: how sensitive a recurrence with a long memory is to its parameters, though nothing explodes.

Hypothesis: for h' = λ h + γ x with x a stationary AR(1) of unit variance, E (dh/dλ)² grows as (1 − λ)⁻³ when λ → 1,
while dh_t/dh_0 = λ^t only shrinks; with γ = √(1 − λ²) and the derivative taken in ν, λ = exp(−e^ν), it stays bounded,
and with γ tied to λ, so that ν moves it too, it is half as large. Every mean square is known exactly; it is measured
on simulated sequences, dh_t/dθ by forward-mode differentiation of `unroll`.

Reference: Zucchet & Orvieto (2024), arXiv:2405.21064; the parametrisations: Orvieto et al. (2023), arXiv:2303.06349.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells, gradients, models, spectra
from jaxbptt.jacobians import structured_jacobians
from jaxbptt.trajectories import unroll

from . import files, harness, options

FORGETTING = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # 1 − λ
DECADES = slice(1, None, 2)  # of them: 0.1, 0.01, 0.001
CORRELATIONS = (0.0, 0.9)  # ρ of x
MEMORIES = 20  # of 1/(1 − λ) steps: what is left of h_0 = 0 in a mean square is e^(−2·20) of it or so
FARTHEST = 4.0  # standard errors between what is measured and what is exact
SAME = 1e-12
BATCH = 8  # sequences simulated side by side
PHASE = -800.0  # theta_log of a phase e^−800 = 0
STYLES = {"γ = 1, in λ": "#b2182b", "γ = √(1−λ²) fixed, in ν": "#e08214", "γ = √(1−λ²) tied, in ν": "#2166ac"}


@dataclass(frozen=True)
class Config:
    keys: int = field(default=64, metadata={"help": "simulated sequences"})
    memories: int = field(default=60, metadata={"help": "length of each, in longest memories 1/(1 − λ), after the start"})
    seed: int = field(default=0, metadata={"help": "seed of the sequences"})
    out: str = field(default="results/memory", metadata={"help": "folder of the results"})


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


class Growth(NamedTuple):
    """The chain of Jacobians of the same cell. R records."""

    forgetting: np.ndarray  # [n] 1 − λ
    steps: np.ndarray  # [R] t
    log_norms: np.ndarray  # [R, n] ln ‖dh_t/dh_0‖ of each λ
    exponents: np.ndarray  # [n] nats per step


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
        STYLES,
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
    return Exact(state, dict(zip(STYLES, (plain, fixed, tied), strict=True)))


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Sensitivity | Growth]:
    """Every parametrisation under every ρ, and the chain's growth, in float64 (the caller enables x64)."""
    options.require_size("keys", config.keys, least=2)
    options.require_size("memories", config.memories)
    forgetting = np.array(FORGETTING)
    decay, cell = 1 - forgetting, cells.lru(1, len(FORGETTING))
    start = round(MEMORIES / forgetting.min())
    length = start + round(config.memories / forgetting.min())
    results: dict[str, Sensitivity | Growth] = {}
    for correlation in CORRELATIONS:
        exact = exact_moments(decay, correlation)
        for name, parametrisation in PARAMETRISATIONS.items():
            progress(f"{name}, ρ = {correlation:g}")
            measure = jax.jit(partial(_measure, cell, parametrisation, decay, correlation, start, length))
            keys = jax.random.split(jax.random.key(config.seed), config.keys)
            squares = np.asarray(jax.lax.map(measure, keys, batch_size=BATCH))
            mean, error = squares.mean(axis=0), squares.std(axis=0, ddof=1) / config.keys**0.5
            gain = 1 if name == next(iter(STYLES)) else (1 - decay) * (1 + decay)
            results[f"{name}, ρ = {correlation:g}"] = Sensitivity(
                forgetting, exact.sensitivities[name], mean[1], error[1], gain * exact.state, mean[0], error[0],
                np.array(check_derivative(cell, parametrisation, decay, correlation, config.seed)),
            )  # fmt: skip
    progress("growth")
    return results | {"growth": measure_growth(cell, decay, length)}


def draw_inputs(key: jax.Array, correlation: float, length: int) -> jax.Array:
    """[T, 1] a stationary Gaussian AR(1) of unit variance: x' = ρ x + √(1 − ρ²) ξ."""
    noise = jax.random.normal(key, (length + 1,))
    new = lambda x, xi: (carried := correlation * x + (1 - correlation**2) ** 0.5 * xi, carried)
    return jax.lax.scan(new, noise[0], noise[1:])[1][:, None]


def _measure(cell, parametrisation, decay, correlation, start, length, key):
    """[2, n] means over time of h² and (dh/dθ)² of one sequence."""
    x = draw_inputs(key, correlation, length)
    states = lambda theta: unroll(cell, parametrisation.params(theta), x).states.re[start:]
    theta = parametrisation.of_lambda(jnp.asarray(decay))
    # The entries are on their own, so that one tangent of ones gives every dh_i/dθ_i.
    state, sensitivity = jax.jvp(states, (theta,), (jnp.ones_like(theta),))
    return jnp.stack([jnp.mean(values**2, axis=0) for values in (state, sensitivity)])


def check_derivative(
    cell: cells.Cell, parametrisation: Parametrisation, decay: np.ndarray, correlation: float, seed: int
) -> float:
    """Largest relative difference of dh_T/dθ, T = 50, between `_measure`'s way and `gradients.forward_sensitivity`.

    The latter differentiates C = Σ_i h_T,i on the cell's own params; the chain rule leads from them to θ.
    """
    x = draw_inputs(jax.random.key(seed), correlation, 50)
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
    every = max(1, length // 4000)

    def measure(params):
        chain = structured_jacobians(cell, params, length)
        return spectra.log_singular_values(chain, every=every), spectra.lyapunov_exponents(chain).exponents

    log_values, exponents = jax.jit(measure)(_plain(jnp.asarray(decay)))
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


def plot(results: dict[str, Any], path: Path) -> None:
    """Sensitivities over 1 − λ; beside them what the singular values do."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7), layout="constrained")
    figure.suptitle(r"The curse of memory: $h' = \lambda h + \gamma x$, sensitive though nothing explodes", fontsize=17)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.35, 1))
    sensitive, norms, rates = (figure.add_subplot(place) for place in (grid[:, 0], grid[0, 1], grid[1, 1]))
    growth = results["growth"]
    fine = np.geomspace(growth.forgetting.min() / 1.3, growth.forgetting.max() * 1.3, 200)
    for name, colour in STYLES.items():
        for correlation, line, face in zip(CORRELATIONS, ("-", "--"), (colour, "white"), strict=True):
            result = results[f"{name}, ρ = {correlation:g}"]
            exact = exact_moments(1 - fine, correlation).sensitivities[name]
            sensitive.plot(fine, exact, color=colour, linestyle=line, linewidth=1.6)
            style = {"color": colour, "markerfacecolor": face, "markersize": 7, "capsize": 3, "elinewidth": 1.6}
            sensitive.errorbar(result.forgetting, result.measured, 2 * result.standard_error, fmt="o", **style)
        sensitive.plot([], [], "o-", color=colour, label=name.replace(", in ", ", derivative in "))
    for correlation, line, face in zip(CORRELATIONS, ("-", "--"), ("0.3", "white"), strict=True):
        label = rf"$\rho$ = {correlation:g}"
        sensitive.plot([], [], "o", linestyle=line, color="0.3", markerfacecolor=face, label=label)
    corner = np.array([2e-3, 2e-2])
    sensitive.plot(corner, 2e9 * (corner / corner[0]) ** -3.0, color="0.3", linewidth=1)
    sensitive.text(7e-3, 1.2e8, r"slope $-3$", color="0.3", fontsize="large")
    sensitive.set(xscale="log", yscale="log", xlabel=r"$1-\lambda$", ylabel=r"$\mathrm{E}\,(dh/d\theta)^2$")
    sensitive.set_title("sensitivity: lines exact, points measured, two standard errors", fontweight="bold")
    sensitive.legend(frameon=False, loc="upper right")
    shades = [str(level) for level in np.linspace(0.65, 0.0, len(growth.forgetting))]
    for forgetting, values, shade in zip(growth.forgetting, growth.log_norms.T, shades, strict=True):
        norms.plot(growth.steps, values / np.log(10), color=shade, linewidth=2, label=f"{1 - forgetting:g}")
    norms.axhline(0, color="0.5", linewidth=0.9, linestyle=":")
    norms.set(xscale="log", ylim=(-10, 0.8), xlim=(10, None), xlabel="step t", ylabel=r"$\log_{10}\,\|dh_t/dh_0\|$")
    norms.set_title("singular values only shrink", fontweight="bold")
    norms.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title=r"$\lambda$")
    rates.plot(fine, -np.log1p(-fine), color="0.3", linewidth=1.6, label=r"$-\ln\lambda$, exact")
    rates.plot(growth.forgetting, -growth.exponents, "o", color="#1b7837", markersize=8, label="from the Jacobians")
    rates.set(xscale="log", yscale="log", xlabel=r"$1-\lambda$", ylabel="minus the exponent (nats per step)")
    rates.set_title("Lyapunov exponents stay negative", fontweight="bold")
    rates.legend(frameon=False, loc="lower right")
    for ax in (sensitive, norms, rates):
        ax.spines[["top", "right"]].set_visible(False)
    files.write_figure(path, figure, dpi=120)


EXPERIMENT = harness.Experiment(
    name="memory",
    purpose="sensitivity of a long memory to its parameters, three parametrisations, against the exact laws",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
)
