"""Maps over rows whose programs are kept: a second check of the same cell compiles nothing.

JAX keeps what it compiled of a loop as long as the loop's body is the same function object. A body is kept here under
the functions it was made of and the text of their programs, so that a step which reads something changed since, such
as a global constant, is compiled again.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation

MOST = 64  # bodies
AT_ONCE = 64  # rows of one program
_bodies: OrderedDict[Hashable, Callable[..., Any]] = OrderedDict()
_lock = threading.Lock()


def map_rows(key: Hashable, function: Callable[..., Any], shared: Any, rows: Any) -> Any:
    """function(shared, row) of every row, one after another, compiled as one program.

    Args:
      key: tells `function` from others; of two functions with one key, the first is used. None: nothing is kept.
      function: (shared, row) -> any pytree.
      shared: what all rows share.
      rows: a pytree with a leading axis.

    Returns:
      The results, with that leading axis.
    """
    return jax.lax.scan(_keep(key, function), shared, rows)[1]


def map_one(key: Hashable, function: Callable[..., Any], row: Any) -> Any:
    """function(None, row), as `map_rows` of one row."""
    results = map_rows(key, function, None, jax.tree.map(lambda leaf: _on_host(leaf)[None], row))
    return jax.tree.map(lambda leaf: jnp.asarray(_on_host(leaf)[0]), results)


def map_many(key: Hashable, function: Callable[..., Any], shared: Any, rows: Any) -> Any:
    """As `map_rows`, in NumPy, `AT_ONCE` rows at a time: any number of rows runs through one compiled program."""
    count = len(jax.tree.leaves(rows)[0])
    parts = []
    for start in range(0, count, AT_ONCE):
        chosen = np.minimum(np.arange(start, start + AT_ONCE), count - 1)
        results = map_rows(key, function, shared, jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], rows))
        parts.append(jax.tree.map(lambda leaf, stop=count - start: np.asarray(leaf)[:stop], results))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _on_host(leaf: Any) -> Any:
    """In NumPy, where an index compiles nothing; as it is if it has no place there: traced, or random keys."""
    plain = _validation.is_concrete(leaf) and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return np.asarray(leaf) if plain else leaf


def _keep(key: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
    def body(shared, row):
        return shared, function(shared, row)

    if key is None:
        return body
    with _lock:
        try:
            kept = _bodies.setdefault(key, body)
        except TypeError:  # a function that cannot be hashed
            return body
        _bodies.move_to_end(key)
        while len(_bodies) > MOST:
            _bodies.popitem(last=False)
    return kept
