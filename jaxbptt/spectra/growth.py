"""The growth of volumes along a chain, step by step, for use in a training loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.spectra.frame_errors import LIMIT, error_of_sums, follow, no_rounding
from jaxbptt.spectra.products.graded import generic_orthogonal
from jaxbptt.types import ArrayLike


def log_growth(jacobians: Float[ArrayLike, "time state state"], *, k: int | None = None) -> Float[Array, "time k"]:
    """ln|r_ii(t)| with J_t Q_{t−1} = Q_t R_t: the sum of the first i is what step t adds to the log of an i-volume.

    Their mean over t is λ_i, and the sum over all i is ln|det J_t|. They are differentiable in both modes through every
    step, so that a loss can hold exponents near zero. The derivative is exact for this T, but the derivative of a
    finite-time exponent of a chaotic chain grows like e^(λ_1 t): beyond a horizon of a few 1/λ_1 steps it says nothing
    about the limit of the exponent. Train on windows shorter than that. A singular step has no derivative (NaN).

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float.
      k: how many leading directions, static; None: all N.

    Returns:
      [T, k] in nats, of the dtype of jacobians; Q_0 is a fixed generic orthogonal matrix. NaN for a direction whose
      mean rounding may have moved by more than 0.001 nats per step (a chain that undoes its own expansion), as far as
      the k directions show: k = N shows all.

    Raises:
      TypeError: jacobians that are no array of real floats; a k that is no int.
      ValueError: jacobians that are not [T, N, N]; a k outside 1 … N; outside jit, NaN or inf, with its first step.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> chain = jnp.tile(jnp.diag(jnp.array([2.0, 0.25])), (10, 1, 1))
      >>> exponents = lambda gain: spectra.log_growth(gain * chain).mean(axis=0)
      >>> round(float(exponents(1.0).sum()), 3)  # ln|det J| = ln ½
      -0.693
      >>> print(jax.jacrev(exponents)(2.0).round(3))  # d ln(gain)/d(gain)
      [0.5 0.5]

    Reference: Engelken (2023), NeurIPS 36 (gradient flossing); Walter & Lehmann (2013), arXiv:1001.1654 (derivative of
    a QR factorisation).
    """
    jacobians = _validation.take_jacobians(jacobians)
    size = jacobians.shape[1]
    k = size if k is None else k
    _validation.require_size("k", k, most=size)

    def body(carry, jacobian):
        q, rounding = carry
        q, r = jnp.linalg.qr(jacobian @ q)
        fixed = jax.lax.stop_gradient(r)
        rounding = follow(rounding, fixed, jnp.sqrt(jnp.sum(fixed * fixed, axis=0)), None, jnp.asarray(True))
        return (q, rounding), jnp.log(jnp.abs(jnp.diag(r)))

    q_0 = jnp.asarray(generic_orthogonal(size)[:, :k], jacobians.dtype)
    (_, rounding), growth = jax.lax.scan(body, (q_0, no_rounding(k)), jnp.asarray(jacobians))
    error = error_of_sums(rounding, jnp.asarray(len(growth)), jacobians.dtype) / len(growth)
    return jnp.where((error <= LIMIT)[None, :], growth, jnp.nan)
