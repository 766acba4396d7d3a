"""f: cells, each a pure step with its hand derivation, and the schemes that draw recurrent weights."""

from jaxbptt.cells.cell import Cell, from_step
from jaxbptt.cells.elman import ElmanParams, elman, linear
from jaxbptt.cells.gru import GRUParams, gru
from jaxbptt.cells.lstm import LSTMParams, LSTMState, lstm
from jaxbptt.cells.schemes import gaussian, identity, orthogonal

__all__ = [
    "Cell",
    "ElmanParams",
    "GRUParams",
    "LSTMParams",
    "LSTMState",
    "elman",
    "from_step",
    "gaussian",
    "gru",
    "identity",
    "linear",
    "lstm",
    "orthogonal",
]
