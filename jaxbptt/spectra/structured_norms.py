"""Norms of dh_t/dh_k for all pairs of a structured chain: of diagonals and borders in logs, of blocks joined."""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxbptt.jacobians.blocks import BorderedJacobians
from jaxbptt.spectra.products import border
from jaxbptt.spectra.products.diagonal import add_log, empty_sums
from jaxbptt.spectra.products.matrices import Matrices

Tables: TypeAlias = tuple[
    jax.Array, jax.Array, jax.Array, jax.Array
]  # log_frobenius, log_spectral, residual, error: [T+1, T+1]


def diagonal_pairs(entries: jax.Array, length: int, copies: int) -> Tables:
    """Those of diagonals [T, n], or [1, n] for equal ones: ln|Π entry| = Σ ln|entry| over k < s ≤ t."""
    dtype = jnp.finfo(entries.dtype).dtype
    eps = jnp.finfo(dtype).eps
    size = entries.shape[1]

    def body(sums, step):
        """One more factor for every k < t, none yet for k ≥ t."""
        t, entry = step
        begun = (jnp.arange(length + 1) < t)[:, None]
        new = jax.vmap(add_log, in_axes=(0, None))(sums, entries[0] if entry is None else entry)
        sums = jax.tree.map(lambda new, old: jnp.where(begun, new, old), new, sums)
        log_frobenius = jax.nn.logsumexp(2 * sums.total, axis=1) / 2
        rounding = jnp.max(sums.rounding, axis=1)
        return sums, (log_frobenius, jnp.max(sums.total, axis=1), rounding)

    start = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (length + 1, size)), empty_sums(size, dtype))
    steps = jnp.arange(1, length + 1), entries if len(entries) == length else None
    log_frobenius, log_spectral, rounding = jax.lax.scan(body, start, steps)[1]
    log_frobenius = log_frobenius + jnp.log(jnp.asarray(copies, dtype)) / 2
    size_of_log = jnp.where(jnp.isfinite(log_frobenius), jnp.abs(log_frobenius), 0)
    return _tables(log_frobenius, log_spectral, rounding + eps * (2 + size_of_log), size * copies)


def monomial_pairs(chain: Matrices) -> Tables:
    """Those of scaled permutations: where each coordinate of the state at k has gone, and the logs on its way."""
    length, size = len(chain), chain.size
    eps = jnp.finfo(chain.dtype).eps

    def body(carry, step):
        t, at = step
        jacobian = chain.form(at)
        places, sums = carry
        rows = jnp.argmax(jnp.abs(jacobian), axis=0)
        entries = jnp.abs(jacobian)[rows, jnp.arange(size)]
        begun = (jnp.arange(length + 1) < t)[:, None]
        new = jax.vmap(lambda sums, place: add_log(sums, entries[place]))(sums, places)
        sums = jax.tree.map(lambda new, old: jnp.where(begun, new, old), new, sums)
        found = (
            jax.nn.logsumexp(2 * sums.total, axis=1) / 2,
            jnp.max(sums.total, axis=1),
            jnp.max(sums.rounding, axis=1),
        )
        return (jnp.where(begun, rows[places], places), sums), found

    places = jnp.broadcast_to(jnp.arange(size), (length + 1, size))
    start = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (length + 1, size)), empty_sums(size, chain.dtype))
    steps = jnp.arange(1, length + 1), chain.steps
    log_frobenius, log_spectral, rounding = jax.lax.scan(body, (places, start), steps)[1]
    size_of_log = jnp.where(jnp.isfinite(log_frobenius), jnp.abs(log_frobenius), 0)
    return _tables(log_frobenius, log_spectral, rounding + eps * (2 + size_of_log), size)


def border_pairs(chain: BorderedJacobians) -> Tables:
    """Those of bordered Jacobians: all k < t are carried side by side, T² N flops."""
    length, size = len(chain), chain.size
    start = border.identity(length + 1, size, chain.dtype)

    def body(products, step):
        t, at = step
        begun = jnp.arange(length + 1) < t
        choose = lambda new, old: jnp.where(begun.reshape(-1, *[1] * (new.ndim - 1)), new, old)
        products = jax.tree.map(choose, border.multiply(at, products), products)
        found = border.values_of(products)
        many = jnp.log(jnp.asarray(size - 2, chain.dtype)) / 2 + found.log_scale
        squares = jnp.stack((many, found.log_first, found.log_second))
        spectral = jnp.maximum(found.log_first, found.log_scale) if size > 2 else found.log_first
        return products, (jax.nn.logsumexp(2 * squares, axis=0) / 2, spectral, found.error)

    log_frobenius, log_spectral, error = jax.lax.scan(body, start, (jnp.arange(1, length + 1), chain.steps))[1]
    return _tables(log_frobenius, log_spectral, error, size)


def join_pairs(tables: Tables, copies: int) -> Tables:
    """Those of a block-diagonal chain from those of its blocks, leading B, each in some copies."""
    log_frobenius, log_spectral, residual, error = tables
    joined = jax.nn.logsumexp(2 * log_frobenius, axis=0) / 2 + jnp.log(jnp.asarray(copies, error.dtype)) / 2
    largest = jnp.argmax(log_spectral, axis=0)[None]
    pick = lambda table: jnp.take_along_axis(table, largest, axis=0)[0]
    # Each block's error counts by its share of the whole.
    whole = jnp.where(jnp.isfinite(joined), joined, jnp.inf)[None]
    share = jnp.exp(2 * (log_frobenius - whole))
    weighted = jnp.sum(copies * share * jnp.where(share > 0, error, 0), axis=0)
    return joined, pick(log_spectral), pick(residual), jnp.maximum(weighted, pick(error))


def _tables(log_frobenius, log_spectral, error, size):
    """With the row t = 0, the diagonal and what is above it; the residual is zero: nothing was iterated."""
    count = log_frobenius.shape[1]
    lag = jnp.arange(count)[:, None] - jnp.arange(count)[None, :]

    def complete(rows, diagonal, above):
        table = jnp.concatenate((jnp.zeros((1, count), rows.dtype), rows))
        return jnp.where(lag > 0, table, jnp.where(lag == 0, jnp.asarray(diagonal, rows.dtype), above))

    half_log_size = jnp.log(jnp.asarray(size, log_frobenius.dtype)) / 2
    nothing = jnp.zeros((count, count), log_frobenius.dtype)
    eps = jnp.finfo(log_frobenius.dtype).eps
    return (
        complete(log_frobenius, half_log_size, -jnp.inf),
        complete(log_spectral, 0, -jnp.inf),
        nothing,
        complete(error, eps, 0),
    )
