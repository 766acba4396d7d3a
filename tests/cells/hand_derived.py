"""A hand derivation against automatic differentiation: of one step, and over a sequence by every exact route.

Each check compiles once for all the points it is given.
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import gradients, models, truncation
from tests import cases

ROUTES = (
    gradients.bptt,
    gradients.forward_sensitivity,
    gradients.double_sum,
    lambda *data, initial: truncation.windowed(*data, window=cases.T, initial=initial),
)


def largest_step_error(cell, derivation, points):
    """Of the pullback and the state Jacobian against vjp and jacfwd of one step: the largest ‖error‖ / ‖expected‖ of a
    leaf, over points (params, h_{t−1}, x_t)."""

    @jax.jit
    def errors(key, params, state, x):
        out, pull = jax.vjp(cell.step, params, state, x)
        cotangent = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape) + 0.1, out)
        flat, unravel = ravel_pytree(state)
        jacobian = jax.jacfwd(lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0])(flat)
        expected = (*pull(cotangent), jacobian)
        actual = (*derivation.pullback(params, state, x, cotangent), derivation.state_jacobian(params, state, x))
        pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
        floats = [(a, b) for a, b in pairs if b.dtype != jax.dtypes.float0]
        norms = [(jnp.linalg.norm(a - b), jnp.linalg.norm(b)) for a, b in floats]
        return jnp.stack([error / jnp.where(size > 0, size, 1) for error, size in norms])

    keys = jax.random.split(jax.random.key(9), len(points))
    return max(float(errors(key, *point).max()) for key, point in zip(keys, points, strict=True))


def largest_disagreement(cell, problems):
    """‖gradient − autodiff's‖ / max(1, ‖autodiff's‖), the largest of the other exact routes, the leaves and the
    problems (params, inputs, targets, h_0) of a model that reads the cell."""
    model = models.sequence_model(cell, cases.O)
    routes = (gradients.autodiff, *ROUTES)
    found = jax.jit(lambda *data, initial: [route(model, *data, initial=initial)[1] for route in routes])
    readout = jax.tree.map(lambda leaf: leaf + 0.3, model.init(jax.random.key(3)).readout)
    worst = 0.0
    for params, inputs, targets, initial in problems:
        data = models.SequenceParams(params, readout), inputs, targets
        expected, *others = map(jax.tree.leaves, found(*data, initial=initial))
        pairs = [(a, b) for grads in others for a, b in zip(grads, expected, strict=True)]
        worst = max(worst, *(float(jnp.linalg.norm(a - b) / jnp.maximum(1, jnp.linalg.norm(b))) for a, b in pairs))
    return worst
