"""Fixed points, slow points and cycles of a cell, and the eigenvalues that say which of them attract.

| question | function |
|---|---|
| h = f(h, x, θ) at a held input, and where the state is slow | `find_fixed_points` |
| orbits h_p = h_0 of a given period, at a held or a periodic input | `find_cycles` |
| which candidates found the same | `merge_points`, `merge_cycles` |
"""

from jaxbptt.fixed_points.cycles import Cycles, find_cycles
from jaxbptt.fixed_points.merging import UniqueCycles, UniquePoints, merge_cycles, merge_points
from jaxbptt.fixed_points.points import FixedPoints, find_fixed_points

__all__ = [
    "Cycles",
    "FixedPoints",
    "UniqueCycles",
    "UniquePoints",
    "find_cycles",
    "find_fixed_points",
    "merge_cycles",
    "merge_points",
]
