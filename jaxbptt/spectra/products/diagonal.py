"""Chains of diagonals: each singular value of the product is a product of entries, and its log a sum of logs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt.spectra.products.graded import add_compensated, log_of


class LogSums(NamedTuple):
    """Σ ln|entry| along paths that never meet."""

    total: jax.Array  # [n], −inf for a path with a zero on it
    carry: jax.Array  # [n] compensation
    squares: jax.Array  # [n] Σ ln²|entry|, for the rounding of the logs


def empty_sums(size: int, dtype: jnp.dtype) -> LogSums:
    """Those of no step."""
    return LogSums(*(jnp.zeros(size, dtype),) * 3)


def add_log(sums: LogSums, magnitude: jax.Array) -> LogSums:
    """Those with one more step."""
    log, rest = log_of(magnitude)
    total, carry = add_compensated(sums.total, sums.carry, log)
    return LogSums(total, carry + rest, sums.squares + jnp.where(magnitude == 0, 0, log * log))


def finish_sums(sums: LogSums) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(ln σ, what rounding it to its dtype left out, its error in nats); exact where a path has ended."""
    log_sigma, rest = add_compensated(sums.total, jnp.zeros_like(sums.carry), sums.carry)
    alive = log_sigma > -jnp.inf
    rounding = jnp.sqrt(sums.squares) + jnp.where(alive, jnp.abs(log_sigma), 0)
    return log_sigma, rest, jnp.where(alive, jnp.finfo(log_sigma.dtype).eps * rounding, 0)


def diagonal_values(entries: jax.Array, length: int, every: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(ln σ, rest, error), each [R, n], of diagonals [T, n], or [1, n] for `length` equal ones, at t = every, … and T.

    The modulus of a complex entry is rounded, alike at equal steps.
    """
    size, count = entries.shape[1], -(-length // every)
    taken = jnp.minimum(every * jnp.arange(1, count + 1), length).astype(jnp.finfo(entries.dtype).dtype)[:, None]
    of_modulus = jnp.finfo(entries.dtype).eps * taken if jnp.iscomplexobj(entries) else jnp.zeros_like(taken)
    if len(entries) < length:
        log_sigma = taken * jnp.log(jnp.abs(entries))
        error = of_modulus + 2 * jnp.finfo(entries.dtype).eps * jnp.abs(log_sigma)
        return log_sigma, jnp.zeros_like(log_sigma), jnp.where(log_sigma > -jnp.inf, error, 0)
    start = empty_sums(size, jnp.finfo(entries.dtype).dtype)
    records = jax.tree.map(lambda leaf: jnp.zeros((count, size), leaf.dtype), start)

    def body(carry, step):
        sums, records = carry
        index, entry = step
        sums = add_log(sums, jnp.abs(entry))
        # Each record is overwritten until its last step.
        put = lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, index // every, 0)
        return (sums, jax.tree.map(put, records, sums)), None

    (_, records), _ = jax.lax.scan(body, (start, records), (jnp.arange(length), entries))
    log_sigma, rest, error = finish_sums(records)
    return log_sigma, rest, jnp.where(log_sigma > -jnp.inf, error + of_modulus, 0)
