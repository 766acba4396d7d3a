"""Models that read their own last output, or the right one in its place."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.models._order import require_order
from jaxbptt.models.model import Model
from jaxbptt.types import Inputs, Output

Outputs: TypeAlias = Any  # like o_t, leading T


class Started(NamedTuple):
    """Inputs of a `feedback` model.

    Attributes:
      x: x_1 … x_T, leading T.
      start: [T] bool: step t reads `first` in place of o_{t−1} (of a batch [T, B]).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> inputs = models.Started(x=jnp.ones((5, 2)), start=jnp.arange(5) % 3 == 0)  # sequences of 3 and of 2 steps
      >>> inputs.start.tolist()
      [True, False, False, True, False]
    """

    x: Inputs
    start: Any


class Forced(NamedTuple):
    """Inputs of a `teacher_forcing` model.

    Attributes:
      x: x_1 … x_T, leading T.
      output: what step t reads in place of o_{t−1} where it is forced, such as y_{t−1}.
      force: [T] bool (of a batch [T, B]).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> targets = jnp.arange(1.0, 5.0)  # y_1 … y_4; step t is given y_{t−1}
      >>> before = jnp.concatenate((jnp.zeros(1), targets[:-1]))
      >>> inputs = models.Forced(x=jnp.ones(4), output=before, force=jnp.arange(4) % 2 == 0)  # at every second step
      >>> inputs.output.tolist(), inputs.force.tolist()
      ([0.0, 1.0, 2.0, 3.0], [True, False, True, False])
    """

    x: Inputs
    output: Outputs
    force: Any


def feedback(model: Model, first: Output) -> Model:
    """h_t = f(h_{t−1}, (x_t, o_{t−1}), θ),  o_t = g(h_t, θ): the output is part of the next input.

    J_t includes the path through o_{t−1}. Without a start at step 1, o_0 = g(h_0, θ).

    Args:
      model: a model of one sequence, whose step takes (x_t, o_{t−1}) and whose readout reads the state alone.
      first: what a step that starts a sequence reads in place of o_{t−1}, shaped like o_t.

    Returns:
      Model, without a derivation, whose inputs are `Started(x, start [T] bool)`.

    Raises:
      ValueError, TypeError: a model made in another order, or whose readout reads more than the state; when it is
        called, inputs that are not `Started`, a `first` unlike the output.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, trajectories
      >>> step = lambda a, h, fed: a * fed[1] + fed[0]  # fed: (x_t, o_{t−1})
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h: h, models.squared_error)
      >>> inputs = models.Started(jnp.ones(3), jnp.array([True, False, False]))
      >>> fed = models.feedback(model, first=jnp.asarray(4.0))
      >>> trajectories.unroll(fed, jnp.asarray(0.5), inputs).states.tolist()
      [3.0, 2.5, 2.25]
    """
    first = _validation.as_arrays("first", first)

    def unpack(inputs):
        _validation.require_type("inputs", inputs, Started, "models.Started(x, start)")
        return inputs.x, first, inputs.start

    return _fed(model, unpack, "first", "inputs.start")


def teacher_forcing(model: Model) -> Model:
    """`feedback` that reads a given output in place of o_{t−1} at the steps that are forced.

    Forced at every step, no gradient passes through the outputs; forced at some of them (sparse or scheduled teacher
    forcing), it passes between these.

    Args:
      model: as in `feedback`.

    Returns:
      Model, without a derivation, whose inputs are `Forced(x, output, force [T] bool)`.

    Raises:
      ValueError, TypeError: a model made in another order, or whose readout reads more than the state; when it is
        called, inputs that are not `Forced`, an `output` unlike the model's.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, trajectories
      >>> step = lambda a, h, fed: a * fed[1] + fed[0]  # fed: (x_t, o_{t−1})
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h: h, models.squared_error)
      >>> inputs = models.Forced(jnp.ones(3), output=jnp.full(3, 4.0), force=jnp.array([False, True, False]))
      >>> trajectories.unroll(models.teacher_forcing(model), jnp.asarray(0.5), inputs).states.tolist()
      [1.0, 3.0, 2.5]

    Reference: Williams & Zipser (1989), Neural Computation 1; Mikhaeil, Monfared & Durstewitz (2022), arXiv:2110.07238.
    """

    def unpack(inputs):
        _validation.require_type("inputs", inputs, Forced, "models.Forced(x, output, force)")
        return inputs

    return _fed(model, unpack, "inputs.output", "inputs.force")


def _fed(model, unpack, name, flag):
    require_order(model, "feedback")
    if model.reads != "state":
        raise ValueError(f"model.readout: got one that reads {model.reads!r}, expected one of the state alone")

    def step(params, state, inputs):
        x, given, chosen = unpack(inputs)
        _validation.require_array(flag, chosen, (), jnp.bool_)
        output = model.readout(params, state)
        _validation.require_same(name, given, output)
        fed = jax.tree.map(lambda given, own: jnp.where(chosen, given, own), given, output)
        return model.step(params, state, (x, fed))

    return model._replace(step=step, derivation=None, num_inputs=None, applied=(*model.applied, "feedback"))
