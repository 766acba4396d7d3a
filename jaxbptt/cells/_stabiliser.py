"""Exponential gates of the xLSTM, kept in range by a stabiliser m that is a part of the state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Stabilised(NamedTuple):
    """Gates divided by e^{m'}, all of one shape."""

    m: jax.Array  # m' = max(ln f + m, ĩ), or ĩ where nothing is stored yet
    forget: jax.Array  # f' = e^{ln f + m − m'}
    write: jax.Array  # i' = e^{ĩ − m'}
    carried: jax.Array  # s = ∂⁺m'/∂⁺m: 1 where m sets m', 0 where ĩ does, ½ at a tie (JAX's derivative of a maximum)


def stabilise(log_forget: jax.Array, i: jax.Array, m: jax.Array, empty: jax.Array) -> Stabilised:
    """The gates of one step.

    With a = ln f + m, both gates depend on a − ĩ alone: df' = (1−s) f' d(a − ĩ), di' = −s i' d(a − ĩ).

    Args:
      log_forget: ln f.
      i: ĩ.
      m: m_{t−1}.
      empty: bool, where the normaliser n_{t−1} is 0.

    Returns:
      Stabilised.
    """
    decayed = log_forget + m
    new = jnp.where(empty, i, jnp.maximum(decayed, i))
    carried = jnp.where(empty, 0, (1 + jnp.sign(decayed - i)) / 2)
    return Stabilised(new, jnp.exp(decayed - new), jnp.exp(i - new), carried)
