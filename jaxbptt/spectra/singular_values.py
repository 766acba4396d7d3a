"""All log singular values of dh_t/dh_0 = J_t … J_1, at any length and any magnitude.

An assembled product loses its small singular values after ln(1/eps)/(λ_1 − λ_n) steps. Here the product is carried as

    J_t … J_1 = Q diag(e^ℓ) T Q_0ᵀ        Q, Q_0 orthogonal, ℓ in logs, T well conditioned

one or two Householder QR steps per Jacobian, and only diag(e^ℓ) T is brought to singular values, row by row in logs, so
that nothing leaves the float range and every value keeps its own relative accuracy.

References: Stewart (1997), ETNA 5 (graded products); Demmel et al. (1999), LAA 299, and Drmač & Veselić (2008), SIMAX
29 (one-sided Jacobi); Bauer (2020), SciPost Phys. Core 2 (the U·D·T form and its column order).
"""

import jax
import jax.numpy as jnp

from jaxbptt import checks
from jaxbptt.spectra.graded import Factors, generic_orthogonal, multiply
from jaxbptt.spectra.jacobi import graded_log_singular_values


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
    zeros = jnp.zeros(size, dtype)
    factors = Factors(jnp.asarray(generic_orthogonal(size), dtype), zeros, zeros, jnp.eye(size, dtype=dtype))
    num_records = -(-length // every)
    records = jnp.zeros((num_records, size), dtype), jnp.zeros((num_records, size, size), dtype)

    def body(carry, step):
        factors, (log_scales, ts) = carry
        index, jacobian = step
        factors = multiply(jacobian, factors)
        slot = index // every  # each slot is overwritten until its last step
        scale = factors.log_scale + factors.log_carry
        return (factors, (log_scales.at[slot].set(scale), ts.at[slot].set(factors.t))), None

    steps = (jnp.arange(length), jacobians)
    (_, (log_scales, ts)), _ = jax.lax.scan(body, (factors, records), steps)
    values = jax.lax.map(lambda record: graded_log_singular_values(*record), (log_scales, ts))
    return jnp.where(jnp.all(jnp.isfinite(jacobians)), values, jnp.nan)
