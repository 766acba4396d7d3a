"""Several episodes in one sequence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.models._order import require_order
from jaxbptt.models.model import READS, Model
from jaxbptt.types import Inputs


class Resetting(NamedTuple):
    """Inputs of a `resetting` model.

    Attributes:
      x: x_1 … x_T, leading T.
      reset: [T] bool: step t starts an episode (of a batch [T, B]).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> lengths = jnp.array([2, 3])  # of two episodes
      >>> starts = jnp.zeros(5, bool).at[jnp.cumsum(lengths)[:-1]].set(True)
      >>> models.Resetting(x=jnp.ones((5, 2)), reset=starts).reset.tolist()
      [False, False, True, False, False]
    """

    x: Inputs
    reset: Any


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

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, trajectories
      >>> step = lambda a, h, x: a * h + x
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h: h, models.squared_error)
      >>> inputs = models.Resetting(jnp.ones(4), jnp.array([False, False, True, False]))  # two episodes of 2 steps
      >>> trajectories.unroll(models.resetting(model), jnp.asarray(0.5), inputs).states.tolist()
      [1.0, 1.5, 1.0, 1.5]
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
