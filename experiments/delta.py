"""How fast a delta rule forgets: its Lyapunov exponents for random keys, which are known exactly, and for clustered keys.

Hypothesis: S' = (I − β k kᵀ) S + β k vᵀ, k uniform on the sphere, β fixed, has the exponents Λ_p − Λ_{p−1} with
Λ_p = ½ E ln(1 − c B), c = β(2 − β), B ~ Beta(p/2, (K − p)/2), Λ_K = ln|1 − β|. Keys that lie in a few directions, as
trained ones do, cannot change the sum ln|1 − β|: they forget these directions faster and all others slower. Keys
within a subspace of r dimensions leave K − r exponents at 0, and the others are those of K = r.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells, spectra
from jaxbptt.jacobians import BlockJacobians, structured_jacobians
from jaxbptt.trajectories import unroll

from . import files, harness, options

SIZES = (2, 4, 8, 16, 32)  # K
BETAS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 1.9, 2.0)
COPIES = 2  # V: how often each exponent is there
SHOWN_BETA, SHOWN_SIZE = 0.5, 8  # of the figure's first and second panel
KEYS_SIZE, DIRECTIONS, NOISE = 16, 4, 0.3  # K, r and s of the clustered keys; their β is SHOWN_BETA
KINDS = {
    "uniform": "uniform on the sphere",
    "subspace": f"within {DIRECTIONS} dimensions",
    "noisy subspace": f"near {DIRECTIONS} dimensions",
    "clusters": f"{DIRECTIONS} clusters",
}
FARTHEST, RESOLVED, SAME = 4.0, 2.0, 1e-12  # the first two in standard errors
SIZE_COLOURS = ("#d9b300", "#7ab648", "#22a884", "#2a788e", "#440154")
KIND_STYLES = (("#555555", "o"), ("#2166ac", "s"), ("#67a9cf", "D"), ("#d6604d", "^"))


@dataclass(frozen=True)
class Config:
    length: int = field(default=10_000, metadata={"help": "steps T of each chain"})
    seed: int = field(default=0, metadata={"help": "seed of the keys"})
    out: str = field(default="results/delta", metadata={"help": "folder of the results"})


class Chains(NamedTuple):
    """Uniform keys at one K, one chain for each of b values of β. Rates: nats per step."""

    betas: np.ndarray  # [b]
    exponents: np.ndarray  # [b, K] descending; at β = 1 the last, −∞, is NaN: rounding hides it
    standard_error: np.ndarray  # [b, K] of each chain's own, over time
    exact: np.ndarray  # [b, K]
    copies_error: np.ndarray  # [b] largest difference between the copies of one exponent
    sum_error: np.ndarray  # [b] |Σ exponents − ln|1 − β||; NaN at β = 1


class Keys(NamedTuple):
    """One kind of keys, K = KEYS_SIZE, β = SHOWN_BETA."""

    exponents: np.ndarray  # [K] descending
    standard_error: np.ndarray  # [K]
    finite: np.ndarray  # [K] (1/T) ln σ_i(dS_T/dS_0)
    exact: np.ndarray  # [K] NaN where no law is known
    sum_error: np.ndarray  # [2] |sum − ln|1 − β||, of the exponents and of (1/T) ln σ_i
    cell_error: np.ndarray  # [] of the chain against that of `cells.delta_net` fed with these keys, largest entry


def exact_exponents(size: int, beta: float) -> np.ndarray:
    """Λ_p − Λ_{p−1}, p = 1 … K, in nats per step: descending; the last is −∞ at β = 1.

    E ln(1 − c B) by the double-exponential rule, B = σ(π sinh t), which takes the powers B^(p/2 − 1) and (1 − B)^…
    at both ends, and ln(1 − B) at c = 1. 1 − c B = 1 − B + (1 − β)² B loses nothing at B → 1.

    Args:
      size: K.
      beta: β in (0, 2].

    Returns:
      [K].

    Reference: Takahasi & Mori (1974), Publ. RIMS 9 (the rule).
    """
    t = np.arange(-5.0, 5.0, 1 / 128)
    log_b, log_rest = (-np.logaddexp(0, sign * np.pi * np.sinh(t)) for sign in (-1, 1))
    log_factor = np.logaddexp(log_rest, 2 * np.log(abs(1 - beta)) + log_b) if beta != 1 else log_rest
    p = np.arange(1, size)[:, None]
    weights = np.cosh(t) * np.exp(p / 2 * log_b + (size - p) / 2 * log_rest)
    means = (weights @ log_factor) / weights.sum(axis=1) / 2
    with np.errstate(divide="ignore"):
        last = np.log(abs(1 - beta))
    return np.diff(np.concatenate(([0.0], means, [last])))


def draw_keys(key: jax.Array, length: int, size: int, kind: str = "uniform") -> jax.Array:
    """[T, K] unit keys of a kind. s = NOISE, ξ ~ N(0, I/K), so that ‖s ξ‖ is about s.

    uniform: on the sphere. subspace: on the sphere of a random subspace of r dimensions. noisy subspace: such a key
    plus s ξ, scaled to length one. clusters: one of r random directions at each step, plus s ξ, scaled to length one.
    """
    own, frame_key, noise_key = jax.random.split(key, 3)
    if kind == "uniform":
        return _to_unit(jax.random.normal(own, (length, size)))
    if kind == "clusters":
        directions = _to_unit(jax.random.normal(frame_key, (DIRECTIONS, size)))
        keys = directions[jax.random.randint(own, (length,), 0, DIRECTIONS)]
    else:
        frame, _ = jnp.linalg.qr(jax.random.normal(frame_key, (size, DIRECTIONS)))
        keys = _to_unit(jax.random.normal(own, (length, DIRECTIONS))) @ frame.T
    if kind == "subspace":
        return _to_unit(keys)
    return _to_unit(keys + NOISE / size**0.5 * jax.random.normal(noise_key, keys.shape))


def _to_unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)


def make_chain(keys: jax.Array, beta: Any) -> BlockJacobians:
    """J_t = (I − β k kᵀ) ⊗ I_V for any β; the cell's own, β = σ(…), stays below 1."""
    length, size = keys.shape
    place = np.arange(size * COPIES).reshape(1, size, COPIES)
    column = keys[:, None, :, None]
    return BlockJacobians(cells.DiagonalLowRank(jnp.ones((length, 1, size)), -beta * column, column), place, length)


def cell_chain(keys: jax.Array, beta: float) -> Any:
    """The same from `cells.delta_net`, β < 1: W_k = I, so that x_t is the key, and σ(b_β) = β."""
    size = keys.shape[1]
    cell = cells.delta_net(size, size, COPIES)
    params = cell.init(jax.random.key(0))
    logit = jnp.asarray(np.log(beta / (1 - beta)), keys.dtype)
    params = params._replace(w_k=jnp.eye(size), w_beta=jnp.zeros_like(params.w_beta), b_beta=logit)
    return structured_jacobians(cell, params, unroll(cell, params, keys))


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Chains | Keys]:
    """Uniform keys at every K and β, then every kind of keys, in float64 (the caller enables x64)."""
    options.require_size("length", config.length, least=200)
    key, betas = jax.random.key(config.seed), np.array(BETAS)
    results: dict[str, Chains | Keys] = {}
    for size in SIZES:
        progress(f"K = {size}")
        keys = jax.random.split(jax.random.fold_in(key, size), len(betas))
        one = lambda given, size=size: _exponents(make_chain(draw_keys(given[0], config.length, size), given[1]))
        found = jax.jit(partial(jax.lax.map, one))((keys, jnp.asarray(betas)))
        exponents, standard_error, copies_error = map(np.asarray, found)
        with np.errstate(divide="ignore"):
            sums = np.log(abs(1 - betas))
        exact = np.stack([exact_exponents(size, beta) for beta in betas])
        sum_error = np.where(np.isfinite(sums), np.abs(exponents.sum(axis=1) - sums), np.nan)
        results[f"K = {size}"] = Chains(betas, exponents, standard_error, exact, copies_error, sum_error)
    measure = jax.jit(_measure_keys)
    for index, kind in enumerate(KINDS):
        progress(f"keys {KINDS[kind]}")
        keys = draw_keys(jax.random.fold_in(key, index), config.length, KEYS_SIZE, kind)
        exponents, standard_error, finite, cell_error = map(np.asarray, measure(keys))
        sum_error = np.abs(np.array([exponents.sum(), finite.sum()]) - np.log(1 - SHOWN_BETA))
        results[kind] = Keys(exponents, standard_error, finite, exact_of_kind(kind), sum_error, cell_error)
    return results


def exact_of_kind(kind: str) -> np.ndarray:
    """[K] exponents of KINDS at K = KEYS_SIZE, β = SHOWN_BETA; NaN where no law is known."""
    if kind == "uniform":
        return exact_exponents(KEYS_SIZE, SHOWN_BETA)
    if kind == "subspace":
        return np.concatenate((np.zeros(KEYS_SIZE - DIRECTIONS), exact_exponents(DIRECTIONS, SHOWN_BETA)))
    return np.full(KEYS_SIZE, np.nan)


def _exponents(chain):
    """(exponents [K], standard errors [K], largest difference between copies): QR at every step, for the last digit."""
    found = spectra.lyapunov_exponents(chain, interval=1)
    copies = found.exponents.reshape(-1, COPIES)
    known = jnp.where(jnp.isnan(copies), 0, copies)
    return copies[:, 0], found.standard_error[::COPIES], jnp.max(jnp.ptp(known, axis=1))


def _measure_keys(keys):
    chain = make_chain(keys, SHOWN_BETA)
    exponents, standard_error, _ = _exponents(chain)
    finite = spectra.log_singular_values(chain)[0, ::COPIES] / len(keys)
    own = cell_chain(keys, SHOWN_BETA)
    differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), _matrices(chain), _matrices(own))
    return exponents, standard_error, finite, differences


def _matrices(chain):
    return chain.core.diagonal[..., None] + chain.core.left @ chain.core.right.swapaxes(-1, -2)


def measure_distances(result: Chains | Keys) -> np.ndarray:
    """(exponent − exact)/standard error; where that error is none, 0 if they are the same, else inf.

    NaN where no law is known, and where a neighbour is nearer than RESOLVED standard errors: exponents come sorted, and
    the order of such two may be an accident.
    """
    off, error = result.exponents - result.exact, result.standard_error
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = np.abs(np.diff(result.exact, axis=-1))
        edge = np.full((*gaps.shape[:-1], 1), np.inf)
        nearest = np.minimum(np.concatenate((edge, gaps), axis=-1), np.concatenate((gaps, edge), axis=-1))
        distances = np.where(nearest > RESOLVED * error, off / error, np.nan)
        return np.where(error > SAME, distances, np.where(np.abs(off) < SAME, 0, off / 0))


def summarise(results: dict[str, Any], config: Config) -> harness.Summary:
    """How far exponents lie from the law in standard errors, the sums, and what clusters change."""
    chains = {name: result for name, result in results.items() if isinstance(result, Chains)}
    kinds = {name: result for name, result in results.items() if name in KINDS}
    distances = {name: measure_distances(result) for name, result in results.items()}
    lines = ["uniform keys, λ_1 and λ_K at β = 0.5, exact and measured; all β: distance in standard errors"]
    for name, result in chains.items():
        at = list(result.betas).index(SHOWN_BETA)
        said = [f"{result.exact[at, i]:+.6f} {result.exponents[at, i]:+.6f}" for i in (0, -1)]
        moved = result.standard_error > SAME  # not at β = 2, where all is exact
        size, square = np.nanmax(abs(distances[name])), np.nanmean(distances[name][moved] ** 2) ** 0.5
        lines.append(f"  {name:7} {', '.join(said)}; at most {size:.1f}, r.m.s. {square:.2f}")
    lines.append(f"K = {KEYS_SIZE}, β = {SHOWN_BETA:g}: λ_1, median, λ_K")
    for name, result in kinds.items():
        low, middle, high = result.exponents[-1], np.median(result.exponents), result.exponents[0]
        lines.append(f"  keys {KINDS[name]:22} {high:+.4f} {middle:+.4f} {low:+.4f}; sum {result.exponents.sum():+.6f}")
    judged = [np.isfinite(distances[name]) for name in distances]
    farthest = float(max(np.nanmax(abs(d)) for d in distances.values() if not np.isnan(d).all()))
    errors = {
        "sum_error": float(max(np.nanmax(result.sum_error) for result in results.values())),
        "copies_error": float(max(result.copies_error.max() for result in chains.values())),
        "cell_error": float(max(result.cell_error for result in kinds.values())),
    }
    lines += [
        f"farthest from the law of {sum(map(np.sum, judged))} exponents: {farthest:.1f} standard errors (expected at most"
        f" {FARTHEST:g}); {sum(map(np.size, judged))} less those without a law or too near a neighbour to be told apart",
        f"sums against ln|1 − β|: {errors['sum_error']:.0e}; copies of an exponent: {errors['copies_error']:.0e};"
        f" chain against the cell's: {errors['cell_error']:.0e}",
    ]
    numbers = {
        name: {"exact": result.exact.tolist(), "exponents": result.exponents.tolist()} for name, result in results.items()
    }
    failed = not (farthest <= FARTHEST and max(errors.values()) <= SAME)
    return harness.Summary(lines, {**numbers, "farthest": farthest, **errors}, int(failed))


def plot(results: dict[str, Any], path: Path) -> None:
    """The law over p and K, over β, and what keys in few directions do."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16.5, 6), layout="constrained")
    figure.suptitle(r"How fast the delta rule forgets: $S' = (I-\beta kk^{\mathsf{T}})S+\beta kv^{\mathsf{T}}$", fontsize=17)
    shapes, over_beta, kinds = figure.subplots(1, 3)
    _plot_shapes(shapes, results)
    _plot_betas(over_beta, results[f"K = {SHOWN_SIZE}"])
    _plot_kinds(kinds, results)
    for ax in (shapes, over_beta, kinds):
        ax.axhline(0, color="0.5", linewidth=0.8, zorder=0)
        ax.title.set_fontweight("bold")
        ax.spines[["top", "right"]].set_visible(False)
    files.write_figure(path, figure, dpi=120)


def _plot_shapes(ax, results):
    for size, colour in zip(SIZES, SIZE_COLOURS, strict=True):
        result = results[f"K = {size}"]
        at, places = list(result.betas).index(SHOWN_BETA), (np.arange(size) + 0.5) / size
        ax.plot(places, size * result.exact[at], color=colour, linewidth=1.3)
        _plot_points(ax, places, size * result.exponents[at], size * result.standard_error[at], colour, "o", f"K = {size}")
    c, x = SHOWN_BETA * (2 - SHOWN_BETA), np.linspace(0, 1, 200)
    ax.plot(x, -c / 2 / (1 - c * x), color="0.1", linewidth=1.6, linestyle="--", label=r"$K\to\infty$")
    ax.set(title=rf"uniform keys, $\beta$ = {SHOWN_BETA:g}: lines exact", xlabel="(p − ½) / K", ylabel=r"$K\,\lambda_p$ (nats per step)")
    ax.legend(frameon=False, loc="lower left")


def _plot_betas(ax, result):
    fine = np.unique(np.concatenate((np.linspace(0.005, 2, 400), 1 + np.geomspace(1e-3, 0.1, 40), [1.0])))
    fine = fine[fine != 1]
    exact = np.stack([exact_exponents(SHOWN_SIZE, beta) for beta in fine])
    shades = [str(level) for level in np.linspace(0.75, 0.0, SHOWN_SIZE)]
    for p, shade in enumerate(shades):
        label = {0: r"$\lambda_1$", SHOWN_SIZE - 1: rf"$\lambda_{SHOWN_SIZE}$"}.get(p)
        ax.plot(fine, exact[:, p], color=shade, linewidth=1.5)
        _plot_points(ax, result.betas, result.exponents[:, p], result.standard_error[:, p], shade, "o", label)
    ax.set(title=f"uniform keys, K = {SHOWN_SIZE}: lines exact", xlabel=r"$\beta$", ylabel=r"$\lambda_p$ (nats per step)")
    ax.set(ylim=(-1.5, 0.06))
    ax.legend(frameon=False, loc="lower left")


def _plot_kinds(ax, results):
    places = np.arange(1, KEYS_SIZE + 1)
    for kind, (colour, marker) in zip(KINDS, KIND_STYLES, strict=True):
        result = results[kind]
        _plot_points(ax, places, result.exponents, result.standard_error, colour, marker, KINDS[kind])
        ax.plot(places, result.exact, "_", color="0.1", markersize=13, markeredgewidth=1.4)
    ax.plot([], [], "_", color="0.1", markersize=13, label="exact")
    ax.set(title=rf"K = {KEYS_SIZE}, $\beta$ = {SHOWN_BETA:g}: all sums are $\ln(1-\beta)$", xlabel="p")
    ax.set(ylabel=r"$\lambda_p$ (nats per step)")
    ax.legend(frameon=False, loc="lower left", title="keys", alignment="left")


def _plot_points(ax, places, values, errors, colour, marker, label):
    style = {"color": colour, "fmt": marker, "markersize": 5.5, "capsize": 2.5, "elinewidth": 1.4}
    ax.errorbar(places, values, 2 * errors, label=label, **style)


EXPERIMENT = harness.Experiment(
    name="delta",
    purpose="exponents of the delta rule against their exact law, and for keys in a few directions",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
)
