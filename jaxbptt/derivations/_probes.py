"""A cotangent of anybody's beside differences of forward: where they disagree, and what it looks like."""

from typing import NamedTuple

import numpy as np

from jaxbptt.derivations._arrays import WIDE
from jaxbptt.derivations._consistency import (
    REST,
    SECOND,
    WHOLE,
    Calls,
    Rounding,
    make_finding,
    name_entry,
    output_rounding,
    sample_rows,
    step_and_entry,
)
from jaxbptt.derivations._differences import Differences, Slope, draw_direction
from jaxbptt.derivations._pairs import Leaf
from jaxbptt.derivations.kinds import describe_slip
from jaxbptt.derivations.reports import Finding

DIRECTIONS = 2  # in the whole of a leaf
FACTORS = {"sign": -1.0, "half": 0.5, "double": 2.0}
MOST_NAMED = 4  # cotangents in one sentence


class Probe(NamedTuple):
    """⟨backward(c), v⟩ beside ⟨c, d/de forward(arguments + e v)⟩."""

    cotangent: str  # name of c
    slope: Slope
    expected: np.longdouble
    actual: np.longdouble
    tolerance: np.longdouble
    size: np.longdouble  # of what was added up, in absolute values

    @property
    def is_wrong(self) -> bool:
        return not abs(self.actual - self.expected) <= self.tolerance


class Subject(NamedTuple):
    """One leaf and all that is known of its cotangent."""

    leaf: Leaf
    position: int  # among the leaves
    numbers: np.ndarray  # the leaf's
    differences: Differences
    calls: Calls
    rounding: Rounding

    def slope(self, direction: np.ndarray) -> Slope:
        return self.differences.slope(self.position, direction)

    def cotangent(self, name: str) -> np.ndarray:
        return self.calls.pulled[name].cotangents[self.position]

    def probe(self, name: str, slope: Slope) -> Probe:
        """Compare backward's result for the cotangent of this name along a direction."""
        c, result, v = self.calls.cotangents[name], self.cotangent(name), slope.direction
        rounding = np.sum(np.abs(v) * self.rounding.tolerance(result))
        rounding += output_rounding(self.differences, self.rounding.epsilon, c)
        tolerance = np.abs(c) @ slope.error + 2 * rounding
        size = max(np.abs(c) @ np.abs(slope.value), np.sum(np.abs(result * v)))
        return Probe(name, slope, c @ slope.value, np.sum(result * v), tolerance, size)


def mistake(subject: Subject, most_rows: int, random: np.random.Generator) -> tuple[Finding | None, float]:
    """Compare the cotangents of one leaf along random directions in all of it, then in each of its rows.

    Args:
      most_rows: rows to be probed; of more, the first, the last and a sample.
      random: for all draws.

    Returns:
      (the finding or None, the relative error of the leaf's cotangent below which nothing could be seen).
    """
    leaf, numbers = subject.leaf, subject.numbers
    for is_relative in (False, True):
        whole = [subject.slope(draw_direction(numbers, random, is_relative)) for _ in range(DIRECTIONS)]
        if all(slope.is_settled for slope in whole):
            break
    else:
        said = "forward jumps along it: slopes do not settle as the step shrinks, and nothing can be compared"
        return make_finding(leaf.name, f"{leaf.name}: {said}."), np.inf
    finest = [subject.probe(WHOLE, slope) for slope in whole]
    resolution = min(float(probe.tolerance / probe.size) if probe.size else np.inf for probe in finest)
    count = numbers.shape[0] if numbers.ndim else 1
    rows = sample_rows(count, most_rows, random) if count > 1 else []
    single = [subject.slope(np.where(_is_row(numbers, row), whole[0].direction, 0)) for row in rows]
    probes = [subject.probe(name, slope) for slope in (*whole, *single) for name in subject.calls.cotangents]
    wrong = [probe for probe in probes if probe.is_wrong]
    return (_explain(subject, probes, wrong, len(whole)) if wrong else None), resolution


def _explain(subject, probes, wrong, num_whole):
    """The finding of a leaf some of whose probes are wrong."""
    leaf, worst = subject.leaf, wrong[0]
    names = list(subject.calls.cotangents)
    of_whole = [probe for probe in probes[: num_whole * len(names)] if probe.cotangent == worst.cotangent]
    compared = of_whole if any(probe.is_wrong for probe in of_whole) else [worst]
    expected, actual = (np.array([getattr(probe, field) for probe in compared]) for field in ("expected", "actual"))
    lengths = np.array([np.linalg.norm(probe.slope.direction) for probe in compared])
    norm = np.linalg.norm(expected / lengths) * np.sqrt(subject.numbers.size / len(compared))
    relative = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), WIDE(np.finfo(np.float64).tiny))
    place, entry = _locate(subject, worst)
    slip = _slip(subject, probes, num_whole)
    bad = {probe.cotangent for probe in wrong}
    off = f"is off by about {relative:.1e} relative" if norm else "is not zero, as it should be"
    if entry is None:
        where = f"along a random direction: got {worst.actual:.6g}, expected {worst.expected:.6g}"
    else:
        where = f"first wrong at {name_entry(leaf.name, place)}: got {entry.actual:.6g}, expected {entry.expected:.6g}"
    look = f". It looks as if {describe_slip(slip, '')}" if slip else ""
    return make_finding(
        leaf.name,
        f"{leaf.name} {off}; {where}{_where_in_output(names, bad)}{look}.",
        *((None, None) if entry is None else step_and_entry(leaf, place)),
        expected=None if entry is None else entry.expected,
        actual=None if entry is None else entry.actual,
        relative=relative,
        norm=norm,
        slip=slip,
    )


def _locate(subject, probe):
    """(place, the probe of its entry alone) of the first wrong entry; (None, None) if no single one is wrong enough.

    Halving: the first so many entries of the direction are wrong together, one fewer are not.
    """
    direction = probe.slope.direction
    flat, right, wrong = np.arange(direction.size).reshape(direction.shape), 0, direction.size
    while wrong - right > 1:
        middle = (right + wrong) // 2
        part = subject.probe(probe.cotangent, subject.slope(np.where(flat < middle, direction, 0)))
        right, wrong = (right, middle) if part.is_wrong else (middle, wrong)
    place = np.unravel_index(wrong - 1, direction.shape)
    single = np.zeros_like(direction)
    size = direction[place]
    single[place] = size
    entry = subject.probe(probe.cotangent, subject.slope(single))
    if not entry.is_wrong:
        return None, None
    actual = subject.cotangent(probe.cotangent)[place]
    return place, entry._replace(expected=entry.expected / size, actual=actual)


def _slip(subject, probes, num_whole):
    """The known slip that gives every probe's number, if one does."""
    clear = [probe for probe in probes if abs(probe.expected) > 10 * probe.tolerance]
    if len(clear) > 1:
        for slip, factor in FACTORS.items():
            if all(abs(probe.actual - factor * probe.expected) <= 3 * probe.tolerance for probe in probes):
                return slip
    shape, names = subject.numbers.shape, (WHOLE, SECOND)
    if not any(abs(probe.actual - probe.expected) > 10 * probe.tolerance for probe in probes):
        return None  # what is not clear could look like anything
    if len(shape) == 2 and shape[0] == shape[1] > 1:
        turned = [subject.slope(probes[i * len(subject.calls.cotangents)].slope.direction.T) for i in range(num_whole)]
        pairs = [(subject.probe(name, slope), slope.direction.T) for slope in turned for name in names]
        actual = [np.sum(subject.cotangent(probe.cotangent) * v) for probe, v in pairs]
        if all(abs(a - probe.expected) <= 3 * probe.tolerance for a, (probe, _) in zip(actual, pairs, strict=True)):
            return "transposed_jacobian"
    if subject.differences.center.size == subject.numbers.size > 1:
        for name in names:  # J c for Jᵀ c
            slope = subject.slope(subject.calls.cotangents[name].reshape(shape))
            result = subject.cotangent(name)
            tolerance = slope.error + subject.rounding.tolerance(result).ravel()
            if not np.all(np.abs(result.ravel() - slope.value) <= 3 * tolerance):
                return None
        return "transposed_jacobian"
    return None


def _where_in_output(names, bad):
    """For which cotangents it is wrong, where that is not all of them."""
    rows = [name for name in names if name not in (WHOLE, SECOND, REST)]
    wrong = [name for name in rows if name in bad]
    if not rows or len(wrong) == len(rows):
        return ""
    if not wrong:
        return "; right for cotangents of single rows, wrong for all rows at once"
    named = ", ".join(wrong[:MOST_NAMED]) + (", …" if len(wrong) > MOST_NAMED else "")
    whole = "" if {WHOLE, SECOND} & bad else ", right for all rows at once"
    return f"; wrong for the cotangent of {named} ({len(wrong)} of {len(rows)} single rows){whole}"


def _is_row(numbers, row):
    """A mask of one row."""
    return (np.arange(numbers.shape[0]) == row).reshape(-1, *[1] * (numbers.ndim - 1))
