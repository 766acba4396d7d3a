"""From a model and its data to a verdict, in one call each.

| question | function |
|---|---|
| is the gradient right, and where does it go | `xray` (`load` reads what it saved) |
| what does a test suite ask of a model | `verify`, `assert_verified` |
| which numbers about the gradient through time belong beside the loss in a log | `monitor` |

>>> import jax, jax.numpy as jnp, jaxbptt
>>> from jaxbptt import cells, models
>>> model = models.sequence_model(cells.elman(num_inputs=2, num_hidden=3), num_outputs=1)
>>> params, inputs, targets = model.init(jax.random.key(0)), jnp.ones((8, 2)), jnp.ones((8, 1))
>>> found = jaxbptt.xray(model, params, inputs, targets)                             # str(found): the verdict
>>> found.summary["proved"], found.log_sigma.shape, found.norms.shape
(True, (8, 3), (8, 8))
>>> numbers = jaxbptt.monitor(model, params, inputs, targets)                         # in a jitted training step
>>> bool(numbers["reach_90"] < 8), bool(numbers["log_sigma_max"] < 0)
(True, True)
"""

from jaxbptt.report._monitor import monitor
from jaxbptt.report._verify import Check, Verdict, assert_verified, verify
from jaxbptt.report._xray import XRay, load, xray

__all__ = ["Check", "Verdict", "XRay", "assert_verified", "load", "monitor", "verify", "xray"]
