"""The largest singular values and directions of dh_t/dh_k from products with the step alone, where [N, N] Jacobians do
not fit in memory: block subspace iteration, forward by jvp, back by vjp, re-orthonormalised at every step.

    P Vᵀ = Qᵀ R_t … R_{k+1},   R_t … R_{k+1} = L diag(σ) Kᵀ,   left = Qᵀ L,   right = Vᵀ K,   next V: a basis of Pᵀ left

A block is stored as rows [p, N]: products with W and with Wᵀ then both run at the speed of a matrix product (as [N, p],
the one with Wᵀ takes 15 to 25 times as long on a CPU).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.partials import jvp, vjp
from jaxbptt.spectra.products import graded
from jaxbptt.spectra.products.jacobi import graded_svd
from jaxbptt.spectra.products.rounding import share_errors
from jaxbptt.trajectories import take_trajectory
from jaxbptt.types import Integer, Key, Params, Recurrence, Scalar, Unrolled

ORTHONORMAL = 100  # in eps: how far QQᵀ may differ from I
FACTOR = 2.0  # of eps κ, as in `products.rounding`
DRIFT = 0.2  # of eps κ
LARGEST_GAP = 30.0  # nats between ‖Pᵀu‖ and σ; a residual beyond it is only "huge", which avoids 0 · inf


class LeadingSVD(NamedTuple):
    """P right_i = σ_i left_i for the k largest σ of P = dh_stop/dh_start.

    Attributes:
      log_sigma: [k], nats, descending; NaN where error is inf.
      left: [N, k], orthonormal columns: directions at stop.
      right: [N, k], orthonormal columns: directions at start.
      residual: [k], ‖Pᵀ left_i − σ_i right_i‖ / σ_i, measured with these vectors themselves.
      rounds: integer scalar, pairs of forward and backward passes.
      error: [k], nats, of log_sigma: residual and rounding; inf where nothing is known, 0 where σ = 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, spectra, trajectories
      >>> cell = cells.from_step(lambda a, h, x: a * h + x, jnp.zeros_like)  # J = diag(a)
      >>> a = jnp.array([0.5, 0.9])
      >>> steps = trajectories.unroll(cell, a, jnp.zeros((10, 2)))
      >>> found = spectra.leading_singular_values(cell, a, steps, k=1, key=jax.random.key(0))
      >>> print(jnp.abs(found.right[:, 0]).round(2))  # what is remembered best: the second unit
      [0. 1.]
    """

    log_sigma: Float[Array, " k"]
    left: Float[Array, "state k"]
    right: Float[Array, "state k"]
    residual: Float[Array, " k"]
    rounds: Integer
    error: Float[Array, " k"]


def leading_singular_values(
    cell: Recurrence,
    params: Params,
    trajectory: Unrolled,
    *,
    k: int,
    start: int = 0,
    stop: int | None = None,
    key: Key,
    oversampling: int = 16,
    tolerance: float | Scalar = 1e-3,
    max_rounds: int = 8,
) -> LeadingSVD:
    """The k largest σ_i(dh_stop/dh_start) with their directions, from jvp and vjp products with `cell.step`.

    Each round costs 2p products with every step's Jacobian, p = min(k + oversampling, N), and reduces residual i by a
    factor of about (σ_{p+1}/σ_i)². Memory is the trajectory, a few [p, N] and p² numbers per step. left_i is accurate
    to eps, so its residual cannot fall below about eps σ_1/σ_i, nor below eps |ln σ_i|. Where the largest k values span
    more than ln(tolerance/eps) nats (9 in float32, 29 in float64 at 1e-3), or one of them is zero,
    all max_rounds run, and the residual says which values miss the tolerance.

    A value is a lower bound up to its `error`: the residual, and eps ‖J_s‖ of every step as far as the chain carries it
    to σ_i. Of 10,500 given for twelve families of hard chains (N ≤ 8, T ≤ 60), one was off by more than three times it
    (3.5 times: k = 1 without oversampling, not converged). NaN where it reaches 1: what lies further than ln(1/eps)
    below σ_1 cannot be told from rounding here (`log_singular_values` can), nor can most of a chain that undoes its own
    expansion. −inf only where a step leaves fewer entries of the state than there are values. That no larger value was
    missed rests on the random first block.

    Args:
      cell: Cell or Model; only its step is used.
      params: θ.
      trajectory: from `unroll`.
      k: static int, 1 … N: how many values.
      start, stop: static ints, 0 ≤ start < stop ≤ T; stop None: T.
      key: typed key that draws the first block.
      oversampling: static int ≥ 0: directions iterated in addition to k. Large nets have close values and gain from
        more. On a CPU, p ≥ 32 moves the small factorisations to threaded BLAS, which is slow on a busy machine.
      tolerance: the rounds end when every residual is at most this.
      max_rounds: int ≥ 1.

    Returns:
      LeadingSVD, of the dtype of the state. Under jit, NaN throughout if the numbers are not finite.

    Raises:
      TypeError: a key that is no typed key; a k, span or count that is no int; a state of another float format.
      ValueError: params or a trajectory that do not fit the cell; a k outside 1 … N; a span that is empty or out of
        range; a tolerance ≤ 0; a count below its least; outside jit, NaN or inf, with its first step.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, spectra, trajectories
      >>> cell = cells.from_step(lambda a, h, x: a * h + x, jnp.zeros_like)  # J = diag(a)
      >>> a = jnp.array([0.5, 0.9])
      >>> steps = trajectories.unroll(cell, a, jnp.zeros((10, 2)))
      >>> found = spectra.leading_singular_values(cell, a, steps, k=1, key=jax.random.key(0))
      >>> round(float(found.log_sigma[0]), 3)  # 10 ln 0.9
      -1.054

    Reference: Halko, Martinsson & Tropp (2011), SIAM Review 53, algorithm 4.4; Stewart (1997), ETNA 5.
    """
    params, trajectory, length = take_trajectory(cell, params, trajectory)
    flat, unravel = ravel_pytree(trajectory.initial)
    if flat.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"trajectory: got a state of {flat.dtype}, expected float32 or float64")
    start, stop = _validation.require_span(start, stop, length)
    if start == stop:
        raise ValueError(f"start: got {start} = stop, expected start < stop")
    for name, count, least in (("k", k, 1), ("oversampling", oversampling, 0), ("max_rounds", max_rounds, 1)):
        _validation.require_size(name, count, least=least)
    if k > len(flat):
        raise ValueError(f"k: got {k}, expected at most N = {len(flat)}")
    _validation.require_key(key)
    if _validation.is_concrete(tolerance) and not tolerance > 0:
        raise ValueError(f"tolerance: got {tolerance}, expected a positive number")
    allowed = jnp.asarray(tolerance, flat.dtype)
    width = min(k + oversampling, len(flat))
    steps = jax.tree.map(lambda leaf: leaf[start:stop], (trajectory.previous, trajectory.inputs))

    def step_of(state, x):
        return ravel_pytree(state)[0], lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0]

    def push(rows, step):
        """Q_t and R_t of J_t Q_{t−1}ᵀ = Q_tᵀ R_t; how large J_t is, and how many entries of J_t Q_{t−1}ᵀ's columns."""
        h, f = step_of(*step)
        images = jax.vmap(lambda v: jvp(f, h, v)[1])(jnp.concatenate((rows, probe[None])))
        size = jnp.maximum(jnp.linalg.norm(images[:-1]), jnp.linalg.norm(images[-1]))
        alive = jnp.sum(jnp.any(images[:-1] != 0, axis=0))
        rows, r = _row_qr(images[:-1])
        return rows, (r, size, alive)

    def pull(carry, step):
        """The same backwards, for U J_t; and the first rows in coordinates of the present ones."""
        rows, coordinates, log_norm, log_carry = carry
        h, f = step_of(*step)
        pull = vjp(f, h)[1]
        rows, r = _row_qr(jax.vmap(pull)(rows))
        coordinates = r @ coordinates
        coordinates, log_length = _normalise(coordinates)
        return (rows, coordinates, *graded.add_compensated(log_norm, log_carry, log_length)), log_norm

    def one_round(state):
        basis, found = state
        rows, (chain, sizes, alive) = jax.lax.scan(push, basis, steps)
        left, log_sigma, right = _chain_svd(chain)
        log_before = _log_lengths(chain, right)
        left, right = left.T @ rows, right.T @ basis
        zeros = jnp.zeros(width, flat.dtype)
        carry = left, jnp.eye(width, dtype=flat.dtype), zeros, zeros
        (basis, coordinates, log_norm, log_carry), log_after = jax.lax.scan(pull, carry, steps, reverse=True)
        vanished = (log_norm == -jnp.inf) & (log_sigma == -jnp.inf)
        gap = jnp.where(vanished, 0, jnp.minimum((log_norm - log_sigma) + log_carry, LARGEST_GAP))
        error = jnp.linalg.norm(jnp.exp(gap)[:, None] * (coordinates.T @ basis) - right, axis=1)
        residual = jnp.where(vanished, 0, error)
        relative = residual + _rounding(log_sigma, jnp.log(sizes)[:, None] + log_after + log_before)
        relative = share_errors(log_sigma, jnp.where(jnp.isfinite(relative), relative, jnp.inf))
        error = jnp.where(relative < 1, -jnp.log1p(-jnp.minimum(relative, 1)), jnp.inf)
        # A step that leaves fewer entries of the state than there are directions: the rest is zero, whatever came out.
        zero = jnp.arange(width) >= jnp.min(alive)
        log_sigma = jnp.where(zero, -jnp.inf, jnp.where(error < jnp.inf, log_sigma, jnp.nan))
        error = jnp.where(zero, 0, error)
        found = log_sigma[:k], left[:k].T, right[:k].T, residual[:k], found.rounds + 1, error[:k]
        return basis, LeadingSVD(*found)

    def unfinished(state):
        _, found = state
        return (found.rounds < max_rounds) & ~jnp.all(found.residual <= allowed)

    drawn = jax.random.normal(key, (width + 1, len(flat)), flat.dtype)
    first, probe = _row_qr(drawn[:-1])[0], drawn[-1]  # ‖J probe‖² is ‖J‖_F² in the mean
    none, blank = jnp.full(k, jnp.inf, flat.dtype), jnp.zeros((len(flat), k), flat.dtype)
    nothing = first, LeadingSVD(none, blank, blank, none, jnp.asarray(0), none)
    return jax.lax.while_loop(unfinished, one_round, nothing)[1]


def _chain_svd(chain):
    """R_t … R_1 = U diag(e^log_sigma) Vᵀ as (U, log_sigma, V), at any range of scales. A chain that undoes its own
    expansion is not detected here: the residual, measured by another pass, shows it."""
    first = graded.identity(chain.shape[1], chain.dtype)
    factors, _ = jax.lax.scan(lambda factors, r: (graded.multiply(r, factors), None), first, chain)
    left, log_sigma, right = graded_svd(factors.log_scale + factors.log_carry, factors.t)
    return factors.q @ left, log_sigma, first.q @ right


def _log_lengths(chain, right):
    """ln‖R_s … R_1 v_i‖ before each step, s = 0 … t − 1, [T, p]."""

    def body(carry, r):
        vectors, log_length, log_carry = carry
        vectors, grown = _normalise(r @ vectors)
        return (vectors, *graded.add_compensated(log_length, log_carry, grown)), log_length

    zeros = jnp.zeros_like(right[0])
    return jax.lax.scan(body, (right, zeros, zeros), chain)[1]


def _normalise(vectors):
    """(columns of length 1, ln of their lengths); zero stays zero."""
    largest = jnp.max(jnp.abs(vectors), axis=0)  # squares may leave the float range
    length = largest * jnp.linalg.norm(vectors / jnp.where(largest > 0, largest, 1)[None, :], axis=0)
    return vectors / jnp.where(length == 0, 1, length)[None, :], jnp.log(length)


def _rounding(log_sigma, log_sizes):
    """What rounding did to each σ_i, relative to it: eps‖J_s‖ at every step, which u_iᵀ P(t, s) from the left and
    P(s − 1, 0) v_i from the right carry to u_iᵀ P v_i = σ_i.

    Lengths that rounding made too large, for directions far below the first, make it too large.
    """
    epsilon = jnp.finfo(log_sigma.dtype).eps
    known = jnp.isfinite(log_sigma)
    log_sigma = jnp.where(known, log_sigma, 0)
    log_kappas, most = log_sizes - log_sigma[None, :], -2 * jnp.log(epsilon)
    root, total = 0.5 * jax.nn.logsumexp(2 * log_kappas, axis=0), jax.nn.logsumexp(log_kappas, axis=0)
    kappa, drift = (jnp.where(known, jnp.exp(jnp.minimum(each, most)), 0) for each in (root, total))
    # Independent roundings add as a root; a part that equal steps repeat adds up.
    return epsilon * (FACTOR * kappa + DRIFT * drift + len(log_sizes) ** 0.5 + jnp.abs(log_sigma))


def _row_qr(rows):
    """(Q, R) with rowsᵀ = Qᵀ R, Q's rows orthonormal: Cholesky twice, 10 to 40 times as fast as LAPACK's Householder
    for long rows on two cores, and Householder where the rows are not orthonormal after that."""
    identity = jnp.eye(len(rows), dtype=rows.dtype)

    def cholesky_pass(_, factors):
        q, r = factors
        lower = jnp.linalg.cholesky(q @ q.T)
        return jax.scipy.linalg.solve_triangular(lower, identity, lower=True) @ q, lower.T @ r

    def householder():
        q, r = jnp.linalg.qr(rows.T)
        return q.T, r

    twice = jax.lax.fori_loop(0, 2, cholesky_pass, (rows, identity))
    departure = jnp.max(jnp.abs(twice[0] @ twice[0].T - identity))  # NaN where a pivot is not positive
    orthonormal = departure < ORTHONORMAL * jnp.finfo(rows.dtype).eps
    return jax.lax.cond(orthonormal, lambda: twice, householder)
