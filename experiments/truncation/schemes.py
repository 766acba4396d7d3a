"""The schemes of truncation: their gradients, the sizes they are tried at, and how far back they carry a loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jaxbptt import gradients, truncation

LAGS = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # the adaptive lag is rounded up to one of these: one compilation each
WINDOWS = (2, 4, 8, 14, 24, 44, 72)  # K whose bias is measured
MEAN_LENGTHS = (1.5, 2, 3, 4, 6, 9, 14, 24)  # 1 / (1 − π) whose spread is measured


def make_routes(window: int) -> dict[str, Callable]:
    """(model, params, inputs, targets, key) -> (C, grads), of every scheme without a lag to choose."""
    regular = partial(truncation.windowed, window=window)
    routes = {
        "full": lambda *call: gradients.bptt(*call[:-1]),
        "carried": lambda *call: regular(*call[:-1]),
        "zero_state": lambda *call: regular(*call[:-1], carry_state=False),
    }
    for name, keep in keep_probabilities(window).items():
        routes[name] = lambda *call, keep=keep: truncation.randomised(*call[:-1], keep=keep, key=call[-1])
    return routes


def make_lag_route(lag: int) -> Callable:
    """The same of the adaptive scheme once it has chosen."""
    return lambda *call: truncation.lag(*call[:-1], num_lags=lag)


def keep_probabilities(window: int) -> dict[str, float]:
    """π for (K + 1)/2 steps back a loss, as windows of K have, and for windows of mean length K; both with T → ∞."""
    return {"randomised": 1 - 2 / (window + 1), "randomised_wide": 1 - 1 / window}


def count_steps_back(weights: Any) -> float:
    """Steps back a loss of a table [T, T + 1]; the column of h_0 is no step."""
    return float(np.mean(np.sum(np.asarray(weights)[:, 1:] != 0, axis=1)))


def expected_steps_back(keep: np.ndarray, length: int) -> np.ndarray:
    """E of the steps back a loss for every π: the mean over t of 1 + π + … + π^{t−1}."""
    return np.mean((1 - np.power.outer(keep, np.arange(1, length + 1))).T / (1 - keep), axis=0)


def costs_of_routes(window: int, length: int) -> list[float]:
    """Steps back a loss of `make_routes`, in its order."""
    cut = count_steps_back(truncation.window_weights(length, window))
    at_random = expected_steps_back(np.array(list(keep_probabilities(window).values())), length)
    return [count_steps_back(truncation.window_weights(length, length)), cut, cut, *at_random]


def cost_of_lag(lag: int, length: int) -> float:
    return count_steps_back(truncation.sliding_weights(length, 1, lag))
