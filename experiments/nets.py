"""The recurrent nets that the experiments share: how weights are drawn, nets that read text, states they reach."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbptt import cells
from jaxbptt.models import Model, sequence_model, softmax_cross_entropy
from jaxbptt.trajectories import unroll

SCHEMES = {"gaussian": cells.gaussian, "orthogonal": cells.orthogonal, "identity": cells.identity}


def make_text_cell(name: str, size: int, hidden: int, **options: Any) -> cells.Cell:
    """The cell of this name in `jaxbptt.cells`, with one input for each of the alphabet's `size` symbols."""
    return getattr(cells, name)(size, hidden, **options)


def make_text_model(cell: cells.Cell, reduction: str = "mean") -> Model:
    """It predicts the next symbol, of those the cell reads: cross-entropy in nats."""
    return sequence_model(cell, cell.num_inputs, loss=softmax_cross_entropy, reduction=reduction)


def encode_one_hot(symbols: Any, size: int, dtype: Any = None) -> jax.Array:
    """[..., M] of symbols [...] of an alphabet of M = `size`; JAX's default float unless told."""
    return jax.nn.one_hot(symbols, size, dtype=jnp.result_type(float) if dtype is None else dtype)


def settle(cell: Any, params: Any, inputs: Any, *, initial: Any = None) -> Any:
    """The state after the inputs: one that they lead to, and not zero."""
    return jax.tree.map(lambda leaf: leaf[-1], unroll(cell, params, inputs, initial=initial).states)
