"""Singular values of diag(e^ℓ) T by one-sided Jacobi in logs: every value to its own relative accuracy."""

import jax
import jax.numpy as jnp
import numpy as np

PRECONDITION = 3  # LQ passes before the rotations; without them n = 64 needs more than eleven sweeps
MAX_SWEEPS = 30


def graded_svd(
    log_scale: jax.Array, t: jax.Array, *, directions: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """diag(e^ℓ) T = U diag(e^log_sigma) Vᵀ, log_sigma descending.

    Args:
      log_scale: ℓ [N], −inf for rows that are zero.
      t: T [N, N], well conditioned.
      directions: whether U and V are wanted, static; else they are [N, 0].

    Returns:
      (U [N, N], log_sigma [N] in nats, V [N, N]), U and V orthogonal also where log_sigma is −inf.

    Reference: Drmač & Veselić (2008), SIAM J. Matrix Anal. Appl. 29; the QLP passes: Stewart (1999), SISC 20.
    """
    left, log_sigma, rest, right = graded_svd_in_parts(log_scale, jnp.zeros_like(log_scale), t, directions=directions)
    return left, log_sigma + rest, right


def graded_svd_in_parts(
    log_scale: jax.Array, log_carry: jax.Array, t: jax.Array, *, directions: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`graded_svd` of diag(e^(log_scale + log_carry)) T as (U, log_sigma, rest, V): the logs are log_sigma + rest, not
    yet added, so that they are rounded once."""
    order = jnp.argsort(log_scale + log_carry, descending=True)
    log_scale, log_carry, t = log_scale[order], log_carry[order], t[order]
    basis = jnp.eye(len(t), dtype=t.dtype) if directions else jnp.zeros((0, len(t)), t.dtype)

    def precondition(state, _):
        """diag(e^ℓ) T = (diag(e^ℓ) L'ᵀ)ᵀ Q: left and right directions swap, and the new left ones take Q."""
        t, of_left, of_right = state
        q, upper = jnp.linalg.qr(t.T)
        return (_transposed_lq(log_scale, log_carry, upper.T), of_right @ q, of_left), None

    (t, of_left, of_right), _ = jax.lax.scan(precondition, (t, basis, basis), None, length=PRECONDITION)
    rest, rows, rotation = _orthogonal_rows(log_scale, log_carry, t, basis.T)
    by_size = jnp.argsort(log_scale + rest, descending=True)
    log_scale, rest = log_scale[by_size], rest[by_size]
    if not directions:
        return basis.T, log_scale, rest, basis.T
    # PRECONDITION is odd: what was left at the start is right now.
    left, right = of_right @ rows.T, of_left @ rotation.T
    left = jnp.zeros_like(left).at[order].set(left)
    return left[:, by_size], log_scale, rest, right[:, by_size]


def _transposed_lq(log_scale, log_carry, lower):
    """L'ᵀ, from T = L Q: diag(e^ℓ) L = L' diag(e^ℓ), whose transpose diag(e^ℓ) L'ᵀ has the same singular values."""
    strictly = jnp.tril(jnp.ones_like(lower, bool), -1) & (log_scale > -jnp.inf)[:, None]
    gap = (log_scale[:, None] - log_scale[None, :]) + (log_carry[:, None] - log_carry[None, :])
    gap = jnp.where(strictly, gap, 0)
    return jnp.where(strictly, lower * jnp.exp(gap), jnp.diag(jnp.diag(lower))).T


def _orthogonal_rows(log_scale, log_carry, t, rotation):
    """(rest, rows, R) with R diag(e^ℓ) T = diag(e^(log_scale + rest)) rows, rows orthonormal, R the product of the
    rotations.

    A `rotation` of no columns, instead of the identity, leaves R out.
    """
    norm = jnp.linalg.norm(t, axis=1)
    rest, rows = log_carry + jnp.log(norm), t / norm[:, None]
    return _rotate(log_scale, rest, rows, rotation) if len(t) > 1 else (rest, rows, rotation)


def _rotate(log_scale, rest, rows, rotation):
    """Sweeps of plane rotations on e^(log_scale_i + rest_i) rows_i until all are orthogonal; n/2 pairs at a time."""
    schedule = _round_robin(len(rest))
    tolerance = 2 * len(rest) ** 0.5 * jnp.finfo(rows.dtype).eps

    def one_round(state, pairs):
        rest, rows, rotation, worst = state
        first, second = pairs
        swap = _gap(log_scale, rest, first, second) < 0
        i, j = jnp.where(swap, second, first), jnp.where(swap, first, second)
        x, y = rows[i], rows[j]
        cosine = jnp.sum(x * y, axis=1)
        gap = jnp.where(log_scale[j] > -jnp.inf, _gap(log_scale, rest, j, i), -jnp.inf)
        rho, b = jnp.exp(gap), -jnp.expm1(2 * gap)
        denominator = b + jnp.sqrt(b * b + (2 * cosine * rho) ** 2)
        tau = jnp.where(denominator > 0, 2 * cosine / jnp.where(denominator > 0, denominator, 1), 0)
        tangent = tau * rho
        x, y = x + (tangent * rho)[:, None] * y, y - tau[:, None] * x
        shrink = jnp.sqrt(1 + tangent * tangent)
        x_norm, y_norm = jnp.linalg.norm(x, axis=1), jnp.linalg.norm(y, axis=1)
        rows = rows.at[i].set(x / x_norm[:, None]).at[j].set(y / y_norm[:, None])
        rest = rest.at[i].add(jnp.log(x_norm / shrink)).at[j].add(jnp.log(y_norm / shrink))
        u, v, t = rotation[i], rotation[j], tangent[:, None]
        rotation = rotation.at[i].set((u + t * v) / shrink[:, None]).at[j].set((v - t * u) / shrink[:, None])
        return (rest, rows, rotation, jnp.maximum(worst, jnp.max(jnp.abs(cosine)))), None

    def sweep(state):
        (*state, _), count = state
        state = *state, jnp.zeros_like(tolerance)
        if schedule.shape[2] == 1:  # XLA's CPU compiler confuses a slice of the schedule with one of a single row
            for pairs in schedule:
                state, _ = one_round(state, pairs)
        else:
            state, _ = jax.lax.scan(one_round, state, jnp.asarray(schedule))
        return state, count + 1

    def unfinished(state):
        (*_, worst), count = state
        return (worst > tolerance) & (count < MAX_SWEEPS)

    start = (rest, rows, rotation, jnp.full_like(tolerance, jnp.inf)), 0
    return jax.lax.while_loop(unfinished, sweep, start)[0][:3]


def _gap(log_scale, rest, i, j):
    """ln of the ratio of rows i and j, from differences of the large parts and of the small ones."""
    return (log_scale[i] - log_scale[j]) + (rest[i] - rest[j])


def _round_robin(size):
    """[rounds, 2, ⌊n/2⌋]: every pair of 0 … n−1 once, the pairs of one round disjoint (circle method)."""
    circle = list(range(size + size % 2))
    rounds = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        pairs = zip(circle[:half], circle[: half - 1 : -1], strict=True)
        rounds.append([pair for pair in pairs if max(pair) < size])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return np.array(rounds).transpose(0, 2, 1)
