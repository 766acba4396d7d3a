"""J_1 … J_T as matrices that are stored, or formed one at a time when they are needed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxbptt.jacobians.structured import StructuredJacobians


@dataclasses.dataclass(frozen=True)
class Matrices:
    """T Jacobians [N, N]."""

    steps: Any  # pytree [T, ...]
    form: Callable[[Any], jax.Array]  # (one step of it) -> J_t [N, N]
    size: int  # N
    dtype: Any

    def __len__(self) -> int:
        return jax.tree.leaves(self.steps)[0].shape[0]

    def at(self, index: Any) -> jax.Array:
        """J_{index+1}."""
        return self.form(jax.tree.map(lambda leaf: leaf[index], self.steps))

    def assemble(self) -> jax.Array:
        """[T, N, N]."""
        return jax.vmap(self.form)(self.steps)


def as_matrices(chain: jax.Array | StructuredJacobians) -> Matrices:
    """[T, N, N] as they are; diagonals and blocks are assembled step by step."""
    if isinstance(chain, StructuredJacobians):
        return Matrices(chain.steps, chain.dense, chain.size, chain.dtype)
    return Matrices(chain, lambda matrix: matrix, chain.shape[1], chain.dtype)
