"""What the project asks of its speed, and what a run says of each: the worst case, the median, and whether it held."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

RIVALS = ("autodiff", "flax", "equinox")
HELD, FELL_SHORT, CANNOT_TELL = "yes", "NO", "cannot tell"


class Floor(NamedTuple):
    """A bound on a number that every row of a kind has."""

    what: str
    suite: str
    of: Callable[[dict[str, Any]], Any]  # a row -> the number; None: not a row of this kind
    bound: float
    most: bool = False  # whether the bound is from above


def _ratio(*contestants):
    """How many times faster ours is than these."""
    return lambda row: row["ratio"] if row["contestant"] in contestants else None


def _ratio_to_others(row):
    """To a package, which is whatever has not one of our own names."""
    own = ("jaxbptt", "autodiff", "associative scan")
    return None if row["contestant"] in own else row["ratio"]


def _fixed(row):
    return row["ratio"] if row["contestant"].startswith("interval") else None


def _memory(row):
    return row.get("memory_ratio") if row["B"] >= 32 else None


FLOORS = (
    Floor("gradients: scan, Flax, Equinox", "gradients", _ratio(*RIVALS), 0.95),
    Floor("gradients: PyTorch's fused layers", "gradients", _ratio("torch"), 1.0),
    Floor("adapters: their own loop", "adapters", _ratio("own loop"), 1.3),
    Floor("wide: scan, Flax, Equinox", "wide", _ratio(*RIVALS), 0.95),
    Floor("wide: PyTorch's fused layers", "wide", _ratio("torch"), 1.0),
    Floor("wide: share of a square product", "wide", lambda row: row.get("product_share"), 0.5),
    Floor("wide: memory, of scan's, B ≥ 32", "wide", _memory, 0.3, most=True),
    Floor("exponents: right fixed intervals", "intervals", _fixed, 1 / 1.1),
    Floor("ten records: a bare QR scan", "singular values", _ratio("bare QR scan"), 1 / 1.5),
    Floor("modern: plain scan", "modern", _ratio("autodiff"), 1.0),
    Floor("modern: associative scan", "modern", _ratio("associative scan"), 1.0),
    Floor("modern: packages", "modern", _ratio_to_others, 1.0),
)


class Found(NamedTuple):
    """What a run says of one floor in one dtype."""

    floor: Floor
    dtype: str
    cases: int
    below: int  # of them on the wrong side
    worst: float
    median: float
    row: dict[str, Any]  # of the worst
    held: str


def find_floors(rows: Sequence[dict[str, Any]]) -> list[Found]:
    """Of every floor that the rows say something of; the rows that were not timed say nothing."""
    found = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        for floor in FLOORS:
            timed = [row for row in rows if (row["suite"], row["dtype"]) == (floor.suite, dtype) and "ratio" in row]
            numbers = [(value, row) for row in timed if (value := floor.of(row)) is not None]
            if numbers:
                found.append(_judge(floor, dtype, numbers))
    return found


def _judge(floor, dtype, numbers):
    worst, row = (max if floor.most else min)(numbers, key=lambda each: each[0])
    values = [value for value, _ in numbers]
    wrong = [value > floor.bound if floor.most else value < floor.bound for value in values]
    held = FELL_SHORT if any(wrong) else HELD
    if any(wrong) and all(_may_hold(floor, *each) for each, bad in zip(numbers, wrong, strict=True) if bad):
        held = CANNOT_TELL
    return Found(floor, dtype, len(numbers), sum(wrong), worst, float(np.median(values)), row, held)


def _may_hold(floor, value, row):
    """Whether the quartiles of the pairs lie on both sides of the bound; of other numbers there are none."""
    return value == row["ratio"] and row["ratio_quartiles"][1] >= floor.bound
