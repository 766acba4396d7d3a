"""Other people's models: Flax (linen and nnx), Equinox, Haiku, PyTorch's weights, any (params, carry, x) function.

Each gives an `Adapted`: a model that every function of the toolkit takes, its params (the leaves that are trained), and
`restore`, which puts a gradient into the tree it came from. A framework is imported only where its adapter is called.

>>> import jax, jax.numpy as jnp
>>> from jaxbptt import adapters, gradients, models
>>> def apply(params, carry, x):                                        # (params, carry, x) -> (carry, output)
...     carry = jnp.tanh(params["w"] @ carry + x)
...     return carry, params["v"] @ carry
>>> theirs = {"w": jnp.eye(2) / 2, "v": jnp.ones((1, 2)), "steps": 7}    # leaves that are not floats are constants
>>> model, params, restore, _ = adapters.from_apply(apply, theirs, jnp.zeros(2), loss=models.squared_error)
>>> loss, grads = gradients.bptt(model, params, jnp.ones((5, 2)), jnp.zeros((5, 1)))
>>> jax.tree.map(jnp.shape, restore(grads))
{'steps': None, 'v': (1, 2), 'w': (2, 2)}
"""

from jaxbptt.adapters._apply import from_apply
from jaxbptt.adapters._equinox import equinox
from jaxbptt.adapters._haiku import haiku
from jaxbptt.adapters._linen import linen
from jaxbptt.adapters._nnx import nnx
from jaxbptt.adapters._torch import torch_weights

__all__ = ["equinox", "from_apply", "haiku", "linen", "nnx", "torch_weights"]
