"""Random points at which the structure of a step is read."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.models.model import Model
from jaxbptt.types import Input, Params

POINTS = 16  # a unit that is dead at a point with probability ½ is dead at all of them with probability 2^−16


def random_points(model: Model, params: Params, x: Input) -> tuple[Any, Any, Any]:
    """(params, state, x) with leading axis POINTS, normal, of the shapes and dtypes given; None for ints, bools, keys.

    A matrix is divided by the root of its number of columns: pre-activations are of order one, no slope rounds to zero.
    """
    generator = np.random.default_rng(0)  # NumPy's: nothing to compile, and the same under any tracing
    state = jax.eval_shape(model.initial_state, params)

    def draw(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return None
        scale = max(leaf.shape[-1], 1) ** -0.5 if len(leaf.shape) > 1 else 1.0
        return (generator.standard_normal((POINTS, *leaf.shape)) * scale).astype(leaf.dtype)

    return jax.tree.map(draw, (params, state, x))
