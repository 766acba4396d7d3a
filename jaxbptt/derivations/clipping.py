"""An adjoint clipped at every step at an unknown bound: the bound is found from the numbers."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxbptt.derivations import recursions
from jaxbptt.derivations.gradient_rows import Tables
from jaxbptt.derivations.gradient_slips import Row, evaluate_rows
from jaxbptt.derivations.matching import FITTED, Batch, Piece
from jaxbptt.derivations.recursions import Carried

POINTS = 64  # bounds at a time
RANGE = 1e-8  # the least bound that is tried, of the largest entry of λ
BRACKETS = 4  # intervals that are searched, of each kind of clipping
ROUNDS = 9  # of dividing an interval by POINTS


class Clipping(NamedTuple):
    note: str
    carry: Callable[[np.ndarray, np.ndarray, np.ndarray], Carried]  # (J, c, bounds [B]) -> λ [B, T, N], μ_0 [B, N]


def fit_bounds(tables: Tables, wrong: Mapping[str, Piece]) -> Iterator[Batch]:
    """What clipping gives at the bound that fits the largest wrong leaf best, for each kind of clipping."""
    if not wrong:
        return
    name = max(wrong, key=lambda name: wrong[name].expected.size)
    actual, tolerance = np.asarray(wrong[name].actual), wrong[name].tolerance
    if not np.all(np.isfinite(actual)):
        return
    top = max(np.max(np.abs(tables.right.adjoints), initial=0), np.max(np.abs(tables.instance.local), initial=0))
    if not top > 0:
        return
    for kind in _KINDS:
        rough = _evaluate(tables, kind, top * np.geomspace(RANGE, 2, POINTS))
        for low, high in _brackets(rough, name, actual)[:BRACKETS]:
            bound = _refine(tables, kind, name, actual, float(tolerance[0]), low, high)
            if bound is not None:
                values = _evaluate(tables, kind, np.asarray([bound])).values
                yield Batch([("clipped_adjoint", kind.note.format(bound))], values, FITTED)


class _Tried(NamedTuple):
    bounds: np.ndarray
    values: dict[str, np.ndarray]


def _evaluate(tables: Tables, kind: Clipping, bounds: np.ndarray) -> _Tried:
    carried = kind.carry(tables.chains[0], tables.instance.local, bounds)
    rows = [Row("", "", Carried(*each)) for each in zip(*carried, strict=True)]
    return _Tried(bounds, evaluate_rows(tables.instance, tables.directs, rows))


def _brackets(tried: _Tried, name: str, actual: np.ndarray) -> list[tuple[float, float]]:
    """Neighbouring bounds between which the actual numbers lie, along the line between theirs, the nearest first."""
    values = tried.values[name].reshape(len(tried.bounds), -1)
    residuals, along = values - actual.ravel(), np.diff(values, axis=0)
    before, after = np.sum(residuals[:-1] * along, axis=1), np.sum(residuals[1:] * along, axis=1)
    moved = np.linalg.norm(along, axis=1)
    crossing = np.flatnonzero((before <= 0) & (after >= 0) & (moved > 0))
    off = np.linalg.norm(residuals[:-1], axis=1) ** 2 - (before / np.where(moved > 0, moved, 1)) ** 2
    order = crossing[np.argsort(off[crossing], kind="stable")]
    return [(tried.bounds[k], tried.bounds[k + 1]) for k in order]


def _refine(tables, kind, name, actual, tolerance, low, high):
    """The bound in an interval whose numbers are the actual ones; None where none is."""
    for _ in range(ROUNDS):
        tried = _evaluate(tables, kind, np.linspace(low, high, POINTS))
        values = tried.values[name].reshape(POINTS, -1)
        off = np.max(np.abs(values - actual.ravel()), axis=1)
        best = int(np.argmin(off))
        if off[best] > 4 * np.max(np.abs(values[-1] - values[0])) + 4 * tolerance:
            return None  # the actual numbers are not near this piece of the curve
        brackets = _brackets(tried, name, actual)
        if not brackets or high - low <= 1e-15 * high:
            return tried.bounds[best] if off[best] <= 4 * tolerance else None
        low, high = brackets[0]
    return (low + high) / 2


def _by_entry(values, bounds):
    return np.clip(values, -bounds[:, None], bounds[:, None])


def _by_norm(values, bounds):
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    return values * np.minimum(1, bounds[:, None] / np.where(norms > 0, norms, 1))


def _carry(clip, whole):
    def carry(chain, local, bounds):
        change = lambda values: clip(values, bounds)
        each = np.broadcast_to(local, (len(bounds), *local.shape))
        return (
            recursions.adjoints(chain, each, change)
            if whole
            else recursions.adjoints(chain, each, change_carried=change)
        )

    return carry


_KINDS = [
    Clipping("elementwise at {:.6g}", _carry(_by_entry, True)),
    Clipping("by its norm at {:.6g}", _carry(_by_norm, True)),
    Clipping("J_{{t+1}}ᵀ λ_{{t+1}} elementwise at {:.6g}", _carry(_by_entry, False)),
    Clipping("J_{{t+1}}ᵀ λ_{{t+1}} by its norm at {:.6g}", _carry(_by_norm, False)),
]
