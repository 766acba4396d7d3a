"""Flax nnx: recurrent cells, `nnx.RNN`, and any module called as module(carry, x)."""

from collections.abc import Callable
from typing import Any

from jaxbptt.adapters._apply import from_apply, import_framework, run_layers, split_result, take_layers
from jaxbptt.models import Adapted, Loss
from jaxbptt.types import Input, Reduction


def nnx(
    module: Any,
    carry: Any,
    *,
    loss: Loss,
    reduction: Reduction = "sum",
    x: Input = None,
    select: Callable[[Any, Any], bool] | None = None,
) -> Adapted:
    """h_t, o_t = module(h_{t−1}, x_t), with its `nnx.Param` variables trained and all others constant.

    Args:
      module: an `nnx` cell (SimpleCell, GRUCell, LSTMCell, OptimizedLSTMCell), a module called as module(carry, x) that
        returns (carry, output), an `nnx.RNN` (its cell is taken), or a list of these, one on top of the other.
      carry: h_0, such as `cell.initialize_carry` gives (for a list, a list), or a function (state) -> h_0 of the
        `nnx.State` of the params.
      loss: (o_t, y_t) -> a scalar.
      reduction: "sum" or "mean" over the steps.
      x: an example of one input, as in `from_apply`.
      select: as in `models.trainable`.

    Returns:
      Adapted on the `nnx.State` of the params (for a list, a list); `restore` gives a gradient as `nnx.grad` does,
      `values` the module (for a list, a list).

    Raises:
      ImportError: Flax is not installed.
      TypeError, ValueError: as `from_apply`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxbptt import adapters, gradients, models
      >>> cell = nnx.SimpleCell(2, 3, rngs=nnx.Rngs(0))
      >>> mine = adapters.nnx(cell, jnp.zeros(3), loss=models.squared_error)
      >>> inputs, targets = jnp.ones((5, 2), jnp.float32), jnp.zeros((5, 3), jnp.float32)  # Flax draws float32
      >>> loss, grads = gradients.bptt(mine.model, mine.params, inputs, targets)
      >>> type(mine.restore(grads)).__name__, type(mine.values(mine.params)).__name__
      ('State', 'SimpleCell')
    """
    flax = import_framework("flax.nnx", "flax")
    layers = take_layers(module, module, carry)
    cells = [layer.cell if isinstance(layer, flax.RNN) else layer for layer in layers.modules]
    split = [flax.split(cell, flax.Param, ...) for cell in cells]
    states = layers.join([own for _, own, _ in split])

    def apply_layer(number, own, carry, x):
        graph, _, rest = split[number]
        return split_result(flax.merge(graph, own, rest)(carry, x), carry)

    apply = run_layers(layers, apply_layer)
    adapted = from_apply(apply, states, carry, loss=loss, reduction=reduction, x=x, select=select)

    def values(params):
        full = layers.of(adapted.values(params))
        return layers.join([flax.merge(graph, own, rest) for (graph, _, rest), own in zip(split, full, strict=True)])

    return adapted._replace(values=values)
