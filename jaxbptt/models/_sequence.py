"""A cell with an affine readout at every step."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.lifting import on_larger_params
from jaxbptt.models.losses import squared_error
from jaxbptt.models.model import Loss, Model
from jaxbptt.types import Params, Reduction, State


class Readout(NamedTuple):
    """θ of the readout o_t = w_yh h_t + b_y: floats of one dtype.

    Attributes:
      w_yh: [O, H], of the hidden part of the state.
      b_y: [O], the bias.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, models
      >>> params = models.sequence_model(cells.lstm(2, 3), num_outputs=4).init(jax.random.key(0))
      >>> jax.tree.map(jnp.shape, params.readout)  # it reads h alone, not C
      Readout(w_yh=(4, 3), b_y=(4,))
    """

    w_yh: jax.Array
    b_y: jax.Array


class SequenceParams(NamedTuple):
    """θ of a `sequence_model`.

    Attributes:
      cell: the cell's own, as its `init` draws them.
      readout: `Readout(w_yh [O, H], b_y [O])`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, models
      >>> params = models.sequence_model(cells.elman(2, 3), num_outputs=1).init(jax.random.key(0))
      >>> params.cell.w_hh.shape, params.readout.w_yh.shape
      ((3, 3), (1, 3))
    """

    cell: Params
    readout: Readout


class Read(Protocol):
    def __call__(self, state: State, /) -> State:
        """The part of a state that the readout sees, any pytree of arrays."""
        ...


def sequence_model(
    cell: Cell,
    num_outputs: int,
    *,
    loss: Loss = squared_error,
    reduction: Reduction = "sum",
    read: Read | None = None,
) -> Model:
    """A cell with the readout o_t = W_yh h_t + b_y at every step, or W_yh y_t + b_y of a cell with an output y_t.

    Args:
      cell: the recurrence.
      num_outputs: O ≥ 1.
      loss: (output [O], target) -> scalar.
      reduction: "sum" or "mean" over the T steps.
      read: the part of the state that the readout sees, flattened. None: the cell's own output y_t(h_t, x_t) where it
        has one; else `state.hidden` where there is one (an LSTM's); for a tuple of states (layers), that of the last;
        any other state whole.

    Returns:
      Model on `SequenceParams(cell, Readout(w_yh [O, H] ~ N(0, 1/H), b_y [O] = 0))`, with the cell's derivation lifted.

    Raises:
      TypeError, ValueError: `num_outputs`, `reduction` or `read` not as stated.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, gradients, models
      >>> model = models.sequence_model(cells.elman(num_inputs=2, num_hidden=3), num_outputs=4, reduction="mean")
      >>> params = model.init(jax.random.key(0))
      >>> loss, grads = gradients.bptt(model, params, jnp.ones((5, 2)), jnp.zeros((5, 4)))
      >>> grads.cell.w_hh.shape, grads.readout.w_yh.shape
      ((3, 3), (4, 3))
    """
    _validation.require_size("num_outputs", num_outputs)
    _validation.require_choice("reduction", reduction, ("sum", "mean"))
    if read is not None and not callable(read):
        raise TypeError(f"read: got {type(read).__name__}, expected a function of the state")
    output = cell.output if read is None else None
    see = output or (lambda params, state: (read or _hidden)(state))

    def readout(params, *at):
        # In this order a product over many steps does not transpose the states first.
        return ravel_pytree(see(params.cell, *at))[0] @ params.readout.w_yh.T + params.readout.b_y

    def init(key):
        _validation.require_key(key)
        cell_key, readout_key = jax.random.split(key)
        params = cell.init(cell_key)
        size, dtype = _size_of(see, cell, params, reads_input=output is not None)
        w_yh = jax.random.normal(readout_key, (num_outputs, size), dtype) * jnp.asarray(size**-0.5, dtype)
        return SequenceParams(params, Readout(w_yh, jnp.zeros(num_outputs, dtype)))

    return Model(
        init=_validation.no_init if cell.init is _validation.no_init else init,
        initial_state=lambda params: cell.initial_state(params.cell),
        step=lambda params, state, x: cell.step(params.cell, state, x),
        readout=readout,
        loss=loss,
        reduction=reduction,
        derivation=on_larger_params(cell.derivation, _cell_params, _without_readout),
        num_inputs=cell.num_inputs,
        reads="state" if output is None else "state, x",
    )


def _size_of(see, cell, params, reads_input):
    """(H, its dtype)."""
    state = jax.eval_shape(cell.initial_state, params)
    if reads_input and cell.num_inputs is None:
        raise ValueError(
            "cell.num_inputs: got None, expected M: the cell's output reads x_t, which says how much it is"
        )
    x = [jax.ShapeDtypeStruct((cell.num_inputs,), jax.tree.leaves(state)[0].dtype)] if reads_input else []
    hidden = jax.eval_shape(lambda *at: ravel_pytree(see(*at))[0], params, state, *x)
    return hidden.size, hidden.dtype


def _hidden(state):
    if type(state) in (tuple, list) and state:  # layers, the last on top
        return _hidden(state[-1])
    return getattr(state, "hidden", state)


def _cell_params(params):
    return params.cell


def _without_readout(params, cell_cotangent):
    """The cotangent of all params: zero for the readout's, which the step does not read."""
    return SequenceParams(cell_cotangent, jax.tree.map(jnp.zeros_like, params.readout))
