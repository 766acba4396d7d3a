"""Which of many candidates found the same fixed point or cycle."""

from typing import NamedTuple

import jax
import numpy as np

from jaxbptt import _validation
from jaxbptt.fixed_points.cycles import Cycles
from jaxbptt.fixed_points.points import FixedPoints


class UniquePoints(NamedTuple):
    """R different points out of K: fixed before slow ones, each kind by decreasing multiplicity.

    Points that no candidate leads to are not among them. Where candidates are drawn independently, the share that found
    a point alone, `(multiplicity == 1).sum() / K`, estimates how often one more would find a new one (Good, 1953).

    Attributes:
      found: FixedPoints, leading axis R.
      multiplicity: [R], number of candidates merged into the point; they add up to K.
      rows: [R], the point's row among the K that were merged.
      blurred: [R], whether a merged point lies farther off than the errors of both: a fixed point of its own.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, fixed_points
      >>> cell = cells.from_step(lambda w, h, x: jnp.tanh(w * h + x), jnp.zeros_like)
      >>> states, x = jnp.array([0.1, 0.7, 0.8, 0.9]), jnp.array(0.0)
      >>> found = fixed_points.find_fixed_points(cell, jnp.array(2.0), states, x, num_steps=0)
      >>> unique = fixed_points.merge_points(found)
      >>> [round(float(h), 3) for h in unique.found.points], unique.multiplicity.tolist()
      ([0.958, 0.0], [3, 1])
    """

    found: FixedPoints
    multiplicity: np.ndarray
    rows: np.ndarray
    blurred: np.ndarray


class UniqueCycles(NamedTuple):
    """R different orbits out of K: cycles before the others, each kind by decreasing multiplicity.

    Attributes:
      found: Cycles, leading axis R.
      multiplicity: [R], number of candidates merged into the orbit; they add up to K.
      rows: [R], the orbit's row among the K that were merged.
      blurred: [R], whether a merged orbit lies farther off than the errors of both: a cycle of its own.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, fixed_points
      >>> cell = cells.from_step(lambda r, h, x: r * h * (1 - h), jnp.zeros_like)
      >>> starts = jnp.array([0.5, 0.8, 0.69])
      >>> found = fixed_points.find_cycles(cell, jnp.array(3.2), starts, jnp.zeros((1, 0)), period=2)
      >>> unique = fixed_points.merge_cycles(found)
      >>> unique.found.period.tolist(), unique.multiplicity.tolist()
      ([2, 1], [2, 1])
    """

    found: Cycles
    multiplicity: np.ndarray
    rows: np.ndarray
    blurred: np.ndarray


def merge_points(found: FixedPoints, *, distance: float = 1e-3) -> UniquePoints:
    """Merge the points within `distance` of a slower one; the slowest of each group represents it.

    The slowest point of all takes every point within `distance` of it, the slowest of the remaining points does the
    same, and so on. On a line of fixed points that leaves about one per `distance`. Runs in NumPy, not under jit.

    Args:
      found: from `find_fixed_points`, outside jit.
      distance: Euclidean distance between flattened states, ≥ 0.

    Returns:
      UniquePoints.

    Raises:
      TypeError: found that are no FixedPoints, or traced; a distance that is no number.
      ValueError: points that are not finite; a distance that is not a number ≥ 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, fixed_points
      >>> cell = cells.from_step(lambda w, h, x: jnp.tanh(w * h + x), jnp.zeros_like)
      >>> states, x = jnp.array([-0.8, 0.1, 0.7, 0.8]), jnp.array(0.0)
      >>> found = fixed_points.find_fixed_points(cell, jnp.array(2.0), states, x, num_steps=0)
      >>> [len(fixed_points.merge_points(found, distance=distance).multiplicity) for distance in (1e-3, 1.0, 10.0)]
      [3, 2, 1]
    """
    _validation.require_type("found", found, FixedPoints, "FixedPoints")
    _require_mergeable("points", found, found.points, distance)
    flat = np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(found.points)], axis=1)
    apart = lambda i: np.linalg.norm(flat - flat[i], axis=1)
    rows, multiplicity, blurred = _group(found.speed, found.error, found.is_fixed, apart, distance)
    return UniquePoints(jax.tree.map(lambda leaf: leaf[rows], found), multiplicity, rows, blurred)


def merge_cycles(found: Cycles, *, distance: float = 1e-3) -> UniqueCycles:
    """`merge_points` for orbits: the distance of two is the least over the shifts that leave the input as it is.

    Args:
      found: from `find_cycles`, outside jit.
      distance: Euclidean distance between whole orbits, flattened, ≥ 0.

    Returns:
      UniqueCycles. A p-cycle at a held input is one row, whichever of its p states a candidate led to.

    Raises:
      TypeError: found that are no Cycles, or traced; a distance that is no number.
      ValueError: orbits that are not finite; a distance that is not a number ≥ 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, fixed_points
      >>> cell = cells.from_step(lambda r, h, x: r * h * (1 - h), jnp.zeros_like)
      >>> starts = jnp.array([0.5, 0.8])  # near either state of the 2-cycle 0.513, 0.799
      >>> found = fixed_points.find_cycles(cell, jnp.array(3.2), starts, jnp.zeros((1, 0)), period=2)
      >>> fixed_points.merge_cycles(found).multiplicity.tolist()
      [2]
    """
    _validation.require_type("found", found, Cycles, "Cycles")
    _require_mergeable("states", found, found.states, distance)
    orbits = np.concatenate([np.reshape(leaf, (*leaf.shape[:2], -1)) for leaf in jax.tree.leaves(found.states)], axis=2)
    shifts = range(0, orbits.shape[1], int(found.input_period))

    def apart(i):
        shifted = np.stack([np.roll(orbits[i], -shift, axis=0) for shift in shifts])
        return np.min(np.linalg.norm(orbits[:, None] - shifted[None], axis=(2, 3)), axis=1)

    rows, multiplicity, blurred = _group(found.speed, found.error, found.is_cycle, apart, distance)
    pick = lambda leaf: leaf[rows] if np.ndim(leaf) else leaf
    return UniqueCycles(jax.tree.map(pick, found), multiplicity, rows, blurred)


def _require_mergeable(field, found, orbits, distance):
    if not all(_validation.is_concrete(leaf) for leaf in jax.tree.leaves(found)):
        raise TypeError("found: got traced arrays, expected concrete ones (merge outside jit)")
    _validation.require_finite_candidates(f"found.{field}", orbits)
    _validation.require_scalar("distance", distance, "a number ≥ 0", 0)


def _group(speed, error, is_exact, apart, distance):
    """(rows, multiplicity, blurred) of the slowest of each group, in order; apart(i): [K] distances to row i."""
    speed, error, left = np.asarray(speed), np.asarray(error), np.ones(len(speed), bool)
    slowest, counts, blurred = [], [], []
    for i in np.argsort(speed, kind="stable"):
        if left[i]:
            away = apart(i)
            near = left & (away <= distance)
            left &= ~near
            slowest.append(i)
            counts.append(near.sum())
            blurred.append((away > error + error[i])[near].any())
    rows, multiplicity = np.array(slowest), np.array(counts)
    order = np.lexsort((rows, -multiplicity, ~np.asarray(is_exact)[rows]))
    return rows[order], multiplicity[order], np.array(blurred)[order]
