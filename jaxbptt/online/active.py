"""The parameters that a step reads: no sensitivity is carried for the others (a readout's, say)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt.models import Model


class Active(NamedTuple):
    """Which leaves of params count, in flattened order."""

    flags: tuple[bool, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Entries of the counted leaves."""
        return sum(_size(shape) for flag, shape in zip(self.flags, self.shapes, strict=True) if flag)

    def ravel(self, params: Any) -> jax.Array:
        """The counted leaves as one vector [P]."""
        leaves = jax.tree.leaves(params)
        parts = [jnp.ravel(leaf) for flag, leaf in zip(self.flags, leaves, strict=True) if flag]
        return jnp.concatenate(parts) if parts else jnp.zeros(0, leaves[0].dtype)

    def unravel(self, params: Any, vector: jax.Array) -> Any:
        """`params` with the counted leaves taken from the vector [P]."""
        return self._fill(params, vector, lambda leaf: leaf)

    def expand(self, params: Any, vector: jax.Array) -> Any:
        """Shaped like params: the vector [P] where a leaf counts, else zero."""
        return self._fill(params, vector, jnp.zeros_like)

    def _fill(self, params, vector, otherwise):
        leaves, structure = jax.tree.flatten(params)
        start, filled = 0, []
        for flag, leaf in zip(self.flags, leaves, strict=True):
            if flag:
                filled.append(vector[start : start + leaf.size].reshape(leaf.shape))
                start += leaf.size
            else:
                filled.append(otherwise(leaf))
        return structure.unflatten(filled)


def active_leaves(model: Model, params: Any, x: Any, constant_start: bool) -> Active:
    """The leaves that `step` reads, and `initial_state` unless h_0 is given; all of them where x is not known."""
    shapes = tuple(leaf.shape for leaf in jax.tree.leaves(params))
    if x is None:
        return Active((True,) * len(shapes), shapes)
    hidden = jax.eval_shape(model.initial_state, params)
    flags = _reads(model.step, params, hidden, x)
    if not constant_start:
        flags = tuple(a or b for a, b in zip(flags, reads_at_start(model, params), strict=True))
    return Active(flags, shapes)


def reads_at_start(model: Model, params: Any) -> tuple[bool, ...]:
    """Per leaf of params: whether the numbers of h_0 come from it."""
    return _reads(model.initial_state, params)


def _reads(function, params, *rest):
    jaxpr = jax.make_jaxpr(function)(params, *rest).jaxpr
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    return tuple(id(variable) in needed for variable in jaxpr.invars[: len(jax.tree.leaves(params))])


def _size(shape):
    size = 1
    for length in shape:
        size *= length
    return size
