"""Equinox: GRUCell, LSTMCell, and any module called as module(x, carry)."""

from collections.abc import Callable
from typing import Any

from jaxbptt.adapters._apply import from_apply, import_framework, run_layers, split_result, take_layers
from jaxbptt.models import Adapted, Loss
from jaxbptt.types import Input, Reduction


def equinox(
    module: Any,
    carry: Any,
    *,
    loss: Loss,
    reduction: Reduction = "sum",
    x: Input = None,
    select: Callable[[Any, Any], bool] | None = None,
) -> Adapted:
    """h_t, o_t = module(x_t, h_{t−1}), with its float arrays trained and all other leaves constant.

    Args:
      module: `eqx.nn.GRUCell`, `eqx.nn.LSTMCell` (its output is h, the first of its carry), a module called as
        module(x, carry) that returns (carry, output), or a list of these, one on top of the other.
      carry: h_0 (for a list, a list), or a function (module) -> h_0.
      loss: (o_t, y_t) -> a scalar.
      reduction: "sum" or "mean" over the steps.
      x: an example of one input, as in `from_apply`.
      select: as in `models.trainable`; `eqx.partition` is not needed.

    Returns:
      Adapted; its params and restored gradients are the module with None for what is not trained, as `eqx.filter_grad`
      gives it.

    Raises:
      ImportError: Equinox is not installed.
      TypeError, ValueError: as `from_apply`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import equinox as eqx
      >>> from jaxbptt import adapters, gradients, models
      >>> cell = eqx.nn.GRUCell(2, 3, key=jax.random.key(0))
      >>> mine = adapters.equinox(cell, jnp.zeros(3), loss=models.squared_error)
      >>> loss, grads = gradients.bptt(mine.model, mine.params, jnp.ones((5, 2)), jnp.zeros((5, 3)))
      >>> mine.restore(grads).weight_hh.shape  # a GRUCell, as eqx.filter_grad gives it
      (9, 3)
    """
    eqx = import_framework("equinox", "equinox")
    layers = take_layers(module, module, carry)

    def apply_layer(number, own, carry, x):
        first = isinstance(layers.modules[number], eqx.nn.LSTMCell)
        return split_result(own(x, carry), carry, lambda new: new[0] if first else new)

    apply = run_layers(layers, apply_layer)
    return from_apply(apply, module, carry, loss=loss, reduction=reduction, x=x, select=select)
