"""dC/dθ estimated forward in time. A rule has init(model, params, key=) and update(params, state, x, target).

| rule | what it keeps of dh_t/dθ |
|---|---|
| `rtrl()` | all of it: exact real-time recurrent learning |
| `sketched_rtrl(r)` | SnAp-1's entries, the rest to rank r, and `bias_bound` on what is missing |
| `snap(n)` | the entries that n steps can reach (SnAp-n) |
| `uoro()` | a rank-one product, unbiased |
| `kf_rtrl()`, `reverse_kf_rtrl()` | a Kronecker product, unbiased |
| `ok_rtrl(r)` | the sum of r Kronecker products that is unbiased with the least variance |
| `rflo()`, `eprop(feedback)` | without the paths through the recurrent weights; exact, random or learned feedback |
| `kernl(rate=, timescale=)` | traces times sensitivity weights, both learned from perturbations |
| `immediate(decay=)` | the last step's direct partial alone, or with a decaying trace |

`run` scans a rule over a sequence at fixed params and returns (loss, grads) like the exact routes; `staleness` measures
the error that changing params cause.

>>> import jax, jax.numpy as jnp
>>> from jaxbptt import cells, comparison, gradients, models, online
>>> model = models.sequence_model(cells.gru(2, 4), 1)
>>> params, inputs, targets = model.init(jax.random.key(0)), jnp.ones((12, 2)), jnp.ones((12, 1))
>>> loss, grads = online.run(online.rtrl(), model, params, inputs, targets)
>>> _, expected = gradients.bptt(model, params, inputs, targets)
>>> bool(comparison.compare(expected, grads).relative < 1e-5)
True
>>> rule = online.uoro()
>>> state = rule.init(model, params, key=jax.random.key(1))
>>> state, loss, grads = rule.update(params, state, inputs[0], targets[0])
"""

from jaxbptt.online._staleness import Staleness, staleness
from jaxbptt.online.exact import rtrl
from jaxbptt.online.feedback import eprop
from jaxbptt.online.kernel import kernl
from jaxbptt.online.kronecker import kf_rtrl
from jaxbptt.online.kronecker_sum import ok_rtrl
from jaxbptt.online.rank_one import uoro
from jaxbptt.online.reverse_kronecker import reverse_kf_rtrl
from jaxbptt.online.rule import Cost, OnlineState, Rule, run
from jaxbptt.online.sketch import bias_bound, sketched_rtrl
from jaxbptt.online.sparse import rflo, snap
from jaxbptt.online.traces import immediate

__all__ = [
    "Cost",
    "OnlineState",
    "Rule",
    "Staleness",
    "bias_bound",
    "eprop",
    "immediate",
    "kernl",
    "kf_rtrl",
    "ok_rtrl",
    "reverse_kf_rtrl",
    "rflo",
    "rtrl",
    "run",
    "sketched_rtrl",
    "snap",
    "staleness",
    "uoro",
]
