"""At which gain a GRU's and an LSTM's rest state loses its stability, and what that does to where gradients go.

Hypothesis: at h = 0 with zero inputs and no bias but the LSTM's b_f, the eigenvalues of the Jacobian are ½ + ¼ g eig(G)
for a GRU, and H zeros and σ(b_f) + ¼ g eig(G) for an LSTM, g G the recurrent weights of the candidate. With G Gaussian,
eig(G) fills the unit disc as H → ∞: a GRU's rest state is unstable above g = 2, an LSTM's above g = 4 (1 − σ(b_f)):
2, 1.07577, 0.47681 at b_f = 0, 1, 2. A larger forget bias, good for memory, brings instability nearer. Well below
the critical gain the net comes to rest and λ_1 is the logarithm of the spectral radius there; above it is less.

Reference: Ginibre (1965), J. Math. Phys. 6 (the disc); Krishnamurthy, Can & Schwab (2022), PRX 12, 011011 (gates).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from experiments import harness, options
from jaxbptt import cells, spectra
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll

from .figure import INNER, plot

FORGET_BIASES = {"gru": None, "lstm, b_f = 0": 0.0, "lstm, b_f = 1": 1.0, "lstm, b_f = 2": 2.0}
MULTIPLES = (0.25, 0.5, 0.7, 0.85, 1.0, 1.15, 1.4, 2.0, 3.0, 4.5)  # gains, of the critical one
CHECKED = 2  # keys whose Jacobians' eigenvalues are held against the formula, at the least and the largest gain
STABLE = -0.02  # nats per step: with ln of its spectral radius below this a net that comes to rest has done so
SAME = 1e-12


@options.config
class Config:
    sizes: tuple = options.sizes((64, 128, 256), "units H", least=2)
    keys: int = options.size(32, "matrices G drawn at each H", least=CHECKED)
    nets: int = options.size(4, "nets of the first H run at each gain, at most as many as keys")
    length: int = options.size(1000, "steps T of each", least=2)
    transient: int = options.size(500, "steps before them", least=0)
    seed: int = options.seed("seed of the weights")
    out: str = options.out("gates")


class Stability(NamedTuple):
    """One cell. S sizes H, B keys, G gains."""

    limit: np.ndarray  # [] critical gain for H → ∞
    sizes: np.ndarray  # [S] H
    critical: np.ndarray  # [S, B] the gain at which the spectral radius of each net is 1
    radius_error: np.ndarray  # [] |spectral radius of J at that gain − 1|, largest over S and CHECKED keys
    eigenvalue_error: np.ndarray  # [] of J's eigenvalues against the formula, largest
    scaled_error: np.ndarray  # [] the same, an LSTM's times the least distance of the others from its zeros, at most 1
    gains: np.ndarray  # [G]
    radii: np.ndarray  # [S, G, B] spectral radius of J at the origin
    exponents: np.ndarray  # [G, n] λ_1 of the trajectory of each of n nets of the first H, nats per step
    disc: np.ndarray  # [H] eigenvalues of J of the last H's net of key 0, at `limit`, without the LSTM's zeros
    length: np.ndarray  # [] steps T of each trajectory
    transient: np.ndarray  # [] steps before them


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Stability]:
    """A GRU, and an LSTM of three forget biases, in float64 (the caller enables x64)."""
    options.require_size("nets", config.nets, most=config.keys)
    keys = jax.random.split(jax.random.key(config.seed), config.keys)
    of_kind = {kind: {size: make_programs(kind, size, config) for size in config.sizes} for kind in ("gru", "lstm")}
    measure = lambda name: _measure(name, of_kind[name.split(",")[0]], keys, config, progress)
    return {name: measure(name) for name in FORGET_BIASES}


class Programs(NamedTuple):
    """Of a kind of cell without inputs and a size: compiled once for all gains and forget biases."""

    draw: Any  # (keys [B]) -> params, leading B, all biases 0
    jacobian: Any  # (params) -> J at the origin: [H, H] of a GRU, [2H, 2H] of an LSTM
    exponents: Any  # (params, leading n, keys [n]) -> λ_1 [n] of each net's own trajectory from a random state


def make_programs(kind: str, hidden: int, config: Config) -> Programs:
    """Of a GRU or an LSTM."""
    cell = cells.gru(0, hidden) if kind == "gru" else cells.lstm(0, hidden, forget_bias=0.0)
    inputs = jnp.zeros((config.transient + config.length, 0))

    def jacobian(params):
        return step_jacobians(cell, params, unroll(cell, params, inputs[:1]))[0]  # zero inputs leave h_0 = 0 there

    def exponent(params_and_key):
        params, key = params_and_key
        state = cell.initial_state(params)
        start = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape, leaf.dtype), state)
        found = spectra.stream_exponents(cell, params, inputs, initial=start, transient=config.transient, k=1)
        return found.exponents[0]

    exponents = jax.jit(lambda params, keys: jax.lax.map(exponent, (params, keys)))
    return Programs(jax.jit(jax.vmap(cell.init)), jax.jit(jacobian), exponents)


def set_forget_bias(name: str, params: Any) -> Any:
    """The params with b_f of every unit; a GRU's as they are."""
    bias, hidden = FORGET_BIASES[name], params.w_hh.shape[-1]
    return params if bias is None else params._replace(b_h=params.b_h.at[..., hidden : 2 * hidden].set(bias))


def carry_of(name: str) -> float:
    """What multiplies the state at the origin: z = ½ of a GRU, f = σ(b_f) of an LSTM."""
    return float(1 / (1 + np.exp(-(FORGET_BIASES[name] or 0.0))))


def candidate_block(w_hh: np.ndarray) -> np.ndarray:
    """[..., H, H] the recurrent weights of a GRU's n, of an LSTM's g: rows 2H … 3H of both."""
    hidden = w_hh.shape[-1]
    return w_hh[..., 2 * hidden : 3 * hidden, :]


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
    # Each form cancels on one side of b = 0; the other is taken there. μ = 0 never moves: inf.
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = np.where(b >= 0, 2 * c / (b + root), (root - b) / (2 * a))
    return float(gains.min())


def match_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest |found − expected| when each is paired with one other; those missing in `expected` are zeros."""
    expected = np.concatenate((expected, np.zeros(len(found) - len(expected))))
    distances = np.abs(found[:, None] - expected[None, :])
    rows, columns = linear_sum_assignment(distances)
    return float(distances[rows, columns].max())


def _measure(name, of_size, keys, config, progress):
    limit = 4 * (1 - carry_of(name))
    gains = limit * np.array(MULTIPLES)
    critical, radii, radius_error, errors, exponents, disc = [], [], 0.0, [], [], None
    for hidden, programs in of_size.items():
        progress(f"{name}, H = {hidden}")
        drawn = set_forget_bias(name, programs.draw(keys))
        of_weights = np.linalg.eigvals(candidate_block(np.asarray(drawn.w_hh)))
        critical.append([critical_gain(name, values) for values in of_weights])
        radii.append([np.abs(expected_eigenvalues(name, gain * of_weights)).max(axis=1) for gain in gains])
        for net in range(CHECKED):
            params, at = _take(drawn, net), critical[-1][net]
            for gain in (gains[0], at, gains[-1]):
                found = np.linalg.eigvals(np.asarray(programs.jacobian(_scale(params, gain))))
                expected = expected_eigenvalues(name, gain * of_weights[net])
                error = match_error(found, expected)
                # An eigenvalue that meets the LSTM's zeros is ill-conditioned, and so are they: as 1/its distance.
                distance = 1.0 if len(found) == len(expected) else min(1.0, np.abs(expected).min())
                errors.append((error, distance * error))
                if gain == at:
                    radius_error = max(radius_error, abs(np.abs(found).max() - 1))
        if not exponents:  # of the first H
            params, starts = (
                _take(drawn, slice(config.nets)),
                jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys[: config.nets]),
            )
            exponents = [np.asarray(programs.exponents(_scale(params, gain), starts)) for gain in gains]
        disc = expected_eigenvalues(name, limit * of_weights[0])
    return Stability(
        np.array(limit), np.array(list(of_size)), np.array(critical), np.array(radius_error), *np.max(errors, axis=0),
        gains, np.array(radii), np.array(exponents), disc,
        np.array(config.length), np.array(config.transient),
    )  # fmt: skip


def _take(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _scale(params, gain):
    return params._replace(w_hh=gain * params.w_hh)


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
    lines.append(f"nets run, H = {config.sizes[0]}: λ_1 less ln of the spectral radius where that is stable;")
    lines.append("  the gain over the critical one (H → ∞) from which λ_1 is above 0 in the mean over nets")
    for name, entry in judged.items():
        start = "at none" if entry["chaotic_from"] is None else f"from {entry['chaotic_from']:g}"
        lines.append(f"  {name:14} at most {entry['stable_difference']:.4f}; {start}")
    names = ("eigenvalue_error", "scaled_error", "radius_error")
    worst = {key: max(entry[key] for entry in judged.values()) for key in names}
    lines.append(
        f"eigenvalues of J against the formula: {worst['eigenvalue_error']:.0e};"
        f" spectral radius at each net's critical gain against 1: {worst['radius_error']:.0e}"
    )
    failed = not max(worst["scaled_error"], worst["radius_error"]) <= SAME
    return harness.Summary(lines, {**judged, **worst}, int(failed))


def judge(result: Stability) -> dict[str, Any]:
    """Critical gains over keys, λ_1 over nets, errors."""
    count = result.exponents.shape[1]
    of_origin = np.log(result.radii[0][:, :count])  # [G, n] of the nets that are run
    stable = of_origin < STABLE
    mean = result.exponents.mean(axis=1)
    chaotic = mean > (2 * result.exponents.std(axis=1, ddof=1) / count**0.5 if count > 1 else 0)
    return {
        "limit": float(result.limit),
        "sizes": result.sizes.tolist(),
        "critical": result.critical.mean(axis=1).tolist(),
        "interval": np.percentile(result.critical, INNER, axis=1).T.tolist(),
        "gains": result.gains.tolist(),
        "exponent": mean.tolist(),
        "stable_difference": float(np.max(np.abs(result.exponents - of_origin)[stable], initial=0.0)),
        "chaotic_from": float(MULTIPLES[np.argmax(chaotic)]) if chaotic.any() else None,
        "eigenvalue_error": float(result.eigenvalue_error),
        "scaled_error": float(result.scaled_error),
        "radius_error": float(result.radius_error),
    }


EXPERIMENT = harness.Experiment(
    name="gates",
    purpose="the gain at which a GRU's and an LSTM's rest state turns unstable, over forget biases",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="40 s",
    alt={
        "figure.png": (
            "One column for a GRU and for an LSTM of each forget bias. Above, the spectral radius of J at the origin "
            "over the gain in units of the critical one, which crosses 1 there, and where single nets cross. Middle, "
            "λ_1 of the trajectory, which leaves 0 later than the radius does. Below, the eigenvalues of J at the "
            "critical gain, a disc that touches the unit circle from inside."
        ),
    },
)
