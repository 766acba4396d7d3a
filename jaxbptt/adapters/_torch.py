"""PyTorch's recurrent weights as a model of ours: arrays only, PyTorch is not imported."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.cells import Cell, ElmanParams, GRUParams, LSTMParams, elman, gru, lstm, stack
from jaxbptt.cells._stack import hidden_part
from jaxbptt.cells.lifting import on_larger_params
from jaxbptt.models import Adapted, BidirectionalParams, Loss, Model, bidirectional
from jaxbptt.types import Reduction

KINDS = ("rnn", "lstm", "gru")
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class TorchParams(NamedTuple):
    """θ of a module that runs forward in time alone."""

    layers: tuple[dict[str, jax.Array], ...]
    readout: dict[str, jax.Array] | None


class Names(NamedTuple):
    """The names of one direction of one layer; None without biases."""

    w_x: str
    w_h: str
    b_x: str | None
    b_h: str | None


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
    """The weights of an `nn.RNN`, `nn.LSTM` or `nn.GRU` as a model of our cells, with their hand derivations.

    Gates keep PyTorch's order (i, f, g, o; r, z, n). The two biases of an RNN or an LSTM enter as their sum: both have
    the same gradient. Dropout between layers is not applied, as in `module.eval()`.

    Args:
      state_dict: name -> array or CPU tensor: `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, … and those of the backward
        direction, `…_reverse`. Layers and directions are read from the names.
      kind: "rnn", "lstm" or "gru".
      loss: (o_t, y_t) -> a scalar; o_t is the top layer's h_t [H], both directions side by side [2H], or the readout's.
      reduction: "sum" or "mean" over the steps.
      nonlinearity: of an RNN, "tanh" or "relu".
      prefix: what the recurrent module's names begin with, such as "rnn.".
      readout: the name of an `nn.Linear` in state_dict that reads h_t, such as "fc".

    Returns:
      Adapted, for one sequence [T, M]. A bidirectional module gives a `models.bidirectional` model. `restore` and
      `values` give {name: array} of the names that were read.

    Raises:
      TypeError, ValueError: an argument not as stated; missing names; projections (`proj_size`).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import adapters, gradients, models
      >>> names = {"weight_ih_l0": (3, 2), "weight_hh_l0": (3, 3), "bias_ih_l0": (3,), "bias_hh_l0": (3,)}
      >>> weights = {name: jnp.ones(shape) for name, shape in names.items()}  # or torch.nn.RNN(2, 3).state_dict()
      >>> mine = adapters.torch_weights(weights, "rnn", loss=models.squared_error)
      >>> loss, grads = gradients.bptt(mine.model, mine.params, jnp.ones((5, 2)), jnp.zeros((5, 3)))
      >>> {name: leaf.shape for name, leaf in mine.restore(grads).items()} == names
      True

    Reference: the equations in PyTorch's documentation of nn.RNN, nn.LSTM and nn.GRU.
    """
    kind = kind.lower()
    _validation.require_choice("kind", kind, KINDS)
    _validation.require_choice("nonlinearity", nonlinearity, tuple(ACTIVATIONS))
    arrays = {name: jnp.asarray(np.asarray(value)) for name, value in state_dict.items()}
    found = [re.fullmatch(re.escape(prefix) + r"weight_ih_l(\d+)(_reverse)?", name) for name in arrays]
    matches = [match for match in found if match]
    if not matches:
        raise ValueError(f"state_dict: got {', '.join(arrays) or 'no names'}, expected {prefix}weight_ih_l0 among them")
    if any(name.startswith(f"{prefix}weight_hr_l") for name in arrays):
        raise ValueError(f"state_dict: got {prefix}weight_hr_l0, expected a module without projections (proj_size)")
    both = any(match[2] for match in matches)
    names = [
        [_names(arrays, prefix, f"l{layer}{way}") for way in (("", "_reverse") if both else ("",))]
        for layer in range(1 + max(int(match[1]) for match in matches))
    ]
    cells = [[_cell(kind, ACTIVATIONS[nonlinearity], arrays, each) for each in layer] for layer in names]
    weights = [[{name: arrays[name] for name in each if name is not None} for each in layer] for layer in names]
    linear = None if readout is None else _linear(arrays, readout)
    model: Any
    params: Any
    if both:
        top = lambda params, *states: _affine(params.readout, jnp.concatenate([hidden_part(each) for each in states]))
        model = bidirectional([(one, other) for one, other in cells], top, loss, reduction=reduction)
        params = BidirectionalParams(tuple((one, other) for one, other in weights), linear)
    else:
        model = _forward_model(stack(*[cell for (cell,) in cells]), loss, reduction)
        params = TorchParams(tuple(own for (own,) in weights), linear)

    def restore(gradient):
        owns = jax.tree.leaves(tuple(gradient), is_leaf=lambda node: isinstance(node, dict))
        return {name: leaf for own in owns for name, leaf in own.items()}

    return Adapted(model, params, restore, restore)


def _names(arrays, prefix, suffix):
    names = [f"{prefix}{part}_{suffix}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    has_bias = names[2] in arrays or names[3] in arrays
    for name in names if has_bias else names[:2]:
        if name not in arrays:
            raise ValueError(f"state_dict: got no {name}, expected it beside {prefix}weight_ih_l0")
    return Names(names[0], names[1], names[2] if has_bias else None, names[3] if has_bias else None)


def _linear(arrays, name):
    for one in (f"{name}.weight", f"{name}.bias"):
        if one not in arrays:
            raise ValueError(f"state_dict: got no {one}, expected it: readout={name!r} names an nn.Linear with a bias")
    return {one: arrays[one] for one in (f"{name}.weight", f"{name}.bias")}


def _affine(linear, hidden):
    if linear is None:
        return hidden
    weight, bias = (linear[name] for name in sorted(linear, reverse=True))
    return weight @ hidden + bias


def _cell(kind, activation, arrays, names):
    """One direction of one layer, on {name: array}, with the derivation of our cell."""
    num_inputs, num_hidden = arrays[names.w_x].shape[1], arrays[names.w_h].shape[1]
    cell = {
        "rnn": lambda: elman(num_inputs, num_hidden, activation=activation),
        "lstm": lambda: lstm(num_inputs, num_hidden),
        "gru": lambda: gru(num_inputs, num_hidden),
    }[kind]()

    def select(own):
        w_x, w_h = own[names.w_x], own[names.w_h]
        b_x, b_h = (jnp.zeros_like(w_h[:, 0]) if name is None else own[name] for name in names[2:])
        if kind == "gru":
            return GRUParams(w_x, w_h, b_x, b_h)
        return ElmanParams(w_x, w_h, b_x + b_h) if kind == "rnn" else LSTMParams(w_x, w_h, b_x + b_h)

    def embed(own, cotangent):
        biases = cotangent[2:] if kind == "gru" else (cotangent[2], cotangent[2])
        parts = zip(names, (*cotangent[:2], *biases), strict=True)
        return {name: part for name, part in parts if name is not None}

    return Cell(
        init=_validation.no_init,
        initial_state=lambda own: cell.initial_state(select(own)),
        step=lambda own, state, x: cell.step(select(own), state, x),
        derivation=on_larger_params(cell.derivation, select, embed),
        num_inputs=num_inputs,
    )


def _forward_model(cell, loss, reduction):
    def embed(params, cotangent):
        return TorchParams(cotangent, jax.tree.map(jnp.zeros_like, params.readout))

    return Model(
        init=None,
        initial_state=lambda params: cell.initial_state(params.layers),
        step=lambda params, state, x: cell.step(params.layers, state, x),
        readout=lambda params, state: _affine(params.readout, hidden_part(state[-1])),
        loss=loss,
        reduction=reduction,
        derivation=on_larger_params(cell.derivation, lambda params: params.layers, embed),
        num_inputs=cell.num_inputs,
    )
