"""All log singular values of dh_t/dh_k = J_t … J_{k+1}, and their directions, at any length and any magnitude.

An assembled product loses its small singular values after ln(1/eps)/(λ_1 − λ_N) steps. Here the product is carried as

    J_t … J_{k+1} = Q diag(e^ℓ) T Q_0ᵀ        Q, Q_0 orthogonal, ℓ in logs, T well conditioned

by one or two Householder QR steps per Jacobian. Only diag(e^ℓ) T is decomposed, row by row in logs, so that nothing
leaves the float range and every value keeps its own relative accuracy.

References: Stewart (1997), ETNA 5 (graded products); Demmel et al. (1999), LAA 299, and Drmač & Veselić (2008), SIMAX
29 (one-sided Jacobi); Bauer (2020), SciPost Phys. Core 2 (the U·D·T form and its column order).
"""

import warnings
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.spectra.products import graded
from jaxbptt.spectra.products.jacobi import graded_svd
from jaxbptt.spectra.products.parallel import prefix_factors
from jaxbptt.types import ArrayLike, ProductMethod

SUSPECT = 2 / 3  # above an estimated error of eps^SUSPECT (4e-11, 2e-5) the transposed, reversed chain is factored too
METHODS = get_args(ProductMethod)


class LogSVD(NamedTuple):
    """dh_t/dh_start = left diag(e^log_sigma) rightᵀ at each of R records."""

    log_sigma: Float[Array, "records state"]  # descending; NaN where the chain is too ill-conditioned to tell
    left: Float[Array, "records state columns"]  # columns: directions at t
    right: Float[Array, "records state columns"]  # columns: directions at `start`
    disagreement: Float[Array, "records state"]  # nats from the transposed, reversed chain's; 0 where it was not needed


def log_singular_values(
    jacobians: Float[ArrayLike, "time state state"],
    *,
    every: int | None = None,
    start: int = 0,
    stop: int | None = None,
    method: ProductMethod = "auto",
) -> Float[Array, "records state"]:
    """ln σ_i(dh_t/dh_start), i = 1 … N, dh_t/dh_start = J_t … J_{start+1}.

    One `lax.scan` over time, about 5N³ flops per step, then a Jacobi SVD per record. Where a zero row, a zero column or
    an exactly zero pivot removes a direction, its value is −inf from then on, never NaN and never clamped; any other
    loss of rank may stay finite at rounding level. A chain that undoes its own expansion (A³⁰ then A⁻³⁰) is
    ill-conditioned for any such method. Where rounding may have grown that much, the transposed, reversed chain is
    factored too; values on which the two differ by more than √eps · max(1, |ln σ|) are NaN, with a warning outside jit.
    Not differentiable in reverse mode (see `log_growth`).

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float.
      every: k, static: record at t = start + k, start + 2k, … and at stop; None: at stop only.
      start, stop: static ints, 0 ≤ start < stop ≤ T; stop None: T.
      method: "sequential", "parallel" (blocks of about √(steps) factored side by side and joined by a logarithmic scan:
        several times the work), or "auto": parallel except on a CPU.

    Returns:
      [R, N] in nats, descending, R = ⌈(stop − start)/k⌉ (1 for None), of the dtype of jacobians. float64: error below
      1e-9 for ranges to 10^±2000 (1e-8 by the parallel method), but up to 3e-8 measured where a chain undoes 20 nats of
      its own expansion; float32: below 2e-5 · max(1, max|ln σ|), ten times that for LSTM chains. Under jit, NaN
      throughout if any Jacobian is not finite.

    Raises:
      TypeError, ValueError: jacobians, span or method not as stated; `every` not an int ≥ 1; outside jit, NaN or inf,
        with its first step.
    """
    return _decompose(jacobians, every, start, stop, method, directions=False).log_sigma


def singular_decomposition(
    jacobians: Float[ArrayLike, "time state state"],
    *,
    every: int | None = None,
    start: int = 0,
    stop: int | None = None,
    method: ProductMethod = "auto",
) -> LogSVD:
    """dh_t/dh_start = left diag(e^log_sigma) rightᵀ: `log_singular_values` with the directions.

    A change of h_start along right[:, i] becomes a change of h_t along left[:, i], scaled by e^log_sigma[i]. Directions
    of values closer than δ in log are determined only to about eps/δ.

    Args:
      jacobians, every, start, stop, method: as in `log_singular_values`.

    Returns:
      LogSVD; left and right are orthogonal to rounding, also where a value is −inf.

    Raises:
      TypeError, ValueError: as `log_singular_values`.
    """
    return _decompose(jacobians, every, start, stop, method, directions=True)


def _decompose(
    jacobians: ArrayLike, every: int | None, start: int, stop: int | None, method: ProductMethod, directions: bool
) -> LogSVD:
    jacobians = _validation.take_jacobians(jacobians)
    if jacobians.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"jacobians: got {jacobians.dtype}, expected float32 or float64")
    _validation.require_choice("method", method, METHODS)
    start, stop = _validation.require_span(start, stop, len(jacobians))
    if start == stop:
        raise ValueError(f"start: got {start} = stop, expected start < stop")
    if every is not None:
        _validation.require_size("every", every)
    every = stop - start if every is None else min(every, stop - start)
    if method == "auto":
        method = "sequential" if jax.default_backend() == "cpu" else "parallel"
    chain = jnp.asarray(jacobians)[start:stop]
    factors = prefix_factors(chain, every) if method == "parallel" else _scan_factors(chain, every, directions)
    suspicious = factors.log_error > SUSPECT * np.log(jnp.finfo(chain.dtype).eps)
    mirrored = _mirrored_factors(chain, every, suspicious)
    # One record after the other through one finish, which is compiled once.
    records = jax.tree.map(lambda *both: jnp.concatenate(both), _kept(factors, False), mirrored)
    wanted = jnp.concatenate((jnp.ones_like(suspicious), suspicious))
    left, log_sigma, right = jax.lax.map(lambda at: _finish(at[0], at[1], directions), (wanted, records))
    count = len(suspicious)
    left, right, log_sigma, mirrored = left[:count], right[:count], log_sigma[:count], log_sigma[count:]
    if directions:
        left = factors.q @ left
        right = jnp.asarray(graded.generic_orthogonal(chain.shape[1]), chain.dtype) @ right
    same = (mirrored == log_sigma) | ~suspicious[:, None]  # −inf beside −inf
    disagreement = jnp.where(same, 0, jnp.abs(mirrored - jnp.where(same, 0, log_sigma)))
    allowed = float(jnp.finfo(chain.dtype).eps) ** 0.5 * jnp.maximum(1, jnp.abs(log_sigma))
    _warn(disagreement, allowed, start, every, stop)
    finite = jnp.all(jnp.isfinite(chain))
    log_sigma = jnp.where(finite & ~(disagreement > allowed), log_sigma, jnp.nan)
    left, right = (jnp.where(finite, basis, jnp.nan) for basis in (left, right))
    return LogSVD(log_sigma, left, right, disagreement)


def _scan_factors(chain, every, directions):
    """The factors at every record, [R, ...], by one scan."""
    length, size, _ = chain.shape

    def body(carry, step):
        factors, records = carry
        index, jacobian = step
        factors = graded.multiply(jacobian, factors)
        # Each record is overwritten until its last step.
        records = jax.tree.map(lambda all_, one: all_.at[index // every].set(one), records, _kept(factors, directions))
        return (factors, records), None

    factors, count = graded.identity(size, chain.dtype), -(-length // every)
    records = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), _kept(factors, directions))
    return jax.lax.scan(body, (factors, records), (jnp.arange(length), chain))[0][1]


def _kept(factors, directions):
    """What a record needs: Q only for directions."""
    return factors._replace(q=factors.q if directions else factors.q[..., :0], log_lead=factors.log_lead[..., :0])


def _mirrored_factors(chain, every, suspicious):
    """The factors of the transposed, reversed chain at every suspicious record, [R, ...]."""
    length, size, _ = chain.shape
    fresh = graded.identity(size, chain.dtype, seed=1)  # another Q_0: a palindromic chain is its own reverse

    def visit(record):
        suspicious, stop = record

        def body(factors, step):
            index, jacobian = step
            return jax.lax.cond(index < stop, graded.multiply, lambda _, f: f, jacobian.T, factors), None

        def factorise():
            return jax.lax.scan(body, fresh, (jnp.arange(length), chain), reverse=True)[0]

        return _kept(jax.lax.cond(suspicious, factorise, lambda: fresh), False)

    return jax.lax.map(visit, (suspicious, jnp.minimum(every * jnp.arange(1, len(suspicious) + 1), length)))


def _finish(wanted, factors, directions):
    """(U, ln σ, V) of diag(e^ℓ) T, or placeholders of their shapes where not wanted."""
    scale, t = factors.log_scale + factors.log_carry, factors.t
    basis = jnp.zeros_like(t if directions else t[:, :0])
    svd = lambda: graded_svd(scale, t, directions=directions)
    return jax.lax.cond(wanted, svd, lambda: (basis, scale, basis))


def _warn(disagreement, allowed, start, every, stop):
    """Outside jit, warn which record is the first ill-conditioned one, and by how much."""
    if not (_validation.is_concrete(disagreement) and _validation.is_concrete(allowed)):
        return
    bad = np.asarray(disagreement > allowed)
    if bad.any():
        record = int(bad.any(axis=1).argmax())
        t, worst = min(start + (record + 1) * every, stop), float(np.asarray(disagreement)[record].max())
        message = (
            f"jacobians: the chain to t = {t} undoes its own expansion; {bad[record].sum()} of {bad.shape[1]} values"
            f" are NaN, because the transposed, reversed chain gives others by up to {worst:.1g} nats"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=4)
