"""PyTorch's recurrent weights as a model of ours: arrays only, PyTorch is not imported."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.cells import ElmanParams, GRUParams, LSTMParams, elman, gru, lstm, stack
from jaxbptt.cells._stack import hidden_part
from jaxbptt.cells.lifting import on_larger_params
from jaxbptt.models import Adapted, BidirectionalParams, Loss, Model, Readout, SequenceParams, bidirectional
from jaxbptt.models import trainable as train_some
from jaxbptt.models._adapted import chain
from jaxbptt.types import Reduction

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
ACTIVATIONS: dict[str, Callable[..., Any]] = {"tanh": jnp.tanh, "relu": lambda a: jnp.maximum(a, 0)}


def torch_weights(
    state_dict: Mapping[str, Any],
    kind: str,
    *,
    loss: Loss,
    reduction: Reduction = "sum",
    nonlinearity: str = "tanh",
    prefix: str = "",
    readout: str | None = None,
) -> Adapted:
    """The weights of an `nn.RNN`, `nn.LSTM` or `nn.GRU` as a stack of cells, with their hand derivations.

    The gates are PyTorch's: i, f, g, o and r, z, n. An RNN's and an LSTM's two biases enter as their sum, so that both
    have the same gradient. Dropout between layers is not applied (as in `module.eval()`).

    Args:
      state_dict: name -> array or CPU tensor: `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, …, `_reverse` for the
        backward direction; layers are counted from the names.
      kind: "rnn", "lstm" or "gru".
      loss: (o_t, y_t) -> a scalar; o_t is the top layer's h_t [H], both directions side by side [2H], or the readout's.
      reduction: "sum" or "mean" over the steps.
      nonlinearity: of an RNN, "tanh" or "relu".
      prefix: what the names of the recurrent module begin with, such as "rnn.".
      readout: the name of a Linear in state_dict that reads o_t, such as "fc".

    Returns:
      Adapted; a bidirectional module gives a `BidirectionalModel`. `restore` gives a gradient under state_dict's names,
      for the names that were used.

    Raises:
      TypeError, ValueError: an argument not as stated; missing names; projections (`proj_size`).

    Reference: the equations in the documentation of torch.nn.RNN, torch.nn.LSTM and torch.nn.GRU.
    """
    kind = kind.lower()
    _validation.require_choice("kind", kind, tuple(GATES))
    _validation.require_choice("nonlinearity", nonlinearity, tuple(ACTIVATIONS))
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    pattern = re.compile(re.escape(prefix) + r"weight_ih_l(\d+)(_reverse)?")
    found = [match for match in map(pattern.fullmatch, arrays) if match]
    if not found:
        raise ValueError(f"state_dict: got no name {prefix}weight_ih_l0 among {', '.join(arrays)}, expected it")
    if any(name.startswith(f"{prefix}weight_hr_l") for name in arrays):
        raise ValueError(f"state_dict: got {prefix}weight_hr_l0, expected a module without projections")
    depth = 1 + max(int(match[1]) for match in found)
    directions = ["", "_reverse"] if any(match[2] for match in found) else [""]
    names = [[_names(arrays, f"{prefix}{{}}_l{layer}{way}") for way in directions] for layer in range(depth)]
    made = [[_make(kind, ACTIVATIONS[nonlinearity], arrays, each) for each in layer] for layer in names]
    linear = None if readout is None else (f"{readout}.weight", f"{readout}.bias")
    given = None if linear is None else Readout(*(jnp.asarray(_get(arrays, name)) for name in linear))
    build = _build_both if len(directions) == 2 else _build_one
    model, params = build(made, given, loss, reduction)
    used = _used(names, linear)

    def restore(gradient):
        layers, own = _parts(gradient, len(directions) == 2, given is not None)
        restored = {}
        for each, (x, h, b_x, b_h) in zip(layers, [pair for layer in names for pair in layer], strict=True):
            restored |= {x: each.w_hx, h: each.w_hh}
            if b_x in arrays:
                restored |= {b_x: each.b_x if kind == "gru" else each.b_h, b_h: each.b_h}
        if linear is not None:
            restored |= dict(zip(linear, own, strict=True))
        return {name: restored[name] for name in used if name in restored}

    def values(params):
        new = restore(params)
        if kind != "gru":  # the first bias takes what the sum has gained
            for layer in names:
                for _, _, b_x, b_h in layer:
                    if b_x in new:
                        new |= {b_x: new[b_x] - arrays[b_h], b_h: jnp.asarray(arrays[b_h])}
        return new

    adapted = Adapted(model, params, restore, values)
    return adapted
