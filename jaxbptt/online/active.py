"""The params that a step reads: no sensitivity is carried for the others (such as a readout's)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt._jaxprs.dependence import leaves_read
from jaxbptt.models.model import Model
from jaxbptt.types import Input, Params


class Active(NamedTuple):
    """Which leaves of params count, that is, are read by the step; in flattened order."""

    flags: tuple[bool, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """The number of entries of the counted leaves, P."""
        return sum(math.prod(shape) for flag, shape in zip(self.flags, self.shapes, strict=True) if flag)

    def ravel(self, params: Params) -> jax.Array:
        """The counted leaves as one vector [P]."""
        leaves = jax.tree.leaves(params)
        parts = [jnp.ravel(leaf) for flag, leaf in zip(self.flags, leaves, strict=True) if flag]
        return jnp.concatenate(parts) if parts else jnp.zeros(0, leaves[0].dtype)

    def unravel(self, params: Params, vector: jax.Array) -> Any:
        """`params` with the counted leaves taken from the vector [P]."""
        return self._fill(params, vector, lambda leaf: leaf)

    def expand(self, params: Params, vector: jax.Array) -> Any:
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
        return jax.tree.unflatten(structure, filled)


def active_leaves(model: Model, params: Params, x: Input, constant_start: bool) -> Active:
    """The leaves that `step` reads (and `initial_state`, unless h_0 is given); all leaves where x is not known."""
    shapes = tuple(leaf.shape for leaf in jax.tree.leaves(params))
    if x is None:
        return Active((True,) * len(shapes), shapes)
    state = jax.eval_shape(model.initial_state, params)
    flags = leaves_read(model.step, params, state, x)
    if not constant_start:
        flags = tuple(a or b for a, b in zip(flags, reads_at_start(model, params), strict=True))
    return Active(flags, shapes)


def reads_at_start(model: Model, params: Params) -> tuple[bool, ...]:
    """Per leaf of params: whether the numbers of h_0 come from it."""
    return leaves_read(model.initial_state, params)
