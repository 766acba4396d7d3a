"""Haiku: a transformed function (x, carry) -> (output, carry) around VanillaRNN, GRU, LSTM, DeepRNN."""

import inspect
from collections.abc import Callable
from typing import Any

import jax

from jaxbptt.adapters._apply import from_apply, import_framework
from jaxbptt.models import Adapted, Loss
from jaxbptt.types import Input, Reduction


def haiku(
    transformed: Any,
    params: Any,
    carry: Any,
    *,
    loss: Loss,
    state: Any = None,
    reduction: Reduction = "sum",
    x: Input = None,
    select: Callable[[Any, Any], bool] | None = None,
) -> Adapted:
    """o_t, h_t = transformed.apply(params, x_t, h_{t−1}).

    Args:
      transformed: from `hk.transform`, `hk.transform_with_state` or `hk.without_apply_rng`, of a function (x, carry)
        that returns (output, carry), as Haiku's cores do. Where its signature asks for a key, None is passed.
      params: from `transformed.init`.
      carry: h_0, such as a core's `initial_state(None)` gives, or a function (params) -> h_0.
      loss: (o_t, y_t) -> a scalar.
      state: Haiku's state of a function that has one; a constant.
      reduction: "sum" or "mean" over the steps.
      x: an example of one input, as in `from_apply`.
      select: as in `models.trainable`.

    Returns:
      Adapted.

    Raises:
      ImportError: Haiku is not installed.
      TypeError, ValueError: a function that has a state where none is given; as `from_apply`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import haiku as hk
      >>> from jaxbptt import adapters, gradients, models
      >>> transformed = hk.transform(lambda x, carry: hk.VanillaRNN(3)(x, carry))
      >>> params = transformed.init(jax.random.key(0), jnp.ones(2), jnp.zeros(3))
      >>> mine = adapters.haiku(transformed, params, jnp.zeros(3), loss=models.squared_error)
      >>> loss, grads = gradients.bptt(mine.model, mine.params, jnp.ones((5, 2)), jnp.zeros((5, 3)))
      >>> sorted(mine.restore(grads))
      ['vanilla_rnn/linear', 'vanilla_rnn/linear_1']
    """
    import_framework("haiku", "haiku")
    names = list(inspect.signature(transformed.apply).parameters)
    key = (None,) if "rng" in names else ()
    if "state" in names[:2] and state is None:
        raise ValueError("state: got None, expected Haiku's state: this function was transformed with state")
    with_state = () if state is None else (state,)

    def apply(params, carry, x):
        result = transformed.apply(params, *with_state, *key, x, carry)
        result = result if state is None else result[0]
        if not isinstance(result, tuple) or len(result) != 2 or not _alike(result[1], carry):
            got = str(jax.tree.structure(result)).removeprefix("PyTreeDef(").removesuffix(")")
            raise TypeError(f"transformed: got a result of {got}, expected (output, carry)")
        output, new = result
        return new, output

    return from_apply(apply, params, carry, loss=loss, reduction=reduction, x=x, select=select)


def _alike(one, other):
    same: Any = jax.tree.structure(other)
    return jax.tree.structure(one) == same
