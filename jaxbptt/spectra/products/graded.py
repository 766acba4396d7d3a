"""The product J_t … J_1 as graded factors, one or two QR steps per Jacobian.

    J_t … J_1 Q_0 = Q diag(e^ℓ) T        Q, Q_0 orthogonal, ℓ in logs, T well conditioned

References: Stewart (1997), ETNA 5 (graded products); Demmel et al. (1999), LAA 299; Bauer (2020), SciPost Phys. Core 2
(the U·D·T form and its column order).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.spectra.products.two_parts import difference_of_products, log_in_parts

GRADED_COLUMNS = 1e3  # ratio of J_t's largest to smallest column maximum above which its scaling is factored out first

GRADED_ROWS = 4.0  # ratio of a matrix's largest to smallest row maximum above which its QR sorts the rows


class Factors(NamedTuple):
    """P = Q diag(e^(log_scale + log_carry)) T, up to a fixed orthogonal matrix on the right."""

    q: jax.Array  # [N, N] orthogonal
    log_scale: jax.Array  # [N] ℓ, −inf for a direction that is lost exactly
    log_carry: jax.Array  # [N] the rounding error of ℓ's running sum
    t: jax.Array  # [N, N]
    label: jax.Array  # [N] the number of each direction, which it keeps when the order changes
    log_lead: jax.Array  # [N, N] by label, least ℓ_j − ℓ_i so far, at most 0: how far ahead of j direction i has been
    log_error: jax.Array  # [N] by label, ln of the relative error that rounding may have grown to by reversals
    condition: jax.Array  # [N] by label, Σ κ² over the steps as far as one direction alone tells: see `absorb`


class Pass(NamedTuple):
    """One QR step, A Q = Q' R, columns in the order of ℓ': with D = diag(e^ℓ), R = D' B D⁻¹ and T' = B T."""

    order: jax.Array  # [N] where each direction was before this step
    r: jax.Array  # [N, N]
    rows: jax.Array  # [N] α, how large the rows of A Q became while it was factored
    assembled: jax.Array  # [N] ρ, bounds on the row norms of |B||T|
    residual: jax.Array  # [N, N] A Q − Q' R in float32, where it is used for a correction; else [N, 0]


def identity(size: int, dtype: np.dtype, seed: int = 0) -> Factors:
    """The factors of I, with Q = Q_0 = `generic_orthogonal(size, seed)`."""
    zeros = jnp.zeros(size, dtype)
    q, t = jnp.asarray(generic_orthogonal(size, seed), dtype), jnp.eye(size, dtype=dtype)
    return Factors(q, zeros, zeros, t, jnp.arange(size), jnp.zeros_like(t), zeros - jnp.inf, zeros)


def multiply(jacobian: jax.Array, factors: Factors) -> Factors:
    """The factors of J P. A J with badly scaled columns is split into (J/d) diag(d), each with its own QR."""
    graded, columns, scaled = split_columns(jacobian)
    passes = 1 + graded.astype(int)

    def visit(i, factors):
        return absorb(jnp.where(i + 1 == passes, scaled, jnp.diag(columns)), factors)[0]

    return jax.lax.fori_loop(0, passes, visit, factors)


def multiply_and_tell(jacobian: jax.Array, factors: Factors) -> tuple[Factors, Pass]:
    """`multiply`, and its last QR step. Written out: carried through a loop, that step would be copied."""
    graded, columns, scaled = split_columns(jacobian)
    first = lambda factors: absorb(jnp.diag(columns), factors)[0]
    return absorb(scaled, jax.lax.cond(graded, first, lambda factors: factors, factors))


def split_columns(jacobian: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(whether J is split, column maxima, J/d): d = 1 where J is not split or a column is zero."""
    columns = jnp.max(jnp.abs(jacobian), axis=0)
    graded = jnp.min(columns) * GRADED_COLUMNS < jnp.max(columns)
    return graded, columns, jacobian / jnp.where(graded & (columns > 0), columns, 1)[None, :]


def absorb(matrix: jax.Array, factors: Factors) -> tuple[Factors, Pass]:
    """The factors of A P by one QR of M = A Q:  ℓ'_i = ℓ_i + ln r_ii,  T' = B T,  B_ij = r_ij e^(ℓ_j − ℓ'_i).

    Directions are kept in descending order of max|M_j| e^ℓ_j, so that B stays bounded however the chain turns. As many
    as M has zero rows, or as were lost before, have r_ii = 0 and go last. Any other zero pivot is an accident of
    rounding, which left the direction unknown: it counts as rounding noise of its column.

    Householder's method rounds row j of M as large as it becomes on the way, α_j: at least about (|Q||R|)_j, and R_k
    where row j is the k-th to be eliminated. That changes r_ii by eps κ_i of itself, κ_i = ‖diag(α) Q_i‖ / |r_ii|.
    """
    lost = factors.log_scale == -jnp.inf
    m = matrix @ factors.q
    carried = factors.log_scale + factors.log_carry + jnp.log(jnp.where(lost, 0, jnp.max(jnp.abs(m), axis=0)))
    order = jnp.argsort(carried, descending=True, stable=True)
    settled = ~jnp.any(lost | (order != jnp.arange(len(order))))
    moving = m, factors.t, factors.log_scale, factors.log_carry, factors.label
    moving = jax.lax.cond(settled, lambda order, moving: moving, _reorder, order, moving)
    m, t, log_scale, log_carry, label = moving
    order = jnp.where(settled, jnp.arange(len(order)), order)
    q, r, eliminated = _row_sorted_qr(m)
    pivots = jnp.diag(r)
    kept = len(order) - jnp.maximum(jnp.sum(lost), jnp.sum(jnp.all(m == 0, axis=1)))
    noise = jnp.finfo(m.dtype).eps * jnp.linalg.norm(m, axis=0)
    accident = (pivots == 0) & (jnp.arange(len(order)) < kept)
    pivots = jnp.where(accident, jnp.maximum(noise, jnp.finfo(m.dtype).tiny), pivots)
    # Masked before the exponential: a lost direction has ℓ = −inf and r_ii = 0. A negative r_ii goes into T.
    log_pivots, log_rest = log_of(jnp.abs(pivots))
    upper = jnp.triu(jnp.ones_like(r, bool), 1) & (pivots != 0)[:, None] & (log_scale > -jnp.inf)[None, :]
    gap = (log_scale[None, :] - log_scale[:, None]) + (log_carry[None, :] - log_carry[:, None])
    b = r * jnp.exp(jnp.where(upper, gap - log_pivots[:, None], -jnp.inf))
    b = b + jnp.diag(jnp.where(pivots < 0, -1, 1).astype(r.dtype))
    log_scale, log_carry = add_compensated(log_scale, log_carry, log_pivots)
    log_carry = log_carry + log_rest
    log_lead, log_error = _reversal(jnp.zeros_like(log_scale).at[label].set(log_scale), factors.log_lead)
    log_error = jnp.maximum(log_error, factors.log_error)
    r = r + jnp.diag(pivots - jnp.diag(r))
    sizes, entries = safe_norm(r), jnp.abs(q)
    rows = jnp.maximum(safe_norm(matrix), safe_norm(entries * sizes[None, :])).at[eliminated].max(sizes)
    kappa = rows[:, None] * (entries / jnp.where(pivots == 0, jnp.inf, jnp.abs(pivots))[None, :])
    kappa = jnp.sum(kappa * kappa, axis=0)
    condition = factors.condition.at[label].add(kappa)
    new = Factors(q, log_scale, log_carry, b @ t, label, log_lead, log_error, condition)
    assembled = jnp.abs(b) @ jnp.linalg.norm(t, axis=1)
    residual = m[:, :0]
    if m.dtype == jnp.float32:
        before = jnp.where(lost[None, :], 0, factors.q)[:, order]
        residual = difference_of_products(matrix, before, q, r)
    return new, Pass(order, r, rows, assembled, residual)


def _reorder(order, moving):
    """M and what goes with its columns in another order; lost directions are zero in M."""
    m, t, *vectors = moving
    m = jnp.where(vectors[0] == -jnp.inf, 0, m)[:, order]
    return m, t[order], *(vector[order] for vector in vectors)


def log_of(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """ln x as a sum of two: summed over many steps, float32's rounding of each would count."""
    return log_in_parts(x) if x.dtype == jnp.float32 else (jnp.log(x), jnp.zeros_like(x))


def _reversal(log_scale, log_lead):
    """How far a direction that fell behind has caught up, and how much that amplifies rounding.

    Rounding mixes eps of direction j into direction i at every step. If j then gains D nats on i, the mixture is
    δ = eps e^D of i: a relative error δ² of both values while i stays far ahead, and δ once j is level with it.
    """
    gap = log_scale[None, :] - log_scale[:, None]
    behind = jnp.where(jnp.isfinite(gap), jnp.minimum(gap, 0), 0)
    log_lead = jnp.minimum(log_lead, behind)
    log_mixed = behind - log_lead + jnp.log(jnp.finfo(gap.dtype).eps).astype(gap.dtype)
    log_error = log_mixed + jnp.maximum(log_mixed, behind)
    return log_lead, jnp.maximum(jnp.max(log_error, axis=0), jnp.max(log_error, axis=1))


def row_sorted_qr(m: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Householder QR of M; rows that differ much in size are sorted first, which keeps row-graded matrices accurate."""
    return _row_sorted_qr(m)[:2]


def _row_sorted_qr(m):
    """(Q, R) and the order in which the rows were eliminated."""
    rows = jnp.max(jnp.abs(m), axis=1)

    def in_order(m):
        order = jnp.argsort(rows, descending=True)
        q, r = jnp.linalg.qr(m[order])
        return q[jnp.argsort(order)], r, order

    as_it_is = lambda m: (*jnp.linalg.qr(m), jnp.arange(len(m)))
    return jax.lax.cond(jnp.min(rows) * GRADED_ROWS < jnp.max(rows), in_order, as_it_is, m)


def safe_norm(rows: jax.Array) -> jax.Array:
    """‖row‖ of every row, whose squares may leave the float range."""
    largest = jnp.max(jnp.abs(rows), axis=1)
    scale = jnp.where(largest > 0, largest, 1)
    return largest * jnp.linalg.norm(rows / scale[:, None], axis=1)


def add_compensated(total: jax.Array, carry: jax.Array, increment: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(total, carry) + increment, the rounding error of the sum added to carry (Knuth's two-sum); −inf stays −inf."""
    new = total + increment
    back = new - total
    error = (total - (new - back)) + (increment - back)
    return new, carry + jnp.where(jnp.isfinite(new), error, 0)


def generic_orthogonal(size: int, seed: int = 0) -> np.ndarray:
    """A fixed orthogonal matrix in general position: started from the identity, a chain with invariant coordinate
    planes would never leave them."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]
