"""What J_t consists of, so that a chain of them is never assembled: diagonals and blocks, or blocks and copies."""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxbptt.types import Params


class FormParts(Protocol):
    def __call__(self, params: Params, factors: Any, /) -> Any:
        """The parts of J_t, a pytree, from the factors of a `FactoredPullback` at one step."""
        ...


class Assemble(Protocol):
    def __call__(self, parts: Any, /) -> jax.Array:
        """J_t [N, N]."""
        ...


class Multiply(Protocol):
    def __call__(self, parts: Any, matrix: jax.Array, /) -> jax.Array:
        """J_t · matrix [N, K] (`left`), or matrix [K, N] · J_t (`right`)."""
        ...


class JacobianParts(NamedTuple):
    """J_t as diagonals and blocks, which multiply a matrix without being assembled."""

    form: FormParts
    dense: Assemble
    left: Multiply
    right: Multiply


class DiagonalLowRank(NamedTuple):
    """diag(d) + L Rᵀ, r = 0 for a diagonal; complex where the state holds real and imaginary parts."""

    diagonal: jax.Array  # [..., n]
    left: jax.Array  # [..., n, r]
    right: jax.Array  # [..., n, r]

    def matrix(self) -> jax.Array:
        """[..., n, n]."""
        identity = np.eye(self.diagonal.shape[-1], dtype=self.diagonal.dtype)
        return self.diagonal[..., None] * identity + self.left @ self.right.swapaxes(-1, -2)


class BlockParts(NamedTuple):
    """J_t as B blocks of n entries that each act on m copies: A ⊗ I, I ⊗ A, block-diagonal, diagonal.

    `place` [B, n, m] says where in the flattened state row i of block b finds its copy j. Complex blocks act on complex
    entries: place is [B, n, 2m], the real part of copy j at 2j, its imaginary part at 2j + 1.
    """

    form: FormParts  # -> [B, n, n], or DiagonalLowRank of leading shape [B]
    place: np.ndarray
    affine: bool = False  # J_t does not depend on h_{t−1}: h_t = J_t h_{t−1} + f(0, x_t)
    constant: bool = False  # J_t depends on params alone


class Border(NamedTuple):
    """[[scale · I, column], [0, corner]]."""

    scale: jax.Array  # []
    column: jax.Array  # [N − 1]
    corner: jax.Array  # []


class BorderedParts(NamedTuple):
    """J_t as a multiple of the identity with one more column: the last entry of the state acts on all the others."""

    form: FormParts  # -> Border
