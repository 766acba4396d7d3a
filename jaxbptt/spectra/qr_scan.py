"""J_t Q_{t−1} = Q_t R_t along a chain, at intervals chosen from the chain itself, and the sums of ln r_ii.

A block of steps is multiplied without QR as long as the spread of its ln r_ii should cost no digits. A block that
spreads too far is computed again with QR at every step, where an exact zero shows as one. So is every CHECK_EVERYth
block: the difference steers the intervals and is part of the result. One more column goes along with every product:
what rounding adds to it, from which, with R, follows what rounding does to the sums (`rounding`). If not all directions
are asked for, one more is carried, which turns to whatever of the others gains most on those.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.spectra.frames import initial_frame, unfinished_turning
from jaxbptt.spectra.products.graded import GRADED_COLUMNS, add_compensated, row_sorted_qr
from jaxbptt.spectra.rounding import Rounding, error_of_sums, follow, no_rounding
from jaxbptt.spectra.statistics import LyapunovExponents, Sums, summarise

CHECK_EVERY = 50  # blocks
LONGEST = 16  # steps of a block
FEWEST = 128  # blocks of a chain: samples of its growth, from which the standard error comes
BUDGET = 0.55  # of the digits: 20 nats of spread in float64, where QR after a block costs at most 1e-7; 9 in float32
LIMIT = 0.61  # of the digits: a block that spreads further is computed again
FORGETTING = 0.9  # decay of the largest spread per step, after each block
SHORTENING = 0.7  # factor of the budget after a check that found more than √eps/10 nats per step
MOST_SPREAD = 0.75  # of the digits: with a fixed interval, a block that spreads further has none left
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
    same: jax.Array | None = None  # [N, N] whether two entries of the state are in one component; None: all are


class Options(NamedTuple):
    k: int  # directions asked for
    width: int  # K, directions carried: N, or k + 1
    warm_up: int  # steps that are not counted
    interval: int | None  # steps between QRs; None: chosen from the chain
    blocks: int  # of time, for `local`

    def samples(self, chain: Chain) -> tuple[int, int]:
        """(how many at most, QRs of each) of the series of ln r_ii."""
        counted = chain.length - self.warm_up
        each = -(-counted // SAMPLES)
        return -(-counted // each), each


class _Block(NamedTuple):
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

    samples, each = options.samples(chain)

    def one(t, jacobian, recent, series, block, tally):
        if chain.stored is None:
            recent = recent.at[block.steps].set(jacobian)
        columns = jnp.max(jnp.abs(jacobian), axis=0)
        block = _multiply(chain, options, t, jacobian, columns, block)
        due = (block.steps >= block.target) | (_slot(chain, options, t) != _slot(chain, options, t + 1))
        due = due | _far_from_one(block.reach)
        bad = (tally.bad_step == 0) & ~jnp.isfinite(jnp.max(columns))
        tally = tally._replace(bad_step=jnp.where(bad, t + 1, tally.bad_step))
        close = lambda scan: (scan[0], *_close(chain, options, t, *scan))
        recent, block, tally = _when(due, close, (recent, block, tally))
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


def _start(chain: Chain, options: Options) -> tuple[jax.Array, jax.Array, _Block, _Tally]:
    """(the last few J_t; ln r_ii and steps of each sample; block; tally) of one sequence before the first step."""
    dtype, width = chain.dtype, options.width
    q_0 = initial_frame(chain.size, width, chain.same, dtype)
    kept_steps = 0 if chain.stored is not None else LONGEST if options.interval is None else options.interval
    recent = jnp.zeros((kept_steps, chain.size, chain.size), dtype)
    none, zeros, sums = (jnp.zeros(shape, dtype) for shape in ((), width, (options.blocks + 1, width)))
    series = jnp.zeros((options.samples(chain)[0] + 1, width + 1), dtype)
    target = jnp.asarray(1 if options.interval is None else options.interval)
    nothing, exact = jnp.zeros_like(target), no_rounding(width)
    block = _Block(q_0, exact, q_0, *_fresh(q_0), zeros, exact, nothing, target)
    budget = none + BUDGET * _digits(chain)
    tally = _Tally(sums, sums, nothing, series[0], budget, none, nothing, zeros, none, nothing)
    return recent, series, block, tally


def _close(
    chain: Chain, options: Options, t: jax.Array, recent: jax.Array, block: _Block, tally: _Tally
) -> tuple[_Block, _Tally]:
    """The QR at the end of a block: add its ln r_ii to their block of time and choose the next block's length."""
    q, log_pivots, rounding = _orthogonalise(chain, options, t, block.m, block.added, block.running)
    log_growth = block.log_pending + log_pivots
    spread = _spread(log_growth)
    wide = (spread > LIMIT * _digits(chain)) & (options.interval is None)
    checked = (tally.done % CHECK_EVERY == 0) & ~wide
    again = (wide | checked) & (block.steps > 1)
    one_by_one = lambda _: _at_every_step(chain, options, t, recent, block)
    q, exact, rounding = _when(again, one_by_one, (q, log_growth, rounding))
    same = log_growth == exact  # −inf beside −inf
    difference = jnp.where(same, 0, jnp.abs(log_growth - jnp.where(same, 0, exact))) / block.steps
    difference = jnp.where(checked, difference, 0).astype(chain.dtype)
    slot = _slot(chain, options, t)
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
    return _Block(q, rounding, q, *_fresh(q), jnp.zeros_like(exact), rounding, nothing, target), tally


def _at_every_step(
    chain: Chain, options: Options, t: jax.Array, recent: jax.Array, block: _Block
) -> tuple[jax.Array, jax.Array, Rounding]:
    """(Q, ln r_ii, rounding) of the block's steps, computed again with a QR after each."""

    def body(i, carry):
        q, log_growth, rounding = carry
        jacobian = recent[i] if chain.stored is None else chain.stored[t + 1 - block.steps + i]
        columns = jnp.max(jnp.abs(jacobian), axis=0)
        added, reach = _fresh(q)
        one = block._replace(m=q, added=added, reach=reach, log_pending=log_growth, running=rounding)
        one = _multiply(chain, options, t, jacobian, columns, one)
        q, log_pivots, rounding = _orthogonalise(chain, options, t, one.m, one.added, one.running)
        return q, one.log_pending + log_pivots, rounding

    return jax.lax.fori_loop(0, block.steps, body, (block.q, jnp.zeros_like(block.log_pending), block.rounding))


def _choose_target(chain: Chain, options: Options, block: _Block, tally: _Tally, alive: jax.Array) -> jax.Array:
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
    lengths = np.diff(-(-np.arange(options.blocks + 1) * (chain.length - options.warm_up) // options.blocks))
    interval = chain.length / jnp.mean(tally.done.astype(chain.dtype))
    return summarise(sums, lengths, interval, chain.size * (chain.sequences or 1), options.k, usable)


def _sums(chain: Chain, options: Options, series: jax.Array, rounding: Rounding, tally: _Tally) -> Sums:
    """Those of one sequence."""
    total = tally.log_sums + tally.log_carry
    start, kept = total[-1], min(options.k, options.width)
    kept = options.width if options.width == chain.size else kept
    each = options.samples(chain)[1]
    return Sums(
        local=total[:-1, :kept],
        series=series[:-1, :kept],
        sampled=jnp.broadcast_to(series[:-1, -1:], (len(series) - 1, kept)),
        samples=jnp.broadcast_to(-(-tally.counted // each), kept),
        rounding=error_of_sums(rounding, tally.counted, chain.dtype)[:kept],
        turning=unfinished_turning(start, start + jnp.sum(total[:-1], axis=0), chain.same)[:kept],
        interval_error=tally.error[:kept],
    )


def _slot(chain: Chain, options: Options, t: jax.Array) -> jax.Array:
    """The block of time that step t + 1 counts for."""
    warm_up, blocks = options.warm_up, options.blocks
    return jnp.where(t < warm_up, blocks, jnp.minimum((t - warm_up) * blocks // (chain.length - warm_up), blocks))


def _digits(chain: Chain) -> float:
    """The digits of a float in nats: 36 in float64, 16 in float32."""
    return -math.log(float(jnp.finfo(chain.dtype).eps))


def _tolerance(chain: Chain) -> float:
    return float(jnp.finfo(chain.dtype).eps) ** 0.5


def _multiply(chain, options, t, jacobian, columns, block):
    """The block with J M for M; with badly scaled columns, J = (J/d) diag(d), a QR of diag(d) M between."""
    graded = jnp.min(columns) * GRADED_COLUMNS < jnp.max(columns)

    def split(state):
        m, added, _, log_pending, running = state
        q, log_pivots, running = _orthogonalise(chain, options, t, columns[:, None] * m, columns * added, running)
        d = jnp.where(columns == 0, 1, columns)
        added, reach = _fresh(q)
        return q / d[:, None], added, reach / d, log_pending + log_pivots, running

    state = block.m, block.added, block.reach, block.log_pending, block.running
    m, added, reach, log_pending, running = _when(graded, split, state)
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


def _fresh(q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(what rounding has added, how far the rows reach) for an orthogonal Q."""
    zeros = jnp.zeros_like(q[:, 0])
    return zeros, zeros + len(q) ** -0.5


def _when(due, change, state):
    """`change(state)` if due, else the state, which a `cond` would copy and a loop of one round leaves in its place."""
    once = lambda carry: (jnp.zeros_like(carry[0]), change(carry[1]))
    return jax.lax.while_loop(lambda carry: carry[0], once, (due, state))[1]


def _orthogonalise(chain, options, t, m, added, rounding):
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


def _far_from_one(reach):
    """Whether M nears overflow or underflow; 1e±12 is far from it in float32 too."""
    largest = jnp.max(reach)
    return (largest > 1e12) | (largest < 1e-12)


def _spread(log_growth):
    """The largest finite entry minus the smallest."""
    alive = jnp.isfinite(log_growth)
    highest, lowest = (jnp.where(alive, log_growth, end) for end in (-jnp.inf, jnp.inf))
    return jnp.maximum(jnp.max(highest) - jnp.min(lowest), 0)
