"""Truncated gradients keep some terms of the (t, k) table, with weights: fast routes, and the table as reference.

| method | function |
|---|---|
| windows of K steps, the state carried or reset | `windowed(…, window=K, carry_state=True)` |
| TBPTT(k1, k2): each block of k1 losses looks k2 steps back | `sliding(…, stride=k1, num_lags=k2)` |
| TBPTT(1, L): each loss looks L steps back | `lag(…, num_lags=L)` |
| random cuts with reweighting, unbiased; ARTBP's schedule | `randomised`, with `draw_cuts` or `renewal_cuts` |
| windows, the later adjoint predicted (synthetic gradients, DNI) | `bootstrapped`; `synthetic_gradients` learns it |
| the number of lags chosen for a relative bias | `adaptive`; `lag_profile`, `choose_lag` |
| windows in a `lax.scan` or a solver of yours, and what they cut | `windowed_scan`, `windowed_solve`, `cut` |
| any weights on the (t, k) table, term by term: the reference | `weighted_gradient` |

All gradients take (model, params, inputs, targets) and return (loss, grads), as the exact routes do.

>>> import jax, jax.numpy as jnp
>>> from jaxbptt import cells, comparison, models, truncation
>>> model = models.sequence_model(cells.elman(2, 4), 1)
>>> params, inputs, targets = model.init(jax.random.key(0)), jnp.ones((12, 2)), jnp.ones((12, 1))
>>> loss, grads = truncation.windowed(model, params, inputs, targets, window=4)
>>> weights = truncation.window_weights(12, window=4)                                 # [T, T + 1]: the terms kept
>>> _, expected = truncation.weighted_gradient(model, params, inputs, targets, weights)
>>> bool(comparison.compare(expected, grads).relative < 1e-5)
True
"""

from jaxbptt.truncation.borders import cut, lost_norms, make_probe
from jaxbptt.truncation.cuts import draw_cuts, renewal_cuts, renewal_keep
from jaxbptt.truncation.lags import ChosenLag, LagProfile, adaptive, choose_lag, lag_profile
from jaxbptt.truncation.routes import lag, randomised, sliding, windowed
from jaxbptt.truncation.scans import Loop, Solve, Windows, value_and_windowed_grad, windowed_scan, windowed_solve
from jaxbptt.truncation.synthetic import SyntheticRule, SyntheticState, bootstrapped, synthetic_gradients
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
    "Loop",
    "Solve",
    "SyntheticRule",
    "SyntheticState",
    "Windows",
    "adaptive",
    "bootstrapped",
    "choose_lag",
    "cut",
    "draw_cuts",
    "lag",
    "lag_profile",
    "lost_norms",
    "make_probe",
    "one_link_weights",
    "random_weights",
    "randomised",
    "renewal_cuts",
    "renewal_keep",
    "sliding",
    "sliding_weights",
    "synthetic_gradients",
    "value_and_windowed_grad",
    "weighted_gradient",
    "window_weights",
    "windowed",
    "windowed_scan",
    "windowed_solve",
]
