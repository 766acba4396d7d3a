"""Counters, flags and keys in a state, computed beforehand: what has no derivative is an input."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt._jaxprs.dependence import leaves_read
from jaxbptt.models._order import require_order
from jaxbptt.models.model import READS, Model
from jaxbptt.types import Inputs, Params


class Precomputed(NamedTuple):
    """A model whose state is floats alone, and the inputs that carry the rest.

    Attributes:
      model: on the floats of the state.
      inputs: of that model, leading T: `x`, and the leaves that are not floats `before` and `after` each step.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> step = lambda a, state, x: (a * state[0] + x, state[1] + 1)  # the state: h and a counter
      >>> start, readout = lambda a: (jnp.zeros_like(a), jnp.asarray(0)), lambda a, state: state[0]
      >>> model = models.make_model(step, start, readout, models.squared_error)
      >>> model, inputs = models.precomputed(model, jnp.asarray(0.5), jnp.ones(3))
      >>> inputs.before[1].tolist(), inputs.after[1].tolist()  # the counter before and after each step
      ([0, 1, 2], [1, 2, 3])
    """

    model: Model
    inputs: Inputs


class Known(NamedTuple):
    """An input, and the leaves of the state that are not floats: before and after the step."""

    x: Inputs
    before: Any
    after: Any


def precomputed(model: Model, params: Params, inputs: Inputs) -> Precomputed:
    """The integer, bool and key leaves of the state, which no float of it changes, as inputs.

    Args:
      model: its state may hold leaves that are not floats, such as a step counter or a key that is split at every step;
        with `feedback` and `resetting` already, whose resets then restart these leaves, too.
      params: θ.
      inputs: x_1 … x_T, leading T.

    Returns:
      Precomputed(model, inputs): the model keeps the structure of the state, with None for these leaves, and its
      readout reads the whole state.

    Raises:
      ValueError, TypeError: a leaf that is not a float and depends on one that is; inputs without a leading T.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> step = lambda a, state, x: (a * state[0] + x, state[1] + 1)  # the state: h and a counter
      >>> start, readout = lambda a: (jnp.zeros_like(a), jnp.asarray(0)), lambda a, state: state[0]
      >>> model = models.make_model(step, start, readout, models.squared_error)
      >>> model, inputs = models.precomputed(model, jnp.asarray(0.5), jnp.ones(3))
      >>> gradients.bptt(model, jnp.asarray(0.5), inputs, jnp.zeros(3))[1].item()
      5.0
    """
    require_order(model, "precomputed")
    inputs = _validation.as_arrays("inputs", inputs)
    _validation.require_time_axis("inputs", inputs)
    start = jax.tree.map(jnp.asarray, model.initial_state(params))
    structure: Any = jax.tree.structure(start)
    inexact = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(start)]

    def part(state, floats):
        leaves = zip(jax.tree.leaves(state), inexact, strict=True)
        return structure.unflatten([leaf if is_float == floats else None for leaf, is_float in leaves])

    def join(floats, others):
        floats, others = iter(jax.tree.leaves(floats)), iter(jax.tree.leaves(others))
        return structure.unflatten([next(floats if is_float else others) for is_float in inexact])

    def advance(floats, others, x):
        return part(model.step(params, join(floats, others), x), False)

    first = part(start, True), part(start, False), jax.tree.map(lambda leaf: leaf[0], inputs)
    if any(leaves_read(advance, *first)):
        leaves = zip(_validation.named_leaves("state", start), inexact, strict=True)
        names = [name for (name, _), is_float in leaves if not is_float]
        raise ValueError(f"{', '.join(names)}: got values that depend on the state's floats, expected counters or keys")

    def body(others, x):
        after = advance(first[0], others, x)
        return after, (others, after)

    _, (before, after) = jax.lax.scan(body, first[1], inputs)

    def readout(params, state, known, *previous):
        seen = (known.x, *[join(each, known.before) for each in previous])
        return model.readout(params, join(state, known.after), *seen[: READS.index(model.reads)])

    made = model._replace(
        initial_state=lambda params: part(model.initial_state(params), True),
        step=lambda params, state, known: part(model.step(params, join(state, known.before), known.x), True),
        readout=readout,
        derivation=None,
        num_inputs=None,
        reads=READS[max(1, READS.index(model.reads))],
        applied=(*model.applied, "precomputed"),
    )
    return Precomputed(made, Known(inputs, before, after))
