"""Recurrent gradients proved, and shown where they go.

Dimensions: T steps, N entries of the flattened state (H hidden units; an LSTM has N = 2H), M inputs, O outputs. Time is
axis 0 and step t stands at index t−1. Functions take one sequence; a batch is a `jax.vmap` by the caller. J_t =
dh_t/dh_{t−1}
is [N, N], row = output; products have the latest factor on the left. Logs are natural, rates per step.

`jaxbptt.plotting` is imported on its own, because it needs matplotlib.
"""

from jaxbptt import (
    assessment,
    cells,
    comparison,
    derivations,
    fixed_points,
    gradients,
    jacobians,
    models,
    online,
    spectra,
    terms,
    trajectories,
    truncation,
)

__all__ = [
    "assessment",
    "cells",
    "comparison",
    "derivations",
    "fixed_points",
    "gradients",
    "jacobians",
    "models",
    "online",
    "spectra",
    "terms",
    "trajectories",
    "truncation",
]
