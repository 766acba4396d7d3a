"""Which known slip gives a wrong piece's numbers."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jaxbptt.derivations.kinds import FACTORS, join, rank

SINGLE, FITTED, PAIR = 0, 1, 2  # stages: a later one is asked only for pieces that no earlier one explains
DIGITS = 8.0  # in all, that chance would have to get right before a pair, or a slip with a free number, is named
MAY_BE_ZERO = ("dropped_gate_path", "missing_initial_state")  # a result of zero is no sign of any other slip


class Piece(NamedTuple):
    """One piece at every place it was compared, in float64, leading axis S steps (1 for a gradient)."""

    expected: np.ndarray  # [S, ...]
    actual: np.ndarray | str  # [S, ...], or what is wrong with its shape
    tolerance: np.ndarray  # [S], what rounding may do to one entry
    response: np.ndarray | None = None  # [S], what rounding of the arguments does to the reference; None: not known
    rounding: float = 0  # of one entry's own size


class Batch(NamedTuple):
    """What R slips give."""

    labels: list[tuple[str, str]]  # (slip, note)
    values: dict[str, np.ndarray]  # piece -> [R, S, ...]
    stage: int = SINGLE


class Match(NamedTuple):
    slip: str
    note: str
    stage: int
    distance: float  # of the worst entry, in tolerances
    digits: float  # log10 of how far the actual numbers are from the true ones, in tolerances, summed over the entries


def is_wrong(piece: Piece) -> bool:
    """Whether some entry is off by more than rounding, or not a number."""
    return isinstance(piece.actual, str) or not np.all(errors(piece) <= 1)


def errors(piece: Piece) -> np.ndarray:
    """|actual − expected| in units of the tolerance; NaN where actual is."""
    return np.abs(piece.actual - piece.expected) / _spread(piece)


def name_slips(
    pieces: Mapping[str, Piece], batches: Iterable[Batch], factors: Mapping[str, float], steps: list[int] | None = None
) -> dict[str, Match]:
    """The slip that gives each wrong piece's numbers, where one does.

    batches: what the slips give, at `steps` only if they are given.
    factors: slips that multiply a piece, looked for beside another slip.
    """
    wrong = {}
    for name, piece in pieces.items():
        if not isinstance(piece.actual, str) and is_wrong(piece):
            chosen = slice(None) if steps is None else steps
            actual = piece.actual[chosen]
            # where the true piece is much smaller than this one, this one's own rounding counts
            own = piece.rounding * np.max(np.abs(actual).reshape(len(actual), -1), axis=1, initial=0)
            wrong[name] = Piece(piece.expected[chosen], actual, np.fmax(piece.tolerance[chosen], own))
    return choose(find_matches(wrong, batches, factors)) if wrong else {}


def find_matches(
    wrong: Mapping[str, Piece], batches: Iterable[Batch], factors: Mapping[str, float]
) -> dict[str, list[Match]]:
    """Per wrong piece, the slips that give its numbers: single ones, else fitted ones, else pairs."""
    found: dict[str, list[Match]] = {name: [] for name, piece in wrong.items() if np.all(np.isfinite(piece.actual))}
    stage = SINGLE
    for batch in batches:
        if batch.stage > stage:
            if all(_keep_certain(found).values()):
                break
            stage = batch.stage
        for name, each in found.items():
            value = batch.values.get(name)
            if value is not None and not any(match.stage < batch.stage and match.stage == SINGLE for match in each):
                each += _match(wrong[name], batch, value, {"": 1.0} if batch.stage else {"": 1.0, **factors})
    return _keep_certain(found)


def choose(found: dict[str, list[Match]]) -> dict[str, Match]:
    """One match a piece: first the slip that explains most pieces, then the next; of one slip, the place likewise."""
    chosen: dict[str, Match] = {}
    while True:
        left = {name: each for name, each in found.items() if each and name not in chosen}
        if not left:
            return chosen

        def count(same, left=left):
            return sum(any(same(match) for match in each) for each in left.values())

        slips = {match.slip for each in left.values() for match in each}
        best = max(slips, key=lambda slip: (count(lambda m: m.slip == slip), *(-place for place in rank(slip))))
        labels = {match.note for each in left.values() for match in each if match.slip == best}
        counts = {note: count(lambda m, label=(best, note): (m.slip, m.note) == label) for note in labels}
        for name, each in left.items():
            fitting = [match for match in each if match.slip == best]
            if fitting:
                chosen[name] = max(fitting, key=lambda match: (counts[match.note], -match.distance))


def _match(piece: Piece, batch: Batch, values: np.ndarray, factors: Mapping[str, float]) -> list[Match]:
    actual, expected, tolerance = np.asarray(piece.actual), piece.expected, _spread(piece)
    over = tuple(range(1, values.ndim))
    finite = np.all(np.isfinite(values), axis=over)
    size = np.max(np.abs(values), axis=over, initial=0)
    visible = np.any(np.abs(values) > tolerance, axis=over) & bool(np.any(actual))
    away = np.abs(actual - expected) / tolerance
    digits = float(np.sum(np.log10(np.maximum(away / 4, 1))))
    largest = max(np.max(np.abs(expected), initial=0), 1e-6 * np.max(np.abs(actual), initial=0), 1e-300)
    found = []
    for slip, factor in factors.items():
        distance = np.max(np.abs(actual - factor * values) / tolerance, axis=over, initial=0)
        growth = np.maximum(1, abs(factor) * size / largest)  # a larger value is rounded more coarsely
        near = finite & (distance <= 4 * growth) & (distance <= 1e-2 * np.max(away, initial=0))
        for row in np.flatnonzero(near):
            own, note = batch.labels[row]
            if not visible[row] and own not in MAY_BE_ZERO:
                continue
            if slip and (own in FACTORS or not visible[row]):
                continue
            name, stage = (join(slip, own), PAIR) if slip else (own, batch.stage)
            found.append(Match(name, note, stage, float(distance[row]), digits))
    return found


def _keep_certain(found: dict[str, list[Match]]) -> dict[str, list[Match]]:
    """Of every piece the matches of the earliest stage; pairs and fitted slips only where chance is excluded."""
    total: dict[tuple[str, str], float] = {}
    for each in found.values():
        for label, digits in {(match.slip, match.note): match.digits for match in each}.items():
            total[label] = total.get(label, 0) + digits
    kept = {}
    for name, each in found.items():
        sure = [m for m in each if m.stage == SINGLE or total[m.slip, m.note] >= DIGITS]
        stage = min((match.stage for match in sure), default=SINGLE)
        kept[name] = [match for match in sure if match.stage == stage]
    return kept


def _spread(piece: Piece) -> np.ndarray:
    return piece.tolerance.reshape(-1, *[1] * (piece.expected.ndim - 1)) + np.zeros_like(piece.expected)
