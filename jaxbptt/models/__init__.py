"""Models: a recurrence f with a readout g and a loss L at every step, and what people do to them.

| wanted | function |
|---|---|
| padding, losses at some steps | `weighted` |
| several episodes in one sequence | `resetting` |
| the output, or the right one, as the next input | `feedback`, `teacher_forcing` |
| B sequences side by side | `batched` |
| a penalty on the params | `penalised` |
| some leaves trained, the others constant | `trainable` |
| complex params and states | `real_pairs` |
| counters and keys in the state | `precomputed` |
| both directions in time | `bidirectional` |

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

from jaxbptt.models._adapted import Adapted, RealPair, join_pairs, real_pairs, split_complex, trainable
from jaxbptt.models._batched import batched
from jaxbptt.models._bidirectional import (
    BidirectionalModel,
    BidirectionalParams,
    BidirectionalReadout,
    bidirectional,
)
from jaxbptt.models._feedback import Forced, Started, feedback, teacher_forcing
from jaxbptt.models._penalised import penalised
from jaxbptt.models._precomputed import Precomputed, precomputed
from jaxbptt.models._resetting import Resetting, resetting
from jaxbptt.models._sequence import Readout, SequenceParams, sequence_model
from jaxbptt.models._weighted import Weighted, weighted
from jaxbptt.models.losses import softmax_cross_entropy, squared_error
from jaxbptt.models.model import Loss, Model, ReadoutFunction, make_model, read, step_losses

__all__ = [
    "Adapted",
    "BidirectionalModel",
    "BidirectionalParams",
    "BidirectionalReadout",
    "Forced",
    "Loss",
    "Model",
    "Precomputed",
    "Readout",
    "ReadoutFunction",
    "RealPair",
    "Resetting",
    "SequenceParams",
    "Started",
    "Weighted",
    "batched",
    "bidirectional",
    "feedback",
    "join_pairs",
    "make_model",
    "penalised",
    "precomputed",
    "read",
    "real_pairs",
    "resetting",
    "sequence_model",
    "softmax_cross_entropy",
    "split_complex",
    "squared_error",
    "step_losses",
    "teacher_forcing",
    "trainable",
    "weighted",
]
