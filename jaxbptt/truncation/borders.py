"""A border between windows of a loop: values pass, derivatives do not; what was cut is a derivative of its own.

A cut hands its argument on and passes no derivative. Where a probe of zeros stands beside it, the derivative with
respect to the probe is the cotangent that was cut.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.cells.factored import join_norms, length_of
from jaxbptt.types import State, States


def cut(tree: State, where: Any = True, *, probe: Any = None) -> State:
    """The same values; where `where` holds, no derivative passes, and that of `probe` passes in its place.

    v ↦ v, dv ↦ dprobe where cut, else dv: in forward and reverse mode. `jax.grad` with respect to a probe of zeros
    therefore gives the cotangent that is cut.

    Args:
      tree: any pytree; integers, bools and keys have no derivative and pass.
      where: a bool, or a scalar array of bools.
      probe: zeros shaped like tree, None in the place of a leaf without a derivative; None: nothing.

    Returns:
      tree.

    Raises:
      TypeError: a leaf that is no array and no number; a where that is no bool.
      ValueError: a probe of another shape; a where that is no scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> loss = lambda h, probe: 3 * h + 4 * truncation.cut(h, probe=probe)
      >>> [float(leaf) for leaf in jax.grad(loss, argnums=(0, 1))(2.0, 0.0)]  # kept, cut
      [3.0, 4.0]
    """
    _require_leaves("tree", tree)
    _require_leaves("probe", probe)
    where = _take_where(where)
    leaves, structure = jax.tree.flatten(tree)
    places = [k for k, leaf in enumerate(leaves) if _moves(leaf)]
    probes: list[Any] = [None] * len(places) if probe is None else jax.tree.leaves(probe)
    if len(probes) != len(places):
        raise ValueError(
            f"probe: got {len(probes)} arrays, expected {len(places)}, one for each leaf with a derivative"
        )
    for k, beside in zip(places, probes, strict=True):
        leaf = jnp.asarray(leaves[k])
        beside = jnp.zeros_like(leaf) if beside is None else jnp.asarray(beside, leaf.dtype)
        if jnp.shape(beside) != leaf.shape:
            raise ValueError(f"probe: got shape {list(jnp.shape(beside))}, expected {list(leaf.shape)}")
        leaves[k] = _cut(where, leaf, beside)
    return jax.tree.unflatten(structure, leaves)


@jax.custom_jvp
def _cut(where, leaf, probe):
    return leaf


@_cut.defjvp
def _move(primals, tangents):
    return primals[1], jnp.where(primals[0], tangents[2], tangents[1])


def make_probe(carry: State, num_steps: int, window: int) -> States:
    """The zeros that `windowed_scan` and `windowed_solve` take beside a carry: one row a border between windows.

    Args:
      carry: the first one, arrays or their shapes.
      num_steps: T, static.
      window: K ≥ 1, static.

    Returns:
      Zeros [⌈T/K⌉ − 1, ...], None in the place of a leaf without a derivative.

    Raises:
      TypeError: a leaf of the carry that is no array and no number.
      TypeError, ValueError: a num_steps or window that is no int ≥ 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> zeros, counter = truncation.make_probe((jnp.ones(2), jnp.array(0)), 7, window=3)  # after steps 3 and 6
      >>> zeros.shape, counter
      ((2, 2), None)
    """
    _require_leaves("carry", carry)
    _validation.require_size("num_steps", num_steps)
    _validation.require_size("window", window)
    borders = -(-num_steps // window) - 1
    zeros = lambda leaf: jnp.zeros((borders, *jnp.shape(leaf)), jnp.result_type(leaf)) if _moves(leaf) else None
    return jax.tree.map(zeros, carry)


def lost_norms(cotangents: States) -> Float[Array, " borders"]:
    """‖μ‖ of what each border cut, over all leaves, from the derivative with respect to the probe.

    Args:
      cotangents: shaped like `make_probe`'s zeros.

    Returns:
      [⌈T/K⌉ − 1].

    Raises:
      TypeError: a leaf that is no array.
      ValueError: no arrays; one without the axis of borders.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> def loss(probe):  # h_6; a window hands back 0.5² of what it gets
      ...     body = lambda h, x: (0.5 * h + x, None)
      ...     return truncation.windowed_scan(body, 1.0, jnp.ones(6), window=2, probe=probe)[0]
      >>> truncation.lost_norms(jax.grad(loss)(truncation.make_probe(1.0, 6, window=2))).tolist()
      [0.0, 0.25]
    """
    _require_leaves("cotangents", cotangents)
    leaves = jax.tree.leaves(cotangents)
    if not leaves:
        raise ValueError("cotangents: got no arrays, expected those of a probe")
    rows = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(rows) > 1 or () in rows:
        shapes = ", ".join(str(list(jnp.shape(leaf))) for leaf in leaves)
        raise ValueError(f"cotangents: got shapes {shapes}, expected a row for each border in all")
    return join_norms([length_of(jnp.abs(leaf), tuple(range(1, leaf.ndim))) for leaf in leaves])


def _moves(leaf):
    """Whether a leaf has a derivative: floats and complex numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _require_leaves(name, tree):
    """Raise unless each leaf is an array, a number or a key."""
    for where, leaf in _validation.named_leaves(name, tree):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise TypeError(f"{where}: got {type(leaf).__name__}, expected an array or a number")


def _take_where(where):
    got = getattr(where, "dtype", type(where).__name__)
    if not isinstance(where, bool) and got != jnp.bool_:
        raise TypeError(f"where: got {got}, expected a bool")
    if jnp.shape(where) != ():
        raise ValueError(f"where: got shape {list(jnp.shape(where))}, expected a scalar")
    return jnp.asarray(where)
