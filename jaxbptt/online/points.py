"""Random points at which the structure of a step is read."""

from typing import Any

import jax
import numpy as np

from jaxbptt.models import Model

POINTS = 16  # a unit dead at a random half of the points is dead at all of them with probability 2^−16


def random_points(model: Model, params: Any, x: Any) -> tuple[Any, Any, Any]:
    """(params, state, x) with leading axis POINTS, normal, of the shapes and dtypes given.

    A matrix is drawn over the root of its columns: pre-activations of order one, so that no slope rounds to zero.
    """
    generator = np.random.default_rng(0)  # NumPy's: nothing to compile, and the same under any tracing
    hidden = jax.eval_shape(model.initial_state, params)

    def draw(leaf):
        scale = max(leaf.shape[-1], 1) ** -0.5 if len(leaf.shape) > 1 else 1.0
        return (generator.standard_normal((POINTS, *leaf.shape)) * scale).astype(leaf.dtype)

    return jax.tree.map(draw, (params, hidden, x))
