"""How fast a delta rule forgets: its exponents for random keys, which are known exactly, and for clustered ones.

Hypothesis: S' = (I − β k kᵀ) S + β k vᵀ, k uniform on the sphere, β fixed, has the exponents Λ_p − Λ_{p−1} with
Λ_p = ½ E ln(1 − c B), c = β(2 − β), B ~ Beta(p/2, (K − p)/2), Λ_K = ln|1 − β|. Keys that lie in a few directions, as
trained ones do, cannot change the sum ln|1 − β|: they forget these directions faster and all others slower. Keys
within a subspace of r dimensions leave K − r exponents at 0, and the others are those of K = r.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import harness, options
from jaxbptt import spectra

from .chains import (
    BETAS,
    COPIES,
    KINDS,
    SHOWN_BETA,
    SHOWN_SIZE,
    SIZES,
    cell_chain,
    draw_keys,
    exact_exponents,
    exact_of_kind,
    make_chain,
)
from .figure import plot

FARTHEST, RESOLVED, SAME = 4.0, 2.0, 1e-12  # the first two in standard errors


@options.config
class Config:
    sizes: tuple = options.sizes(SIZES, f"entries K of a key, {SHOWN_SIZE} among them", least=2)
    length: int = options.size(10_000, "steps T of each chain", least=200)
    seed: int = options.seed("seed of the keys")
    out: str = options.out("delta")


class Chains(NamedTuple):
    """Uniform keys at one K, one chain for each of b values of β. Rates: nats per step."""

    betas: np.ndarray  # [b]
    exponents: np.ndarray  # [b, K] descending; at β = 1 the last, −∞, is NaN: rounding hides it
    standard_error: np.ndarray  # [b, K] of each chain's own, over time
    exact: np.ndarray  # [b, K]
    copies_error: np.ndarray  # [b] largest difference between the copies of one exponent
    sum_error: np.ndarray  # [b] |Σ exponents − ln|1 − β||; NaN at β = 1
    length: np.ndarray  # [] T


class Keys(NamedTuple):
    """One kind of keys, K = SHOWN_SIZE, β = SHOWN_BETA."""

    exponents: np.ndarray  # [K] descending
    standard_error: np.ndarray  # [K]
    finite: np.ndarray  # [K] (1/T) ln σ_i(dS_T/dS_0)
    exact: np.ndarray  # [K] NaN where no law is known
    sum_error: np.ndarray  # [2] |sum − ln|1 − β||, of the exponents and of (1/T) ln σ_i
    cell_error: np.ndarray  # [] of the chain against that of `cells.delta_net` fed with these keys, largest entry
    length: np.ndarray  # [] T


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Chains | Keys]:
    """Uniform keys at every K and β, then every kind of keys, in float64 (the caller enables x64)."""
    if SHOWN_SIZE not in config.sizes:
        raise ValueError(f"sizes: got {','.join(map(str, config.sizes))}, expected {SHOWN_SIZE} among them")
    key, steps, results = jax.random.key(config.seed), np.array(config.length), {}
    programs = {size: jax.jit(_measure_exponents) for size in config.sizes}
    for size, program in programs.items():
        progress(f"K = {size}")
        results[f"K = {size}"] = _measure_uniform(program, jax.random.fold_in(key, size), config.length, size)
    measure_others = jax.jit(_measure_others)
    for index, kind in enumerate(KINDS):
        progress(f"keys {KINDS[kind]}")
        keys = draw_keys(jax.random.fold_in(key, index), config.length, SHOWN_SIZE, kind)
        exponents, standard_error, _ = map(np.asarray, programs[SHOWN_SIZE](keys, jnp.asarray(SHOWN_BETA)))
        finite, cell_error = map(np.asarray, measure_others(keys))
        sum_error = np.abs(np.array([exponents.sum(), finite.sum()]) - np.log(1 - SHOWN_BETA))
        results[kind] = Keys(exponents, standard_error, finite, exact_of_kind(kind), sum_error, cell_error, steps)
    return results


def _measure_uniform(program, key, length, size):
    """One chain of its own for every β."""
    betas = np.array(BETAS)
    chains = zip(jax.random.split(key, len(betas)), betas, strict=True)
    rows = [program(draw_keys(own, length, size), jnp.asarray(beta)) for own, beta in chains]
    exponents, standard_error, copies_error = (np.stack(column) for column in zip(*rows, strict=True))
    exact = np.stack([exact_exponents(size, beta) for beta in betas])
    with np.errstate(divide="ignore"):
        sums = np.log(np.abs(1 - betas))
    sum_error = np.where(np.isfinite(sums), np.abs(exponents.sum(axis=1) - sums), np.nan)
    return Chains(betas, exponents, standard_error, exact, copies_error, sum_error, np.array(length))


def _measure_exponents(keys, beta):
    """(exponents [K], standard errors [K], largest difference between copies): QR at every step, for the last digit."""
    found = spectra.lyapunov_exponents(make_chain(keys, beta), interval=1)
    copies = found.exponents.reshape(-1, COPIES)
    known = jnp.where(jnp.isnan(copies), 0, copies)
    return copies[:, 0], found.standard_error[::COPIES], jnp.max(jnp.ptp(known, axis=1))


def _measure_others(keys):
    """((1/T) ln σ_i(dS_T/dS_0) [K], largest difference of the chain from the cell's own)."""
    chain = make_chain(keys, SHOWN_BETA)
    finite = spectra.log_singular_values(chain)[0, ::COPIES] / len(keys)
    return finite, jnp.max(jnp.abs(chain.matrices() - cell_chain(keys, SHOWN_BETA).matrices()))


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
    lines.append(f"K = {SHOWN_SIZE}, β = {SHOWN_BETA:g}: λ_1, median, λ_K")
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
        f"farthest from the law: {farthest:.1f} standard errors (expected at most {FARTHEST:g}), of"
        f" {sum(map(np.sum, judged))} exponents that have one and can be told from their neighbours",
        f"sums against ln|1 − β|: {errors['sum_error']:.0e}; copies of an exponent: {errors['copies_error']:.0e};"
        f" chain against the cell's: {errors['cell_error']:.0e}",
    ]
    numbers = {
        name: {"exact": result.exact.tolist(), "exponents": result.exponents.tolist()}
        for name, result in results.items()
    }
    failed = not (farthest <= FARTHEST and max(errors.values()) <= SAME)
    return harness.Summary(lines, {**numbers, "farthest": farthest, **errors}, int(failed))


EXPERIMENT = harness.Experiment(
    name="delta",
    purpose="exponents of the delta rule against their exact law, and for keys in a few directions",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="40 s",
    alt={
        "figure.png": (
            "Three panels of exponents of the delta rule. Left, K λ_p over (p − ½)/K for several K, points with error "
            "bars on exact lines that approach a dashed limit. Middle, the exponents over β, all 0 at 0 and 2 and "
            "lowest at 1. Right, the exponents by index for four kinds of keys: uniform ones fall evenly, those in few "
            "directions or clusters stay at 0 but for the last few."
        ),
    },
)
