"""What is wrong with a derivation, piece by piece, and which known slip gives the same numbers."""

from typing import NamedTuple

import numpy as np

from jaxbptt.derivations.step_slips import KINDS, Candidate


class Finding(NamedTuple):
    """One wrong piece; `str()` is a sentence."""

    piece: str  # "state_jacobian", "params.<leaf>", "input" or "previous_state"
    slip: str | None  # one of `step_slips.KINDS`; None: no known slip gives it
    relative: float  # ‖actual − expected‖ / max(‖expected‖, tiny) over all steps and cotangents; NaN: not comparable
    step: int | None  # t of the worst entry, from 1; None where the piece is a sum over all steps
    entry: tuple[int, ...] | None  # of the worst entry, from 0
    expected: float | None  # value at that entry
    actual: float | None  # value at that entry
    expected_norm: float  # ‖expected‖; where 0, relative says only that actual is not
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class Report(NamedTuple):
    """The findings, empty if everything is correct; `str()` is a readable summary."""

    findings: tuple[Finding, ...]
    checked: str  # what was compared, in words

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __str__(self) -> str:
        if self.ok:
            return f"All correct: {self.checked}."
        head = f"{len(self.findings)} wrong of {self.checked}:"
        return "\n".join([head, *(f"- {finding}" for finding in self.findings)])


class Piece(NamedTuple):
    """One piece at every place it was compared, in float64, leading axis S steps (1 for a gradient)."""

    expected: np.ndarray  # [S, ...]
    actual: np.ndarray | str  # [S, ...], or what is wrong with its shape
    tolerance: np.ndarray  # [S], what rounding may do to one entry


def is_wrong(piece: Piece) -> bool:
    """Whether some entry is off by more than rounding, or not a number."""
    return isinstance(piece.actual, str) or not np.all(_errors(piece) <= 1)


def worst_steps(pieces: dict[str, Piece], count: int) -> list[int]:
    """The steps at which the wrong pieces are most wrong, in order."""
    total = 0
    for piece in pieces.values():
        if not isinstance(piece.actual, str) and is_wrong(piece):
            errors = np.nan_to_num(_errors(piece), nan=0, posinf=0)
            total = total + np.max(errors.reshape(len(errors), -1), axis=1) / np.max(errors, initial=1)
    steps = np.argsort(-np.asarray(total), kind="stable") if np.ndim(total) else np.arange(0)
    return sorted(int(step) for step in steps[:count])


def explain(pieces: dict[str, Piece], candidates: list[Candidate], steps: list[int] | None) -> list[Finding]:
    """A finding for each wrong piece, first under the slip that explains most of them, then under the next."""
    wrong = {name: piece for name, piece in pieces.items() if is_wrong(piece)}
    matches = {
        name: _matches(name, piece, candidates, steps)
        for name, piece in wrong.items()
        if not isinstance(piece.actual, str)
    }
    named: dict[str, Candidate | None] = {}
    while any(name not in named and found for name, found in matches.items()):
        left = {name: found for name, found in matches.items() if name not in named}
        best = max(
            {candidate.slip for found in left.values() for candidate in found},
            key=lambda slip: (sum(_has(found, slip) for found in left.values()), -list(KINDS).index(slip)),
        )
        for name, found in left.items():
            if _has(found, best):
                named[name] = next(candidate for candidate in found if candidate.slip == best)
    return [describe(name, piece, named.get(name), steps is not None) for name, piece in wrong.items()]


def describe(name: str, piece: Piece, candidate: Candidate | None, by_step: bool) -> Finding:
    """The finding of one wrong piece."""
    norm = float(np.linalg.norm(piece.expected))
    if isinstance(piece.actual, str):
        return Finding(name, None, np.nan, None, None, None, None, norm, f"{name}: {piece.actual}")
    difference = piece.actual - piece.expected
    relative = float(np.linalg.norm(difference) / max(norm, np.finfo(np.float64).tiny))
    errors = np.where(np.isfinite(difference), _errors(piece), np.inf)
    place = tuple(int(i) for i in np.unravel_index(np.argmax(errors), errors.shape))
    expected, actual = float(piece.expected[place]), float(piece.actual[place])
    entry = place[1:] if name == "state_jacobian" or not by_step else place[2:]  # a pullback has a cotangent axis
    step = place[0] + 1 if by_step else None
    where = ", ".join([f"t = {step}"] * by_step + [f"entry {list(entry)}"] * bool(entry))
    if not np.all(np.isfinite(piece.actual)):
        size = "not finite"
    elif norm:
        size = f"off by {relative:.1e} relative"
    else:
        size = f"of norm {np.linalg.norm(piece.actual):.1e} where zero is expected"
    share = np.mean(~(errors <= 1))
    spread = "every entry" if share > 0.99 else f"{share:.0%} of the entries"
    cause = "no known slip gives these numbers"
    if candidate is not None:
        note = f" ({candidate.note})" if candidate.note else ""
        cause = f"{KINDS[candidate.slip]}{note} [{candidate.slip}]"
    got = f"worst at {where}: got {actual:.6g}, expected {expected:.6g}" if where else f"got {actual:.6g}"
    sentence = f"{name} is {size}, in {spread}; {got}. It looks as if {cause}."
    if candidate is None:
        sentence = f"{name} is {size}, in {spread}; {got}; {cause}."
    slip = None if candidate is None else candidate.slip
    return Finding(name, slip, relative, step, entry, expected, actual, norm, sentence)


def _matches(name, piece, candidates, steps):
    """The candidates that give this piece's actual numbers, nearest first."""
    chosen = slice(None) if steps is None else steps
    actual, expected, tolerance = piece.actual[chosen], piece.expected[chosen], _spread(piece)[chosen]
    if not np.all(np.isfinite(actual)):
        return []
    away = np.max(np.abs(actual - expected) / tolerance, initial=0)
    found = []
    for candidate in candidates:
        value = candidate.pieces.get(name)
        value = value if value is None or steps is not None else value[None]
        if value is None or not np.all(np.isfinite(value)):
            continue
        if not np.any(np.abs(value) > tolerance) and candidate.slip != "dropped_gate_path":
            continue  # a result of zero is no sign of any other slip
        # a value larger than the true one is rounded more coarsely
        growth = max(1.0, np.max(np.abs(value)) / max(np.max(np.abs(expected)), np.finfo(np.float64).tiny))
        distance = np.max(np.abs(actual - value) / tolerance, initial=0)
        if distance <= 4 * growth and distance <= 1e-2 * away:
            found.append((distance, candidate))
    return [candidate for _, candidate in sorted(found, key=lambda pair: pair[0])]


def _has(found, slip):
    return any(candidate.slip == slip for candidate in found)


def _spread(piece):
    return piece.tolerance.reshape(-1, *[1] * (piece.expected.ndim - 1)) + np.zeros_like(piece.expected)


def _errors(piece):
    """|actual − expected| in units of the tolerance; NaN where actual is."""
    return np.abs(piece.actual - piece.expected) / _spread(piece)
