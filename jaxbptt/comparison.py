"""Compare two gradients, leaf by leaf."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbptt import _validation

__all__ = ["Comparison", "LeafComparison", "compare"]


class LeafComparison(NamedTuple):
    """One leaf of two gradients, `expected` and `actual`.

    Attributes:
      path: such as "cell.w_hh".
      max_abs: max |actual − expected|.
      relative: ‖actual − expected‖ / max(‖expected‖, tiny).
      cosine: ⟨actual, expected⟩ / (‖actual‖ ‖expected‖); NaN if either is zero.
      expected_norm: ‖expected‖; where 0, relative says only whether actual is zero too.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import comparison
      >>> leaf = comparison.compare({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 4.5])}).leaves[0]
      >>> leaf.path, leaf.max_abs, leaf.relative, leaf.expected_norm
      ('w', 0.5, 0.1, 5.0)
    """

    path: str
    max_abs: float
    relative: float
    cosine: float
    expected_norm: float


class Comparison(NamedTuple):
    """One row per leaf; `str()` is a table.

    Attributes:
      leaves: a LeafComparison for each leaf, in the order of the pytree.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import comparison
      >>> expected = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
      >>> comparison.compare(expected, {"w": jnp.array([3.0, 4.5]), "b": jnp.array([1.0])}).relative  # the worst
      0.1
    """

    leaves: tuple[LeafComparison, ...]

    @property
    def relative(self) -> float:
        """The worst relative error of any leaf (NaN if any is)."""
        return float(np.max([leaf.relative for leaf in self.leaves], initial=0.0))

    def __str__(self) -> str:
        width = max([len("leaf"), *(len(leaf.path) for leaf in self.leaves)])
        rows = [f"{'leaf':{width}}  {'max abs':>9}  {'relative':>9}  cosine"]
        for leaf in self.leaves:
            note = "" if leaf.expected_norm else "  (expected is zero)"
            rows.append(f"{leaf.path:{width}}  {leaf.max_abs:9.1e}  {leaf.relative:9.1e}  {leaf.cosine:.6f}{note}")
        return "\n".join(rows)


def compare(expected: Any, actual: Any) -> Comparison:
    """Compare two pytrees of arrays leaf by leaf: largest difference, relative error and cosine.

    relative = ‖actual − expected‖ / max(‖expected‖, tiny), in float64 whatever the dtype of the leaves.

    Args:
      expected: pytree of float or complex arrays; a complex number counts as two real ones.
      actual: the same structure and shapes.

    Returns:
      Comparison(leaves), in the order of the pytree.

    Raises:
      TypeError: traced arrays (under jit).
      ValueError: structures or shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import comparison
      >>> expected = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
      >>> print(comparison.compare(expected, {"w": jnp.array([3.0, 4.5]), "b": jnp.array([-1.0])}))
      leaf    max abs   relative  cosine
      b       2.0e+00    2.0e+00  -1.000000
      w       5.0e-01    1.0e-01  0.998460
    """
    expected_leaves = jax.tree_util.tree_leaves_with_path(expected)
    _validation.require_same("actual", actual, jax.eval_shape(lambda: expected), dtypes=False)
    if not all(map(_validation.is_concrete, jax.tree.leaves((expected, actual)))):
        raise TypeError("expected, actual: got traced values, expected numbers (compare outside of jit)")
    pairs = zip(expected_leaves, jax.tree.leaves(actual), strict=True)
    return Comparison(
        tuple(_compare_leaf(_validation.leaf_name("", path), leaf, other) for (path, leaf), other in pairs)
    )


def _compare_leaf(path, expected, actual):
    kind = np.complex128 if any(map(np.iscomplexobj, (expected, actual))) else np.float64
    expected, actual = (np.asarray(leaf, kind).ravel().view(np.float64) for leaf in (expected, actual))
    difference = actual - expected
    norm, actual_norm, error = _norm(expected), _norm(actual), _norm(difference)
    tiny = np.finfo(np.float64).tiny
    with np.errstate(over="ignore"):  # relative to an expected zero, an error may overflow
        relative = error / max(norm, tiny)
    cosine = (expected / norm) @ (actual / actual_norm) if norm and actual_norm else np.nan
    largest = np.max(np.abs(difference), initial=0)
    return LeafComparison(path, float(largest), float(relative), float(cosine), float(norm))


def _norm(vector):
    """‖v‖ without overflow or underflow of the squares."""
    scale = np.max(np.abs(vector), initial=0)
    return scale * np.linalg.norm(vector / scale) if scale and np.isfinite(scale) else scale
