"""What the norms of single steps, and W alone, say about vanishing and exploding, beside what happened."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.spectra.diagnosis import describe
from jaxbptt.spectra.singular_values import log_singular_values
from jaxbptt.types import ArrayLike, Scalar


class Bounds(NamedTuple):
    """Natural logs. log_step_minima[-1] ≤ log_smallest ≤ log_norm[-1]; log_norm ≤ log_step_norms ≤ t · log_gamma_sigma.

    The last inequality needs J_t = diag(φ'_t) W with |φ'_t| ≤ γ. `log_gamma_radius` is no upper bound, and a
    lower one only where J_t = W.

    Attributes:
      log_norm: [T], ln σ_1(dh_t/dh_0).
      log_smallest: scalar, ln σ_N(dh_T/dh_0); NaN where `log_singular_values` cannot tell.
      log_condition: scalar, ln σ_1 − ln σ_N of dh_T/dh_0; inf where σ_N = 0.
      log_step_norms: [T], Σ_{s≤t} ln σ_1(J_s), an upper bound.
      log_step_minima: [T], Σ_{s≤t} ln σ_N(J_s), a lower bound on every singular value of dh_t/dh_0.
      log_gamma_sigma: scalar, ln γ σ_max(W), per step; NaN without W.
      log_gamma_radius: scalar, ln γ ρ(W), per step: no bound; NaN without W.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> chain = jnp.tile(jnp.array([[0.1, 5.0], [0.0, 0.1]]), (3, 1, 1))  # ρ(J) = 0.1
      >>> found = spectra.bounds(chain)
      >>> bool(found.log_norm[0] > 0), bool((found.log_norm <= found.log_step_norms + 1e-5).all())  # up, then down
      (True, True)
      >>> found.diagnosis()[0].split(":")[0]
      'The gradient vanished'
    """

    log_norm: Float[Array, " time"]
    log_smallest: Scalar
    log_condition: Scalar
    log_step_norms: Float[Array, " time"]
    log_step_minima: Float[Array, " time"]
    log_gamma_sigma: Scalar
    log_gamma_radius: Scalar

    def diagnosis(self) -> list[str]:
        """What the bounds allowed, what happened, and what an assembled product has lost, one sentence each.

        Returns:
          A list of sentences about one chain; not under jit.

        Raises:
          TypeError, ValueError: traced fields; fields of a batch of chains.

        Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063; X1 to X4 (eigenvalues and norms).
        """
        return describe(self)


def bounds(
    jacobians: Float[ArrayLike, "time state state"],
    *,
    weight: Float[ArrayLike, "state state"] | None = None,
    slope: float | Scalar | None = None,
) -> Bounds:
    """‖J_t … J_1‖ against its bounds Π‖J_s‖ and, for J_s = diag(φ'_s) W with |φ'_s| ≤ γ, (γ σ_max(W))ᵗ.

    γ σ_max(W) < 1 suffices for vanishing, so γ σ_max(W) > 1 is necessary for exploding; neither converse holds. The
    spectral radius ρ(W) in place of σ_max gives no bound: with ρ(W) = 0 the norm can still grow. `log_norm` comes from
    the running product, rescaled at every step: its largest singular value stays accurate, the others do not.

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float32 or float64.
      weight: W [N, N], the recurrent matrix, if J_t = diag(φ'_t) W; None: the fields that need it are NaN.
      slope: γ = sup|φ'|, a scalar ≥ 0; only with weight; None: 1 (tanh, ReLU, identity; the logistic function has ¼).

    Returns:
      Bounds of the dtype of jacobians; the log of a zero product is −inf, never NaN. float64: norms to 1e-12 per step,
      the smallest values as accurate as in `log_singular_values`. Under jit, NaN throughout if jacobians, weight or
      slope are not finite; log_norm is NaN throughout if it disagrees with `log_singular_values` at T. ρ(W) comes from
      `jnp.linalg.eigvals`, which works under jit on a CPU and, in recent JAX, on a GPU. For an m × m Jordan block at 0
      rounding leaves it near eps^(1/m) ‖W‖.

    Raises:
      TypeError: jacobians that are no array of real floats; a weight of another dtype.
      ValueError: jacobians that are not [T, N, N]; a weight that is not [N, N]; a slope without weight, or not a
        finite scalar ≥ 0; outside jit, NaN or inf, with its first step.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> weight = jnp.array([[0.0, 5.0], [0.0, 0.0]])  # its only eigenvalue is zero
      >>> found = spectra.bounds(jnp.tile(weight, (3, 1, 1)), weight=weight)
      >>> print(jnp.exp(found.log_norm).round(3), found.log_gamma_radius)  # it grows all the same
      [5. 0. 0.] -inf

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063; X1 to X4 (eigenvalues and norms).
    """
    jacobians = _validation.take_jacobians(jacobians)
    if weight is not None:
        _validation.require_state("weight", weight, jax.ShapeDtypeStruct(jacobians.shape[1:], jacobians.dtype))
    elif slope is not None:
        raise ValueError("slope: got one without weight, expected both or neither")
    if slope is not None and _validation.is_concrete(slope) and not (np.ndim(slope) == 0 and 0 <= slope < np.inf):
        raise ValueError(f"slope: got {slope}, expected a finite scalar ≥ 0")
    ends = log_singular_values(jacobians)[0]
    log_norm = _log_norms_of_products(jacobians)
    log_norm = jnp.where(_agree(log_norm[-1], ends), log_norm, jnp.nan)
    largest, smallest = jax.lax.map(_log_extremes, jacobians)
    gamma = jnp.asarray(1 if slope is None else slope, jacobians.dtype)
    if weight is None:
        log_gamma_sigma = log_gamma_radius = jnp.full((), jnp.nan, jacobians.dtype)
    else:
        log_gamma_sigma = jnp.log(gamma) + _log_spectral_norm(weight)
        log_gamma_radius = jnp.log(gamma) + _log_radius(weight)
    result = Bounds(
        log_norm=log_norm,
        log_smallest=ends[-1],
        log_condition=jnp.where(ends[-1] == -jnp.inf, jnp.inf, ends[0] - ends[-1]),
        log_step_norms=jnp.cumsum(largest),
        log_step_minima=jnp.cumsum(smallest),
        log_gamma_sigma=log_gamma_sigma,
        log_gamma_radius=log_gamma_radius,
    )
    given = [jacobians] if weight is None else [jacobians, weight, gamma]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in given]))
    return Bounds(*(jnp.where(finite, field, jnp.nan) for field in result))


def _log_norms_of_products(jacobians):
    """ln σ_1(J_t … J_1) for every t, [T]: the product rescaled to entries of at most 1, its scale summed in logs."""

    def body(product, jacobian):
        jacobian, log_first = _rescale(jacobian)
        product, log_second = _rescale(jacobian @ product)
        return product, (log_first + log_second, _log_spectral_norm(product))

    _, (log_scales, log_norms) = jax.lax.scan(body, jnp.eye(jacobians.shape[1], dtype=jacobians.dtype), jacobians)
    return jnp.cumsum(log_scales) + log_norms


def _rescale(matrix):
    """(matrix / c, ln c), c = max|entry|; a zero matrix stays, with −inf."""
    scale = jnp.max(jnp.abs(matrix))
    return matrix / jnp.where(scale > 0, scale, 1), jnp.log(scale)


def _log_spectral_norm(matrix):
    matrix, log_scale = _rescale(matrix)
    return log_scale + jnp.log(jnp.maximum(1, jnp.linalg.svd(matrix, compute_uv=False)[0]))  # ≥ 1 up to rounding


def _log_radius(matrix):
    matrix, log_scale = _rescale(matrix)
    return log_scale + jnp.log(jnp.max(jnp.abs(jnp.linalg.eigvals(matrix))))


def _log_extremes(jacobian):
    """(ln σ_1, ln σ_N) of one J. LAPACK's σ_N is accurate to eps σ_1 only; where that is too coarse, graded factors."""
    scaled, log_scale = _rescale(jacobian)
    values = jnp.linalg.svd(scaled, compute_uv=False)
    clear = values[-1] > jnp.finfo(values.dtype).eps ** (1 / 3) * values[0]
    smallest = jax.lax.cond(
        clear,
        lambda: log_scale + jnp.log(values[-1]),
        lambda: log_singular_values(jacobian[None])[0, -1],
    )
    return log_scale + jnp.log(jnp.maximum(1, values[0])), smallest


def _agree(log_norm, ends):
    """Whether two routes to ln σ_1(dh_T/dh_0) agree; they do not if the chain undoes its own expansion."""
    size = jnp.max(jnp.where(jnp.isfinite(ends), jnp.abs(ends), 0))
    close = jnp.abs(log_norm - ends[0]) <= jnp.finfo(ends.dtype).eps ** 0.5 * jnp.maximum(1, size)
    return close | (log_norm == ends[0])
