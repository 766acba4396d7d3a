"""Models: a recurrence f with a readout g and a loss L at every step, and batches of sequences.

>>> import jax, jax.numpy as jnp
>>> from jaxbptt import cells, comparison, gradients, models
>>> model = models.sequence_model(cells.gru(3, 4), num_outputs=5, loss=models.softmax_cross_entropy)
>>> params = model.init(jax.random.key(0))                                    # params.cell, params.readout
>>> inputs, targets = jnp.ones((6, 2, 3)), jnp.array([[0, 1]] * 6)            # [T, B, M], [T, B]
>>> batch = models.batched(model, 2)                                          # each weight's gradient formed once
>>> loss, grads = gradients.bptt(batch, params, inputs, targets)
>>> one, other = (gradients.bptt(model, params, inputs[:, b], targets[:, b])[1] for b in (0, 1))
>>> bool(comparison.compare(jax.tree.map(jnp.add, one, other), grads).relative < 1e-5)
True
"""

from jaxbptt.models._batched import batched
from jaxbptt.models._sequence import Readout, SequenceParams, sequence_model
from jaxbptt.models.losses import softmax_cross_entropy, squared_error
from jaxbptt.models.model import Loss, Model, ReadoutFunction, make_model, step_losses

__all__ = [
    "Loss",
    "Model",
    "Readout",
    "ReadoutFunction",
    "SequenceParams",
    "batched",
    "make_model",
    "sequence_model",
    "softmax_cross_entropy",
    "squared_error",
    "step_losses",
]
