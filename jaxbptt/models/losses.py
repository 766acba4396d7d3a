"""Losses L of one output and one target."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxbptt import _validation
from jaxbptt.types import Scalar


def squared_error(output: Float[Array, "*outputs"], target: Float[Array, "*outputs"]) -> Scalar:
    """½ ‖o − y‖².

    Args:
      output: o, any shape.
      target: y, of the same shape and dtype.

    Returns:
      Scalar of the dtype of output.

    Raises:
      TypeError, ValueError: shapes or dtypes differ (nothing is broadcast).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> models.squared_error(jnp.array([3.0, 4.0]), jnp.zeros(2)).item()
      12.5
    """
    _validation.require_same("target", target, output)
    return jnp.sum((output - target) ** 2) / 2


def softmax_cross_entropy(output: Float[Array, " classes"], target: Int[Array, ""]) -> Scalar:
    """−log softmax(o)[y] = logsumexp(o) − o_y, in nats.

    Args:
      output: o [O], logits.
      target: y, integer scalar in 0 … O−1; outside this range the loss and its gradient are NaN.

    Returns:
      Scalar of the dtype of output.

    Raises:
      TypeError, ValueError: a target that is not an integer scalar, an output that is not a vector.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> loss = models.softmax_cross_entropy(jnp.zeros(4), jnp.asarray(2))  # four classes, none preferred
      >>> bool(jnp.allclose(loss, jnp.log(4.0)))
      True
    """
    if not jnp.issubdtype(jnp.result_type(target), jnp.integer):
        raise TypeError(f"target: got {jnp.result_type(target)}, expected an integer class")
    if jnp.shape(target) or jnp.ndim(output) != 1:
        got = f"target {list(jnp.shape(target))}, output {list(jnp.shape(output))}"
        raise ValueError(f"target: got shapes {got}, expected a scalar and a vector")
    valid = (target >= 0) & (target < output.shape[0])
    loss = jax.nn.logsumexp(output) - output[jnp.where(valid, target, 0)]
    return loss * jnp.where(valid, 1, jnp.nan).astype(output.dtype)
