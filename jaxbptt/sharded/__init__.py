"""Where one device is not enough: the same functions over the devices of a `jax.sharding.Mesh`, of one host or several.

| what is large | function | what is cut |
|---|---|---|
| a batch | `bptt(…, batch="batch")` | sequences |
| a sweep | `map_points` | points |
| T: gradients | `bptt`, `adjoints`, `unroll` | steps |
| T: the (t, k) table | `gradient_terms`, of all losses or of some | steps k |
| T: spectra | `log_singular_values`, `lyapunov_exponents`, `stream_exponents` | steps |
| N | `leading_singular_values`, `row_shardings` | entries of the state |

Time is cut into one span of T/D steps a device. What a span does to a cotangent is affine, and so is what the step of
an affine cell does to a state: spans are reduced to their maps side by side, the maps are joined by ⌈log₂ D⌉ + 1 hops
between devices, and every span runs from what it then knows to start from. Where the map costs more than it saves, or
the step is not affine, a state is relayed from span to span. Each docstring says how many numbers a device holds and
sends. Compile them: over several processes (`jax.distributed.initialize`) that is the only way. Under a mesh that is
set with explicit axes (`jax.set_mesh`) results have these axes in their types, and methods of results may refuse them.

>>> import jax, jax.numpy as jnp
>>> from jaxbptt import cells, gradients, models, sharded
>>> model = models.sequence_model(cells.gru(2, 4), 1)
>>> params, inputs = model.init(jax.random.key(0)), jnp.ones((6 * jax.device_count(), 2))
>>> mesh = jax.make_mesh((jax.device_count(),), ("time",))
>>> loss, grads = sharded.bptt(model, params, inputs, jnp.zeros((len(inputs), 1)), mesh=mesh)
>>> bool(abs(loss - gradients.bptt(model, params, inputs, jnp.zeros((len(inputs), 1)))[0]) < 1e-4)
True
"""

from jaxbptt.sharded._exponents import lyapunov_exponents, stream_exponents
from jaxbptt.sharded._gradients import adjoints, bptt
from jaxbptt.sharded._large import leading_singular_values, row_shardings
from jaxbptt.sharded._points import map_points
from jaxbptt.sharded._terms import TermRows, gradient_terms
from jaxbptt.sharded._trajectory import unroll
from jaxbptt.sharded._values import log_singular_values

__all__ = [
    "TermRows",
    "adjoints",
    "bptt",
    "gradient_terms",
    "leading_singular_values",
    "log_singular_values",
    "lyapunov_exponents",
    "map_points",
    "row_shardings",
    "stream_exponents",
    "unroll",
]
