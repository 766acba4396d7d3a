"""Ordered products dh_t/dh_k = J_t … J_{k+1}, assembled in plain floats."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.jacobians.structured import StructuredJacobians
from jaxbptt.types import ArrayLike

Jacobians: TypeAlias = Float[ArrayLike, "time state state"] | StructuredJacobians


def product(jacobians: Jacobians, start: int, stop: int) -> Float[Array, "state state"]:
    """dh_stop/dh_start = J_stop J_{stop−1} … J_{start+1}, assembled in plain floats.

    Args:
      jacobians: [T, N, N], [t−1] is J_t; or StructuredJacobians.
      start, stop: static ints, 0 ≤ start ≤ stop ≤ T; equal ones give the identity.

    Returns:
      [N, N]. It overflows and loses small singular values as any assembled product does: see `log_singular_values`.

    Raises:
      TypeError, ValueError: jacobians or the span not as stated.

    Reference: dh_t/dh_k = Π_{i=k+1}^t dh_i/dh_{i-1}, the latest factor on the left; S4.7.
    """
    steps, multiply, identity = _multiplication(jacobians)
    start, stop = _validation.require_span(start, stop, len(jacobians))
    span = jax.tree.map(lambda leaf: leaf[start:stop], steps)
    return jax.lax.scan(lambda total, step: (multiply(step, total), None), identity, span)[0]


def prefix_products(jacobians: Jacobians) -> Float[Array, "time state state"]:
    """dh_t/dh_0 = J_t … J_1 for t = 1 … T, assembled in plain floats.

    Args:
      jacobians: [T, N, N], [t−1] is J_t; or StructuredJacobians.

    Returns:
      [T, N, N], [t−1] is dh_t/dh_0; the same limits as `product`.

    Raises:
      TypeError, ValueError: jacobians not as stated.
    """
    steps, multiply, identity = _multiplication(jacobians)

    def body(total, step):
        total = multiply(step, total)
        return total, total

    return jax.lax.scan(body, identity, steps)[1]


def _multiplication(jacobians: Jacobians) -> tuple[Any, Callable[[Any, jax.Array], jax.Array], jax.Array]:
    """(what a scan reads, a function (one step of it, matrix) -> J_t matrix, the identity)."""
    if not isinstance(jacobians, StructuredJacobians):
        chain = _validation.take_jacobians(jacobians)
        return chain, jnp.matmul, jnp.eye(chain.shape[1], dtype=chain.dtype)

    def multiply(factors, matrix):
        return jacobians.parts.left(jacobians.at(factors), matrix)

    return jacobians.factors, multiply, jnp.eye(jacobians.size, dtype=jacobians.dtype)
