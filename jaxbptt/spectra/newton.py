"""Whether the forward pass in parallel over time pays, before it is run: what the largest exponent says."""

from typing import Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from jaxbptt import _validation
from jaxbptt.spectra.statistics import LyapunovExponents, student_quantile

NewtonVerdict: TypeAlias = Literal["pays", "does not pay", "cannot tell"]
FORGOTTEN, REMEMBERED = 10.0, 1.0  # nats by which a perturbation shrinks over the T steps


class NewtonOutlook(NamedTuple):
    """What to expect of `trajectories.unroll(…, method="newton")` over T steps.

    Attributes:
      verdict: "pays", "does not pay" or "cannot tell".
      reason: one sentence.
      lower, upper: where λ_1 lies, with its errors, in nats per step.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> growth = spectra.lyapunov_exponents(jnp.tile(2 * jnp.eye(2), (50, 1, 1)))
      >>> outlook = spectra.newton_outlook(growth, 1000)
      >>> outlook.verdict, round(outlook.lower, 3), round(outlook.upper, 3)  # ln 2, a constant chain without errors
      ('does not pay', 0.693, 0.693)
    """

    verdict: NewtonVerdict
    reason: str
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"In parallel, Newton's method {self.verdict}: {self.reason}"


def newton_outlook(exponents: LyapunovExponents, length: int) -> NewtonOutlook:
    """Whether Newton's iterations are few against T: they are where a perturbation is forgotten within the sequence.

    Newton's method on all steps at once needs a number of iterations that does not depend on T where λ_1 is well below
    zero, and one that grows with T, up to T itself, where it is near or above zero. Over T steps a perturbation shrinks
    by −λ_1 T nats. At least 10: it pays. Less than 1, or it grows: it does not pay. Between the two, or where the
    errors of λ_1 reach over a border: cannot tell.

    Args:
      exponents: of one chain, from `lyapunov_exponents` or `stream_exponents`; k = 1 is enough.
      length: T ≥ 1, the steps to be unrolled.

    Returns:
      NewtonOutlook; `str` of it is a sentence. lower and upper are λ_1 ∓ the half width of its 95 % interval, its error
      of the warm-up and its error of rounding.

    Raises:
      TypeError: exponents that are no LyapunovExponents, or traced; a length that is no int.
      ValueError: exponents of a batch; a length below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> growth = spectra.lyapunov_exponents(jnp.tile(0.5 * jnp.eye(2), (50, 1, 1)))  # λ_1 = −ln 2
      >>> [spectra.newton_outlook(growth, length).verdict for length in (1, 5, 1000)]
      ['does not pay', 'cannot tell', 'pays']

    Reference: Gonzalez et al. (2025), arXiv:2508.16817; Lim et al. (2024), arXiv:2309.12252.
    """
    _validation.require_type("exponents", exponents, LyapunovExponents, "LyapunovExponents")
    _validation.require_size("length", length)
    if not all(map(_validation.is_concrete, jax.tree.leaves(exponents))):
        raise TypeError("exponents: got traced arrays, expected concrete ones (call newton_outlook outside jit)")
    if np.ndim(exponents.exponents) != 1:
        raise ValueError(f"exponents: got shape {list(np.shape(exponents.exponents))}, expected [k] (one chain)")
    largest = float(exponents.exponents[0])
    half = student_quantile(0.95, exponents.degrees_of_freedom)[0] * exponents.standard_error[0]
    error = 0.0 if largest == -np.inf else float(half + exponents.warm_up_error[0] + exponents.rounding_error[0])
    lower, upper = largest - error, largest + error
    if not lower <= upper:
        return NewtonOutlook(
            "cannot tell", "λ_1 or its error is not known (NaN): a longer chain may tell.", lower, upper
        )
    said = f"λ_1 = {largest:.4f} ± {error:.4f} nats per step"
    if -upper * length >= FORGOTTEN:
        reason = f"{said}: a perturbation is forgotten within the {length} steps, and iterations do not grow with T."
        return NewtonOutlook("pays", reason, lower, upper)
    if -lower * length < REMEMBERED:
        reason = f"{said}: a perturbation lasts for all {length} steps, and iterations grow with T."
        return NewtonOutlook("does not pay", reason, lower, upper)
    reason = (
        f"{said}: over {length} steps a perturbation shrinks by {-upper * length:.1f} to {-lower * length:.1f} nats."
    )
    return NewtonOutlook("cannot tell", reason, lower, upper)
