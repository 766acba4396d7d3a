"""Chains of scaled permutations: each J_t has at most one nonzero entry in every row and column, so that each singular
value of the product is a product of entries, and its log a sum of logs without any cancellation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt.spectra.products.graded import add_compensated, log_of


class MonomialSVD(NamedTuple):
    """P = left diag(e^log_sigma) rightᵀ at R records; not sorted."""

    log_sigma: jax.Array  # [R, N]
    rest: jax.Array  # [R, N]
    error: jax.Array  # [R, N] nats
    left: jax.Array  # [R, N, N]
    right: jax.Array  # [R, N, N]


class _Paths(NamedTuple):
    """Where each coordinate of the start has gone."""

    place: jax.Array  # [N]
    sign: jax.Array  # [N]
    log_sum: jax.Array  # [N] Σ ln|entry|, −inf for a path that has ended
    log_carry: jax.Array  # [N]
    squares: jax.Array  # [N] Σ ln²|entry|, for the rounding of the logs


def is_monomial(chain: jax.Array) -> jax.Array:
    """Whether no row and no column of any J_t has two nonzero entries."""

    def holds(matrices):
        nonzero = matrices != 0
        return jnp.all(jnp.sum(nonzero, axis=-1) <= 1) & jnp.all(jnp.sum(nonzero, axis=-2) <= 1)

    return jax.lax.cond(holds(chain[0]), holds, lambda chain: jnp.asarray(False), chain)  # mostly one look is enough


def monomial_svd(chain: jax.Array, every: int) -> MonomialSVD:
    """The singular values and directions of J_t … J_1 at t = every, 2 every, … and T of a monomial chain."""
    length, size, _ = chain.shape

    def body(paths, jacobian):
        place = jnp.argmax(jnp.abs(jacobian), axis=0)[paths.place]
        entry = jacobian[place, paths.place]
        log, rest = log_of(jnp.abs(entry))
        log_sum, log_carry = add_compensated(paths.log_sum, paths.log_carry, log)
        squares = paths.squares + jnp.where(entry == 0, 0, log * log)
        return (_Paths(place, paths.sign * jnp.sign(entry), log_sum, log_carry + rest, squares),) * 2

    zeros = jnp.zeros(size, chain.dtype)
    start = _Paths(jnp.arange(size), zeros + 1, zeros, zeros, zeros)
    _, paths = jax.lax.scan(body, start, chain)
    ends = jnp.minimum(every * jnp.arange(1, -(-length // every) + 1), length) - 1
    return jax.vmap(_finish)(jax.tree.map(lambda leaf: leaf[ends], paths))


def _finish(paths):
    log_sigma, rest = add_compensated(paths.log_sum, jnp.zeros_like(paths.log_carry), paths.log_carry)
    alive = log_sigma > -jnp.inf
    rounding = jnp.sqrt(paths.squares) + jnp.where(alive, jnp.abs(log_sigma), 0)
    # A path that has ended may stand where another one is: it takes a coordinate that no path has reached.
    taken = jnp.zeros_like(alive).at[paths.place].max(alive)
    free = jnp.argsort(taken, stable=True)
    place = jnp.where(alive, paths.place, free[jnp.cumsum(~alive) - 1])
    identity = jnp.eye(len(alive), dtype=log_sigma.dtype)
    left = identity[:, place] * jnp.where(alive, paths.sign, 1)[None, :]
    error = jnp.where(alive, jnp.finfo(log_sigma.dtype).eps * rounding, 0)
    return MonomialSVD(log_sigma, rest, error, left, identity)
