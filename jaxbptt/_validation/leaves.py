"""Pytrees of arrays: their kinds, shapes and dtypes, and whether their numbers are finite."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def as_arrays(name: str, tree: Any, *, shapes: bool = False) -> Any:
    """`tree` with NumPy's arrays as JAX's; raise for a leaf that is neither. Every public function starts with it.

    `shapes`: whether `jax.ShapeDtypeStruct` will do.
    """

    def convert(path, leaf):
        if isinstance(leaf, jax.Array) or (shapes and isinstance(leaf, jax.ShapeDtypeStruct)):
            return leaf
        if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "biufcV":
            try:
                return jnp.asarray(leaf)
            except TypeError:
                pass  # a dtype that JAX lacks
        where, kind = leaf_name(name, path), type(leaf).__name__
        if isinstance(leaf, np.ndarray):
            kind = f"an array of {leaf.dtype}"
        elif type(tree) in (list, tuple) and isinstance(leaf, bool | int | float):
            where, kind = name, type(tree).__name__
        raise TypeError(f"{where}: got {kind}, expected an array (JAX's or NumPy's; jnp.asarray makes one)")

    return jax.tree_util.tree_map_with_path(convert, tree)


def require_same(name: str, tree: Any, expected: Any, *, dtypes: bool = True) -> None:
    """Raise unless structure and shapes (and dtypes) agree leaf by leaf."""
    require_structure(name, tree, expected)
    for (leaf_name, leaf), target in zip(named_leaves(name, tree), jax.tree.leaves(expected), strict=True):
        if jnp.shape(leaf) != target.shape:
            raise ValueError(f"{leaf_name}: got shape {list(jnp.shape(leaf))}, expected {list(target.shape)}")
        if dtypes and getattr(leaf, "dtype", None) != target.dtype:
            raise TypeError(f"{leaf_name}: got {getattr(leaf, 'dtype', type(leaf).__name__)}, expected {target.dtype}")


def require_array(name: str, array: Any, shape: Sequence[int | str], kind: Any = jnp.floating) -> None:
    """Raise unless `array` has a dtype of this kind and this shape (a letter: any size ≥ 1), and is finite."""
    if not hasattr(array, "dtype"):
        raise TypeError(f"{name}: got {type(array).__name__}, expected an array")
    if not jnp.issubdtype(array.dtype, kind):
        raise TypeError(f"{name}: got {array.dtype}, expected {'bool' if kind is jnp.bool_ else 'a real float dtype'}")
    got = array.shape
    if len(got) != len(shape) or any(n != m if isinstance(m, int) else n < 1 for n, m in zip(got, shape, strict=True)):
        raise ValueError(f"{name}: got shape {list(got)}, expected [{', '.join(map(str, shape))}]")
    if is_concrete(array) and not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: got NaN or inf, expected finite numbers")


def require_finite(name: str, tree: Any) -> None:
    """Raise if a concrete float leaf holds NaN or inf; tracers pass."""
    for leaf_name, leaf in named_leaves(name, tree):
        if _has_numbers(leaf) and not np.all(np.isfinite(leaf)):
            raise ValueError(f"{leaf_name}: got NaN or inf, expected finite numbers")


def require_finite_steps(name: str, tree: Any, allowed: Any = None) -> None:
    """Raise, naming the first bad step, if a concrete float leaf [T, ...] holds NaN or inf; tracers pass.

    `allowed`: like one step of `tree`, True where −inf is no fault.
    """
    for (leaf_name, leaf), pardon in _with_pardon(name, tree, allowed):
        if _has_numbers(leaf):
            numbers = np.asarray(leaf)
            good = np.isfinite(numbers) | (pardon & np.isneginf(numbers.real))
            good = good.reshape(len(good), -1).all(axis=1)
            if not good.all():
                raise ValueError(
                    f"{leaf_name}: got NaN or inf, expected finite numbers; first at step t = {good.argmin() + 1}"
                )


def require_finite_candidates(name: str, tree: Any) -> None:
    """Raise, naming the first bad row, if a concrete float leaf [K, ...] holds NaN or inf; tracers pass."""
    for leaf_name, leaf in named_leaves(name, tree):
        if is_concrete(leaf):
            finite = np.isfinite(np.asarray(leaf)).reshape(leaf.shape[0], -1).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"{leaf_name}: got NaN or inf, expected finite numbers; first in row {finite.argmin()}"
                )


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a real float, so that it has a derivative."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def is_concrete(leaf: Any) -> bool:
    """Whether a leaf holds numbers: it is no tracer (as under jit, vmap or grad) and no bare shape."""
    return not isinstance(leaf, Tracer | jax.ShapeDtypeStruct)


def leaf_name(prefix: str, path: Any) -> str:
    """The name of a leaf, such as `params.cell.w_hh`."""
    return ".".join(filter(None, (prefix, jax.tree_util.keystr(path, simple=True, separator="."))))


def named_leaves(name: str, tree: Any) -> list[tuple[str, Any]]:
    """[(name of the leaf, leaf)] in order."""
    return [(leaf_name(name, path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def require_structure(name: str, tree: Any, expected: Any) -> None:
    """Raise unless the structures are the same."""
    got: Any = jax.tree.structure(tree)
    structure: Any = jax.tree.structure(expected)
    if got != structure:
        raise ValueError(f"{name}: got structure {_describe(got)}, expected {_describe(structure)}")


def require_float(name: str, leaf: Any, hint: str = "") -> None:
    """Raise unless a leaf is an array of real floats."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        raise TypeError(f"{name}: got {type(leaf).__name__}, expected an array")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: got {dtype}, expected a real float dtype{hint}")


def _has_numbers(leaf):
    return is_concrete(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _with_pardon(name, tree, allowed):
    leaves = named_leaves(name, tree)
    return zip(leaves, [False] * len(leaves) if allowed is None else jax.tree.leaves(allowed), strict=True)


def _describe(structure):
    return str(structure).removeprefix("PyTreeDef(").removesuffix(")")
