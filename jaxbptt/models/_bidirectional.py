"""Two cells a layer, one of which reads the sequence from its end."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from jaxbptt import _validation
from jaxbptt.cells.cell import Cell
from jaxbptt.models.model import Loss
from jaxbptt.types import Output, Reduction, State


class BidirectionalReadout(Protocol):
    def __call__(self, params: Any, forward: State, backward: State, /) -> Output:
        """o_t from the top layer's two states at step t."""
        ...


class BidirectionalParams(NamedTuple):
    """θ of a `bidirectional` model."""

    layers: tuple[tuple[Any, Any], ...]  # per layer: params of its forward and of its backward cell
    readout: Any = None  # the readout's own


class BidirectionalModel(NamedTuple):
    """f_t = step_f(f_{t−1}, x_t), b_t = step_b(b_{t+1}, x_t), o_t = g(θ, f_t, b_t), L_t = L(o_t, y_t). Static.

    A layer above reads the hidden parts of both, side by side. It has no state that runs forward in time alone: the
    four gradient routes and `gradient_terms` take it, all other functions refuse it.
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
