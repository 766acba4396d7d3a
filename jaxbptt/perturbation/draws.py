"""Random pytrees shaped like params or a state, with leading axes; given ones are checked instead."""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.types import Key

Kind: TypeAlias = Literal["normal", "rademacher", "orthogonal"]


def draw_like(key: Key, tree: Any, leading: tuple[int, ...], kind: Kind) -> Any:
    """Leaves [*leading, …] with E[v vᵀ] = I; "orthogonal": the rows of the one leading axis, at right angles."""
    leaves, structure = jax.tree.flatten(tree)
    if kind == "orthogonal":
        return _draw_orthogonal(key, leaves, structure, leading[0])
    draw = jax.random.normal if kind == "normal" else jax.random.rademacher
    keys = jax.random.split(key, len(leaves))
    drawn = [draw(key, (*leading, *leaf.shape), leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _draw_orthogonal(key, leaves, structure, count):
    """√P times `count` columns of a random orthogonal basis of all P entries."""
    sizes = [leaf.size for leaf in leaves]
    columns = jax.random.normal(key, (sum(sizes), count), leaves[0].dtype)
    rows = jnp.linalg.qr(columns)[0].T * jnp.sqrt(jnp.asarray(sum(sizes), columns.dtype))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    parts = [part.reshape(count, *leaf.shape) for part, leaf in zip(jnp.split(rows, ends, 1), leaves, strict=True)]
    return jax.tree.unflatten(structure, parts)


def take_draws(name: str, draws: Any, tree: Any, leading: tuple[int | None, ...]) -> Any:
    """`draws` as JAX's arrays; raise unless their leaves are those of `tree` with these leading axes, finite.

    None: any size of at least one, the same for all leaves.
    """
    draws = _validation.as_arrays(name, draws)
    first = jax.tree.leaves(draws)[:1]
    shape = first[0].shape[: len(leading)] if first else ()
    if len(shape) < len(leading) or 0 in shape or any(b not in (None, a) for a, b in zip(shape, leading, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in leading)
        raise ValueError(f"{name}: got leading axes {list(shape)}, expected [{wanted}] before those of each leaf")
    expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*shape, *leaf.shape), leaf.dtype), tree)
    _validation.require_same(name, draws, expected)
    _validation.require_finite(name, draws)
    return draws


def require_one_of(key: Any, name: str, draws: Any) -> None:
    """Raise unless exactly one of a key and draws is given, and the key is one typed key."""
    if (key is None) == (draws is None):
        got = "neither" if key is None else "both"
        raise TypeError(f"key, {name}: got {got}, expected exactly one of them")
    if key is not None:
        _validation.require_key(key)
