"""Damped Newton steps to a fixed point h = f(h), how far it may still be, and what that does to eigenvalues."""

import jax
import jax.numpy as jnp

ROUNDING = 100  # a residual of this many eps per entry of the state counts as zero
OPERATION = 4  # eps: of what one evaluation of f or of its Jacobian is rounded, per root of N
STUCK = 1e12  # damping at which polishing gives up: steps below a millionth of the state's size no longer help


def polish(residual, jacobian, h, tolerance, max_steps):
    """Damped Newton steps until a fixed point no longer improves or a slow point no longer moves."""

    def unfinished(state):
        _, r, damping, accepted, count = state
        settled = (speed_of(r) <= tolerance) & ~accepted
        return (count < max_steps) & ~settled & (damping < STUCK) & jnp.any(r != 0)

    def step(state):
        h, r, damping, _, count = state
        a = jacobian(h) - jnp.eye(len(h), dtype=h.dtype)
        mu = damping * jnp.sum(r * r) / jnp.maximum(1, jnp.mean(h * h))
        # By QR of A over √μ I: AᵀA would square the condition number.
        q, upper = jnp.linalg.qr(jnp.concatenate((a, jnp.sqrt(mu) * jnp.eye(len(h), dtype=h.dtype))))
        trial = h - jax.scipy.linalg.solve_triangular(upper, r @ q[: len(h)])
        trial_r = residual(trial)
        accepted = speed_of(trial_r) < speed_of(r)
        damping = jnp.where(accepted, jnp.maximum(1, damping / 3), damping * 10)
        return jnp.where(accepted, trial, h), jnp.where(accepted, trial_r, r), damping, accepted, count + 1

    state = (h, residual(h), jnp.ones((), h.dtype), jnp.asarray(True), 0)
    return jax.lax.while_loop(unfinished, step, state)[0]


def bound_distance(jacobian, h, r, at):
    """(bound on the distance to an exact fixed point, how much J changes on the way), (inf, 0) where nothing is known.

    Newton's method converges from h if A changes by less than half of σ_min over twice its first step (Kantorovich).
    The change is looked at along the direction in which A is weakest and along the Newton step.
    """
    eps = jnp.finfo(h.dtype).eps
    u, sigma, vt = jnp.linalg.svd(at - jnp.eye(len(h), dtype=h.dtype))
    rounding = OPERATION * eps * jnp.sqrt(len(h) + jnp.sum(h * h))
    floor = OPERATION * eps * (1 + jnp.linalg.norm(at))
    weakest = jnp.maximum(sigma[-1] - floor, 0)
    first = (jnp.linalg.norm(r) + rounding) / jnp.where(weakest > 0, weakest, 1)
    step = vt.T @ ((u.T @ r) / jnp.maximum(sigma, floor))
    changes = [jnp.linalg.norm(jacobian(h + 2 * d) - at) for d in (first * vt[-1], -first * vt[-1], -step)]
    moved = jnp.max(jnp.stack(changes))
    certain = (weakest > 0) & (moved < weakest / 2)
    return jnp.where(certain, 2 * first, jnp.inf), jnp.where(certain, moved, 0)


def find_eigenvalues(at, moved):
    """Eigenvalues by decreasing modulus; for each its own condition number times the change and rounding of the matrix.

    Where that reaches halfway to the next eigenvalue it is no longer known which moves where, only that none moves by
    more than the condition number of all eigenvectors allows (Bauer & Fike, 1960).
    """
    eigenvalues, vectors = jnp.linalg.eig(at)
    condition = jnp.linalg.norm(jnp.linalg.inv(vectors), axis=1)  # the columns have length 1
    change = moved + OPERATION * jnp.finfo(at.dtype).eps * jnp.linalg.norm(at)
    gaps = jnp.abs(eigenvalues[:, None] - eigenvalues[None, :]) + jnp.diag(jnp.full(len(at), jnp.inf, at.dtype))
    together = jnp.linalg.norm(condition) * jnp.sqrt(jnp.asarray(len(at), at.dtype)) * change
    error = jnp.where(condition * change < jnp.min(gaps, axis=1) / 2, condition * change, together)
    error = jnp.where(jnp.isfinite(error), error, jnp.inf)
    order = jnp.argsort(jnp.abs(eigenvalues), descending=True, stable=True)
    return eigenvalues[order], error[order]


def speed_of(r):
    return jnp.sum(r * r, axis=-1) / 2


def tolerance_of(h):
    """½ N (ROUNDING eps)² max(1, mean h²): what rounding in h and f leaves of the speed, with a margin."""
    per_entry = (ROUNDING * jnp.finfo(h.dtype).eps) ** 2 * jnp.maximum(1, jnp.mean(h * h, axis=-1))
    return h.shape[-1] * per_entry / 2
