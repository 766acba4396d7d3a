"""Schemes (key, shape, dtype) -> array that draw a recurrent weight matrix."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxbptt.types import Key


class Scheme(Protocol):
    def __call__(self, key: Key, shape: tuple[int, int], dtype: Any) -> jax.Array:
        """One recurrent matrix [H, H]."""
        ...


def gaussian(gain: float = 1.0) -> Scheme:
    """W_ij ~ N(0, gain²/H): spectral radius about `gain`, largest singular value about 2·`gain`.

    Args:
      gain: g, a scalar.

    Returns:
      A scheme (key, shape, dtype) -> [H, H].

    Reference: Ginibre (1965), circular law.
    """

    def draw(key, shape, dtype):
        return jax.random.normal(key, shape, dtype) * jnp.asarray(gain / shape[1] ** 0.5, dtype)

    return draw


def orthogonal(gain: float = 1.0) -> Scheme:
    """W = gain·Q, Q uniform over the orthogonal group: every singular value is `gain`.

    Args:
      gain: g, a scalar.

    Returns:
      A scheme (key, shape, dtype) -> [H, H].

    Reference: Saxe, McClelland & Ganguli (2014), arXiv:1312.6120.
    """

    def draw(key, shape, dtype):
        return jax.nn.initializers.orthogonal(gain)(key, shape, dtype)

    return draw


def identity(gain: float = 1.0) -> Scheme:
    """W = gain·I; the key is not used.

    Args:
      gain: g, a scalar.

    Returns:
      A scheme (key, shape, dtype) -> [H, H].

    Reference: Le, Jaitly & Hinton (2015), arXiv:1504.00941.
    """

    def draw(key, shape, dtype):
        return jnp.asarray(gain, dtype) * jnp.eye(shape[0], shape[1], dtype=dtype)

    return draw


def draw_weights(
    key: Key, recurrent: Scheme, num_inputs: int, num_hidden: int, num_gates: int
) -> tuple[jax.Array, jax.Array]:
    """(w_hx [G·H, M] ~ N(0, 1/M), w_hh [G·H, H]: one draw of `recurrent` per gate), in JAX's default float."""
    dtype = jnp.result_type(float)
    input_key, *gate_keys = jax.random.split(key, 1 + num_gates)
    w_hx = jax.random.normal(input_key, (num_gates * num_hidden, num_inputs), dtype)
    gates = [recurrent(k, (num_hidden, num_hidden), dtype) for k in gate_keys]
    return w_hx * jnp.asarray(max(num_inputs, 1) ** -0.5, dtype), jnp.concatenate(gates)
