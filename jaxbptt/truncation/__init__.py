"""Truncated gradients: which terms of the (t, k) table are kept, with what weight, by the table and the cheap way."""

from jaxbptt.truncation.cuts import draw_cuts, renewal_cuts, renewal_keep
from jaxbptt.truncation.lags import ChosenLag, LagProfile, adaptive, choose_lag, lag_profile
from jaxbptt.truncation.routes import lag, randomised, sliding, windowed
from jaxbptt.truncation.weights import (
    one_link_weights,
    random_weights,
    sliding_weights,
    weighted_gradient,
    window_weights,
)

__all__ = [
    "ChosenLag",
    "LagProfile",
    "adaptive",
    "choose_lag",
    "draw_cuts",
    "lag",
    "lag_profile",
    "one_link_weights",
    "random_weights",
    "randomised",
    "renewal_cuts",
    "renewal_keep",
    "sliding",
    "sliding_weights",
    "weighted_gradient",
    "window_weights",
    "windowed",
]
