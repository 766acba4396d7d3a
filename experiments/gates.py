"""At which gain a GRU's and an LSTM's rest state loses its stability, and what that does to where gradients go.

Hypothesis: at h = 0 with zero inputs and no bias but the LSTM's b_f, the eigenvalues of the Jacobian are ½ + ¼ g eig(G)
for a GRU, and H zeros and σ(b_f) + ¼ g eig(G) for an LSTM, g G the recurrent weights of the candidate. With G Gaussian,
eig(G) fills the unit disc as H → ∞, so that the rest state is unstable above g = 4 (1 − σ(b_f)), a GRU's being that of
b_f = 0: 2, 2, 1.07577, 0.47681 at b_f = 0, 1, 2. A larger forget bias, which helps the memory, brings instability nearer.

Reference: Ginibre (1965), J. Math. Phys. 6 (the disc); Can, Krishnamurthy & Schwab (2020), arXiv:2007.14823 (gates and
the spectrum).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxbptt import cells, spectra
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll

from . import files, harness, options

FORGET_BIASES = {"gru": None, "lstm, b_f = 0": 0.0, "lstm, b_f = 1": 1.0, "lstm, b_f = 2": 2.0}
MULTIPLES = (0.25, 0.5, 0.7, 0.85, 1.0, 1.15, 1.4, 2.0, 3.0, 4.5)  # gains, of the critical one
INNER = (2.5, 97.5)  # per cent: the interval over keys
CHECKED = 2  # keys whose Jacobians' eigenvalues are held against the formula, at the least and the largest gain
SAME = 1e-12
COLOURS = {"gru": "#c77d0a", "lstm, b_f = 0": "#542788", "lstm, b_f = 1": "#8073ac", "lstm, b_f = 2": "#2166ac"}


@dataclass(frozen=True)
class Config:
    hidden: int = field(default=256, metadata={"help": "units H of the largest nets (and H/2 and H/4)"})
    keys: int = field(default=40, metadata={"help": "matrices G drawn at each H"})
    nets: int = field(default=4, metadata={"help": "nets of H/4 units run at each gain"})
    length: int = field(default=1000, metadata={"help": "steps T of each"})
    transient: int = field(default=500, metadata={"help": "steps before them"})
    seed: int = field(default=0, metadata={"help": "seed of the weights"})
    out: str = field(default="results/gates", metadata={"help": "folder of the results"})


class Stability(NamedTuple):
    """One cell. S sizes H, B keys, G gains."""

    limit: np.ndarray  # [] critical gain for H → ∞
    sizes: np.ndarray  # [S] H
    critical: np.ndarray  # [S, B] the gain at which the spectral radius of each net is 1
    radius_error: np.ndarray  # [] |spectral radius of J at that gain − 1|, largest over S and CHECKED keys
    eigenvalue_error: np.ndarray  # [] of J's eigenvalues against the formula, largest
    gains: np.ndarray  # [G]
    radii: np.ndarray  # [S, G, B] spectral radius of J at the origin
    exponents: np.ndarray  # [G, n] λ_1 of the trajectory of each of n nets of the least H, nats per step
    disc: np.ndarray  # [H] eigenvalues of J of the largest net, key 0, at `limit`, without the LSTM's zeros


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Stability]:
    """A GRU, and an LSTM of three forget biases, in float64 (the caller enables x64)."""
    options.require_size("hidden", config.hidden, least=8)
    options.require_size("keys", config.keys, least=CHECKED)
    options.require_size("nets", config.nets, most=config.keys)
    options.require_size("length", config.length, least=2)
    options.require_size("transient", config.transient, least=0)
    keys = jax.random.split(jax.random.key(config.seed), config.keys)
    sizes = (config.hidden // 4, config.hidden // 2, config.hidden)
    return {name: _measure(name, sizes, keys, config, progress) for name in FORGET_BIASES}


def make_cell(name: str, hidden: int) -> cells.Cell:
    """No inputs; all biases 0 but b_f, as they are drawn."""
    bias = FORGET_BIASES[name]
    return cells.gru(0, hidden) if bias is None else cells.lstm(0, hidden, forget_bias=bias)


def carry_of(name: str) -> float:
    """What multiplies the state at the origin: z = ½ of a GRU, f = σ(b_f) of an LSTM."""
    return float(1 / (1 + np.exp(-(FORGET_BIASES[name] or 0.0))))


def candidate_block(name: str, w_hh: np.ndarray) -> np.ndarray:
    """[H, H] the recurrent weights of a GRU's n, of an LSTM's g: rows 2H … 3H of both."""
    hidden = w_hh.shape[1]
    return w_hh[2 * hidden : 3 * hidden]


def expected_eigenvalues(name: str, of_weights: np.ndarray) -> np.ndarray:
    """carry + ¼ eig(candidate block); the LSTM has H zeros besides."""
    return carry_of(name) + of_weights / 4


def critical_gain(name: str, of_weights: np.ndarray) -> float:
    """The least g > 0 at which |carry + ¼ g μ| = 1 for an eigenvalue μ of the candidate block at gain 1.

    With b = ½ carry Re μ: (|μ| g/4)² + b g − (1 − carry²) = 0 has one root above 0.
    """
    carry = carry_of(name)
    a, b, c = np.abs(of_weights) ** 2 / 16, carry * of_weights.real / 2, (1 - carry) * (1 + carry)
    root = np.sqrt(b * b + 4 * a * c)
    # Each form cancels on one side of b = 0; the other is taken there.
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = np.where(b > 0, 2 * c / (b + root), (root - b) / (2 * a))
    return float(gains.min())


def jacobian_eigenvalues(name: str, params: Any, hidden: int) -> np.ndarray:
    """Of J at the origin, from the toolkit: [H] of a GRU, [2H] of an LSTM."""
    cell = make_cell(name, hidden)
    rest = unroll(cell, params, jnp.zeros((1, 0)))
    return np.linalg.eigvals(np.asarray(step_jacobians(cell, params, rest)[0]))


def match_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest |found − expected| when each is paired with one other; those missing in `expected` are zeros."""
    expected = np.concatenate((expected, np.zeros(len(found) - len(expected))))
    distances = np.abs(found[:, None] - expected[None, :])
    rows, columns = linear_sum_assignment(distances)
    return float(distances[rows, columns].max())


def _measure(name, sizes, keys, config, progress):
    limit = 4 * (1 - carry_of(name))
    gains = limit * np.array(MULTIPLES)
    critical, radii, radius_error, eigenvalue_error = [], [], 0.0, 0.0
    for hidden in sizes:
        progress(f"{name}, H = {hidden}")
        cell = make_cell(name, hidden)
        drawn = [cell.init(key) for key in keys]
        spectra_of_weights = [np.linalg.eigvals(candidate_block(name, np.asarray(params.w_hh))) for params in drawn]
        critical.append([critical_gain(name, values) for values in spectra_of_weights])
        radius = lambda gain, values: np.abs(expected_eigenvalues(name, gain * values)).max()
        radii.append([[radius(gain, values) for values in spectra_of_weights] for gain in gains])
        for params, values, at in list(zip(drawn, spectra_of_weights, critical[-1], strict=True))[:CHECKED]:
            for gain in (gains[0], at, gains[-1]):
                found = jacobian_eigenvalues(name, params._replace(w_hh=gain * params.w_hh), hidden)
                error = match_error(found, expected_eigenvalues(name, gain * values))
                eigenvalue_error = max(eigenvalue_error, error)
                if gain == at:
                    radius_error = max(radius_error, abs(np.abs(found).max() - 1))
    progress(f"{name}, trajectories")
    return Stability(
        np.array(limit), np.array(sizes), np.array(critical), np.array(radius_error), np.array(eigenvalue_error), gains,
        np.array(radii), measure_exponents(make_cell(name, sizes[0]), gains, keys[: config.nets], config),
        expected_eigenvalues(name, limit * spectra_of_weights[0]),
    )  # fmt: skip


def measure_exponents(cell: cells.Cell, gains: np.ndarray, keys: jax.Array, config: Config) -> np.ndarray:
    """[G, n] λ_1 of the undriven net's own trajectory, started in general position."""
    inputs = jnp.zeros((config.transient + config.length, 0))

    def measure(arguments):
        gain, key = arguments
        params = cell.init(key)
        params = params._replace(w_hh=gain * params.w_hh)
        state, noise = cell.initial_state(params), jax.random.fold_in(key, 1)
        start = jax.tree.map(lambda leaf: jax.random.normal(noise, leaf.shape, leaf.dtype), state)
        found = spectra.stream_exponents(cell, params, inputs, initial=start, transient=config.transient, k=1)
        return found.exponents[0]

    of_gain = jax.jit(lambda gain: jax.lax.map(lambda key: measure((gain, key)), keys))
    return np.stack([np.asarray(of_gain(jnp.asarray(gain))) for gain in gains])


def summarise(results: dict[str, Stability], config: Config) -> harness.Summary:
    """Critical gains over H beside the limit, and λ_1 below and above."""
    judged = {name: judge(result) for name, result in results.items()}
    lines = [f"critical gain: mean over keys [{INNER[0]:g}, {INNER[1]:g} %]"]
    for name, entry in judged.items():
        said = "; ".join(
            f"H = {size} {mean:.4f} [{low:.4f}, {high:.4f}]"
            for size, mean, (low, high) in zip(entry["sizes"], entry["critical"], entry["interval"], strict=True)
        )
        lines.append(f"  {name:14} {said}; H → ∞ {entry['limit']:.5f}")
    lines.append(f"λ_1 of the net's own trajectory, H = {config.hidden // 4}, mean over nets, over gain/limit")
    for name, entry in judged.items():
        said = ", ".join(f"{m:g}: {value:+.3f}" for m, value in zip(MULTIPLES, entry["exponent"], strict=True))
        lines.append(f"  {name:14} {said}")
    worst = {key: max(entry[key] for entry in judged.values()) for key in ("eigenvalue_error", "radius_error")}
    lines.append(
        f"eigenvalues of J against the formula: {worst['eigenvalue_error']:.0e};"
        f" spectral radius at each net's critical gain against 1: {worst['radius_error']:.0e}"
    )
    return harness.Summary(lines, {**judged, **worst}, int(not max(worst.values()) <= SAME))


def judge(result: Stability) -> dict[str, Any]:
    """Critical gains over keys, λ_1 over nets, errors."""
    return {
        "limit": float(result.limit),
        "sizes": result.sizes.tolist(),
        "critical": result.critical.mean(axis=1).tolist(),
        "interval": np.percentile(result.critical, INNER, axis=1).T.tolist(),
        "gains": result.gains.tolist(),
        "exponent": result.exponents.mean(axis=1).tolist(),
        "eigenvalue_error": float(result.eigenvalue_error),
        "radius_error": float(result.radius_error),
    }


def plot(results: dict[str, Stability], path: Path) -> None:
    """A column a cell: spectral radius over gain, λ_1 over gain, and the eigenvalues where the limit is critical."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(results), 10.5), layout="constrained")
    figure.suptitle("Gated nets at rest: from which gain on the origin is unstable, and what follows", fontsize=17)
    axes = figure.subplots(3, len(results), sharey="row", squeeze=False, height_ratios=(1, 1, 1.15))
    for (top, middle, bottom), (name, result) in zip(axes.T, results.items(), strict=True):
        colour, limit = COLOURS[name], float(result.limit)
        _plot_radii(top, result, colour)
        _plot_exponents(middle, result, colour)
        for ax in (top, middle):
            ax.axvline(limit, color="0.1", linewidth=1.2, linestyle="--", label=f"critical, H → ∞: {limit:.4g}")
            ax.set(xlabel="gain of the recurrent weights", xlim=(0, result.gains[-1] * 1.03))
        _plot_disc(bottom, result, colour)
        title = name.upper() if name == "gru" else name.replace("lstm, b_f", "LSTM, $b_f$")
        top.set_title(title, fontweight="bold")
    axes[0, 0].set_ylabel("spectral radius of J at the origin")
    axes[1, 0].set_ylabel(r"$\lambda_1$ of the trajectory (nats per step)")
    axes[2, 0].set_ylabel("Im of eigenvalues at that gain")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[:2].flat:
        ax.legend(frameon=False, fontsize="small", loc="upper left")
    files.write_figure(path, figure, dpi=110)


def _plot_radii(ax, result, colour):
    for size, radii, line in zip(result.sizes, result.radii, (":", "--", "-"), strict=True):
        if size == result.sizes[0]:
            low, high = np.percentile(radii, INNER, axis=1)
            ax.fill_between(result.gains, low, high, color=colour, alpha=0.2, linewidth=0, label=f"H = {size}, 95 % of keys")
        ax.plot(result.gains, radii.mean(axis=1), color=colour, linestyle=line, linewidth=1.8, label=f"H = {size}")
    ax.axhline(1, color="0.5", linewidth=0.9)


def _plot_exponents(ax, result, colour):
    with np.errstate(divide="ignore"):
        rest = np.log(result.radii[0].mean(axis=1))
    ax.plot(result.gains, rest, color="0.5", linewidth=1.4, label="ln of the spectral radius at the origin")
    ax.plot(result.gains, result.exponents.mean(axis=1), color=colour, linewidth=1.8)
    gains = np.repeat(result.gains, result.exponents.shape[1])
    label = f"nets of H = {result.sizes[0]}"
    ax.plot(gains, result.exponents.ravel(), "o", color=colour, markersize=4, alpha=0.7, label=label)
    ax.axhline(0, color="0.5", linewidth=0.9)


def _plot_disc(ax, result, colour):
    circle, limit = np.exp(1j * np.linspace(0, 2 * np.pi, 300)), float(result.limit)
    carry = 1 - limit / 4
    edge = carry + limit / 4 * circle
    ax.plot(circle.real, circle.imag, color="0.1", linewidth=1.2, label="unit circle")
    ax.plot(edge.real, edge.imag, color="0.5", linewidth=1.2, linestyle="--", label="disc for H → ∞")
    label = f"eigenvalues, H = {result.sizes[-1]}"
    ax.plot(result.disc.real, result.disc.imag, "o", color=colour, markersize=3, alpha=0.8, label=label)
    ax.set(xlabel="Re", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
    ax.set_aspect("equal")
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, -0.02))


EXPERIMENT = harness.Experiment(
    name="gates",
    purpose="the gain at which a GRU's and an LSTM's rest state turns unstable, over forget biases",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
)
