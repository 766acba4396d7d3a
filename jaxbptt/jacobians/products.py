"""Ordered products dh_t/dh_k = J_t … J_{k+1}, assembled in plain floats."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.cells.structure import apply_core, dtype_of
from jaxbptt.jacobians.blocks import BlockJacobians
from jaxbptt.jacobians.structured import STRUCTURED, Structured, require_one_chain
from jaxbptt.types import ArrayLike

Jacobians: TypeAlias = Float[ArrayLike, "time state state"] | Structured


def product(jacobians: Jacobians, start: int, stop: int) -> Float[Array, "state state"]:
    """dh_stop/dh_start = J_stop J_{stop−1} … J_{start+1}, assembled in plain floats.

    Args:
      jacobians: [T, N, N], [t−1] is J_t; or from `structured_jacobians`.
      start, stop: static ints, 0 ≤ start ≤ stop ≤ T; equal ones give the identity.

    Returns:
      [N, N]. It overflows and loses small singular values as any assembled product does: see `log_singular_values`.

    Raises:
      TypeError, ValueError: jacobians or the span not as stated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import jacobians
      >>> chain = jnp.array([[[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]])  # J_1, J_2
      >>> jacobians.product(chain, 0, 2).tolist()  # dh_2/dh_0 = J_2 J_1; J_1 J_2 is [[2, 1], [1, 1]]
      [[1.0, 1.0], [1.0, 2.0]]

    Reference: dh_t/dh_k = Π_{i=k+1}^t dh_i/dh_{i-1}, the latest factor on the left; S4.7.
    """
    steps, multiply, identity, assemble = _multiplication(jacobians)
    start, stop = _validation.require_span(start, stop, len(jacobians))
    span = jax.tree.map(lambda leaf: leaf[start:stop], steps)
    return assemble(jax.lax.scan(lambda total, step: (multiply(step, total), None), identity, span)[0])


def prefix_products(jacobians: Jacobians) -> Float[Array, "time state state"]:
    """dh_t/dh_0 = J_t … J_1 for t = 1 … T, assembled in plain floats.

    Args:
      jacobians: [T, N, N], [t−1] is J_t; or from `structured_jacobians`.

    Returns:
      [T, N, N], [t−1] is dh_t/dh_0; the same limits as `product`.

    Raises:
      TypeError, ValueError: jacobians not as stated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import jacobians
      >>> chain = jnp.array([[[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]])  # J_1, J_2
      >>> jacobians.prefix_products(chain).tolist()  # J_1 and J_2 J_1
      [[[1.0, 1.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 2.0]]]
    """
    steps, multiply, identity, assemble = _multiplication(jacobians)

    def body(total, step):
        total = multiply(step, total)
        return total, total

    return jax.vmap(assemble)(jax.lax.scan(body, identity, steps)[1])


class _Multiplication(NamedTuple):
    steps: Any  # what a scan reads
    multiply: Callable[[Any, jax.Array], jax.Array]  # (one step of it, product so far) -> J_t · product
    identity: jax.Array
    assemble: Callable[[jax.Array], jax.Array]  # (product) -> [N, N]


def _multiplication(jacobians: Jacobians) -> _Multiplication:
    require_one_chain(jacobians)
    if isinstance(jacobians, BlockJacobians):  # the product of the blocks alone
        core = jacobians.steps
        size = jax.tree.leaves(core)[0].shape[2]
        identity = jnp.eye(size, dtype=dtype_of(core))
        identity = jnp.broadcast_to(identity, (np.shape(jacobians.place)[0], size, size))
        return _Multiplication(core, apply_core, identity, jacobians.dense)
    if isinstance(jacobians, STRUCTURED):
        identity = jnp.eye(jacobians.size, dtype=jacobians.dtype)
        return _Multiplication(jacobians.steps, jacobians.left, identity, lambda product: product)
    chain = _validation.take_jacobians(jacobians)
    return _Multiplication(chain, jnp.matmul, jnp.eye(chain.shape[1], dtype=chain.dtype), lambda product: product)
