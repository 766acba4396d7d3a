"""From a model and its data to a verdict, in one call each.

`xray` proves the gradient and shows where it goes; its XRay has `.summary`, `.verdict`, arrays and `.save(folder)`.

>>> import jax, jax.numpy as jnp, jaxbptt
>>> from jaxbptt import cells, models
>>> model = models.sequence_model(cells.elman(num_inputs=2, num_hidden=3), num_outputs=1)
>>> params, inputs, targets = model.init(jax.random.key(0)), jnp.ones((8, 2)), jnp.ones((8, 1))
>>> found = jaxbptt.xray(model, params, inputs, targets)                             # str(found): the verdict
>>> found.summary["proved"], found.log_sigma.shape, found.norms.shape
(True, (8, 3), (8, 8))
"""

from jaxbptt.report._xray import XRay, load, xray

__all__ = ["XRay", "load", "xray"]
