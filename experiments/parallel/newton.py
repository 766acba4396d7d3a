"""How many iterations Newton's method takes for the forward pass in parallel, and what its outlook said before."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import systems
from jaxbptt import spectra, trajectories

GAINS = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
LENGTHS = (10, 100, 1000)
TRIAL = 1000  # steps from which the outlook takes λ_1
VERDICTS = ("pays", "cannot tell", "does not pay")
REFERENCE_SIZE, MANY = 100, 60
# Gonzalez et al. (2025), tanh, no input, N = 100; None: more than 60, or overflow
REFERENCE = {0.5: (4, 4, 4), 0.9: (6, 6, 6), 1.1: (7, 11, None), 1.5: (8, 28, None), 2.0: (9, 57, None)}
SAME = 1e-10  # of states, whose entries are at most 1: the scan and Newton's method agree


class Iterations(NamedTuple):
    """Newton's method on tanh nets. G gains, L lengths T."""

    size: np.ndarray  # [] N
    most: np.ndarray  # [] iterations at which it was stopped
    gains: np.ndarray  # [G]
    lengths: np.ndarray  # [L]
    exponent: np.ndarray  # [G] λ_1, nats per step
    exponent_error: np.ndarray  # [G] with all its errors
    verdict: np.ndarray  # [G, L] of newton_outlook: the place among VERDICTS
    iterations: np.ndarray  # [G, L]
    converged: np.ndarray  # [G, L]
    difference: np.ndarray  # [G, L] from the scan's states, largest entry of those that are given


def measure_iterations(size: int, most: int, seed: int, progress: Any) -> Iterations:
    """Every gain and length: one draw of the net serves all gains, one program all gains of a length."""
    cell = systems.random_tanh(size, 1.0)
    params = cell.init(jax.random.key(seed))
    h_0 = jax.random.normal(jax.random.key(seed + 1), (size,))
    of_gain = lambda gain: params._replace(w_hh=gain * params.w_hh)
    exponents_of = jax.jit(
        lambda gain: spectra.stream_exponents(cell, of_gain(gain), jnp.zeros((TRIAL, 0)), initial=h_0, k=1)
    )
    exponents = [exponents_of(jnp.asarray(gain)) for gain in GAINS]
    outlooks = [[spectra.newton_outlook(each, length) for length in LENGTHS] for each in exponents]
    columns = []
    for length in LENGTHS:
        progress(f"Newton's method, N = {size}, T = {length}")
        solve = jax.jit(lambda gain, length=length: _solve(cell, of_gain(gain), length, h_0, most))
        columns.append([jax.tree.map(np.asarray, solve(jnp.asarray(gain))) for gain in GAINS])
    table = lambda i: np.array([[row[i] for row in column] for column in columns]).T
    return Iterations(
        size=np.array(size),
        most=np.array(most),
        gains=np.array(GAINS),
        lengths=np.array(LENGTHS),
        exponent=np.array([each.exponents[0] for each in exponents]),
        exponent_error=np.array([(row[0].upper - row[0].lower) / 2 for row in outlooks]),
        verdict=np.array([[VERDICTS.index(each.verdict) for each in row] for row in outlooks]),
        iterations=table(0),
        converged=table(1),
        difference=table(2),
    )


def _solve(cell, params, length, h_0, most):
    inputs = jnp.zeros((length, 0))
    found = trajectories.unroll(cell, params, inputs, initial=h_0, method="newton", max_iterations=min(length, most))
    scanned = trajectories.unroll(cell, params, inputs, initial=h_0).states
    off = jnp.max(jnp.where(jnp.isnan(found.states), 0, jnp.abs(found.states - scanned)))
    return found.iterations, found.converged, off


def judge_iterations(result: Iterations) -> dict[str, Any]:
    """What the run must keep to, and how far it is from the reference where N is the reference's."""
    pays = result.verdict == VERDICTS.index("pays")
    both = pays[:, 1:] & pays[:, :-1]
    change = np.abs(np.diff(result.iterations, axis=1))[both]
    # In exact arithmetic T iterations end it, and they do in floats.
    in_time = result.converged[:, result.lengths <= result.most]
    deviation, fewer = _compare_reference(result) if result.size == REFERENCE_SIZE else (None, None)
    return {
        "never_more_than_T": bool(in_time.all()),
        "converged_where_it_pays": bool(result.converged[pays].all()),
        "largest_change_with_T_where_it_pays": int(change.max(initial=0)),
        "largest_difference_where_it_pays": float(result.difference[pays].max(initial=0)),
        "largest_deviation_from_reference": deviation,
        "fewer_than_the_reference": fewer,
    }


def _compare_reference(result):
    """(the largest deviation in iterations, how many took few where the reference has more than `MANY`)."""
    counts = {float(gain): row for gain, row in zip(result.gains, result.iterations, strict=True)}
    pairs = [pair for gain, row in REFERENCE.items() for pair in zip(counts[gain], row, strict=True)]
    deviations = [abs(int(count) - expected) for count, expected in pairs if expected is not None]
    return max(deviations), sum(bool(count <= MANY) for count, expected in pairs if expected is None)


def holds(judged: dict[str, Any]) -> bool:
    """Whether all that is certain came true."""
    return (
        judged["never_more_than_T"]
        and judged["converged_where_it_pays"]
        and judged["largest_difference_where_it_pays"] <= SAME
    )


def in_words(result: Iterations) -> list[str]:
    """A table: one row a gain, a column a length: iterations, the outlook's verdict, the reference."""
    titles = [f"T = {length}" for length in result.lengths]
    lines = [
        f"Newton's iterations, tanh, N = {result.size}, the outlook's verdict, and those published for"
        f" N = {REFERENCE_SIZE}:",
        f"  {'gain':5} {'λ_1':>8}   " + "".join(f"{title:26}" for title in titles),
    ]
    for i, gain in enumerate(result.gains):
        entries = []
        for j, verdict in enumerate(result.verdict[i]):
            count = f"{'' if result.converged[i, j] else '> '}{result.iterations[i, j]}"
            entry = f"{count:>5} {VERDICTS[verdict]}"
            if gain in REFERENCE:
                published = REFERENCE[gain][j]
                entry += f" ({f'> {MANY}' if published is None else published})"
            entries.append(f"{entry:26}")
        lines.append(f"  {gain:<5g} {result.exponent[i]:+8.4f}   " + "".join(entries).rstrip())
    return lines
