"""A penalty on the params, added to the loss."""

from collections.abc import Callable

from jaxbptt.models._order import require_order
from jaxbptt.models.model import Model
from jaxbptt.types import Params, Scalar


def penalised(model: Model, penalty: Callable[[Params], Scalar]) -> Model:
    """C + penalty(θ), added once: after the reduction over steps and the sum over a batch.

    Every route and truncation adds its gradient; tables of terms leave it out, and online rules, which see single
    steps, refuse it.

    Args:
      model: a model, or a batch of one (the penalty is applied last).
      penalty: (params) -> scalar, such as half the sum of squares.

    Returns:
      Model; the step and its derivation are unchanged.

    Raises:
      ValueError, TypeError: a model that has a penalty already; a penalty that is not a function.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> step = lambda a, h, x: a * h + x
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h: h, models.squared_error)
      >>> model = models.penalised(model, lambda a: a**2 / 2)
      >>> loss, grad = gradients.bptt(model, jnp.asarray(0.5), jnp.ones(3), jnp.zeros(3))  # 3.15625, 5 without
      >>> float(loss), float(grad)
      (3.28125, 5.5)
    """
    require_order(model, "penalised")
    if not callable(penalty):
        raise TypeError(f"penalty: got {type(penalty).__name__}, expected a function of the params")
    return model._replace(penalty=penalty, applied=(*model.applied, "penalised"))
