"""Several episodes in one sequence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.models._order import require_order
from jaxbptt.models.model import READS, Model
from jaxbptt.types import Inputs


class Resetting(NamedTuple):
    """Inputs of a `resetting` model."""

    x: Inputs  # x_1 … x_T, leading T
    reset: Any  # [T] bool: step t starts an episode (of a batch [T, B])


def resetting(model: Model) -> Model:
    """h_t = f(h̃_{t−1}, x_t, θ),  h̃_{t−1} = h_0(θ) where step t starts an episode, else h_{t−1}.

    J_t is zero where step t starts an episode: no gradient passes, and dh_t/dh_0 is zero from there on, all its ln σ
    −inf. The gradient of every episode's h_0(θ) is part of dC/dθ; `initial=` stands for the first h_0 alone.

    Args:
      model: a model of one sequence.

    Returns:
      Model, without a derivation, whose inputs are `Resetting(x, reset [T] bool)`.

    Raises:
      ValueError, TypeError: a model made in another order; when it is called, inputs that are not `Resetting`.
    """
    require_order(model, "resetting")

    def start(params, state, inputs):
        _validation.require_type("inputs", inputs, Resetting, "models.Resetting(x, reset)")
        _validation.require_array("inputs.reset", inputs.reset, (), jnp.bool_)
        choose = lambda first, state: jnp.where(inputs.reset, first, state)
        return jax.tree.map(choose, model.initial_state(params), state)

    def readout(params, state, *seen):
        if not seen:
            return model.readout(params, state)
        inputs, *previous = seen
        return model.readout(params, state, inputs.x, *[start(params, each, inputs) for each in previous])

    return model._replace(
        step=lambda params, state, inputs: model.step(params, start(params, state, inputs), inputs.x),
        readout=readout if READS.index(model.reads) else model.readout,
        derivation=None,
        num_inputs=None,
        applied=(*model.applied, "resetting"),
    )
