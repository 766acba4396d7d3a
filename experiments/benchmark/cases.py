"""What is measured: one model with its params and data at given T, N and B, and the grid of them."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import cells
from jaxbptt.models import Model, sequence_model

OUTPUTS = 8
GATES = {"tanh": 1, "lstm": 4, "gru": 3}
MAKERS = {"tanh": cells.elman, "lstm": cells.lstm, "gru": cells.gru}
LARGEST = {"cpu": 2**25}  # T·N·B that is still measured
LARGEST_ON_ACCELERATOR = 2**29
DTYPES = ("float32", "float64")
# Relative, worst leaf, over T ≤ 65,536 steps.
TOLERANCES = {"float32": 1e-3, "float64": 1e-10}


class Case(NamedTuple):
    """T steps of N units (an LSTM's state has 2N entries), N inputs, a batch of B sequences."""

    cell: str
    length: int  # T
    units: int  # N = M
    batch: int  # B
    model: Model  # of one sequence; squared error, summed over the steps
    params: Any
    inputs: jax.Array  # [T, M], for B > 1 [T, B, M]
    targets: jax.Array  # [T, O], for B > 1 [T, B, O]

    def flops(self) -> float:
        """Of a gradient, 2 a multiply-add: w_hh and w_yh in three products (forward, adjoint, weights), w_hx in two.

        Nobody asks for the gradient of the inputs, so w_hx has no adjoint to compute.
        """
        recurrent = GATES[self.cell] * self.units**2  # entries of w_hh, and as many of w_hx
        return 2 * (5 * recurrent + 3 * OUTPUTS * self.units) * self.length * self.batch

    def label(self) -> dict[str, Any]:
        dtype = str(self.inputs.dtype)
        return {"cell": self.cell, "T": self.length, "N": self.units, "B": self.batch, "dtype": dtype}


def make_case(cell: str, length: int, units: int, batch: int = 1, *, dtype: Any = jnp.float32, seed: int = 0) -> Case:
    """Gaussian weights of gain 1, biases and data drawn too, so that no term of the gradient is zero."""
    return draw_case(cell, MAKERS[cell](units, units), length, units, batch, dtype=dtype, seed=seed)


def draw_case(
    name: str, cell: cells.Cell, length: int, units: int, batch: int = 1, *, dtype: Any = jnp.float32, seed: int = 0
) -> Case:
    """The same of any cell with N inputs."""
    model = sequence_model(cell, OUTPUTS)
    key, bias_key, input_key, target_key = jax.random.split(jax.random.key(seed), 4)

    def fill(leaf):
        drawn = 0.1 * jax.random.normal(bias_key, leaf.shape, leaf.dtype)
        return (leaf + drawn if leaf.ndim == 1 else leaf).astype(dtype)

    shape = (length,) if batch == 1 else (length, batch)
    inputs = jax.random.normal(input_key, (*shape, units), dtype)
    targets = jax.random.normal(target_key, (*shape, OUTPUTS), dtype)
    return Case(name, length, units, batch, model, jax.tree.map(fill, model.init(key)), inputs, targets)


def grid(names: Sequence[str], lengths: Sequence[int], sizes: Sequence[int], batches: Sequence[int]) -> Iterator[tuple]:
    """(cell, T, N, B) without what is too large for this backend."""
    largest = LARGEST.get(jax.default_backend(), LARGEST_ON_ACCELERATOR)
    for cell, batch, length, units in itertools.product(names, batches, lengths, sizes):
        if length * units * batch <= largest:
            yield cell, length, units, batch


def precision(dtype: str) -> AbstractContextManager:
    """Within it arrays may be of this dtype."""
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()
