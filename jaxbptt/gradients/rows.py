"""Rows of a table as directions and logs of their lengths, so that none leaves the float range."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def split(rows: Float[Array, "rows n"]) -> tuple[Float[Array, "rows n"], Float[Array, " rows"]]:
    """(rows of length 1, ln of their lengths), no square leaving the float range; a zero row stays zero, with −inf."""
    largest = jnp.max(jnp.abs(rows), axis=1, initial=0)
    rows = rows / jnp.where(largest > 0, largest, 1)[:, None]
    length = jnp.sqrt(jnp.sum(rows * rows, axis=1))
    length = jnp.where(length > 0, length, 1)
    return rows / length[:, None], jnp.log(largest) + jnp.log(length)


def add_at(index: jax.Array, rows: tuple[jax.Array, jax.Array], more: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Such rows with `more` added to one of them: that of the step it belongs to."""
    if more is None:
        return rows
    directions, log_lengths = rows
    direction, log_length = split((jnp.exp(log_lengths[index]) * directions[index] + more)[None])
    return directions.at[index].set(direction[0]), log_lengths.at[index].set(log_length[0])
