"""Chains of scaled permutations: each J_t has at most one nonzero entry in every row and column, so that each singular
value of the product is a product of entries, and its log a sum of logs without any cancellation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt.spectra.products.diagonal import LogSums, add_log, empty_sums, finish_sums
from jaxbptt.spectra.products.matrices import Matrices


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
    sums: LogSums


def is_monomial(chain: Matrices) -> jax.Array:
    """Whether no row and no column of any J_t has two nonzero entries."""

    def holds(matrix):
        nonzero = matrix != 0
        return jnp.all(jnp.sum(nonzero, axis=-1) <= 1) & jnp.all(jnp.sum(nonzero, axis=-2) <= 1)

    # Mostly one look is enough.
    all_hold = lambda: jnp.all(jax.lax.map(lambda step: holds(chain.form(step)), chain.steps))
    return jax.lax.cond(holds(chain.at(0)), all_hold, lambda: jnp.asarray(False))


def monomial_svd(chain: Matrices, every: int) -> MonomialSVD:
    """The singular values and directions of J_t … J_1 at t = every, 2 every, … and T of a monomial chain."""

    def body(paths, step):
        jacobian = chain.form(step)
        place = jnp.argmax(jnp.abs(jacobian), axis=0)[paths.place]
        entry = jacobian[place, paths.place]
        return (_Paths(place, paths.sign * jnp.sign(entry), add_log(paths.sums, jnp.abs(entry))),) * 2

    start = _Paths(jnp.arange(chain.size), jnp.ones(chain.size, chain.dtype), empty_sums(chain.size, chain.dtype))
    _, paths = jax.lax.scan(body, start, chain.steps)
    ends = jnp.minimum(every * jnp.arange(1, -(-len(chain) // every) + 1), len(chain)) - 1
    return jax.vmap(_finish)(jax.tree.map(lambda leaf: leaf[ends], paths))


def _finish(paths):
    log_sigma, rest, error = finish_sums(paths.sums)
    alive = log_sigma > -jnp.inf
    # A path that has ended may stand where another one is: it takes a coordinate that no path has reached.
    taken = jnp.zeros_like(alive).at[paths.place].max(alive)
    free = jnp.argsort(taken, stable=True)
    place = jnp.where(alive, paths.place, free[jnp.cumsum(~alive) - 1])
    identity = jnp.eye(len(alive), dtype=log_sigma.dtype)
    left = identity[:, place] * jnp.where(alive, paths.sign, 1)[None, :]
    return MonomialSVD(log_sigma, rest, error, left, identity)
