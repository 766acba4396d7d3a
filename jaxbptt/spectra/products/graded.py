"""The product J_t … J_1 as graded factors, one or two QR steps per Jacobian.

    J_t … J_1 Q_0 = Q diag(e^ℓ) T        Q, Q_0 orthogonal, ℓ in logs, T well conditioned

References: Stewart (1997), ETNA 5 (graded products); Demmel et al. (1999), LAA 299; Bauer (2020), SciPost Phys. Core 2
(the U·D·T form and its column order).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.spectra.products.two_parts import difference_of_products, log_in_parts

GRADED_COLUMNS = 1e3  # ratio of J_t's largest to smallest column maximum above which its scaling is factored out first

GRADED_ROWS = 4.0  # ratio of a matrix's largest to smallest row maximum above which its QR sorts the rows
LEVEL = 1.0  # nats by which a direction may be ahead of one before it and yet keep its place
HARMLESS = 0.01  # of 1/√eps: a step's condition below which a bound stands for it


class Factors(NamedTuple):
    """P = Q diag(e^(log_scale + log_carry)) T, up to a fixed orthogonal matrix on the right."""

    q: jax.Array  # [N, N] orthogonal
    log_scale: jax.Array  # [N] ℓ, −inf for a direction that is lost exactly
    log_carry: jax.Array  # [N] the rounding error of ℓ's running sum
    t: jax.Array  # [N, N]
    log_lead: jax.Array  # [N, N] float32, least ℓ_j − ℓ_i so far, at most 0: how far ahead of j direction i has been
    log_error: jax.Array  # [N] float32, ln of the relative error that rounding may have grown to by reversals
    condition: jax.Array  # [N] Σ κ² over the steps as far as one direction alone tells: see `_squared_condition`


class Pass(NamedTuple):
    """One QR step, A Q = Q' R, columns in the order of ℓ': with D = diag(e^ℓ), R = D' B D⁻¹ and T' = B T."""

    place: jax.Array  # [N] of each direction before this step: where it is now
    r: jax.Array  # [N, N], 1 on the diagonal where a direction is lost
    rows: jax.Array  # [N] α, how large the rows of A Q became while it was factored
    assembled: jax.Array  # [N] ρ, how large the rounded terms of B T are in every row
    residual: jax.Array  # [N, N] A Q − Q' R in float32, where it is used for a correction; else [N, 0]


def identity(size: int, dtype: np.dtype, seed: int = 0) -> Factors:
    """The factors of I, with Q = Q_0 = `generic_orthogonal(size, seed)`."""
    zeros, single = jnp.zeros(size, dtype), jnp.zeros(size, jnp.float32)
    q, t = jnp.asarray(generic_orthogonal(size, seed), dtype), jnp.eye(size, dtype=dtype)
    return Factors(q, zeros, zeros, t, jnp.zeros((size, size), jnp.float32), single - jnp.inf, zeros)


def multiply(jacobian: jax.Array, factors: Factors) -> Factors:
    """The factors of J P. A J with badly scaled columns is split into (J/d) diag(d), each with its own QR."""
    return _multiply(jacobian, factors, None)[0]


def multiply_and_tell(jacobian: jax.Array, factors: Factors) -> tuple[Factors, Pass]:
    """`multiply`, and its last QR step."""
    nothing = jnp.zeros_like(factors.log_scale)
    square = jnp.zeros_like(factors.t)
    residual = square if is_corrected(square) else square[:, :0]
    last = Pass(jnp.arange(len(nothing)), square, nothing, nothing, residual)
    return _multiply(jacobian, factors, last)


def _multiply(jacobian, factors, last):
    split, columns = find_split(jacobian)
    divisors = jnp.where(columns > 0, columns, 1)

    def visit(i, carry):
        factors, last = carry
        first = split & (i == 0)
        ways = lambda q: jacobian @ q, lambda q: jacobian @ (q / divisors[:, None]), lambda q: columns[:, None] * q
        m = jax.lax.switch(split.astype(int) + first.astype(int), ways, factors.q)
        scaled = jacobian / jnp.where(split, divisors, 1)[None, :]
        new, step = absorb(m, jnp.where(first, jnp.diag(columns), scaled), factors)
        # What is not returned is not computed: the step's matrix, its sizes; or the condition, which follows from them.
        return (new, None) if last is None else (new._replace(condition=factors.condition), step)

    return jax.lax.fori_loop(0, 1 + split.astype(int), visit, (factors, last))


def absorb_columns(columns: jax.Array, factors: Factors) -> tuple[Factors, Pass]:
    """The first QR step of a J that is split: diag(d) P."""
    return absorb(columns[:, None] * factors.q, jnp.diag(columns), factors)


def find_split(jacobian: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(whether J is split; d, its column maxima)."""
    columns = jnp.max(jnp.abs(jacobian), axis=0)
    return jnp.min(columns) * GRADED_COLUMNS < jnp.max(columns), columns


def absorb(m: jax.Array, matrix: jax.Array, factors: Factors) -> tuple[Factors, Pass]:
    """The factors of A P by one QR of M = A Q:  ℓ'_i = ℓ_i + ln r_ii,  T' = B T,  B_ij = r_ij e^(ℓ_j − ℓ'_i).

    Directions are kept in descending order of max|M_j| e^ℓ_j, to a factor of e, so that B stays bounded however the
    chain turns. As many as M has zero rows, or as were lost before, have r_ii = 0 and go last. Any other zero pivot is
    an accident of rounding, which left the direction unknown: it counts as rounding noise of its column.
    """
    lost = factors.log_scale == -jnp.inf
    columns, rows = jnp.max(jnp.abs(m), axis=0), jnp.max(jnp.abs(m), axis=1)
    carried = factors.log_scale + factors.log_carry + jnp.log(jnp.where(lost, 0, columns))
    settled = jnp.all(jax.lax.cummax(carried, reverse=True) <= carried + LEVEL) & ~jnp.any(lost)
    as_it_is = jnp.arange(len(m)), m, columns, rows, factors
    place, m, columns, rows, factors = when(~settled, lambda state: _reorder(carried, *state), as_it_is)
    log_scale, log_carry, t = factors.log_scale, factors.log_carry, factors.t
    gone = log_scale == -jnp.inf
    q, r, eliminated = _row_sorted_qr(m, rows)
    pivots = jnp.diag(r)
    kept = len(m) - jnp.maximum(jnp.sum(lost), jnp.sum(rows == 0))
    accident = (pivots == 0) & (jnp.arange(len(m)) < kept)
    noise = jnp.finfo(m.dtype).eps * columns
    pivots = jnp.where(accident, jnp.maximum(noise, jnp.finfo(m.dtype).tiny), pivots)
    # Masked before the exponential: a lost direction has ℓ = −inf and r_ii = 0. A negative r_ii goes into T.
    log_pivots, log_rest = log_of(jnp.abs(pivots))
    upper = jnp.triu(jnp.ones_like(r, bool), 1) & (pivots != 0)[:, None] & ~gone[None, :]
    gap = (log_scale[None, :] - log_scale[:, None]) + (log_carry[None, :] - log_carry[:, None])
    b = r * jnp.exp(jnp.where(upper, gap - log_pivots[:, None], -jnp.inf))
    b = b + jnp.diag(jnp.where(pivots < 0, -1, 1).astype(r.dtype))
    log_scale, log_carry = add_compensated(log_scale, log_carry, log_pivots)
    log_carry = log_carry + log_rest
    log_lead, log_error = _reversal(log_scale, factors.log_lead, float(jnp.finfo(m.dtype).eps))
    condition = factors.condition + _squared_condition(q, r, pivots, eliminated, columns)
    log_error = jnp.maximum(log_error, factors.log_error)
    new = Factors(q, log_scale, log_carry, b @ t, log_lead, log_error, condition)
    assembled = jnp.sqrt(jnp.sum(b * b * jnp.sum(t * t, axis=1)[None, :], axis=1))
    r, residual = r + jnp.diag(pivots - jnp.diag(r)), m[:, :0]
    if is_corrected(m):
        residual = difference_of_products(matrix, jnp.where(gone[None, :], 0, factors.q), q, r)
    rows = _rounded_rows(q, r, eliminated)
    return new, Pass(place, r + jnp.diag((pivots == 0).astype(r.dtype)), rows, assembled, residual)


def _reorder(carried, _, m, columns, rows, factors):
    """Where each direction goes in the order of falling e^ℓ max|M_j|, and all in it; lost ones are zero in M."""
    order = jnp.argsort(carried, descending=True, stable=True)
    m = jnp.where(factors.log_scale == -jnp.inf, 0, m)[:, order]
    factors = Factors(
        factors.q[:, order],
        factors.log_scale[order],
        factors.log_carry[order],
        factors.t[order],
        factors.log_lead[order][:, order],
        factors.log_error[order],
        factors.condition[order],
    )
    return jnp.argsort(order), m, columns[order], jnp.max(jnp.abs(m), axis=1), factors


def is_corrected(array):
    """Whether rounding is corrected to first order: float64's has never been seen to matter."""
    return array.dtype == jnp.float32


def _rounded_rows(q, r, eliminated):
    """α: how large Householder's method makes each row of M on the way, so that it rounds it by eps α. About a row of
    |Q||R|, and at least R_k where that row is the k-th to be eliminated."""
    scale = jnp.max(jnp.abs(r))
    scale = jnp.where(scale > 0, scale, 1)
    sizes = jnp.sum((r / scale) ** 2, axis=1)
    rows = jnp.sum(q * q * sizes[None, :], axis=1).at[eliminated].max(sizes)
    return scale * jnp.sqrt(jnp.maximum(rows, jnp.finfo(r.dtype).tiny))


def _squared_condition(q, r, pivots, eliminated, columns):
    """κ_i², κ_i = ‖diag(α) Q_i‖ / |r_ii|: that rounding changes r_ii by eps κ_i of itself; `columns`: maxima of |M|."""
    inverse = jnp.where(pivots == 0, 0, 1 / jnp.abs(pivots))

    def row_by_row():
        kappa = _rounded_rows(q, r, eliminated)[:, None] * (jnp.abs(q) * inverse[None, :])
        return jnp.sum(kappa * kappa, axis=0)

    largest = jnp.max(columns)
    length = largest * jnp.sqrt(jnp.sum((columns / jnp.where(largest > 0, largest, 1)) ** 2))
    least = len(r) * length * inverse  # α_j ≤ Σ_k ‖R_k‖ ≤ √N ‖M‖
    harmless = jnp.max(least) < HARMLESS * jnp.finfo(r.dtype).eps ** -0.5
    return jax.lax.cond(harmless, lambda: least * least, row_by_row)


def when(due: jax.Array, change: Callable[[Any], Any], state: Any) -> Any:
    """`change(state)` if due, which is seldom, else the state: a loop of one round or none leaves it where it is."""
    once = lambda carry: (jnp.zeros_like(carry[0]), change(carry[1]))
    return jax.lax.while_loop(lambda carry: carry[0], once, (due, state))[1]


def log_of(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """ln x as a sum of two: summed over many steps, float32's rounding of each would count."""
    return log_in_parts(x) if x.dtype == jnp.float32 else (jnp.log(x), jnp.zeros_like(x))


def _reversal(log_scale, log_lead, epsilon):
    """How far a direction that fell behind has caught up, and how much that amplifies rounding; in float32.

    Rounding mixes eps of direction j into direction i at every step. If j then gains D nats on i, the mixture is
    δ = eps e^D of i: a relative error δ² of both values while i stays far ahead, and δ once j is level with it.
    """
    log_scale = log_scale.astype(jnp.float32)
    gap = log_scale[None, :] - log_scale[:, None]
    alive = jnp.isfinite(gap)  # a direction that is lost exactly catches up with none
    behind = jnp.where(alive, jnp.minimum(gap, 0), 0)
    log_lead = jnp.minimum(log_lead, behind)
    log_mixed = jnp.where(alive, behind - log_lead + math.log(epsilon), -jnp.inf)
    log_error = log_mixed + jnp.maximum(log_mixed, behind)
    return log_lead, jnp.maximum(jnp.max(log_error, axis=0), jnp.max(log_error, axis=1))


def row_sorted_qr(m: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Householder QR of M; rows that differ much in size are sorted first, which keeps row-graded matrices accurate."""
    return _row_sorted_qr(m, jnp.max(jnp.abs(m), axis=1))[:2]


def _row_sorted_qr(m, rows):
    """(Q, R) and the order in which the rows, of largest entries `rows`, were eliminated."""

    def in_order(m):
        # By powers of two, with the index in the same integer: one array of integers sorts several times faster.
        index = jnp.arange(len(rows), dtype=jnp.int32)
        power = jnp.where(rows > 0, jnp.frexp(rows)[1], -(2**14)).astype(jnp.int32)
        order = jnp.sort(index - power * len(rows), stable=False) % len(rows)
        q, r = jnp.linalg.qr(m[order])
        return q[jnp.sort(order * len(rows) + index, stable=False) % len(rows)], r, order

    as_it_is = lambda m: (*jnp.linalg.qr(m), jnp.arange(len(m), dtype=jnp.int32))
    return jax.lax.cond(jnp.min(rows) * GRADED_ROWS < jnp.max(rows), in_order, as_it_is, m)


def add_compensated(total: jax.Array, carry: jax.Array, increment: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(total, carry) + increment, the rounding error of the sum added to carry (Knuth's two-sum); −inf stays −inf.

    The carry stays within the rounding of the total: equal steps would make it large, and then it rounds itself.
    """
    new = total + increment
    back = new - total
    error = (total - (new - back)) + (increment - back)
    carry = carry + jnp.where(jnp.isfinite(new), error, 0)
    whole = new + carry
    return whole, jnp.where(jnp.isfinite(whole), carry - (whole - new), carry)


def generic_orthogonal(size: int, seed: int = 0) -> np.ndarray:
    """A fixed orthogonal matrix in general position: started from the identity, a chain with invariant coordinate
    planes would never leave them."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]
