"""What step norms and W alone say about vanishing and exploding, beside what happened."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import checks
from jaxbptt.spectra.singular_values import log_singular_values

HELD = 1.0  # nats over the second half of the chain up to which a norm counts as neither vanishing nor exploding


class Bounds(NamedTuple):
    """Natural logs. log_step_minima[-1] ≤ log_smallest ≤ log_norm[-1]; log_norm ≤ log_step_norms ≤ t · log_gamma_sigma.

    The last holds where J_t = diag(φ'_t) W with |φ'_t| ≤ γ. `log_gamma_radius` bounds nothing unless J_t = W.
    """

    log_norm: jax.Array  # [T] ln σ_1(dh_t/dh_0)
    log_smallest: jax.Array  # [] ln σ_N(dh_T/dh_0); NaN where `log_singular_values` cannot tell
    log_condition: jax.Array  # [] ln σ_1 − ln σ_N of dh_T/dh_0; inf where σ_N = 0
    log_step_norms: jax.Array  # [T] Σ_{s≤t} ln σ_1(J_s), an upper bound
    log_step_minima: jax.Array  # [T] Σ_{s≤t} ln σ_N(J_s), a lower bound on every singular value of dh_t/dh_0
    log_gamma_sigma: jax.Array  # [] ln γ σ_max(W), per step; NaN without W
    log_gamma_radius: jax.Array  # [] ln γ ρ(W), per step: no bound; NaN without W

    def diagnosis(self) -> list[str]:
        """What the bounds allowed, what happened, and what an assembled product has lost; a sentence each.

        Returns:
          Sentences, of one chain, eager.

        Raises:
          TypeError, ValueError: traced fields; fields of a batch of chains.

        Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063; X1 to X4.
        """
        if not all(checks.is_concrete(field) for field in self):
            raise TypeError("bounds: got traced arrays, expected concrete ones (call diagnosis outside jit)")
        if np.ndim(self.log_norm) != 1:
            raise ValueError(f"log_norm: got shape {list(np.shape(self.log_norm))}, expected [T] (one chain)")
        if np.isnan(self.log_norm).any():
            return ["The norms are not known (NaN in the Jacobians, or a chain that undoes its own expansion)."]
        found = Bounds(*(np.asarray(field, np.float64) for field in self))
        digits = -np.log10(np.finfo(self.log_norm.dtype).eps)
        lines = [_what_happened(found.log_norm), *_transient(found.log_norm)]
        if not np.isnan(found.log_gamma_sigma):
            lines += _what_the_weight_says(found)
        return [*lines, _looseness(found), _what_a_product_loses(found, digits)]


def bounds(jacobians: jax.Array, *, weight: jax.Array | None = None, slope: Any = None) -> Bounds:
    """‖J_t … J_1‖ against its bounds Π‖J_s‖ and, for J_s = diag(φ'_s) W with |φ'_s| ≤ γ, (γ σ_max(W))ᵗ.

    γ σ_max(W) < 1 suffices for vanishing, so γ σ_max(W) > 1 is necessary for exploding; neither converse holds. The
    spectral radius in place of σ_max gives no bound: with ρ(W) = 0 the norm can still grow. `log_norm` comes from the
    running product, rescaled at every step, whose largest singular value (not its others) keeps its accuracy.

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float32 or float64.
      weight: W [N, N], the recurrent matrix, if the cell is diag(φ') W; None: what needs it is NaN.
      slope: γ = sup|φ'|, a scalar ≥ 0; only with weight; None: 1 (tanh, ReLU, identity; the logistic function has ¼).

    Returns:
      Bounds of the dtype of jacobians; a zero product is −inf, never NaN. float64: norms to 1e-12 a step, the smallest
      values as `log_singular_values`. Under jit, NaN throughout if jacobians, weight or slope are not finite, and
      log_norm NaN throughout if at T it and `log_singular_values` disagree. ρ(W) is by `jnp.linalg.eigvals`, which jits
      on CPU and, in recent JAX, on GPU; rounding leaves it near eps^(1/m) ‖W‖ for an m × m Jordan block at 0.

    Raises:
      TypeError, ValueError: an argument not as stated; slope without weight; outside jit, NaN or inf.

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063; X1 to X4.
    """
    checks.require_jacobians(jacobians)
    if weight is not None:
        checks.require_state("weight", weight, jax.ShapeDtypeStruct(jacobians.shape[1:], jacobians.dtype))
    elif slope is not None:
        raise ValueError("slope: got one without weight, expected both or neither")
    if slope is not None and checks.is_concrete(slope) and not (np.ndim(slope) == 0 and 0 <= slope < np.inf):
        raise ValueError(f"slope: got {slope}, expected a finite scalar ≥ 0")
    ends = log_singular_values(jacobians)[0]
    jacobians = jnp.asarray(jacobians)
    log_norm = _log_norms_of_products(jacobians)
    log_norm = jnp.where(_agree(log_norm[-1], ends), log_norm, jnp.nan)
    largest, smallest = jax.lax.map(_log_extremes, jacobians)
    if weight is None:
        log_gamma_sigma = log_gamma_radius = jnp.full((), jnp.nan, jacobians.dtype)
    else:
        gamma = jnp.asarray(1 if slope is None else slope, jacobians.dtype)
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
    return log_scale + jnp.log(jnp.maximum(1, jnp.linalg.svd(matrix, compute_uv=False)[0]))  # ≥ 1 but for rounding


def _log_radius(matrix):
    matrix, log_scale = _rescale(matrix)
    return log_scale + jnp.log(jnp.max(jnp.abs(jnp.linalg.eigvals(matrix))))


def _log_extremes(jacobian):
    """(ln σ_1, ln σ_N) of one J. LAPACK's σ_N is right to eps σ_1 only: where that is much of it, a graded route."""
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


def _what_happened(log_norm):
    length, end = len(log_norm), log_norm[-1]
    if end == -np.inf:
        return f"The gradient vanished exactly: dh_t/dh_0 = 0 from t = {np.argmin(log_norm) + 1} on."
    half = length // 2
    change = end - (log_norm[half - 1] if half else 0)
    verdict = "neither vanished nor exploded" if abs(change) <= HELD else "vanished" if change < 0 else "exploded"
    return (
        f"The gradient {verdict}: ‖dh_T/dh_0‖ = {_number(end)} at T = {length}, "
        f"{change / (length - half):+.3g} nats a step over the second half."
    )


def _transient(log_norm):
    peak = int(np.argmax(log_norm))
    if log_norm[peak] <= max(0, log_norm[-1]) + HELD:
        return []
    fall = f"{log_norm[peak] - log_norm[-1]:.3g} nats above its end"
    return [f"Transient growth: ‖dh_t/dh_0‖ reached {_number(log_norm[peak])} at t = {peak + 1}, {fall}."]


def _what_the_weight_says(found):
    log_sigma, log_radius, steps = found.log_gamma_sigma, found.log_gamma_radius, np.diff(found.log_step_norms)
    steps = np.concatenate((found.log_step_norms[:1], steps))
    sigma = f"γ·σ_max(W) = {_number(log_sigma)}"
    rounding = 1e-5 * max(1, np.abs(found.log_step_norms[np.isfinite(found.log_step_norms)]).max(initial=0))
    if np.nanmax(steps) > log_sigma + rounding:
        t = int(np.nanargmax(steps)) + 1
        return [
            f"{sigma} bounds nothing here: ‖J_{t}‖ = {_number(steps[t - 1])} exceeds it, so the Jacobians are not "
            "diag(φ') W with |φ'| ≤ γ (wrong weight or slope)."
        ]
    grew, end = np.max(found.log_norm) > 0, found.log_norm[-1]
    if log_sigma < 0:
        lines = [
            f"{sigma} < 1, sufficient for vanishing: every dh_t/dh_k shrinks by at least {-log_sigma:.3g} nats a step."
        ]
    elif log_sigma > 0:
        failed = " (here it shrank)" if end < -HELD else ""
        lines = [f"{sigma} > 1, necessary for exploding but not sufficient: it may shrink all the same{failed}."]
    else:
        lines = [f"{sigma}: no norm exceeds 1, so nothing can explode; whether it vanishes is open."]
    radius = f"γ·ρ(W) = {_number(log_radius)}"
    if log_radius < 0 and grew:
        t = int(np.argmax(found.log_norm)) + 1
        lines.append(f"{radius} < 1 is no bound: ‖dh_{t}/dh_0‖ = {_number(found.log_norm[t - 1])} exceeds 1.")
    elif log_radius > 0 and end < -HELD:
        lines.append(f"{radius} > 1 is no bound from below: the gradient shrank.")
    else:
        lines.append(f"{radius} is no bound, whatever it suggests here.")
    return lines


def _looseness(found):
    length, end = len(found.log_norm), found.log_norm[-1]
    if end == -np.inf:
        return f"Π‖J_t‖ = {_number(found.log_step_norms[-1])} where the truth is 0."
    gap = max(0, found.log_step_norms[-1] - end)
    weight = np.maximum(0, length * found.log_gamma_sigma - end)  # NaN without W
    by_weight = "" if np.isnan(weight) else f", (γ σ_max(W))^T {weight:.3g} ({weight / length:.3g} a step)"
    return f"At T, Π‖J_t‖ is {gap:.3g} nats above the truth ({gap / length:.3g} a step){by_weight}."


def _what_a_product_loses(found, digits):
    if np.isnan(found.log_condition):
        return "The condition of dh_T/dh_0 cannot be told: the chain undoes its own expansion."
    if found.log_condition == np.inf:
        return "dh_T/dh_0 is singular: its smallest singular value is exactly 0."
    lost = found.log_condition / np.log(10)
    kept = f"about {lost:.1f} of {digits:.1f} digits" if lost < digits else f"all {digits:.1f} digits"
    return (
        f"ln σ_1 − ln σ_N = {found.log_condition:.4g} at T: an assembled product has lost {kept} of its smallest "
        "singular value."
    )


def _number(log):
    """e^log in words, of any size."""
    if log == -np.inf:
        return "0"
    return f"{np.exp(log):.4g}" if abs(log) < 12 else f"10^{log / np.log(10):.1f}"
