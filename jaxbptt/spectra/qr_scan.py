"""J_t Q_{t−1} = Q_t R_t along a chain, at intervals chosen from the chain itself, and the sums of ln r_ii.

A block of steps is multiplied without QR as long as the spread of its ln r_ii should cost no digits. A block that
spreads too far is computed again with QR at every step, where an exact zero shows as one. So is every CHECK_EVERYth
block: the difference steers the intervals and is part of the result.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.spectra.products.graded import GRADED_COLUMNS, add_compensated, generic_orthogonal, row_sorted_qr
from jaxbptt.spectra.statistics import LyapunovExponents, summarise

CHECK_EVERY = 50  # blocks
LONGEST = 16  # steps of a block
BUDGET = 0.55  # of the digits: 20 nats of spread in float64, where QR after a block costs at most 1e-7; 9 in float32
LIMIT = 0.61  # of the digits: a block that spreads further is computed again
FORGETTING = 0.9  # decay of the largest spread per step, after each block
SHORTENING = 0.7  # factor of the budget after a check that found more than √eps/10 nats per step
MOST_SPREAD = 0.75  # of the digits: with a fixed interval, a block that spreads further has none left


class AdvanceChain(Protocol):
    def __call__(self, state: Any, step: Any, /) -> tuple[Any, jax.Array]:
        """(what the next call starts from, J_t)."""
        ...


class Chain(NamedTuple):
    """T Jacobians, stored or computed when they are needed."""

    advance: AdvanceChain
    state: Any  # what the first step starts from
    steps: Any  # pytree [T, ...], what `advance` reads at each step
    stored: jax.Array | None  # [T, N, N] all J_t if they exist; else the last few are kept
    dtype: Any
    length: int  # T
    size: int  # N


class Options(NamedTuple):
    k: int  # directions
    warm_up: int  # steps that are not counted
    interval: int | None  # steps between QRs; None: chosen from the chain
    blocks: int  # of time, for `local`


class _Block(NamedTuple):
    """The steps since the last QR."""

    q: jax.Array  # [N, k] Q of that QR
    m: jax.Array  # [N, k] product of the steps and q
    log_pending: jax.Array  # [k] ln r_ii already taken out of m
    steps: jax.Array  # []
    target: jax.Array  # [] steps after which a QR is due


class _Tally(NamedTuple):
    log_sums: jax.Array  # [blocks + 1, k], the last for the warm-up
    log_carry: jax.Array  # [blocks + 1, k] compensation
    budget: jax.Array  # [] nats of spread a block may reach
    rate: jax.Array  # [] the largest recent spread per step
    done: jax.Array  # [] blocks
    error: jax.Array  # [k] largest |difference from interval 1| per step
    spread: jax.Array  # [] largest of a block
    bad_step: jax.Array  # [] first t whose numbers are not finite, 0: none


def run_scan(chain: Chain, options: Options) -> LyapunovExponents:
    """The exponents, by one scan over the chain."""
    digits = _digits(chain)

    def body(carry, step):
        state, recent, block, tally = carry
        t, x = step
        state, jacobian = chain.advance(state, x)
        if chain.stored is None:
            recent = recent.at[block.steps].set(jacobian)
        columns = jnp.max(jnp.abs(jacobian), axis=0)
        m, log_split = _multiply(jacobian, columns, block.m)
        block = block._replace(m=m, log_pending=block.log_pending + log_split, steps=block.steps + 1)
        due = (block.steps >= block.target) | (_slot(chain, options, t) != _slot(chain, options, t + 1))
        due = jax.lax.cond(due, lambda m: True, _far_from_one, m)
        bad = (tally.bad_step == 0) & ~jnp.isfinite(jnp.max(columns))
        tally = tally._replace(bad_step=jnp.where(bad, t + 1, tally.bad_step))
        close = lambda *at: _close(chain, options, *at)
        block, tally = jax.lax.cond(due, close, lambda *same: same[2:], t, recent, block, tally)
        return (state, recent, block, tally), None

    dtype, k, blocks = chain.dtype, options.k, options.blocks
    q_0 = jnp.asarray(generic_orthogonal(chain.size)[:, :k], dtype)
    kept_steps = 0 if chain.stored is not None else LONGEST if options.interval is None else options.interval
    recent = jnp.zeros((kept_steps, chain.size, chain.size), dtype)
    none, zeros, sums = jnp.zeros((), dtype), jnp.zeros(k, dtype), jnp.zeros((blocks + 1, k), dtype)
    target = jnp.asarray(1 if options.interval is None else options.interval)
    nothing = jnp.zeros_like(target)
    block = _Block(q_0, q_0, zeros, nothing, target)
    tally = _Tally(sums, sums, none + BUDGET * digits, none, nothing, zeros, none, nothing)
    carry = chain.state, recent, block, tally
    tally = jax.lax.scan(body, carry, (jnp.arange(chain.length), chain.steps))[0][3]
    return _judged(chain, options, tally)


def _close(
    chain: Chain, options: Options, t: jax.Array, recent: jax.Array, block: _Block, tally: _Tally
) -> tuple[_Block, _Tally]:
    """The QR at the end of a block: add its ln r_ii to their block of time and choose the next block's length."""
    q, log_pivots = _orthogonalise(block.m)
    log_growth = block.log_pending + log_pivots
    spread = _spread(log_growth)
    wide = (spread > LIMIT * _digits(chain)) & (options.interval is None)
    checked = (tally.done % CHECK_EVERY == 0) & ~wide
    again = (wide | checked) & (block.steps > 1)
    one_by_one = lambda t, recent, block: _at_every_step(chain, t, recent, block)
    q, exact = jax.lax.cond(again, one_by_one, lambda *_: (q, log_growth), t, recent, block)
    same = log_growth == exact  # −inf beside −inf
    difference = jnp.where(same, 0, jnp.abs(log_growth - jnp.where(same, 0, exact))) / block.steps
    difference = jnp.where(checked, difference, 0).astype(chain.dtype)
    slot = _slot(chain, options, t)
    total, carry = add_compensated(tally.log_sums[slot], tally.log_carry[slot], exact)
    shortened = jnp.where(jnp.max(difference) > _tolerance(chain) / 10, SHORTENING * tally.budget, tally.budget)
    tally = tally._replace(
        log_sums=tally.log_sums.at[slot].set(total),
        log_carry=tally.log_carry.at[slot].set(carry),
        budget=shortened.astype(chain.dtype),
        rate=jnp.maximum(_spread(exact) / block.steps, FORGETTING * tally.rate).astype(chain.dtype),
        done=tally.done + 1,
        error=jnp.maximum(tally.error, difference),
        spread=jnp.maximum(tally.spread, spread),
    )
    target = block.target
    if options.interval is None:
        target = _choose_target(block, tally, jnp.all(jnp.isfinite(exact)))
    return _Block(q, q, jnp.zeros_like(exact), jnp.zeros_like(block.steps), target), tally


def _at_every_step(chain: Chain, t: jax.Array, recent: jax.Array, block: _Block) -> tuple[jax.Array, jax.Array]:
    """(Q, ln r_ii) of the block's steps, computed again with a QR after each."""

    def body(i, carry):
        q, log_growth = carry
        jacobian = recent[i] if chain.stored is None else chain.stored[t + 1 - block.steps + i]
        m, log_split = _multiply(jacobian, jnp.max(jnp.abs(jacobian), axis=0), q)
        q, log_pivots = _orthogonalise(m)
        return q, log_growth + log_split + log_pivots

    return jax.lax.fori_loop(0, block.steps, body, (block.q, jnp.zeros_like(block.log_pending)))


def _choose_target(block: _Block, tally: _Tally, alive: jax.Array) -> jax.Array:
    """The next block's length, which the largest recent spread per step allows."""
    fitting = (tally.budget / jnp.maximum(tally.rate, tally.budget / LONGEST)).astype(block.target.dtype)
    return jnp.where(alive, jnp.clip(fitting, 1, jnp.minimum(2 * block.steps, LONGEST)), 1)


def _judged(chain: Chain, options: Options, tally: _Tally) -> LyapunovExponents:
    if _validation.is_concrete(tally.bad_step) and tally.bad_step > 0:
        raise ValueError(f"jacobians: got NaN or inf, expected finite numbers; first at step t = {tally.bad_step}")
    usable = tally.bad_step == 0
    if options.interval is not None and options.interval > 1:
        worst = jnp.max(tally.error)
        usable = usable & (worst <= _tolerance(chain)) & (tally.spread <= MOST_SPREAD * _digits(chain))
        if _validation.is_concrete(usable) and not usable:
            raise ValueError(
                f"interval: got {options.interval}, expected fewer steps (None chooses them): a block spread"
                f" {tally.spread:.3g} nats, and QR at every step differs by {worst:.2g} nats per step"
            )
    blocks = options.blocks
    lengths = np.diff(-(-np.arange(blocks + 1) * (chain.length - options.warm_up) // blocks))
    local = (tally.log_sums + tally.log_carry)[:blocks] / jnp.asarray(lengths, tally.log_sums.dtype)[:, None]
    local = jnp.where(usable, local, jnp.nan)
    return summarise(local, lengths, chain.length / tally.done, tally.error, chain.size)


def _slot(chain: Chain, options: Options, t: jax.Array) -> jax.Array:
    """The block of time that step t + 1 counts for."""
    warm_up, blocks = options.warm_up, options.blocks
    return jnp.where(t < warm_up, blocks, jnp.minimum((t - warm_up) * blocks // (chain.length - warm_up), blocks))


def _digits(chain: Chain) -> float:
    """The digits of a float in nats: 36 in float64, 16 in float32."""
    return -math.log(float(jnp.finfo(chain.dtype).eps))


def _tolerance(chain: Chain) -> float:
    return float(jnp.finfo(chain.dtype).eps) ** 0.5


def _multiply(jacobian, columns, m):
    """(J M, 0); with badly scaled columns, J = (J/d) diag(d) and (J/d Q, ln r_ii) with a QR of diag(d) M between."""
    graded = jnp.min(columns) * GRADED_COLUMNS < jnp.max(columns)

    def split(m):
        d = jnp.where(columns == 0, 1, columns)
        q, log_pivots = _orthogonalise(columns[:, None] * m)
        return (jacobian / d[None, :]) @ q, log_pivots

    return jax.lax.cond(graded, split, lambda m: (jacobian @ m, jnp.zeros_like(m[0])), m)


def _orthogonalise(m):
    q, r = row_sorted_qr(m)
    return q, jnp.log(jnp.abs(jnp.diag(r)))


def _far_from_one(m):
    """Whether M nears overflow or underflow; 1e±12 is far from it in float32 too."""
    largest = jnp.max(jnp.abs(m))
    return (largest > 1e12) | (largest < 1e-12)


def _spread(log_growth):
    """The largest finite entry minus the smallest."""
    alive = jnp.isfinite(log_growth)
    highest, lowest = (jnp.where(alive, log_growth, end) for end in (-jnp.inf, jnp.inf))
    return jnp.maximum(jnp.max(highest) - jnp.min(lowest), 0)
