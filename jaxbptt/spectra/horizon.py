"""How far the adjoint can be carried forward in time: what the spectrum says."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.spectra.statistics import LyapunovExponents
from jaxbptt.types import Scalar


class ErrorHorizon(NamedTuple):
    """Steps after which rounding has won, and their standard error from those of the exponents.

    Attributes:
      steps: scalar; inf: never.
      standard_error: scalar, steps.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> growth = spectra.lyapunov_exponents(jnp.tile(jnp.eye(2), (50, 1, 1)))  # nothing is forgotten
      >>> float(spectra.error_horizon(growth, jnp.float32).steps)
      inf
    """

    steps: Scalar
    standard_error: Scalar


def error_horizon(
    exponents: LyapunovExponents, dtype: Any, *, start: Literal["backward", "warm-up"] = "backward"
) -> ErrorHorizon:
    """T ≈ ln u/λ_N from an exact δ_1, ln u/(2 λ_N − λ_1) from a warm-up pass: the prediction for `propagate_errors`.

    Carried forward by J_t⁻ᵀ, a rounding error of relative size u grows like e^(−λ_N t), while δ_t does not grow. A
    warm-up pass ends in an error u e^(−λ_N T), which the product of all J_t takes back to the start as u e^((λ_1 −
    λ_N) T). Where nothing is forgotten (λ_N ≥ 0), never. The size of δ itself and constants are left out: a few nats,
    divided by the rate. Where losses stand at the end alone, δ grows as the errors do, and the horizon is later.

    Args:
      exponents: all N, from `lyapunov_exponents` or `stream_exponents`.
      dtype: float32 (u = 2⁻²⁴) or float64 (2⁻⁵³), of the pass that is asked about.
      start: as in `gradients.propagate_errors`.

    Returns:
      ErrorHorizon, of the dtype of exponents; 0 steps where λ_N = −inf, NaN where an exponent is.

    Raises:
      TypeError: exponents that are no LyapunovExponents; a dtype that is no real float.
      ValueError: exponents of a batch, or fewer than N; an unknown start.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> growth = spectra.lyapunov_exponents(jnp.tile(jnp.diag(jnp.array([1.0, 0.5])), (50, 1, 1)))  # a bit a step
      >>> [round(float(spectra.error_horizon(growth, dtype).steps)) for dtype in (jnp.float32, jnp.float64)]
      [24, 53]

    Reference: Zucchet et al. (2026), "Forward propagation of errors through time".
    """
    _validation.require_type("exponents", exponents, LyapunovExponents, "LyapunovExponents")
    _validation.require_choice("start", start, ("backward", "warm-up"))
    shape = list(jnp.shape(exponents.exponents))
    if len(shape) != 1:
        raise ValueError(f"exponents: got shape {shape}, expected [N] (one chain)")
    if _validation.is_concrete(exponents.size) and shape[0] != int(exponents.size):
        raise ValueError(f"exponents: got {shape[0]} of N = {int(exponents.size)}, expected all: k = N")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype: got {jnp.dtype(dtype)}, expected a real float dtype")
    log_roundoff = jnp.log(jnp.asarray(float(jnp.finfo(dtype).eps) / 2, exponents.exponents.dtype))
    first, last = exponents.exponents[0], exponents.exponents[-1]
    of_first, of_last = exponents.standard_error[0], exponents.standard_error[-1]
    if start == "backward":
        rate, error = -last, of_last
    else:
        # Of one exponent alone the two errors are one.
        both = jnp.abs(2 * of_last - of_first) if shape[0] == 1 else jnp.hypot(2 * of_last, of_first)
        rate, error = jnp.where(last == -jnp.inf, jnp.inf, first - 2 * last), both
    steps = jnp.where(rate > 0, -log_roundoff / rate, jnp.where(jnp.isnan(rate), jnp.nan, jnp.inf))
    spread = jnp.where(jnp.isfinite(steps) & (steps > 0), steps * error / rate, jnp.zeros_like(steps))
    return ErrorHorizon(steps, jnp.where(jnp.isnan(steps), jnp.nan, spread))
