"""dC/dθ estimated from random perturbations of the params or of the states.

| estimator | what is perturbed, what is seen | mean |
|---|---|---|
| `forward_gradient` | θ; the slope of C along the direction, in forward mode | dC/dθ |
| `evolution_strategies` | θ, anew in each window; losses of pairs (PES) | the gradient of the smoothed C |
| `persistent_strategies` | the same, window by window, while θ changes: `init` and `update` | the same at fixed θ |
| `evolution_strategies(persistent=False)` | the same, from states without noise | that of windows of K steps |
| `node_perturbation` | the states; the slope of the losses after each | dC/dθ |
| `node_perturbation(scale=σ)` | the states; the losses after each (REINFORCE) | the gradient of the smoothed C |

All but `persistent_strategies` take (model, params, inputs, targets, *, key) and return (loss, grads), as the exact
routes do.

>>> import functools, jax, jax.numpy as jnp
>>> from jaxbptt import assessment, cells, models, perturbation
>>> model = models.sequence_model(cells.gru(2, 4), 1)
>>> params, inputs, targets = model.init(jax.random.key(0)), jnp.ones((12, 2)), jnp.ones((12, 1))
>>> estimator = functools.partial(perturbation.forward_gradient, num_directions=8)
>>> keys = jax.random.split(jax.random.key(1), 200)
>>> low, high = assessment.assess(model, estimator, params, inputs, targets, keys=keys).whole.interval(0.95)
>>> bool(low < 0 < high)  # no bias along the gradient that 200 draws could show
True
"""

from jaxbptt.perturbation.directions import forward_gradient
from jaxbptt.perturbation.nodes import node_perturbation
from jaxbptt.perturbation.particles import Particles, StrategiesRule, persistent_strategies
from jaxbptt.perturbation.strategies import evolution_strategies

__all__ = [
    "Particles",
    "StrategiesRule",
    "evolution_strategies",
    "forward_gradient",
    "node_perturbation",
    "persistent_strategies",
]
