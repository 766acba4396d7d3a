"""What is wrong with a derivation, piece by piece, and which known slip gives the same numbers."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxbptt.derivations.kinds import describe_slip
from jaxbptt.derivations.matching import Match, Piece, errors, is_wrong


class Finding(NamedTuple):
    """One wrong piece; `str()` is a sentence.

    Attributes:
      piece: "state_jacobian", "params.<leaf>", "input" or "previous_state".
      slip: of `kinds.KINDS`, or two joined by " + "; None: no known slip gives it.
      relative: ‖actual − expected‖ / max(‖expected‖, tiny) over all steps and cotangents; NaN: not comparable.
      step: t of the worst entry, from 1; None where the piece is a sum over all steps.
      entry: indices of the worst entry, from 0.
      expected, actual: values at that entry.
      expected_norm: ‖expected‖; where 0, relative says only that actual is not.
      sentence: all of it in words.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, derivations
      >>> cell = cells.from_step(lambda w, h, x: w * h + x, lambda w: jnp.zeros(1))
      >>> mine = derivations.Derivation(lambda w, h, x: w[None], lambda w, h, x, v: (h * v, -w * v, v))
      >>> data = {"params": jnp.array([2.0]), "inputs": jnp.ones((3, 1))}
      >>> finding = derivations.check(cell, mine, key=jax.random.key(0), **data).findings[0]
      >>> finding.piece, finding.slip, round(finding.relative, 3)
      ('previous_state', 'sign', 2.0)
    """

    piece: str
    slip: str | None
    relative: float
    step: int | None
    entry: tuple[int, ...] | None
    expected: float | None
    actual: float | None
    expected_norm: float
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class Report(NamedTuple):
    """The findings, empty if everything is correct; `str()` is a readable summary.

    Attributes:
      findings: what is wrong, a Finding each.
      checked: what was compared, in words.
      notes: what could not be decided, and where.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, derivations
      >>> cell = cells.from_step(lambda w, h, x: w * h + x, lambda w: jnp.zeros(1))
      >>> mine = derivations.Derivation(lambda w, h, x: w[None], lambda w, h, x, v: (h * v, w * v, v))
      >>> data = {"params": jnp.array([2.0]), "inputs": jnp.ones((3, 1))}
      >>> print(derivations.check(cell, mine, key=jax.random.key(0), **data))
      All correct: 4 pieces (state_jacobian, params, previous_state, input), at 3 steps.
    """

    findings: tuple[Finding, ...]
    checked: str
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __str__(self) -> str:
        notes = [f"Note: {note}." for note in self.notes]
        if self.ok:
            return "\n".join([f"All correct: {self.checked}.", *notes])
        head = f"{len(self.findings)} wrong of {self.checked}:"
        return "\n".join([head, *(f"- {finding}" for finding in self.findings), *notes])


def worst_steps(pieces: Mapping[str, Piece], count: int) -> list[int]:
    """The steps at which the wrong pieces are most wrong, in order."""
    total = 0
    for piece in pieces.values():
        if not isinstance(piece.actual, str) and is_wrong(piece):
            off = np.nan_to_num(errors(piece), nan=0, posinf=0)
            total = total + np.max(off.reshape(len(off), -1), axis=1) / np.max(off, initial=1)
    steps = np.argsort(-np.asarray(total), kind="stable") if np.ndim(total) else np.arange(0)
    return sorted(int(step) for step in steps[:count])


def explain(pieces: Mapping[str, Piece], named: Mapping[str, Match], by_step: bool) -> list[Finding]:
    """A finding for each wrong piece."""
    return [describe(name, piece, named.get(name), by_step) for name, piece in pieces.items() if is_wrong(piece)]


def describe(name: str, piece: Piece, match: Match | None, by_step: bool) -> Finding:
    """The finding of one wrong piece."""
    norm = float(np.linalg.norm(piece.expected))
    if isinstance(piece.actual, str):
        return Finding(name, None, np.nan, None, None, None, None, norm, f"{name}: {piece.actual}")
    difference = piece.actual - piece.expected
    relative = float(np.linalg.norm(difference) / max(norm, np.finfo(np.float64).tiny))
    off = np.where(np.isfinite(difference), errors(piece), np.inf)
    place = tuple(int(i) for i in np.unravel_index(np.argmax(off), off.shape))
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
    share = np.mean(~(off <= 1))
    spread = "every entry" if share > 0.99 else f"{share:.0%} of the entries"
    got = f"worst at {where}: got {actual:.6g}, expected {expected:.6g}" if where else f"got {actual:.6g}"
    cause = "; no known slip gives these numbers." if match is None else ""
    if match is not None:
        cause = f". It looks as if {describe_slip(match.slip, match.note)}."
    sentence = f"{name} is {size}, in {spread}; {got}{cause}"
    return Finding(name, match and match.slip, relative, step, entry, expected, actual, norm, sentence)
