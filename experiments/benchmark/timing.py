"""Contestants side by side: results compared first, then timed in turns, so that ratios are of neighbours in time."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

LEAST_ROUNDS, MOST_ROUNDS = 5, 1000
SHORT = 0.02  # seconds: a call shorter than this is made once untimed at each turn, to find its own threads and cache
PEERS_ERRORS = (Exception,)  # a peer may fail in any way; that is its row, not the end of the run


class Contestant(NamedTuple):
    """One way to a result. A traced function is compiled; any other is called as it is."""

    function: Callable  # (*arguments) -> result
    arguments: tuple
    convert: Callable | None = lambda result: result  # result -> what ours gives; None: not the same thing, a bound
    traced: bool = True
    note: str = ""


class Unavailable(Exception):
    """Why a peer takes no part."""


class _Ready(NamedTuple):
    call: Callable  # () -> result, finished
    compile_seconds: float | None
    temp_bytes: int | None


def race(
    makers: Sequence[tuple[str, Callable]],
    *,
    seconds: float,
    tolerance: float,
    difference: Callable | None = None,
    flops: float | None = None,
    rounds: int = LEAST_ROUNDS,
) -> list[dict[str, Any]]:
    """Rows of (name, maker); the first is ours, to which results and times are compared.

    A maker () -> Contestant raises ImportError or Unavailable to stay out. Every round calls each contestant once, in
    an order that rotates; rounds end when `seconds` are spent, after `rounds` of them at least. Status: "ok"; "differs"
    (`difference`, by default `relative_difference`, above `tolerance`; not timed); "missing", "skipped" or "failed",
    with a note.
    """
    difference = difference or relative_difference
    rows, racing = [], []
    reference = None
    for position, (name, make) in enumerate(makers):
        row = {"contestant": name, "status": "ok", "note": ""}
        rows.append(row)
        try:
            contestant = make()
            row["note"] = contestant.note
            ready = _prepare(contestant)
            row.update(compile_seconds=ready.compile_seconds, temp_bytes=ready.temp_bytes)
            result = ready.call()
            if position == 0:
                reference = _as_arrays(contestant.convert(result))
                row["difference"] = 0.0
            elif contestant.convert is not None:
                row["difference"] = difference(reference, _as_arrays(contestant.convert(result)))
                if not row["difference"] <= tolerance:
                    row["status"] = "differs"
                    continue
            racing.append((row, ready))
        except PEERS_ERRORS as error:
            if position == 0:
                raise
            row.update(explain_absence(error))
    times = take_turns([ready.call for _, ready in racing], seconds, rounds)
    for (row, _), taken in zip(racing, times, strict=True):
        ratio = np.quantile(taken / times[0], (0.25, 0.5, 0.75))
        row.update(
            rounds=len(taken),
            seconds=float(np.median(taken)),
            fastest=float(taken.min()),
            quartiles=np.quantile(taken, (0.25, 0.75)).tolist(),
            ratio=float(ratio[1]),
            ratio_quartiles=ratio[[0, 2]].tolist(),
            ratio_of_medians=float(np.median(taken) / np.median(times[0])),
        )
        if flops is not None:
            row.update(flops=flops, gflops=flops / row["seconds"] / 1e9)
    return rows


def explain_absence(error: Exception) -> dict[str, str]:
    """Status and note of a peer that could not be made or called."""
    status = "missing" if isinstance(error, ImportError) else "skipped" if isinstance(error, Unavailable) else "failed"
    text = " ".join(str(error).split()) or type(error).__name__
    return {"status": status, "note": text if len(text) <= 160 else text[:157] + "…"}


def _prepare(contestant):
    """Compiled, if it is traced; the arguments are never constants of the program."""
    if not contestant.traced:
        return _Ready(lambda: contestant.function(*contestant.arguments), None, None)
    start = time.perf_counter()
    compiled = jax.jit(contestant.function).lower(*contestant.arguments).compile()
    elapsed = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    return _Ready(lambda: jax.block_until_ready(compiled(*contestant.arguments)), elapsed, temporary)


def take_turns(calls: Sequence[Callable], seconds: float, rounds: int = LEAST_ROUNDS) -> np.ndarray:
    """[contestants, rounds] seconds of one call each; what is compiled has been called before."""
    taken, last = [], [0.0] * len(calls)
    start = time.perf_counter()
    while len(taken) < rounds or (time.perf_counter() - start < seconds and len(taken) < MOST_ROUNDS):
        for turn in range(len(calls)):
            i = (turn + len(taken)) % len(calls)
            if last[i] < SHORT:
                calls[i]()
            began = time.perf_counter()
            calls[i]()
            last[i] = time.perf_counter() - began
        taken.append(list(last))
    return np.array(taken).T


def relative_difference(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """Worst ‖actual − expected‖ / ‖expected‖ over the leaves; inf where shapes differ or numbers are not finite."""
    if [leaf.shape for leaf in expected] != [leaf.shape for leaf in actual]:
        return float("inf")
    worst = 0.0
    for one, other in zip(expected, actual, strict=True):
        difference = np.linalg.norm(other - one) / max(float(np.linalg.norm(one)), np.finfo(np.float32).tiny)
        worst = max(worst, float(difference) if np.isfinite(difference) else float("inf"))
    return worst


def _as_arrays(tree: Any):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """b of the least-squares line ln seconds = a + b ln size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
