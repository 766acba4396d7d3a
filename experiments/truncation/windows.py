"""Windows of the text as inputs and targets."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments import nets

SEQUENCES = 8  # on which bias, spread and lag profiles are measured


def draw_windows(symbols: jax.Array, key: jax.Array, count: int, length: int) -> jax.Array:
    """[count, T + 1] symbols from anywhere in the text."""
    starts = jax.random.randint(key, (count,), 0, len(symbols) - length)
    return symbols[starts[:, None] + jnp.arange(length + 1)[None]]


def make_pairs(windows: Any, size: int, dtype: Any) -> tuple[jax.Array, Any]:
    """(inputs [B, T, M], targets [B, T]) of windows [B, T + 1], of an alphabet of M = `size`."""
    return nets.encode_one_hot(windows[:, :-1], size, dtype), windows[:, 1:]
