"""The graded factors of all prefixes of a chain, parallel in time: blocks side by side, then a logarithmic scan.

Two products, P_A = Q_A e^ℓA T_A Q_0ᵀ and then P_B, are joined by one elimination of the ordinary matrix
X = T_B Q_0ᵀ Q_A. Its pivots are chosen by their size in diag(e^ℓB) X diag(e^ℓA) = L diag(e^D) U: the scales are never
multiplied out, and L and U are as well conditioned as those of any pivoted elimination.
"""

import math

import jax
import jax.numpy as jnp

from jaxbptt.spectra.products.graded import Factors, add_compensated, generic_orthogonal, identity, multiply


def prefix_factors(chain: jax.Array, every: int) -> Factors:
    """The factors of J_t … J_1 at t = every, 2 every, … and T, each leaf [R, ...].

    Blocks of about √every steps run side by side. Their products are then joined by doubling (Hillis & Steele, 1986):
    depth logarithmic in their number, several times the work of one pass.
    """
    length, size, _ = chain.shape
    records = -(-length // every)
    blocks = max(1, math.isqrt(every))
    steps = -(-every // blocks)
    blocks = -(-every // steps)
    # Step s of block b of record r is r·every + b·steps + s, where that lies in the record and in the chain.
    within = (jnp.arange(blocks) * steps)[:, None] + jnp.arange(steps)[None, :]
    index = (jnp.arange(records) * every)[:, None, None] + within[None]
    valid = (within < every)[None] & (index < length)
    index, valid = index.reshape(-1, steps).T, valid.reshape(-1, steps).T
    start = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (records * blocks, *leaf.shape)), identity(size, chain.dtype)
    )

    def body(factors, step):
        index, valid = step
        new = jax.vmap(multiply)(chain[jnp.where(valid, index, 0)], factors)
        return _choose(valid, new, factors), None

    products, _ = jax.lax.scan(body, start, (index, valid))
    q_0 = jnp.asarray(generic_orthogonal(size), chain.dtype)
    position = jnp.arange(records * blocks)

    def double(level, products):
        distance = 2**level
        earlier = jax.tree.map(lambda leaf: jnp.roll(leaf, distance, axis=0), products)
        joined = jax.vmap(lambda a, b: join(a, b, q_0))(earlier, products)
        return _choose(position >= distance, joined, products)

    products = jax.lax.fori_loop(0, math.ceil(math.log2(records * blocks)), double, products)
    return jax.tree.map(lambda leaf: leaf[blocks - 1 :: blocks], products)


def _choose(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def join(a: Factors, b: Factors, q_0: jax.Array) -> Factors:
    """The factors of P_B P_A."""
    size, dtype = len(q_0), q_0.dtype
    row_scale, column_scale = b.log_scale + b.log_carry, a.log_scale + a.log_carry
    epsilon = jnp.log(jnp.finfo(dtype).eps).astype(dtype)
    least = jnp.finfo(dtype).min  # of a zero entry not yet eliminated; −inf marks the eliminated ones

    def eliminate(k, state):
        x, lower, upper, rows, columns, pivots, log_error, free_rows, free_columns = state
        weight = jnp.log(jnp.abs(x)) + row_scale[:, None] + column_scale[None, :]
        free = free_rows[:, None] & free_columns[None, :]
        weight = jnp.where(free, jnp.maximum(weight, least), -jnp.inf)
        p, q = jnp.divmod(jnp.argmax(weight), size)
        alive = weight[p, q] > least
        # Every entry of X carries eps of rounding, also one that should cancel between two large scales.
        noise = epsilon + jnp.max(jnp.where(free_rows, row_scale, -jnp.inf))
        noise = noise + jnp.max(jnp.where(free_columns, column_scale, -jnp.inf))
        pivot = jnp.where(alive, x[p, q], 1)
        column = jnp.where(alive & free_rows, x[:, q] / pivot, 0)
        row = jnp.where(alive & free_columns, x[p, :] / pivot, 0)
        at_p, at_q = jnp.arange(size) == p, jnp.arange(size) == q
        # Bounded, because the pivot is the largest weighted entry; entries of zero are masked.
        down = jnp.where(column != 0, column * jnp.exp(jnp.where(column != 0, row_scale - row_scale[p], 0)), 0)
        right = jnp.where(row != 0, row * jnp.exp(jnp.where(row != 0, column_scale - column_scale[q], 0)), 0)
        sign = jnp.where(pivot < 0, -1, 1).astype(dtype)
        return (
            jnp.where(alive, x - jnp.outer(column, x[p, :]), x),
            lower.at[:, k].set(jnp.where(at_p, 1, down)),
            upper.at[k, :].set(sign * jnp.where(at_q, 1, right)),
            rows.at[k].set(p),
            columns.at[k].set(q),
            pivots.at[k].set(jnp.where(alive, jnp.abs(pivot), 0)),
            jnp.where(alive, jnp.maximum(log_error, (noise - weight[p, q]).astype(log_error.dtype)), log_error),
            free_rows & ~at_p,
            free_columns & ~at_q,
        )

    x = b.t @ (q_0.T @ a.q)
    zeros, order, yes = jnp.zeros_like(x), jnp.zeros(size, int), jnp.ones(size, bool)
    start = x, zeros, zeros, order, order, zeros[0], jnp.maximum(a.log_error, b.log_error), yes, yes
    _, lower, upper, rows, columns, pivots, log_error, _, _ = jax.lax.fori_loop(0, size, eliminate, start)

    q, r = jnp.linalg.qr(lower)
    diagonal = jnp.diag(r)
    log_scale, log_carry = add_compensated(b.log_scale[rows], b.log_carry[rows], a.log_scale[columns])
    log_carry = log_carry + a.log_carry[columns]
    log_scale, log_carry = add_compensated(log_scale, log_carry, jnp.log(pivots))
    gap = log_scale[None, :] - log_scale[:, None] + log_carry[None, :] - log_carry[:, None]
    upward = jnp.triu(jnp.ones_like(r, bool), 1) & (pivots[:, None] > 0) & (pivots[None, :] > 0)
    unit = r / diagonal[:, None] * jnp.exp(jnp.where(upward, gap, -jnp.inf)) + jnp.eye(size, dtype=dtype)
    log_scale, log_carry = add_compensated(log_scale, log_carry, jnp.log(jnp.abs(diagonal)))
    sign = jnp.where(diagonal < 0, -1, 1).astype(dtype)
    return Factors(
        b.q @ (q * sign[None, :]),
        log_scale,
        log_carry,
        unit @ (upper @ a.t),
        a.log_lead,
        log_error,
        jnp.full_like(log_scale, jnp.max(a.condition) + jnp.max(b.condition)),
    )
