"""The two passes behind covariant Lyapunov vectors, over blocks of steps, and what each vector may hold of the others.

    forward   J_t Q_{t−1} = Q_t R_t, from a generic Q_0
    backward  C_{t−1} D_t⁻¹ = R_t⁻¹ C_t, from C_T = I; columns of length 1, D_t diagonal;  V_t = Q_t C_t

So J_t V_{t−1} = V_t D_t at every step. A computed vector is u_i = v_i + Σ_j x_ij v_j, and J_t takes x_ij to
x_ij d_j/d_i: exactly, and in both passes; a step adds its rounding. The d_j are those of computed vectors, so what is
carried is x_ij over the share x_jj that u_j holds of its own v_j. The backward start, q_i = Σ_j (C⁻¹)_ji v_j, is off
by x_ij/x_jj = (C⁻¹)_ji c_jj, the forward one, in any direction, by a row of C⁻¹: far beyond one where covariant vectors
are nearly parallel. Of the C at the start nothing is known, so the largest of any step stands for it. And x_jj(t) is at
most one more than what u_j holds of the others, and at most the length of a row of C⁻¹.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxbptt.spectra.products.graded import row_sorted_qr

START = 100.0  # a generic direction holds a larger share of another with a probability of about 2/(π START)
BEYOND = 10.0  # a start leans at most this many times as far as the frame of any step
MOST = 1e12  # a share that large is as good as all
OPERATION = 1  # eps: of what one product, QR or solve is rounded, per root of N


class MultiplyStep(Protocol):
    def __call__(self, state: Any, step: Any, q: jax.Array, /) -> tuple[Any, jax.Array]:
        """(what the next call starts from, J_t q)."""
        ...


class Chain(NamedTuple):
    """T Jacobians, stored or computed when they are needed."""

    multiply: MultiplyStep
    state: Any  # what the first step starts from
    steps: Any  # pytree [T, ...], what `multiply` reads at each step
    start: jax.Array  # Q_0 [N, K]


class Plan(NamedTuple):
    warm_up: int  # steps before the first record
    every: int  # steps between records
    blocks: int  # of `every` steps between records
    cool_down: int  # blocks of `every` steps after the last record
    stored: bool  # whether R_t is kept; else a block is run again in the backward pass


class Records(NamedTuple):
    """At M + 1 times."""

    q: jax.Array  # [M + 1, N, K]
    c: jax.Array  # [M + 1, K, K]
    growth: jax.Array  # [M, K] nats from one record to the next
    shares: jax.Array  # [M + 1, K, K] |x_ij| at [j, i]


class _Edge(NamedTuple):
    """Where the backward pass stands."""

    q: jax.Array  # [N, K] as the forward pass left it
    c: jax.Array
    shares: jax.Array  # at [j, i], j < i: a faster direction in a slower one, by rounding
    start: jax.Array  # the same, by a start with 1 of each
    leans: jax.Array  # [K, K] largest |C⁻¹|_ji c_jj so far
    duals: jax.Array  # [K] longest row of C⁻¹ so far


class _Step(NamedTuple):
    log_d: jax.Array  # [K] growth of each vector, by which shares are carried
    told: jax.Array  # [K] the same; −inf where a step removes it, NaN where rounding decides
    noise: jax.Array  # [K] what rounding adds of each v_m, before the division by d


def run_passes(chain: Chain, plan: Plan) -> Records:
    """Both passes over T = warm_up + every (blocks + cool_down) steps."""
    state, q, mixed = _warm_up(chain, jax.tree.map(lambda leaf: leaf[: plan.warm_up], chain.steps))
    shape = (plan.blocks + plan.cool_down, plan.every)
    steps = jax.tree.map(lambda leaf: leaf[plan.warm_up :].reshape(shape + leaf.shape[1:]), chain.steps)

    def run(state, q, block):
        def body(carry, step):
            state, q = carry
            state, m = chain.multiply(state, step, q)
            q, r = row_sorted_qr(m)
            return (state, q), r

        (state, q), r = jax.lax.scan(body, (state, q), block)
        return state, q, r

    def forward(carry, block):
        state, q, r = run(carry[0], carry[1], block)
        return (state, q), (carry[0], carry[1], r if plan.stored else None)

    (_, q), kept = jax.lax.scan(forward, (state, q), steps)

    def backward(edge, seen):
        (state, q, r), block = seen
        if not plan.stored:
            _, end, r = run(state, q, block)
            # Another program may round otherwise; of a chaotic cell, a block would make that visible.
            edge = edge._replace(shares=edge.shares + jnp.linalg.norm(end - edge.q) * _duals(edge.c)[:, None])
        edge, each = jax.lax.scan(_retreat, edge._replace(q=q), r, reverse=True)
        sums = jnp.sum(each.told, axis=0), jnp.sum(each.log_d, axis=0)
        return edge, (edge.c, edge.shares, edge.start, *sums, _follow(jnp.zeros_like(edge.c), each))

    width = q.shape[1]
    upper = jnp.triu(jnp.ones((width, width), q.dtype), 1)
    nothing, one = jnp.zeros_like(upper), jnp.ones(width, q.dtype)
    edge = _Edge(q, jnp.eye(width, dtype=q.dtype), nothing, upper, nothing, one)
    seen = kept, steps
    if plan.cool_down:
        edge, _ = jax.lax.scan(
            lambda edge, seen: (backward(edge, seen)[0], None),
            edge,
            jax.tree.map(lambda leaf: leaf[plan.blocks :], seen),
            reverse=True,
        )
    before = jax.tree.map(lambda leaf: leaf[: plan.blocks], seen)
    first, (c, faster, start, growth, log_d, added) = jax.lax.scan(backward, edge, before, reverse=True)
    join = lambda rest, last: jnp.concatenate((rest, last[None]))
    c, faster, start = join(c, edge.c), join(faster, edge.shares), join(start, edge.start)
    q = join(kept[1][: plan.blocks], edge.q)
    faster = faster + jnp.maximum(START, BEYOND * first.leans)[None] * start
    slower = (jnp.maximum(START, BEYOND * first.duals)[:, None] * mixed[0] + mixed[1]) * _duals(c[0])[:, None]
    slower = _forward_shares(_capped(slower), log_d, added)
    shares = jnp.where(upper[None] > 0, _capped(faster), slower) * (1 - jnp.eye(width, dtype=q.dtype))[None]
    return Records(q, c, growth, shares * _own(shares, first.duals)[:, :, None])


def _own(shares, duals):
    """[M + 1, K] at most so much of v_j is in the computed u_j, 1 + Σ_m |x_jm|; what is carried is over that."""
    own = jnp.broadcast_to(duals, shares.shape[:2])
    for _ in range(3):
        own = jnp.minimum(duals[None], 1 + jnp.einsum("tj,tji->ti", own, shares))
    return own


def _warm_up(chain, steps):
    """(state, Q, shares) after the warm-up. Shares of slower directions in faster ones at [m, i], m > i, by ln r_ii
    alone: by a start with 1 of each, and by rounding."""

    def body(carry, step):
        state, q, mixed = carry
        state, m = chain.multiply(state, step, q)
        q, r = row_sorted_qr(m)
        pivots = jnp.abs(jnp.diag(r))
        start, mixed = (shares * pivots[:, None] / pivots[None, :] for shares in mixed)
        mixed = _capped(start), _capped(mixed + _rounding(q, r) / pivots[None, :])
        return (state, q, mixed), None

    width = chain.start.shape[1]
    one = jnp.ones((width, width), chain.start.dtype)
    return jax.lax.scan(body, (chain.state, chain.start, (one, jnp.zeros_like(one))), steps)[0]


def _retreat(edge, r):
    """One step of the backward pass. A pivot r_ii = 0 counts as its rounding: v_i is then the direction that J_t
    removes, and those after it are not told apart from it."""
    pivots, norm = jnp.diag(r), jnp.linalg.norm(r)
    smallest = jnp.finfo(r.dtype).eps * jnp.where(norm > 0, norm, 1)
    upper = r + jnp.diag(jnp.where(pivots == 0, smallest, 0))
    solved = jax.scipy.linalg.solve_triangular(upper, edge.c)
    lengths = jnp.linalg.norm(solved, axis=0)
    d = 1 / lengths
    inverse = _inverse(edge.c)
    duals = jnp.linalg.norm(inverse, axis=1)
    noise = _rounding(edge.q, r) * duals
    back = lambda shares: shares * d[None, :] / d[:, None]
    shares, start = _capped(back(edge.shares) + (noise / d)[:, None]), _capped(back(edge.start))
    # Where C is singular to rounding, as before a step that removes a direction, it tells nothing of other steps.
    known = duals < 0.01 / jnp.finfo(r.dtype).eps
    leans = jnp.where(known[:, None], jnp.abs(jnp.triu(inverse, 1)) * jnp.diag(edge.c)[:, None], 0)
    edge = edge._replace(
        leans=jnp.maximum(edge.leans, leans), duals=jnp.maximum(edge.duals, jnp.where(known, duals, 1))
    )
    log_d = jnp.log(d)
    told = jnp.where(jnp.cumsum(pivots == 0) > 0, -jnp.inf, jnp.where(d > noise, log_d, jnp.nan))
    return edge._replace(c=solved / lengths[None, :], shares=shares, start=start), _Step(log_d, told, noise)


def _follow(shares, each):
    """Shares of slower directions in faster ones, at [m, i], carried forward over the steps of a block."""

    def body(shares, step):
        return _carry(shares, step.log_d) + (step.noise[:, None] * jnp.exp(-step.log_d)[None, :]), None

    return _capped(jax.lax.scan(body, shares, each)[0])


def _forward_shares(start, growth, added):
    def body(shares, block):
        log_d, added = block
        shares = _capped(_carry(shares, log_d) + added)
        return shares, shares

    return jnp.concatenate((start[None], jax.lax.scan(body, start, (growth, added))[1]))


def _carry(shares, log_d):
    return _capped(shares * jnp.exp(log_d[:, None] - log_d[None, :]))


def _capped(shares):
    return jnp.where(shares < MOST, shares, MOST)  # also where it is 0/0: vectors that have become one


def _rounding(q, r):
    """What one step is rounded by, from its R."""
    return OPERATION * jnp.finfo(r.dtype).eps * len(q) ** 0.5 * jnp.linalg.norm(r)


def _inverse(c):
    return jax.scipy.linalg.solve_triangular(c, jnp.eye(len(c), dtype=c.dtype))


def _duals(c):
    """[K] largest coefficient of v_i in a vector of length 1: the length of the rows of C⁻¹."""
    return jnp.linalg.norm(_inverse(c), axis=1)
