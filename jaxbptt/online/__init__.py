"""dC/dθ estimated forward in time: each rule a pair init(model, params, key), update(state, params, x, target)."""

from jaxbptt.online.exact import rtrl
from jaxbptt.online.kronecker import kf_rtrl
from jaxbptt.online.rank_one import uoro
from jaxbptt.online.rule import Cost, OnlineState, Rule, run
from jaxbptt.online.sparse import rflo, snap
from jaxbptt.online.staleness import Staleness, staleness

__all__ = [
    "Cost",
    "OnlineState",
    "Rule",
    "Staleness",
    "kf_rtrl",
    "rflo",
    "rtrl",
    "run",
    "snap",
    "staleness",
    "uoro",
]
