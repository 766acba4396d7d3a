"""What the cells with a diagonal J_t share: its parts and its dense form, from the factor `carry`."""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback
from jaxbptt.cells.structure import BlockParts, DiagonalLowRank


class Carrying(Protocol):
    """Factors that hold the diagonal of J_t."""

    @property
    def carry(self) -> jax.Array:
        """Shaped like the state, one array."""
        ...


def derive_diagonal(pullback: FactoredPullback, size: int) -> Derivation:
    """J_t = diag(carry_t), which does not depend on h_{t−1}.

    Args:
      pullback: its factors are `Carrying`.
      size: N.

    Returns:
      Derivation with parts, N blocks of one entry.
    """

    def form(params, factors):
        return diagonal_blocks(factors.carry.reshape(-1))

    def state_jacobian(params, state, x):
        return jnp.diag(pullback.factors(params, state, x).carry.reshape(-1))

    return Derivation(state_jacobian, pullback, BlockParts(form, np.arange(size).reshape(size, 1, 1), affine=True))


def diagonal_blocks(diagonal: jax.Array) -> DiagonalLowRank:
    """N blocks of one entry.

    Args:
      diagonal: [N].

    Returns:
      DiagonalLowRank of leading shape [N], of low rank 0.
    """
    nothing = jnp.zeros((diagonal.size, 1, 0), diagonal.dtype)
    return DiagonalLowRank(diagonal[:, None], nothing, nothing)
