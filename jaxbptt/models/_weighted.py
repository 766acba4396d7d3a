"""A weight for the loss of every step: padding, losses at some steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.models._order import require_order
from jaxbptt.models.model import Model
from jaxbptt.types import Targets


class Weighted(NamedTuple):
    """Targets of a `weighted` model.

    Attributes:
      target: y_1 … y_T, leading T; anything finite where the weight is zero.
      weight: w [T], floats, or a mask of bools or integers (of a batch [T, B]).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> step = lambda a, h, x: a * h + x
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h: h, models.squared_error, reduction="mean")
      >>> targets = models.Weighted(target=jnp.zeros(3), weight=jnp.array([False, False, True]))  # a loss at the end
      >>> gradients.autodiff(models.weighted(model), jnp.asarray(0.5), jnp.ones(3), targets)[0].item()  # ½ 1.75²
      1.53125
    """

    target: Targets
    weight: Any


def weighted(model: Model) -> Model:
    """C = Σ_t w_t L_t, or Σ_t w_t L_t / Σ_t w_t where the model's reduction is the mean.

    Weights 0 and 1 mark padding, or the steps that have a loss. A step of weight zero adds nothing to any gradient, yet
    its inputs and targets must be finite: 0 · NaN is NaN.

    Args:
      model: a model of one sequence. Of a batch, weights are [T, B] and each sequence is divided by its own Σ_t w_t.

    Returns:
      Model whose targets are `Weighted(target, weight [T])`; the step and its derivation are unchanged.

    Raises:
      ValueError, TypeError: a model made in another order; when it is called, targets that are not `Weighted`, weights
        of another shape, or that add up to zero under the mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> step = lambda a, h, x: a * h + x
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h: h, models.squared_error)
      >>> targets = models.Weighted(jnp.zeros(5), jnp.array([1.0, 1.0, 1.0, 0.0, 0.0]))  # 3 steps and 2 of padding
      >>> inputs = jnp.array([1.0, 1.0, 1.0, 7.0, -9.0])
      >>> loss, grad = gradients.bptt(models.weighted(model), jnp.asarray(0.5), inputs, targets)
      >>> float(loss), float(grad)  # as of the 3 steps alone
      (3.15625, 5.0)
    """
    require_order(model, "weighted")

    def loss(output, target):
        _validation.require_type("targets", target, Weighted, "models.Weighted(target, weight)")
        is_mask = getattr(target.weight, "dtype", None) == jnp.bool_
        _validation.require_array("targets.weight", target.weight, (), jnp.bool_ if is_mask else jnp.number)
        value = model.loss(output, target.target)
        return value * jnp.asarray(target.weight, value.dtype)

    return model._replace(loss=loss, normalise=_normalise, applied=(*model.applied, "weighted"))


def _normalise(targets, dtype):
    weight = targets.weight if dtype is None else targets.weight.astype(dtype)
    total = jnp.sum(weight, axis=0)
    if _validation.is_concrete(total) and np.any(np.asarray(total) == 0):
        raise ValueError("targets.weight: got weights that add up to zero, expected a loss to take the mean of")
    return targets._replace(weight=jax.lax.div(weight, jnp.broadcast_to(total, weight.shape)))
