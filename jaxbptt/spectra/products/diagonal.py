"""Chains of diagonals: each singular value of the product is a product of entries, and its log a sum of logs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt.spectra.products.graded import add_compensated, log_of
from jaxbptt.spectra.products.two_parts import log_modulus_in_parts

IN_PARTS = 1.5e-8  # nats that a float32 log in two parts may be off


class LogSums(NamedTuple):
    """Σ ln|entry| along paths that never meet."""

    total: jax.Array  # [n], −inf for a path with a zero on it
    carry: jax.Array  # [n] compensation
    rounding: jax.Array  # [n] nats: Σ of what each log may be off; equal steps are rounded alike, so that it adds up


def empty_sums(size: int, dtype: jnp.dtype) -> LogSums:
    """Those of no step."""
    return LogSums(*(jnp.zeros(size, dtype),) * 3)


def add_log(sums: LogSums, entry: jax.Array) -> LogSums:
    """Those with one more step, of real or complex entries."""
    is_complex, eps = jnp.iscomplexobj(entry), jnp.finfo(entry.dtype).eps
    if is_complex and entry.dtype == jnp.complex64:
        log, rest = log_modulus_in_parts(entry.real, entry.imag)
    else:
        log, rest = log_of(jnp.abs(entry))
    total, carry = add_compensated(sums.total, sums.carry + rest, log)
    of_modulus = 1 if is_complex else 0
    of_log = jnp.full_like(log, IN_PARTS) if log.dtype == jnp.float32 else eps * (jnp.abs(log) + of_modulus)
    return LogSums(total, carry, sums.rounding + jnp.where(entry == 0, 0, of_log))


def finish_sums(sums: LogSums) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(ln σ, what rounding it to its dtype left out, its error in nats); exact where a path has ended."""
    log_sigma, rest = sums.total, sums.carry
    alive = log_sigma > -jnp.inf
    of_sum = jnp.finfo(log_sigma.dtype).eps * jnp.where(alive, jnp.abs(log_sigma), 0)
    return log_sigma, rest, jnp.where(alive, sums.rounding + of_sum, 0)


def diagonal_values(entries: jax.Array, length: int, every: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(ln σ, rest, error), each [R, n], at t = every, … and T, of diagonals [T, n], or [1, n] if all are equal."""
    size, count = entries.shape[1], -(-length // every)
    constant = len(entries) < length
    if constant and jnp.finfo(entries.dtype).dtype == jnp.float64:
        one = add_log(empty_sums(size, jnp.finfo(entries.dtype).dtype), entries[0])
        taken = jnp.minimum(every * jnp.arange(1, count + 1), length).astype(one.total.dtype)[:, None]
        return finish_sums(jax.tree.map(lambda leaf: taken * leaf[None], one))
    start = empty_sums(size, jnp.finfo(entries.dtype).dtype)
    records = jax.tree.map(lambda leaf: jnp.zeros((count, size), leaf.dtype), start)

    def body(carry, step):
        sums, records = carry
        index, entry = step
        sums = add_log(sums, entries[0] if constant else entry)
        # Each record is overwritten until its last step.
        put = lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, index // every, 0)
        return (sums, jax.tree.map(put, records, sums)), None

    (_, records), _ = jax.lax.scan(body, (start, records), (jnp.arange(length), None if constant else entries))
    return finish_sums(records)
