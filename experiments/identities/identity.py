"""What an identity is, and the judge: residuals decide the verdict, nobody writes it down."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

HOLDS, FAILS = 1e-9, 1e-3  # relative residual in float64: at most the first, at least the second; between is undecided
MISMATCH = 1.0  # a vector for a matrix, a number for NaN: as far off as nothing at all, and legal JSON
SEEDS = 3


class Claim(NamedTuple):
    """Both sides as arrays, booleans or pytrees of them; a difference of shape is a difference."""

    written: Any  # what the note says
    truth: Any  # the same quantity by a route that does not use the claim
    corrected: Any = None  # what the note should say; must equal truth, asked of rows that fail


class Identity(NamedTuple):
    id: str  # the audit's row, e.g. "S4.16"
    expected: str  # "holds" | "conditional" | "fails"
    latex: str  # the equation as the note writes it, matplotlib mathtext without $
    statement: str  # in words
    correct: str  # the correct statement or condition in words; "" where it holds as written
    correct_latex: str  # the same as an equation, of what claim judges; "" where it is words alone
    general: Callable  # (key) or, for a conditional row, (key, satisfied: bool) -> keyword arguments of claim
    claim: Callable  # (**instance) -> Claim
    smallest: tuple[Mapping[str, Any], ...]  # counterexamples: instances on the side where the claim fails
    counterexample: str  # the smallest one in words

    @property
    def source(self) -> str:
        return self.id.split(".")[0] if "." in self.id else self.id[0]  # S4.16 is of S4, X1 of X


class Judgement(NamedTuple):
    identity: Identity
    verdict: str  # "holds" | "conditional" | "fails" | "undecided"
    residual: float  # of the claim, worst on the side where it should hold (for a failing one: largest)
    residual_outside: float | None  # conditional rows: largest off the condition
    residual_corrected: float | None  # rows with a correct statement: its worst
    residual_smallest: float | None  # of the claim at the smallest counterexample


REGISTRY: dict[str, Identity] = {}


def identity(
    id: str,
    expected: str,
    latex: str,
    statement: str,
    *,
    general: Callable,
    correct: str = "",
    correct_latex: str = "",
    smallest: Iterable[Mapping[str, Any]] = (),
    counterexample: str = "",
):
    """Register the decorated function (**instance) -> Claim as row `id`."""

    def register(claim):
        if id in REGISTRY:
            raise ValueError(f"id: {id} is there already")
        REGISTRY[id] = Identity(
            id, expected, latex, statement, correct, correct_latex, general, claim, tuple(smallest), counterexample
        )
        return claim

    return register


def judge(row: Identity) -> Judgement:
    """Run the claim on SEEDS random instances, on both sides of a condition, and at the smallest counterexamples."""
    keys = [jax.random.fold_in(jax.random.key(20), seed) for seed in range(SEEDS)]
    conditional = row.expected == "conditional"
    inside = [row.claim(**(row.general(key, True) if conditional else row.general(key))) for key in keys]
    outside = [row.claim(**row.general(key, False)) for key in keys] if conditional else []
    at_smallest = [row.claim(**instance) for instance in row.smallest]
    errors, off, small = ([_residual(c.written, c.truth) for c in cs] for cs in (inside, outside, at_smallest))
    corrected = [_residual(c.corrected, c.truth) for c in (*inside, *outside, *at_smallest) if c.corrected is not None]
    return Judgement(
        row,
        _verdict(errors, off + (small if conditional else []), [] if conditional else small, corrected, row.expected),
        max(errors),
        max(off) if off else None,
        max(corrected) if corrected else None,
        max(small) if small else None,
    )


def _verdict(inside, outside, smallest, corrected, expected):
    if corrected and max(corrected) > HOLDS:
        return "undecided"
    everywhere = inside + smallest
    if outside:
        if max(inside) <= HOLDS and max(outside) >= FAILS:
            return "conditional"
        everywhere = inside + outside
    if max(everywhere) <= HOLDS:
        return "holds"
    # A false claim must fail at every general instance and have its correct statement beside it.
    return "fails" if min(inside) >= FAILS and corrected else "undecided"


def _residual(one, other):
    """‖one − other‖ / max(‖one‖, ‖other‖) over all leaves; MISMATCH where structure, shapes or finiteness differ."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return MISMATCH
    pairs = list(zip(*map(jax.tree.leaves, (one, other)), strict=True))
    flat = [[np.asarray(leaf) for leaf in pair] for pair in pairs]
    if any(a.shape != b.shape for a, b in flat):
        return MISMATCH
    a, b = (np.concatenate([pair[side].ravel().astype(complex) for pair in flat]) for side in (0, 1))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0 if np.array_equal(a, b, equal_nan=True) else MISMATCH
    size = max(np.linalg.norm(a), np.linalg.norm(b))
    return float(np.linalg.norm(a - b) / size) if size else 0.0
