"""Exponential gates of the xLSTM, kept in range by a stabiliser m that is a part of the state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def is_stored(normaliser: jax.Array) -> jax.Array:
    """n ≠ 0, as a cast and not a comparison of floats: at n = 0, where runs begin with c = 0, no output has a kink."""
    return jax.lax.convert_element_type(normaliser, jnp.bool_)


class Stabilised(NamedTuple):
    """Gates divided by e^{m'}, all of one shape."""

    m: jax.Array  # m' = max(ln f + m, ĩ), or ĩ where nothing is stored yet
    forget: jax.Array  # f' = e^{ln f + m − m'}
    write: jax.Array  # i' = e^{ĩ − m'}
    carried: jax.Array  # s = ∂⁺m'/∂⁺m: 1 where m sets m', 0 where ĩ does, ½ at a tie (JAX's derivative of a maximum)
    apart: jax.Array  # a − ĩ, from which the last three follow


def stabilise(log_forget: jax.Array, i: jax.Array, m: jax.Array, stored: jax.Array) -> Stabilised:
    """The gates of one step.

    With a = ln f + m, both gates depend on a − ĩ alone: df' = (1−s) f' d(a − ĩ), di' = −s i' d(a − ĩ).

    Args:
      log_forget: ln f.
      i: ĩ.
      m: m_{t−1}.
      stored: bool, where the normaliser n_{t−1} is not 0.

    Returns:
      Stabilised.
    """
    decayed = log_forget + m
    new = jnp.where(stored, jnp.maximum(decayed, i), i)
    apart = decayed - i
    return Stabilised(new, jnp.exp(decayed - new), jnp.exp(i - new), _carried(apart, stored), apart)


def gates_of(apart: jax.Array, stored: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(f', i', s) again from a − ĩ, one number in place of three for a pass that keeps them: m' − ĩ = max(a − ĩ, 0)."""
    above = jnp.where(stored, jnp.maximum(apart, 0), 0)
    return jnp.exp(apart - above), jnp.exp(-above), _carried(apart, stored)


def _carried(apart, stored):
    return jnp.where(stored, (1 + jnp.sign(apart)) / 2, 0)
