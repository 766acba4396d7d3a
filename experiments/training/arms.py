"""What is trained: cells old and new, each with the starting weights that it is known for; and a net that explodes."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxbptt import cells

CLIPPINGS = ("no clipping", "by the global norm", "in time")


class Arm(NamedTuple):
    """A net: its step, of which each kind is compiled once, and weights to start from."""

    kind: str
    make: Callable[[int, int, int], cells.Cell]  # (M, N, T) -> Cell


def _tanh(recurrent):
    return Arm("tanh", lambda m, n, t: cells.elman(m, n, recurrent=recurrent))


def _lstm(bias_of):
    return Arm("LSTM", lambda m, n, t: cells.lstm(m, n, forget_bias=bias_of(t)))


def _chrono(length):
    return cells.chrono(float(max(length, 3)))


ARMS = {
    "tanh, Gaussian": _tanh(cells.gaussian(1.0)),
    "tanh, orthogonal": _tanh(cells.orthogonal(1.0)),
    "ReLU, identity": Arm(
        "ReLU", lambda m, n, t: cells.elman(m, n, activation=jax.nn.relu, recurrent=cells.identity(1.0))
    ),
    "LSTM, forget bias 0": _lstm(lambda t: 0.0),
    "LSTM, forget bias 1": _lstm(lambda t: 1.0),
    "LSTM, forget bias 3": _lstm(lambda t: 3.0),
    "LSTM, chrono": _lstm(_chrono),
    "GRU": Arm("GRU", lambda m, n, t: cells.gru(m, n)),
    "LRU, ring": Arm("LRU", lambda m, n, t: cells.lru(m, n, r_min=0.9, r_max=0.999)),
    "minLSTM, chrono": Arm("minLSTM", lambda m, n, t: cells.min_lstm(m, n, forget_bias=_chrono(t))),
}
EXPLODING = _tanh(cells.gaussian(2.0))
