"""A hand derivation against automatic differentiation: of one step, and over a sequence by every exact route."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import gradients, models, truncation
from tests import cases

ROUTES = (
    gradients.bptt,
    gradients.forward_sensitivity,
    gradients.double_sum,
    lambda *data, initial: truncation.windowed(*data, window=cases.T, initial=initial),
)


def step_errors(cell, derivation, params, state, x, key):
    """Relative errors, leaf by leaf, of the pullback and the state Jacobian against vjp and jacfwd of one step."""
    out, pull = jax.vjp(cell.step, params, state, x)
    cotangent = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape) + 0.1, out)
    flat, unravel = ravel_pytree(state)
    jacobian = jax.jacfwd(lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0])(flat)
    expected = (*pull(cotangent), jacobian)
    actual = (*derivation.pullback(params, state, x, cotangent), derivation.state_jacobian(params, state, x))
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    floats = [(np.asarray(a), np.asarray(b)) for a, b in pairs if a.dtype != jax.dtypes.float0]
    return np.array([np.linalg.norm(a - b) / (np.linalg.norm(b) or 1) for a, b in floats])


def largest_disagreement(cell, params, inputs, targets, initial):
    """The largest ‖grads − autodiff's‖ / max(1, ‖autodiff's‖) over the other exact routes and the leaves."""
    model = models.sequence_model(cell, cases.O)
    params = models.SequenceParams(params, readout_of(model))

    @jax.jit
    def found(params, inputs, targets, initial):
        return [route(model, params, inputs, targets, initial=initial)[1] for route in (gradients.autodiff, *ROUTES)]

    expected, *others = found(params, inputs, targets, initial)
    return max(
        float(jnp.linalg.norm(a - b) / jnp.maximum(1, jnp.linalg.norm(b)))
        for grads in others
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True)
    )


def readout_of(model):
    """Dense weights of the size that the model draws."""
    drawn = model.init(jax.random.key(3)).readout
    return models.Readout(drawn.w_yh, drawn.b_y + 0.3)
