"""J_t Q_{t−1} = Q_t R_t along a chain, at intervals chosen from the chain itself, and the sums of ln r_ii.

A block of steps is multiplied without QR as long as the spread of its ln r_ii should cost no digits. A block that
spreads too far is computed again with QR at every step, where an exact zero shows as one. So is every CHECK_EVERYth
block: the difference steers the intervals and is part of the result. One more vector goes along with every product,
what rounding adds to it; from it and R follows what rounding does to the sums (`rounding`). If not all directions are
asked for, one more is carried, which turns to whatever of the others gains most on those.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.spectra.frame_errors import Rounding, error_of_sums, no_rounding
from jaxbptt.spectra.frames import initial_frame, unfinished_turning
from jaxbptt.spectra.products.graded import add_compensated, when
from jaxbptt.spectra.qr_step import Block, Chain, Options, far_from_one, fresh, multiply, orthogonalise
from jaxbptt.spectra.statistics import LyapunovExponents, Sums, summarise

CHECK_EVERY = 50  # blocks
LONGEST = 16  # steps of a block
FEWEST = 128  # blocks of a chain: samples of its growth, from which the standard error comes
BUDGET = 0.55  # of the digits: 20 nats of spread in float64, where QR after a block costs at most 1e-7; 9 in float32
LIMIT = 0.61  # of the digits: a block that spreads further is computed again
FORGETTING = 0.9  # decay of the largest spread per step, after each block
SHORTENING = 0.7  # factor of the budget after a check that found more than √eps/10 nats per step
MOST_SPREAD = 0.75  # of the digits: with a fixed interval, a block that spreads further has none left


class _Tally(NamedTuple):
    log_sums: jax.Array  # [blocks + 1, K], the last for the warm-up
    log_carry: jax.Array  # [blocks + 1, K] compensation
    counted: jax.Array  # [] blocks after the warm-up
    growth: jax.Array  # [K + 1] ln r_ii of the last block, and its steps
    budget: jax.Array  # [] nats of spread a block may reach
    rate: jax.Array  # [] the largest recent spread per step
    done: jax.Array  # [] blocks
    error: jax.Array  # [K] largest |difference from interval 1| per step
    spread: jax.Array  # [] largest of a block
    bad_step: jax.Array  # [] first t whose numbers are not finite, 0: none


def run_scan(chain: Chain, options: Options) -> LyapunovExponents:
    """The exponents, by one scan over the chain."""
    samples, each = options.samples(chain.length)

    def one(t, jacobian, recent, series, block, tally):
        if chain.stored is None:
            recent = recent.at[block.steps].set(jacobian)
        columns = jnp.max(jnp.abs(jacobian), axis=0)
        block = multiply(chain, options, t, jacobian, columns, block)
        due = (block.steps >= block.target) | (options.slot(chain.length, t) != options.slot(chain.length, t + 1))
        due = due | far_from_one(block.reach)
        bad = (tally.bad_step == 0) & ~jnp.isfinite(jnp.max(columns))
        tally = tally._replace(bad_step=jnp.where(bad, t + 1, tally.bad_step))
        block, tally = jax.lax.cond(
            due, lambda scan: _close(chain, options, t, recent, *scan), lambda s: s, (block, tally)
        )
        # Outside the branch, which would copy the series at every step.
        place = jnp.where(due & (t >= options.warm_up), (tally.counted - 1) // each, samples)
        sample = series[place] + jnp.where(due, tally.growth, 0)
        return recent, jax.lax.dynamic_update_index_in_dim(series, sample, place, 0), block, tally

    def body(carry, step):
        state, scans = carry
        t, x = step
        state, jacobian = chain.advance(state, x)
        if chain.sequences is None:
            return (state, one(t, jacobian, *scans)), None
        return (state, jax.lax.map(lambda at: one(t, at[0], *at[1]), (jacobian, scans))), None

    scans = _start(chain, options)
    if chain.sequences is not None:
        scans = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (chain.sequences, *leaf.shape)), scans)
    carry = chain.state, scans
    _, (_, series, block, tally) = jax.lax.scan(body, carry, (jnp.arange(chain.length), chain.steps))[0]
    return _judged(chain, options, series, block.rounding, tally)


def _start(chain: Chain, options: Options) -> tuple[jax.Array, jax.Array, Block, _Tally]:
    """(the last few J_t; ln r_ii and steps of each sample; block; tally) of one sequence before the first step."""
    dtype, width = chain.dtype, options.width
    q_0 = initial_frame(chain.size, width, chain.same, dtype)
    kept_steps = 0 if chain.stored is not None else LONGEST if options.interval is None else options.interval
    recent = jnp.zeros((kept_steps, chain.size, chain.size), dtype)
    none, zeros, sums = (jnp.zeros(shape, dtype) for shape in ((), width, (options.blocks + 1, width)))
    series = jnp.zeros((options.samples(chain.length)[0] + 1, width + 1), dtype)
    target = jnp.asarray(1 if options.interval is None else options.interval)
    nothing, exact = jnp.zeros_like(target), no_rounding(width)
    block = Block(q_0, exact, q_0, *fresh(q_0), zeros, exact, nothing, target)
    budget = none + BUDGET * _digits(chain)
    tally = _Tally(sums, sums, nothing, series[0], budget, none, nothing, zeros, none, nothing)
    return recent, series, block, tally


def _close(
    chain: Chain, options: Options, t: jax.Array, recent: jax.Array, block: Block, tally: _Tally
) -> tuple[Block, _Tally]:
    """The QR at the end of a block: add its ln r_ii to their block of time and choose the next block's length."""
    q, log_pivots, rounding = orthogonalise(chain, options, t, block.m, block.added, block.running)
    log_growth = block.log_pending + log_pivots
    spread = _spread(log_growth)
    wide = (spread > LIMIT * _digits(chain)) & (options.interval is None)
    checked = (tally.done % CHECK_EVERY == 0) & ~wide
    again = (wide | checked) & (block.steps > 1)
    one_by_one = lambda _: _at_every_step(chain, options, t, recent, block)
    q, exact, rounding = when(again, one_by_one, (q, log_growth, rounding))
    same = log_growth == exact  # −inf beside −inf
    difference = jnp.where(same, 0, jnp.abs(log_growth - jnp.where(same, 0, exact))) / block.steps
    difference = jnp.where(checked, difference, 0).astype(chain.dtype)
    slot = options.slot(chain.length, t)
    total, carry = add_compensated(tally.log_sums[slot], tally.log_carry[slot], exact)
    shortened = jnp.where(jnp.max(difference) > _tolerance(chain) / 10, SHORTENING * tally.budget, tally.budget)
    tally = tally._replace(
        log_sums=tally.log_sums.at[slot].set(total),
        log_carry=tally.log_carry.at[slot].set(carry),
        counted=tally.counted + (t >= options.warm_up).astype(tally.counted.dtype),
        growth=jnp.append(exact, block.steps.astype(chain.dtype)),
        budget=shortened.astype(chain.dtype),
        rate=jnp.maximum(_spread(exact) / block.steps, FORGETTING * tally.rate).astype(chain.dtype),
        done=tally.done + 1,
        error=jnp.maximum(tally.error, difference),
        spread=jnp.maximum(tally.spread, spread),
    )
    target = block.target
    if options.interval is None:
        target = _choose_target(chain, options, block, tally, jnp.all(jnp.isfinite(exact)))
    nothing = jnp.zeros_like(block.steps)
    return Block(q, rounding, q, *fresh(q), jnp.zeros_like(exact), rounding, nothing, target), tally


def _at_every_step(
    chain: Chain, options: Options, t: jax.Array, recent: jax.Array, block: Block
) -> tuple[jax.Array, jax.Array, Rounding]:
    """(Q, ln r_ii, rounding) of the block's steps, computed again with a QR after each."""

    def body(i, carry):
        q, log_growth, rounding = carry
        jacobian = recent[i] if chain.stored is None else chain.stored[t + 1 - block.steps + i]
        columns = jnp.max(jnp.abs(jacobian), axis=0)
        added, reach = fresh(q)
        one = block._replace(m=q, added=added, reach=reach, log_pending=log_growth, running=rounding)
        one = multiply(chain, options, t, jacobian, columns, one)
        q, log_pivots, rounding = orthogonalise(chain, options, t, one.m, one.added, one.running)
        return q, one.log_pending + log_pivots, rounding

    return jax.lax.fori_loop(0, block.steps, body, (block.q, jnp.zeros_like(block.log_pending), block.rounding))


def _choose_target(chain: Chain, options: Options, block: Block, tally: _Tally, alive: jax.Array) -> jax.Array:
    """The next block's length, which the largest recent spread per step allows."""
    longest = min(max((chain.length - options.warm_up) // FEWEST, 1), LONGEST)
    fitting = (tally.budget / jnp.maximum(tally.rate, tally.budget / longest)).astype(block.target.dtype)
    return jnp.where(alive, jnp.clip(fitting, 1, jnp.minimum(2 * block.steps, longest)), 1)


def _judged(chain: Chain, options: Options, series: jax.Array, rounding: Rounding, tally: _Tally) -> LyapunovExponents:
    bad_step = jnp.max(tally.bad_step)
    if _validation.is_concrete(bad_step) and bad_step > 0:
        raise ValueError(f"jacobians: got NaN or inf, expected finite numbers; first at step t = {bad_step}")
    usable = bad_step == 0
    if options.interval is not None and options.interval > 1:
        worst, spread = jnp.max(tally.error), jnp.max(tally.spread)
        usable = usable & (worst <= _tolerance(chain)) & (spread <= MOST_SPREAD * _digits(chain))
        if _validation.is_concrete(usable) and not usable:
            raise ValueError(
                f"interval: got {options.interval}, expected fewer steps (None chooses them): a block spread"
                f" {spread:.3g} nats, and QR at every step differs by {worst:.2g} nats per step"
            )

    one = lambda *found: _sums(chain, options, *found)
    if chain.sequences is None:
        sums = one(series, rounding, tally)
    else:
        sums = Sums(*(jnp.concatenate(list(part), axis=-1) for part in jax.vmap(one)(series, rounding, tally)))
    lengths = options.lengths(chain.length)
    interval = chain.length / jnp.mean(tally.done.astype(chain.dtype))
    size = chain.size * (chain.sequences or 1) * chain.copies
    return summarise(sums, lengths, interval, size, options.k, usable, chain.copies)


def _sums(chain: Chain, options: Options, series: jax.Array, rounding: Rounding, tally: _Tally) -> Sums:
    """Those of one sequence."""
    total = tally.log_sums + tally.log_carry
    start, kept = total[-1], min(options.k, options.width)
    kept = options.width if options.width == chain.size else kept
    each = options.samples(chain.length)[1]
    return Sums(
        local=total[:-1, :kept],
        series=series[:-1, :kept],
        sampled=jnp.broadcast_to(series[:-1, -1:], (len(series) - 1, kept)),
        samples=jnp.broadcast_to(-(-tally.counted // each), kept),
        rounding=error_of_sums(rounding, tally.counted, chain.dtype)[:kept],
        turning=unfinished_turning(start, start + jnp.sum(total[:-1], axis=0), chain.same)[:kept],
        interval_error=tally.error[:kept],
    )


def _digits(chain: Chain) -> float:
    """The digits of a float in nats: 36 in float64, 16 in float32."""
    return -math.log(float(jnp.finfo(chain.dtype).eps))


def _tolerance(chain: Chain) -> float:
    return float(jnp.finfo(chain.dtype).eps) ** 0.5


def _spread(log_growth):
    """The largest finite entry minus the smallest."""
    alive = jnp.isfinite(log_growth)
    highest, lowest = (jnp.where(alive, log_growth, end) for end in (-jnp.inf, jnp.inf))
    return jnp.maximum(jnp.max(highest) - jnp.min(lowest), 0)
