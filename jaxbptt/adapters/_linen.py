"""Flax linen: recurrent cells, `nn.RNN`, and any module called as module(carry, x)."""

from collections.abc import Callable
from typing import Any

from jaxbptt.adapters._apply import from_apply, import_framework, run_layers, split_result, take_layers
from jaxbptt.models import Adapted, Loss
from jaxbptt.types import Input, Reduction


def linen(
    module: Any,
    variables: Any,
    carry: Any,
    *,
    loss: Loss,
    reduction: Reduction = "sum",
    x: Input = None,
    select: Callable[[Any, Any], bool] | None = None,
) -> Adapted:
    """h_t, o_t = module.apply(variables, h_{t−1}, x_t), with the collection "params" trained and all others constant.

    Args:
      module: a `flax.linen` cell (SimpleCell, GRUCell, LSTMCell, OptimizedLSTMCell, MGUCell, ConvLSTMCell), a module
        called as module(carry, x) that returns (carry, output), an `nn.RNN` (its cell is taken), or a list of these,
        one on top of the other.
      variables: what `module.init` gave (for a list, a list).
      carry: h_0, such as `cell.initialize_carry` gives (for a list, a list), or a function (variables) -> h_0.
      loss: (o_t, y_t) -> a scalar.
      reduction: "sum" or "mean" over the steps.
      x: an example of one input, as in `from_apply`.
      select: as in `models.trainable`, asked of leaves of "params" alone.

    Returns:
      Adapted; `restore` gives a gradient in the tree of variables, None in its other collections.

    Raises:
      ImportError: Flax is not installed.
      TypeError, ValueError: variables without "params", a reversed `nn.RNN`; as `from_apply`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from jaxbptt import adapters, gradients, models
      >>> cell = nn.SimpleCell(features=3)
      >>> variables = cell.init(jax.random.key(0), jnp.zeros(3), jnp.ones(2))
      >>> mine = adapters.linen(cell, variables, jnp.zeros(3), loss=models.squared_error)
      >>> inputs, targets = jnp.ones((5, 2), jnp.float32), jnp.zeros((5, 3), jnp.float32)  # Flax draws float32
      >>> loss, grads = gradients.bptt(mine.model, mine.params, inputs, targets)
      >>> mine.restore(grads)["params"]["i"]["kernel"].shape
      (2, 3)
    """
    nn = import_framework("flax.linen", "flax")
    layers = take_layers(module, variables, carry)

    def open_rnn(layer, own):
        if "params" not in own:
            raise ValueError(f"variables: got collections {sorted(own)}, expected 'params' among them")
        if not isinstance(layer, nn.RNN):
            return layer, lambda own: own
        if layer.reverse:
            raise ValueError("module: got an nn.RNN with reverse=True, expected one that runs forwards (flip inputs)")
        inside = lambda own: {name: each.get("cell", each) for name, each in own.items()}
        return layer.cell, inside

    opened = [open_rnn(*pair) for pair in zip(layers.modules, layers.of(variables), strict=True)]

    def apply_layer(number, own, carry, x):
        layer, inside = opened[number]
        return split_result(layer.apply(inside(own), carry, x), carry)

    in_params = lambda path: getattr(path[layers.depth], "key", None) == "params"
    chosen = lambda path, leaf: in_params(path) and (select is None or select(path, leaf))
    return from_apply(
        run_layers(layers, apply_layer), variables, carry, loss=loss, reduction=reduction, x=x, select=chosen
    )
