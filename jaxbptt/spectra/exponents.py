"""Lyapunov exponents λ_i = lim 1/T ln σ_i(dh_T/dh_0) by QR in a scan, with their errors.

J Q = Q' R at intervals that the chain itself sets: a block of steps is multiplied without QR as long as the spread of
its ln r_ii should leave its digits alone. A block that spread too far all the same is done again at interval 1, where
an exact zero shows as one; so is every CHECK_EVERYth: the difference steers the intervals and is in the result.

Reference: Benettin et al. (1980), Meccanica 15; Dieci & Van Vleck (1995), Appl. Numer. Math. 17.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import checks, trajectories
from jaxbptt.jacobians import StructuredJacobians
from jaxbptt.spectra.graded import GRADED_COLUMNS, add_compensated, generic_orthogonal, row_sorted_qr
from jaxbptt.spectra.statistics import LyapunovExponents, summarise

CHECK_EVERY = 50  # blocks
LONGEST = 16  # steps of a block
BUDGET = 0.55  # of the digits: 20 nats of spread in float64, where QR after a block costs at most 1e-7; 9 in float32
LIMIT = 0.61  # of the digits: a block that spread further is done again
FORGETTING = 0.9  # of the largest spread per step, each block
SHORTENING = 0.7  # of the budget, after a check that found more than √eps/10 nats per step


def lyapunov_exponents(
    jacobians: jax.Array | StructuredJacobians,
    *,
    k: int | None = None,
    warm_up: int | None = None,
    interval: int | None = None,
    blocks: int = 32,
) -> LyapunovExponents:
    """λ_i = 1/T' Σ_t ln r_ii(t) over the T' = T − warm_up steps after the warm-up, J_t Q_{t−1} = Q_t R_t.

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float; or structured: then one at a time is put together, memory T·N.
      k: how many of the largest exponents, static; None: all N.
      warm_up: steps in which Q only turns to the chain's directions, not counted; None: T // 10.
      interval: steps between QRs, static; None: chosen by the chain. A fixed one that costs more than √eps nats per
        step in a checked block, or leaves a block no digits, is refused (under jit: NaN throughout).
      blocks: number of blocks of time for `local` and the standard errors (at most T'), static.

    Returns:
      LyapunovExponents, of the dtype of jacobians. A direction that a zero row or column kills is −inf. Batch it by
      `jax.lax.map`: under `vmap` both sides of every choice are computed.

    Raises:
      TypeError, ValueError: arguments not as stated; outside jit, NaN or inf with its first step, and a fixed interval
        that is too long.
    """
    if isinstance(jacobians, StructuredJacobians):
        one = jax.eval_shape(jacobians.dense, jax.tree.map(lambda leaf: leaf[0], jacobians.factors))
        options = _require_options(k, warm_up, interval, blocks, len(jacobians), one.shape[0])
        form = lambda state, factors: (state, jacobians.dense(factors))  # noqa: E731
        return _run(form, (), jacobians.factors, None, one.dtype, len(jacobians), one.shape[0], *options)
    checks.require_jacobians(jacobians)
    if jacobians.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"jacobians: got {jacobians.dtype}, expected float32 or float64")
    jacobians = jnp.asarray(jacobians)
    length, size, _ = jacobians.shape
    options = _require_options(k, warm_up, interval, blocks, length, size)
    advance = lambda state, jacobian: (state, jacobian)  # noqa: E731
    return _run(advance, (), jacobians, jacobians, jacobians.dtype, length, size, *options)


def stream_exponents(
    cell: Any,
    params: Any,
    inputs: Any,
    *,
    initial: Any = None,
    transient: int = 0,
    k: int | None = None,
    warm_up: int | None = None,
    interval: int | None = None,
    blocks: int = 32,
) -> LyapunovExponents:
    """`lyapunov_exponents` of the cell's own trajectory, the Jacobians made as they are needed: memory O(N²), any T.

    Args:
      cell: Cell or Model.
      params: its params.
      inputs: as of `unroll`; an autonomous cell's are [T, 0].
      initial: h_0, as of `unroll`.
      transient: first steps in which only the state runs (it nears its attractor), static; T counts from their end.
      k, warm_up, interval, blocks: as of `lyapunov_exponents`.

    Returns:
      LyapunovExponents, of the dtype of the state.

    Raises:
      TypeError, ValueError: as `unroll` and `lyapunov_exponents`; a transient that leaves no steps.
    """
    length = trajectories.require_call(cell, params, inputs, initial)
    checks.require_size("transient", transient, least=0, most=length - 1)
    state = cell.initial_state(params) if initial is None else initial
    state = jax.tree.map(jnp.asarray, state)
    flat, unravel = ravel_pytree(state)
    options = _require_options(k, warm_up, interval, blocks, length - transient, flat.size)
    if transient:
        settling = jax.tree.map(lambda leaf: leaf[:transient], inputs)
        inputs = jax.tree.map(lambda leaf: leaf[transient:], inputs)
        state, _ = jax.lax.scan(lambda state, x: (cell.step(params, state, x), None), state, settling)

    def advance(state, x):
        if cell.derivation is not None:
            return cell.step(params, state, x), cell.derivation.state_jacobian(params, state, x)

        def flat_step(h):
            new = cell.step(params, unravel(h), x)
            return ravel_pytree(new)[0], new

        jacobian, new = jax.jacfwd(flat_step, has_aux=True)(ravel_pytree(state)[0])
        return new, jacobian

    return _run(advance, state, inputs, None, flat.dtype, length - transient, flat.size, *options)


def _require_options(k, warm_up, interval, blocks, length, size):
    k = size if k is None else k
    checks.require_size("k", k, most=size)
    warm_up = length // 10 if warm_up is None else warm_up
    checks.require_size("warm_up", warm_up, least=0, most=length - 1)
    if interval is not None:
        checks.require_size("interval", interval)
    checks.require_size("blocks", blocks)
    return k, warm_up, interval, min(blocks, length - warm_up)


class _Block(NamedTuple):
    """The steps since the last QR."""

    q: jax.Array  # [N, k] that QR's
    m: jax.Array  # [N, k] product of the steps on q
    log_pending: jax.Array  # [k] ln r_ii already taken out of m
    steps: jax.Array  # []
    target: jax.Array  # [] steps after which a QR is due


class _Tally(NamedTuple):
    log_sums: jax.Array  # [blocks + 1, k], the last for the warm-up
    log_carry: jax.Array  # [blocks + 1, k] compensation
    budget: jax.Array  # [] nats of spread a block may reach
    rate: jax.Array  # [] the largest spread per step of late
    count: jax.Array  # [] blocks done
    error: jax.Array  # [k] largest |difference from interval 1| per step
    spread: jax.Array  # [] largest of a block
    bad_step: jax.Array  # [] first t whose numbers are not finite, 0: none


def _run(
    advance: Callable,
    state: Any,
    xs: Any,
    stored: jax.Array | None,
    dtype: Any,
    length: int,
    size: int,
    k: int,
    warm_up: int,
    interval: int | None,
    blocks: int,
) -> LyapunovExponents:
    """One scan of `advance(state, x) -> (state, J_t)`; `stored`: all J_t if they exist, else the last few are kept."""
    epsilon = float(jnp.finfo(dtype).eps)
    digits, tolerance = -math.log(epsilon), epsilon**0.5  # 36 nats in float64, 16 in float32
    kept = length - warm_up

    def slot(t):
        return jnp.where(t < warm_up, blocks, jnp.minimum((t - warm_up) * blocks // kept, blocks))

    def step(carry, step):
        state, recent, block, tally = carry
        t, x = step
        state, jacobian = advance(state, x)
        if stored is None:
            recent = recent.at[block.steps].set(jacobian)
        columns = jnp.max(jnp.abs(jacobian), axis=0)
        m, log_split = _multiply(jacobian, columns, block.m)
        block = block._replace(m=m, log_pending=block.log_pending + log_split, steps=block.steps + 1)
        due = (block.steps >= block.target) | (slot(t) != slot(t + 1))
        due = jax.lax.cond(due, lambda m: True, _far_from_one, m)
        bad = (tally.bad_step == 0) & ~jnp.isfinite(jnp.max(columns))
        tally = tally._replace(bad_step=jnp.where(bad, t + 1, tally.bad_step))
        block, tally = jax.lax.cond(due, close, lambda *same: same[2:], t, recent, block, tally)
        return (state, recent, block, tally), None

    def close(t, recent, block, tally):
        q, log_pivots = _orthogonalise(block.m)
        log_growth = block.log_pending + log_pivots
        spread = _spread(log_growth)
        wide = (spread > LIMIT * digits) & (interval is None)
        checked = (tally.count % CHECK_EVERY == 0) & ~wide
        again = (wide | checked) & (block.steps > 1)
        q, exact = jax.lax.cond(again, at_every_step, lambda *_: (q, log_growth), t, recent, block)
        same = log_growth == exact  # −inf beside −inf
        difference = jnp.where(same, 0, jnp.abs(log_growth - jnp.where(same, 0, exact))) / block.steps
        difference = jnp.where(checked, difference, 0).astype(dtype)
        total, carry = add_compensated(tally.log_sums[slot(t)], tally.log_carry[slot(t)], exact)
        shortened = jnp.where(jnp.max(difference) > tolerance / 10, SHORTENING * tally.budget, tally.budget)
        tally = tally._replace(
            log_sums=tally.log_sums.at[slot(t)].set(total),
            log_carry=tally.log_carry.at[slot(t)].set(carry),
            budget=shortened.astype(dtype),
            rate=jnp.maximum(_spread(exact) / block.steps, FORGETTING * tally.rate).astype(dtype),
            count=tally.count + 1,
            error=jnp.maximum(tally.error, difference),
            spread=jnp.maximum(tally.spread, spread),
        )
        target = choose(block, tally, jnp.all(jnp.isfinite(exact)))
        return _Block(q, q, jnp.zeros_like(exact), jnp.zeros_like(block.steps), target), tally

    def at_every_step(t, recent, block):
        def body(i, carry):
            q, log_growth = carry
            jacobian = recent[i] if stored is None else stored[t + 1 - block.steps + i]
            m, log_split = _multiply(jacobian, jnp.max(jnp.abs(jacobian), axis=0), q)
            q, log_pivots = _orthogonalise(m)
            return q, log_growth + log_split + log_pivots

        return jax.lax.fori_loop(0, block.steps, body, (block.q, jnp.zeros_like(block.log_pending)))

    def choose(block, tally, alive):
        """The next block's length: what the largest spread per step of late leaves room for."""
        if interval is not None:
            return block.target
        fitting = (tally.budget / jnp.maximum(tally.rate, tally.budget / LONGEST)).astype(block.target.dtype)
        return jnp.where(alive, jnp.clip(fitting, 1, jnp.minimum(2 * block.steps, LONGEST)), 1)

    q_0 = jnp.asarray(generic_orthogonal(size)[:, :k], dtype)
    kept_steps = 0 if stored is not None else LONGEST if interval is None else interval
    recent = jnp.zeros((kept_steps, size, size), dtype)
    none, zeros, sums = jnp.zeros((), dtype), jnp.zeros(k, dtype), jnp.zeros((blocks + 1, k), dtype)
    target = jnp.asarray(1 if interval is None else interval)
    nothing = jnp.zeros_like(target)
    block = _Block(q_0, q_0, zeros, nothing, target)
    tally = _Tally(sums, sums, none + BUDGET * digits, none, nothing, zeros, none, nothing)
    (_, _, block, tally), _ = jax.lax.scan(step, (state, recent, block, tally), (jnp.arange(length), xs))
    return _judged(tally, interval, length, warm_up, blocks, size, tolerance, 0.75 * digits)


def _judged(tally, interval, length, warm_up, blocks, size, tolerance, most_spread):
    if checks.is_concrete(tally.bad_step) and tally.bad_step > 0:
        raise ValueError(f"jacobians: got NaN or inf, expected finite numbers; first at step t = {tally.bad_step}")
    usable = tally.bad_step == 0
    if interval is not None and interval > 1:
        worst = jnp.max(tally.error)
        usable = usable & (worst <= tolerance) & (tally.spread <= most_spread)
        if checks.is_concrete(usable) and not usable:
            raise ValueError(
                f"interval: got {interval}, expected fewer steps (None chooses them): a block spread {tally.spread:.3g}"
                f" nats, and QR at every step differs by {worst:.2g} nats per step"
            )
    lengths = np.diff(-(-np.arange(blocks + 1) * (length - warm_up) // blocks))
    local = (tally.log_sums + tally.log_carry)[:blocks] / jnp.asarray(lengths, tally.log_sums.dtype)[:, None]
    local = jnp.where(usable, local, jnp.nan)
    return summarise(local, lengths, length / tally.count, tally.error, size)


def _multiply(jacobian, columns, m):
    """(J M, 0), or with badly scaled columns J = (J/d) diag(d): (J/d Q, ln r_ii) by a QR of diag(d) M between."""
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
    """Largest less smallest of the finite ones."""
    alive = jnp.isfinite(log_growth)
    highest, lowest = (jnp.where(alive, log_growth, end) for end in (-jnp.inf, jnp.inf))
    return jnp.maximum(jnp.max(highest) - jnp.min(lowest), 0)
