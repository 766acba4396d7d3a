"""Angles between the spans of covariant vectors: how far expanding and contracting directions are from a tangency.

Reference: Björck & Golub (1973), Math. Comp. 27 (principal angles); Kuptsov & Kuznetsov (2009), PRE 80, arXiv:0812.4823
(angles between stable and unstable subspaces as a test of hyperbolicity).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.spectra.covariant import CovariantVectors


class SubspaceAngles(NamedTuple):
    """At the times of the vectors.

    Attributes:
      angles: [M + 1, min(p, q)], radians, the smallest first.
      error: [M + 1], of each of them, by `mixing` between the two spans and with the directions outside both.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> found = spectra.covariant_vectors(jnp.tile(jnp.array([[2.0, 1.0], [0.0, 0.5]]), (100, 1, 1)))
      >>> between = spectra.subspace_angles(found, split=1)
      >>> between.angles.shape, bool(between.error[40] < 1e-4)
      ((81, 1), True)
    """

    angles: Float[Array, "records angles"]
    error: Float[Array, " records"]


def subspace_angles(found: CovariantVectors, *, split: int, stop: int | None = None) -> SubspaceAngles:
    """Principal angles between span(v_1 … v_split) and span(v_{split+1} … v_stop) at every time.

    With the number of positive exponents as `split`, between the unstable and the stable subspace. cos θ_i are the
    singular values of PᵀQ, P and Q orthonormal bases; below 45° θ_i comes from those of (I − P Pᵀ) Q, the sines.

    Args:
      found: from `covariant_vectors` or `stream_covariant_vectors`.
      split: size p of the first span, static.
      stop: last vector of the second span, whose size is q = stop − split, static; None: all k.

    Returns:
      SubspaceAngles. Vectors that are not told apart inside one span (equal exponents, a complex pair) do no harm:
      the error is what either span may hold of the rest, over the least singular value of its vectors.

    Raises:
      TypeError: found that are no CovariantVectors; a split or stop that is no int.
      ValueError: a split or stop out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> found = spectra.covariant_vectors(jnp.tile(jnp.array([[2.0, 1.0], [0.0, 0.5]]), (100, 1, 1)))
      >>> round(float(spectra.subspace_angles(found, split=1).angles[40, 0]), 3)  # (1, 0) and (−2, 3): atan 1.5
      0.983
    """
    _validation.require_type("found", found, CovariantVectors, "CovariantVectors")
    k = found.vectors.shape[2]
    stop = k if stop is None else stop
    _validation.require_size("stop", stop, least=2, most=k)
    _validation.require_size("split", split, most=stop - 1)
    one, other = found.vectors[:, :, :split], found.vectors[:, :, split:stop]
    p, q = jnp.linalg.qr(one)[0], jnp.linalg.qr(other)[0]
    if p.shape[2] < q.shape[2]:
        p, q = q, p  # the sines are as many as the columns of q
    inner = jnp.swapaxes(p, 1, 2) @ q
    cosines = jnp.linalg.svd(inner, compute_uv=False)
    sines = jnp.linalg.svd(q - p @ inner, compute_uv=False)[:, ::-1]
    cosines, sines = jnp.minimum(cosines, 1), jnp.minimum(sines, 1)
    angles = jnp.where(cosines > sines, jnp.arcsin(sines), jnp.arccos(cosines))
    error = _tilt(found, one, 0, split) + _tilt(found, other, split, stop)
    return SubspaceAngles(angles, jnp.minimum(error, jnp.pi / 2))


def _tilt(found, span, start, stop):
    """[M + 1] how far the span of v_start … v_{stop−1} may be off, in radians."""
    inside = found.mixing[:, start:stop]
    columns = jnp.arange(found.mixing.shape[2])
    outside = jnp.where(((columns >= start) & (columns < stop))[None, None, :], 0, inside)
    least = jnp.linalg.svd(span, compute_uv=False)[:, -1]
    floor = 4 * jnp.finfo(span.dtype).eps * span.shape[1] ** 0.5
    return (jax.vmap(jnp.linalg.norm)(outside) + floor) / least
