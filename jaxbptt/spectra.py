"""All log singular values of dh_t/dh_0 = J_t … J_1, at any length and any magnitude.

An assembled product loses its small singular values after ln(1/eps)/(λ_1 − λ_n) steps. Here the product is carried as

    J_t … J_1 = Q diag(e^ℓ) T Q_0ᵀ        Q, Q_0 orthogonal, ℓ in logs, T well conditioned

one or two Householder QR steps per Jacobian, and only diag(e^ℓ) T is brought to singular values, row by row in logs, so
that nothing leaves the float range and every value keeps its own relative accuracy.

References: Stewart (1997), ETNA 5 (graded products); Demmel et al. (1999), LAA 299, and Drmač & Veselić (2008), SIMAX
29 (one-sided Jacobi); Bauer (2020), SciPost Phys. Core 2 (the U·D·T form and its column order).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import checks
from jaxbptt.jacobi import graded_log_singular_values

GRADED_COLUMNS = 1e3  # spread of the column maxima of J_t from which on its scaling is factored out first


class Factors(NamedTuple):
    """P = Q diag(e^(log_scale + log_carry)) T, up to a fixed orthogonal matrix on the right."""

    q: jax.Array  # [N, N] orthogonal
    log_scale: jax.Array  # [N] ℓ, −inf for a direction that is lost exactly
    log_carry: jax.Array  # [N] what the rounding of ℓ's running sum left behind
    t: jax.Array  # [N, N]


def log_singular_values(jacobians: jax.Array, *, every: int | None = None) -> jax.Array:
    """ln σ_i(dh_t/dh_0), i = 1 … N, dh_t/dh_0 = J_t … J_1.

    One `lax.scan` over time, about 5N³ flops a step, then a Jacobi finish per record. A direction that a zero row, a
    zero column or an exactly zero pivot kills is −inf from then on, never NaN and never a clamp; other loss of rank may
    stay finite at rounding level. A chain that undoes its own expansion (A³⁰ then A⁻³⁰) is ill-conditioned for any such
    method. Not differentiable in reverse mode (its finish is a `while_loop`).

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float.
      every: k, static: record at t = k, 2k, … and at T; None: at T only.

    Returns:
      [R, N] in nats, descending, R = ⌈T/k⌉ (1 for None), of the dtype of jacobians. float64: error below 1e-9 for
      ranges to 10^±600 and beyond; float32: below 2e-5 · max(1, max|ln σ|). Under jit, NaN throughout if any
      Jacobian is not finite.

    Raises:
      TypeError, ValueError: jacobians not as stated, `every` no int ≥ 1; outside jit, NaN or inf, with its first step.
    """
    checks.require_jacobians(jacobians)
    if jacobians.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"jacobians: got {jacobians.dtype}, expected float32 or float64")
    length, size, _ = jacobians.shape
    if every is not None:
        checks.require_size("every", every)
    every = length if every is None else min(every, length)
    dtype = jacobians.dtype
    # A generic Q_0: from the identity, a chain with invariant coordinate planes never leaves them.
    generic = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0]
    zeros = jnp.zeros(size, dtype)
    factors = Factors(jnp.asarray(generic, dtype), zeros, zeros, jnp.eye(size, dtype=dtype))
    num_records = -(-length // every)
    records = jnp.zeros((num_records, size), dtype), jnp.zeros((num_records, size, size), dtype)

    def body(carry, step):
        factors, (log_scales, ts) = carry
        index, jacobian = step
        factors = _multiply(jacobian, factors)
        slot = index // every  # each slot is overwritten until its last step
        scale = factors.log_scale + factors.log_carry
        return (factors, (log_scales.at[slot].set(scale), ts.at[slot].set(factors.t))), None

    steps = (jnp.arange(length), jacobians)
    (_, (log_scales, ts)), _ = jax.lax.scan(body, (factors, records), steps)
    values = jax.lax.map(lambda record: graded_log_singular_values(*record), (log_scales, ts))
    return jnp.where(jnp.all(jnp.isfinite(jacobians)), values, jnp.nan)


def _multiply(jacobian, factors):
    """The factors of J P. A badly column-scaled J is taken as (J/d) diag(d), each with its own QR."""
    columns = jnp.max(jnp.abs(jacobian), axis=0)
    largest = jnp.max(columns)
    graded = jnp.min(columns) * GRADED_COLUMNS < largest
    d = jnp.where(columns == 0, 1, columns)

    def in_two(factors):
        return _absorb(jacobian / d[None, :], _absorb(jnp.diag(columns), factors))

    return jax.lax.cond(graded, in_two, lambda factors: _absorb(jacobian, factors), factors)


def _absorb(matrix, factors):
    """The factors of A P by one QR of M = A Q:  ℓ'_i = ℓ_i + ln r_ii,  T' = B T,  B_ij = r_ij e^(ℓ_j − ℓ'_i).

    Directions are kept in descending order of what they carry, max|M_j| e^ℓ_j, which keeps B bounded whichever way the
    chain turns; one whose pivot is exactly zero goes last, because a unit B cannot hold r_ii = 0 beside r_ij ≠ 0.
    """
    scale = jnp.max(jnp.abs(matrix))
    scale = jnp.where(scale > 0, scale, 1)
    m = (matrix / scale) @ factors.q
    m = jnp.where(factors.log_scale == -jnp.inf, 0, m)
    carried = factors.log_scale + factors.log_carry + jnp.log(jnp.max(jnp.abs(m), axis=0))

    def unordered(state):
        order, _, r, attempt = state
        zero = jnp.diag(r) == 0
        return (attempt == 0) | ((attempt < len(order)) & jnp.any(zero[:-1] & ~zero[1:]))

    def factor(state):
        order, _, r, attempt = state
        order = order[jnp.argsort((jnp.diag(r) == 0) & (attempt > 0), stable=True)]
        return order, *_row_sorted_qr(m[:, order]), attempt + 1

    order = jnp.argsort(carried, descending=True, stable=True)
    order, q, r, _ = jax.lax.while_loop(unordered, factor, (order, m, m, 0))
    pivots, log_scale, log_carry = jnp.diag(r), factors.log_scale[order], factors.log_carry[order]
    # Masked before the exponential: a lost direction has ℓ = −inf and r_ii = 0.
    log_pivots = jnp.log(pivots)
    upper = jnp.triu(jnp.ones_like(r, bool), 1) & (pivots[:, None] > 0) & (log_scale > -jnp.inf)[None, :]
    gap = (log_scale[None, :] - log_scale[:, None]) + (log_carry[None, :] - log_carry[:, None])
    shrink = jnp.exp(jnp.where(upper, gap - log_pivots[:, None], -jnp.inf))
    b = r * shrink + jnp.eye(len(r), dtype=r.dtype)
    log_scale, log_carry = _add_compensated(log_scale, log_carry, log_pivots + jnp.log(scale))
    return Factors(q, log_scale, log_carry, b @ factors.t[order])


def _row_sorted_qr(m):
    """Householder QR with r_ii ≥ 0 of M with its rows by decreasing size, which keeps row-graded matrices accurate."""
    order = jnp.argsort(jnp.max(jnp.abs(m), axis=1), descending=True)
    q, r = jnp.linalg.qr(m[order])
    sign = jnp.where(jnp.diag(r) < 0, -1, 1).astype(m.dtype)
    return jnp.zeros_like(q).at[order].set(q * sign[None, :]), r * sign[:, None]


def _add_compensated(total, carry, increment):
    """(total, carry) + increment, the rounding error of the sum added to carry (Knuth's two-sum); −inf stays −inf."""
    new = total + increment
    back = new - total
    error = (total - (new - back)) + (increment - back)
    return new, carry + jnp.where(jnp.isfinite(new), error, 0)
