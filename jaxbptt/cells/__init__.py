"""Cells: the recurrence f as a pure step with its hand derivation, and schemes that draw recurrent weights."""

from jaxbptt.cells._elman import ElmanParams, elman, linear
from jaxbptt.cells._gru import GRUParams, gru
from jaxbptt.cells._lstm import LSTMParams, LSTMState, gates, lstm
from jaxbptt.cells._stack import stack
from jaxbptt.cells.cell import Cell, from_step
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, Outer
from jaxbptt.cells.initializers import gaussian, identity, orthogonal
from jaxbptt.cells.structure import BlockParts, Border, BorderedParts, DiagonalLowRank, JacobianParts

__all__ = [
    "BlockParts",
    "Border",
    "BorderedParts",
    "Cell",
    "Derivation",
    "DiagonalLowRank",
    "ElmanParams",
    "FactoredPullback",
    "GRUParams",
    "JacobianParts",
    "LSTMParams",
    "LSTMState",
    "Outer",
    "elman",
    "from_step",
    "gates",
    "gaussian",
    "gru",
    "identity",
    "linear",
    "lstm",
    "orthogonal",
    "stack",
]
