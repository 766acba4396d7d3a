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
    """Inputs of a `feedback` model."""

    x: Inputs  # x_1 … x_T, leading T
    start: Any  # [T] bool: step t reads `first` in place of o_{t−1} (of a batch [T, B])


class Forced(NamedTuple):
    """Inputs of a `teacher_forcing` model."""

    x: Inputs  # x_1 … x_T, leading T
    output: Outputs  # what step t reads in place of o_{t−1} where it is forced, such as y_{t−1}
    force: Any  # [T] bool (of a batch [T, B])


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
      ValueError, TypeError: as `feedback`.

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
