"""An adjoint clipped at every step at an unknown bound: the bound is found from the numbers."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxbptt._validation import named_leaves
from jaxbptt.derivations import recursions
from jaxbptt.derivations.gradient_rows import Tables
from jaxbptt.derivations.gradient_slips import Instance, Row, evaluate_rows
from jaxbptt.derivations.matching import FITTED, Batch, Piece
from jaxbptt.derivations.recursions import Carried

POINTS = 64  # bounds at a time
RANGE = 1e-8  # the least bound that is tried, of the largest entry of λ
BRACKETS = 4  # intervals that are searched, of each kind of clipping
ROUNDS = 9  # of dividing an interval by POINTS
MOST_PARTS = 4  # arrays of a state that are looked at one by one


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
    for kinds in _kinds(tables.instance):
        found = list(_fit(tables, kinds, name, top, actual, float(tolerance[0])))
        yield from found
        if found:
            return


def _fit(tables, kinds, name, top, actual, tolerance):
    for kind in kinds:
        rough = _evaluate(tables, kind, top * np.geomspace(RANGE, 2, POINTS))
        for low, high in _brackets(rough, name, actual)[:BRACKETS]:
            bound = _refine(tables, kind, name, actual, tolerance, low, high)
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


def _kinds(instance: Instance) -> Iterator[list[Clipping]]:
    """The ways to clip, the likely first: the whole state, a sequence of a batch; then parts of the state, as hooks on
    one of its arrays do."""
    state, batch = instance.forward.trajectory.initial, instance.model.batch
    leaves = named_leaves("", state)
    sizes = [leaf.size for _, leaf in leaves]
    of_leaf = np.repeat(np.arange(len(leaves)), sizes)
    parts = [np.where(of_leaf == k, 0, -1) for k in range(len(leaves))]
    if batch is None:
        yield _ways("", np.zeros_like(of_leaf))
    else:
        sequence = np.concatenate([np.repeat(np.arange(batch), size // batch) for size in sizes])
        yield _ways("each sequence ", sequence)
        yield _ways("all sequences ", np.zeros_like(of_leaf))[1::2]
        parts = [np.where(part < 0, part, sequence) for part in parts]
        of_leaf = of_leaf * batch + sequence
    if 1 < len(leaves) <= MOST_PARTS:
        yield _ways("each array of the state ", of_leaf)[1::2]
        for (name, _), part in zip(leaves, parts, strict=True):
            yield _ways(f"{name} alone, ", part)


def _ways(what: str, groups: np.ndarray) -> list[Clipping]:
    """By entry and by the norm of each group of entries (−1: not clipped), of λ_t and of what is carried."""
    members = groups == np.arange(groups.max() + 1)[:, None]
    inside = members.any(axis=0)

    def by_entry(values, bounds):
        return np.where(inside, np.clip(values, -bounds[:, None], bounds[:, None]), values)

    def by_norm(values, bounds):
        norms = np.sqrt(values**2 @ members.T)  # [bounds, groups]
        factors = np.minimum(1, bounds[:, None] / np.where(norms > 0, norms, 1))
        return values * np.where(inside, factors @ members, 1)

    return [
        Clipping(f"{place}{_literal(what)}{way} at {{:.6g}}", _carry(clip, whole))
        for place, whole in (("", True), ("J_{{t+1}}ᵀ λ_{{t+1}} ", False))
        for way, clip in (("elementwise", by_entry), ("by its norm", by_norm))
    ]


def _literal(text):
    return text.replace("{", "{{").replace("}", "}}")


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
