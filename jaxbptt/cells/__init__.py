"""Cells: the recurrence f as a pure step with its hand derivation, and schemes that draw recurrent weights."""

from jaxbptt.cells._delta_net import DeltaNetParams, GatedDeltaNetParams, delta_net
from jaxbptt.cells._elman import ElmanParams, elman, linear
from jaxbptt.cells._gru import GRUParams, gru
from jaxbptt.cells._leaky import LeakyParams, leaky
from jaxbptt.cells._lru import LRUParams, LRUState, lru
from jaxbptt.cells._lstm import LSTMParams, LSTMState, gates, lstm
from jaxbptt.cells._minimal import MinGRUParams, MinLSTMParams, min_gru, min_lstm
from jaxbptt.cells._mlstm import MLSTMParams, MLSTMState, mlstm
from jaxbptt.cells._rg_lru import RGLRUInput, RGLRUParams, rg_lru
from jaxbptt.cells._rwkv7 import RWKV7Params, rwkv7
from jaxbptt.cells._selective_ssm import SelectiveSSMParams, selective_ssm
from jaxbptt.cells._slstm import SLSTMParams, SLSTMState, slstm
from jaxbptt.cells._stack import stack
from jaxbptt.cells.cell import Cell, from_step
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, Outer
from jaxbptt.cells.initializers import chrono, gaussian, identity, orthogonal
from jaxbptt.cells.structure import BlockParts, Border, BorderedParts, DiagonalLowRank, JacobianParts

__all__ = [
    "BlockParts",
    "Border",
    "BorderedParts",
    "Cell",
    "DeltaNetParams",
    "Derivation",
    "DiagonalLowRank",
    "ElmanParams",
    "FactoredPullback",
    "GRUParams",
    "GatedDeltaNetParams",
    "JacobianParts",
    "LRUParams",
    "LRUState",
    "LSTMParams",
    "LSTMState",
    "LeakyParams",
    "MLSTMParams",
    "MLSTMState",
    "MinGRUParams",
    "MinLSTMParams",
    "Outer",
    "RGLRUInput",
    "RGLRUParams",
    "RWKV7Params",
    "SLSTMParams",
    "SLSTMState",
    "SelectiveSSMParams",
    "chrono",
    "delta_net",
    "elman",
    "from_step",
    "gates",
    "gaussian",
    "gru",
    "identity",
    "leaky",
    "linear",
    "lru",
    "lstm",
    "min_gru",
    "min_lstm",
    "mlstm",
    "orthogonal",
    "rg_lru",
    "rwkv7",
    "selective_ssm",
    "slstm",
    "stack",
]
