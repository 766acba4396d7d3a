"""Two cells a layer, one of which reads the sequence from its end."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from jaxbptt import _validation
from jaxbptt.cells.cell import Cell
from jaxbptt.models.model import Loss
from jaxbptt.types import Output, Reduction, State


class BidirectionalReadout(Protocol):
    """o_t = g(θ, f_t, b_t), from the top layer's two states at step t.

    Args:
      params: all of `BidirectionalParams`.
      forward: f_t.
      backward: b_t.

    Returns:
      o_t, any pytree.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> readout = lambda params, forward, backward: params.readout @ jnp.concatenate((forward, backward))
      >>> params = models.BidirectionalParams(layers=(), readout=jnp.ones((1, 4)))
      >>> readout(params, jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])).tolist()
      [10.0]
    """

    def __call__(self, params: Any, forward: State, backward: State, /) -> Output: ...


class BidirectionalParams(NamedTuple):
    """θ of a `bidirectional` model.

    Attributes:
      layers: from the bottom to the top, (params of the forward cell, params of the backward cell).
      readout: the readout's own, any pytree of floats; None where it has none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, models
      >>> one, other = jax.random.split(jax.random.key(0))
      >>> cell = cells.elman(num_inputs=2, num_hidden=3)
      >>> params = models.BidirectionalParams(layers=((cell.init(one), cell.init(other)),), readout=jnp.ones((1, 6)))
      >>> [[each.w_hh.shape for each in layer] for layer in params.layers]
      [[(3, 3), (3, 3)]]
    """

    layers: tuple[tuple[Any, Any], ...]
    readout: Any = None


class BidirectionalModel(NamedTuple):
    """f_t = step_f(f_{t−1}, x_t), b_t = step_b(b_{t+1}, x_t), o_t = g(θ, f_t, b_t), L_t = L(o_t, y_t). Static.

    A layer above reads the hidden parts of both, side by side. It has no state that runs forward in time alone: the
    four gradient routes and `gradient_terms` take it, all other functions refuse it.

    Attributes:
      layers: from the bottom to the top, (forward cell, backward cell).
      readout: (params, f_t, b_t) -> o_t, of the top layer.
      loss: (o_t, y_t) -> scalar.
      reduction: "sum" or "mean" over the T steps.

    Example:
      >>> from jaxbptt import cells, models
      >>> layers = [(cells.lstm(2, 3), cells.lstm(2, 3)), (cells.gru(6, 4), cells.gru(6, 4))]
      >>> model = models.bidirectional(layers, lambda params, forward, backward: forward, models.squared_error)
      >>> [forward.num_inputs for forward, _ in model.layers]  # the second layer reads both h of the first
      [2, 6]
    """

    layers: tuple[tuple[Cell, Cell], ...]
    readout: BidirectionalReadout
    loss: Loss
    reduction: Reduction = "sum"


def bidirectional(
    layers: Sequence[tuple[Cell, Cell]],
    readout: BidirectionalReadout,
    loss: Loss,
    *,
    reduction: Reduction = "sum",
) -> BidirectionalModel:
    """f_t = step_f(f_{t−1}, x_t),  b_t = step_b(b_{t+1}, x_t),  o_t = g(θ, f_t, b_t), with layers on top of each other.

    Layer l + 1 reads (hidden part of f_t, hidden part of b_t) of layer l, concatenated, as PyTorch does.

    Args:
      layers: from the bottom to the top, pairs (forward cell, backward cell).
      readout: (params, f_t, b_t) -> o_t, on the top layer's states and all of `BidirectionalParams`.
      loss: (o_t, y_t) -> a scalar.
      reduction: "sum" or "mean" over the T steps.

    Returns:
      BidirectionalModel on `BidirectionalParams(layers, readout)`. `autodiff` and `bptt` take any depth;
      `forward_sensitivity`, `double_sum` and `gradient_terms` one layer.

    Raises:
      TypeError, ValueError: an argument not as stated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, gradients, models
      >>> cell = cells.from_step(lambda a, h, x: a * h + x, jnp.zeros_like)
      >>> model = models.bidirectional([(cell, cell)], lambda params, f, b: f + b, models.squared_error)
      >>> params = models.BidirectionalParams(layers=((jnp.asarray(0.5), jnp.asarray(0.5)),))
      >>> loss, grads = gradients.bptt(model, params, jnp.ones(3), jnp.zeros(3))  # f: 1, 1.5, 1.75; b: 1.75, 1.5, 1
      >>> loss.item()
      12.0625
    """
    pairs = tuple(map(tuple, layers))
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"layers: got {len(pairs)} of them, expected one or more pairs (forward cell, backward cell)")
    for cell in (cell for pair in pairs for cell in pair):
        _validation.require_functions("cell", cell, ("initial_state", "step"))
    for name, function in (("readout", readout), ("loss", loss)):
        if not callable(function):
            raise TypeError(f"{name}: got {type(function).__name__}, expected a function")
    _validation.require_choice("reduction", reduction, ("sum", "mean"))
    return BidirectionalModel(tuple((one, other) for one, other in pairs), readout, loss, reduction)
