"""One step of a QR scan: what it works on, the product with J_t, and the QR that takes ln r_ii out of it."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.spectra.frame_errors import Rounding, follow
from jaxbptt.spectra.products.graded import GRADED_COLUMNS, row_sorted_qr, when

SAMPLES = 4096  # of ln r_ii in time that are kept, at most


class AdvanceChain(Protocol):
    def __call__(self, state: Any, step: Any, /) -> tuple[Any, jax.Array]:
        """(what the next call starts from, J_t; or its `sequences` blocks)."""
        ...


class Chain(NamedTuple):
    """T Jacobians, stored or computed when they are needed."""

    advance: AdvanceChain
    state: Any  # what the first step starts from
    steps: Any  # pytree [T, ...], what `advance` reads at each step
    stored: jax.Array | None  # [T, N, N] all J_t if they exist; else the last few are kept
    dtype: Any
    length: int  # T
    size: int  # N, of one sequence
    sequences: int | None = None  # B, if J_t is B blocks [B, N, N] that are scanned side by side
    copies: int = 1  # how often every exponent counts
    same: jax.Array | None = None  # [N, N] whether two entries of the state are in one component; None: all are


class Options(NamedTuple):
    k: int  # directions asked for
    width: int  # K, directions carried: N, or k + 1
    warm_up: int  # steps that are not counted
    interval: int | None  # steps between QRs; None: chosen from the chain
    blocks: int  # of time, for `local`

    def lengths(self, length: int) -> np.ndarray:
        """The steps of each block of time."""
        return np.diff(-(-np.arange(self.blocks + 1) * (length - self.warm_up) // self.blocks))

    def slot(self, length: int, t: jax.Array) -> jax.Array:
        """The block of time that step t + 1 counts for; the last for the warm-up."""
        within = (t - self.warm_up) * self.blocks // (length - self.warm_up)
        return jnp.where(t < self.warm_up, self.blocks, jnp.minimum(within, self.blocks))

    def samples(self, length: int) -> tuple[int, int]:
        """(how many at most, QRs of each) of the series of ln r_ii."""
        counted = length - self.warm_up
        each = -(-counted // SAMPLES)
        return -(-counted // each), each


class Block(NamedTuple):
    """The steps since the last QR."""

    q: jax.Array  # [N, K] Q of that QR
    rounding: Rounding  # of that QR
    m: jax.Array  # [N, K] product of the steps and q
    added: jax.Array  # [N] what rounding added to its longest column, in units of eps
    reach: jax.Array  # [N] largest |entry| of each row of m
    log_pending: jax.Array  # [K] ln r_ii already taken out of m
    running: Rounding  # with what was taken out of m
    steps: jax.Array  # []
    target: jax.Array  # [] steps after which a QR is due


def multiply(
    chain: Chain, options: Options, t: jax.Array, jacobian: jax.Array, columns: jax.Array, block: Block
) -> Block:
    """The block with J M for M; with badly scaled columns, J = (J/d) diag(d), a QR of diag(d) M between."""
    graded = jnp.min(columns) * GRADED_COLUMNS < jnp.max(columns)

    def split(state):
        m, added, _, log_pending, running = state
        q, log_pivots, running = orthogonalise(chain, options, t, columns[:, None] * m, columns * added, running)
        d = jnp.where(columns == 0, 1, columns)
        added, reach = fresh(q)
        return q / d[:, None], added, reach / d, log_pending + log_pivots, running

    state = block.m, block.added, block.reach, block.log_pending, block.running
    m, added, reach, log_pending, running = when(graded, split, state)
    # What this product itself rounds, with signs that cancel nowhere for long.
    own = (columns * reach) ** 2
    own = jnp.sqrt(jnp.sum(own) if chain.same is None else chain.same.astype(own.dtype) @ own)
    signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], chain.size), m.dtype)
    m, added = jacobian @ m, jacobian @ added + own * signs
    return block._replace(
        m=m,
        added=added,
        reach=jnp.max(jnp.abs(m), axis=1),
        log_pending=log_pending,
        running=running,
        steps=block.steps + 1,
    )


def fresh(q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(what rounding has added, how far the rows reach) for an orthogonal Q."""
    zeros = jnp.zeros_like(q[:, 0])
    return zeros, zeros + len(q) ** -0.5


def orthogonalise(
    chain: Chain, options: Options, t: jax.Array, m: jax.Array, added: jax.Array, rounding: Rounding
) -> tuple[jax.Array, jax.Array, Rounding]:
    """(Q, ln r_ii, rounding) of M, to which rounding has added what it says."""
    q, r = row_sorted_qr(m)
    squares = added * added
    if chain.same is None:
        per_entry = jnp.full_like(r[0], jnp.mean(squares))
    else:
        q = jnp.where(chain.same, q, 0)
        same = chain.same.astype(m.dtype)
        per_entry = squares @ same / jnp.sum(same, axis=0)
    noise = jnp.sqrt(jnp.sum(r * r, axis=0) + per_entry)
    rounding = follow(rounding, r, noise, chain.same, t >= options.warm_up)
    if options.width < chain.size:
        q = _renew_guard(q, r, added, noise, rounding)
    return q, jnp.log(jnp.abs(jnp.diag(r))), rounding


def _renew_guard(q, r, added, noise, rounding):
    """Q with the last direction, that of the largest error outside the others, turned by the error just added.

    Left to itself it would keep to the directions that grew most at first. What overtakes later starts from rounding.
    """
    weakest = len(r) - 2
    fresh = noise[weakest] ** 2 / jnp.maximum(r[weakest, weakest] ** 2, 1e-30)
    share = jnp.clip(fresh.astype(jnp.float32) / jnp.maximum(rounding.mixed[-1, -2], 1e-30), 0, 1).astype(q.dtype)
    new = added - q @ (q.T @ added)
    new = new / jnp.maximum(jnp.sqrt(jnp.sum(new * new)), 1e-30)
    guard = jnp.sqrt(1 - share) * q[:, -1] + jnp.sqrt(share) * new
    return q.at[:, -1].set(guard / jnp.maximum(jnp.sqrt(jnp.sum(guard * guard)), 1e-30))


def far_from_one(reach: jax.Array) -> jax.Array:
    """Whether M nears overflow or underflow; 1e±12 is far from it in float32 too."""
    largest = jnp.max(reach)
    return (largest > 1e12) | (largest < 1e-12)
