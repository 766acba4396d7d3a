"""Singular values of diag(e^ℓ) T by one-sided Jacobi in logs: every value to its own relative accuracy."""

import jax
import jax.numpy as jnp

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
    """Sweeps of plane rotations on e^(log_scale_i + rest_i) rows_i until all are orthogonal; n/2 pairs at a time.

    Once all angles that are left are small, one rotation is made of them all.
    """
    size, tolerance = len(rest), 2 * len(rest) ** 0.5 * jnp.finfo(rows.dtype).eps
    if size % 2:  # one more row, of zeros
        log_scale = jnp.append(log_scale, -jnp.inf)
        rest, rows, rotation = (jnp.pad(part, [(0, 1)] + [(0, 0)] * (part.ndim - 1)) for part in (rest, rows, rotation))

    def one_round(state, _):
        first, second = zip(*map(_facing, state), strict=True)
        swap = _gap(*first[:2], *second[:2]) < 0
        pick = lambda a, b: jnp.where(swap.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        scale_i, rest_i, x, u = map(pick, second, first)
        scale_j, rest_j, y, v = map(pick, first, second)
        cosine = jnp.sum(x * y, axis=1)
        gap = jnp.where(scale_j > -jnp.inf, _gap(scale_j, rest_j, scale_i, rest_i), -jnp.inf)
        rho, b = jnp.exp(gap), -jnp.expm1(2 * gap)
        denominator = b + jnp.sqrt(b * b + (2 * cosine * rho) ** 2)
        tau = jnp.where(denominator > 0, 2 * cosine / jnp.where(denominator > 0, denominator, 1), 0)
        tangent = tau * rho
        x, y = x + (tangent * rho)[:, None] * y, y - tau[:, None] * x
        shrink, t = jnp.sqrt(1 + tangent * tangent), tangent[:, None]
        x_norm, y_norm = _lengths(x), _lengths(y)
        upper = scale_i, rest_i + jnp.log(x_norm / shrink), x / x_norm[:, None], (u + t * v) / shrink[:, None]
        lower = scale_j, rest_j + jnp.log(y_norm / shrink), y / y_norm[:, None], (v - t * u) / shrink[:, None]
        return tuple(map(_turn_circle, map(pick, lower, upper), map(pick, upper, lower))), None

    def sweep(state):
        state, _, count = state
        # After all its rounds the circle stands as it stood.
        (_, *state), _ = jax.lax.scan(one_round, (log_scale, *state), None, length=len(log_scale) - 1)
        return *_rotate_little(log_scale, state, tolerance), count + 1

    def unfinished(state):
        _, large, count = state
        return large & (count < MAX_SWEEPS)

    start = (rest, rows, rotation), jnp.asarray(True), 0
    return tuple(part[:size] for part in jax.lax.while_loop(unfinished, sweep, start)[0])


def _facing(circle):
    """The two halves of a circle of rows, side by side: pairs (0, n−1), (1, n−2), …"""
    half = len(circle) // 2
    return circle[:half], circle[half:][::-1]


def _turn_circle(first, second):
    """All rows but the first one place on: n−1 turns bring every pair together once."""
    return jnp.concatenate((first[:1], second[:1], first[1:], second[1:][::-1]))


def _lengths(rows):
    length = jnp.sqrt(jnp.sum(rows * rows, axis=1))
    return jnp.where(length > 0, length, 1)


def _rotate_little(log_scale, state, tolerance):
    """(state, whether there is more to do) after a rotation by all angles K at once, if they are small.

    D⁻¹ e^K D is summed up to K³, so that it is orthogonal to K⁴ and leaves cosines of K², which change σ by K⁴.
    """
    rest, rows, rotation = state
    cosine, index = rows @ rows.T, jnp.arange(len(rest))
    gap = (log_scale[None, :] - log_scale[:, None]) + (rest[None, :] - rest[:, None])
    lost = log_scale == -jnp.inf
    gap = jnp.where(lost[None, :], -jnp.inf, jnp.where(lost[:, None], jnp.inf, gap))
    above = (gap < 0) | ((gap == gap.T) & (index[:, None] < index[None, :]))
    apart = -jnp.abs(gap)
    rho, b = jnp.exp(apart), -jnp.expm1(2 * apart)
    some = (jnp.abs(cosine) > tolerance) & (index[:, None] != index[None, :])
    tau = 2 * cosine / jnp.where(some, b + jnp.sqrt(b * b + (2 * cosine * rho) ** 2), jnp.inf)
    turn = jnp.where(above, tau * rho * rho, -tau)
    total, epsilon = jnp.max(jnp.sum(jnp.abs(turn), axis=1)), jnp.finfo(rows.dtype).eps
    small = total <= epsilon**0.25
    turn, angle = (jnp.where(small, part, 0) for part in (turn, jnp.where(above, tau, -tau) * rho))
    rows = _exponential(turn, rows)
    norm = _lengths(rows)
    done = total <= epsilon**0.5 if rotation.shape[1] else small
    return (rest + jnp.log(norm), rows / norm[:, None], _exponential(angle, rotation)), ~done


def _exponential(generator, rows):
    """e^K X up to K³."""
    term = total = rows
    for order in (1, 2, 3):
        term = generator @ term / order
        total = total + term
    return total


def _gap(log_scale, rest, other_scale, other_rest):
    """ln of the ratio of two rows, from differences of the large parts and of the small ones."""
    return (log_scale - other_scale) + (rest - other_rest)
