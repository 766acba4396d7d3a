"""What J_t consists of, so that a chain of them is never assembled: diagonals and blocks, or blocks and copies."""

from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.types import ArrayLike, Params


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
        identity = identity.reshape((1,) * (self.diagonal.ndim - 1) + identity.shape)
        return self.diagonal[..., None] * identity + self.left @ self.right.swapaxes(-1, -2)


Core: TypeAlias = jax.Array | DiagonalLowRank  # [..., n, n]


def dtype_of(core: Any) -> Any:
    """Of the blocks: complex where they act on real and imaginary parts."""
    return core.diagonal.dtype if isinstance(core, DiagonalLowRank) else core.dtype


def entries_of(core: Core) -> jax.Array | None:
    """The diagonal [..., B·n] where all blocks are diagonal, else None."""
    if isinstance(core, DiagonalLowRank):
        diagonal = None if core.left.shape[-1] else core.diagonal
    else:
        diagonal = core[..., 0] if core.shape[-1] == 1 else None
    return None if diagonal is None else diagonal.reshape(*diagonal.shape[:-2], -1)


def real_matrices(core: Core) -> jax.Array:
    """[..., B, n, n]; a complex block [n, n] as a real one [2n, 2n]."""
    matrices = core.matrix() if isinstance(core, DiagonalLowRank) else core
    if not jnp.iscomplexobj(matrices):
        return matrices
    return jnp.block([[matrices.real, -matrices.imag], [matrices.imag, matrices.real]])


def apply_core(core: Core, copies: jax.Array) -> jax.Array:
    """A copies, [..., n, m] from [..., n, m]."""
    if not isinstance(core, DiagonalLowRank):
        return core @ copies
    carried = core.diagonal[..., None] * copies
    return carried + core.left @ (core.right.swapaxes(-1, -2) @ copies) if core.left.shape[-1] else carried


def transpose_core(core: Core) -> Core:
    """The transpose as a map of real numbers: for complex blocks the conjugate transpose."""
    if not isinstance(core, DiagonalLowRank):
        return core.conj().swapaxes(-1, -2)
    return DiagonalLowRank(core.diagonal.conj(), core.right.conj(), core.left.conj())


def gather_copies(vector: jax.Array, place: ArrayLike, dtype: Any) -> jax.Array:
    """[B, n, m] of `dtype` from the entries [N] of a flattened state."""
    entries = vector[place]
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return entries
    return jax.lax.complex(entries[..., 0::2], entries[..., 1::2])


def scatter_copies(copies: jax.Array, place: ArrayLike) -> jax.Array:
    """The inverse of `gather_copies`: [N] from [B, n, m]."""
    if jnp.iscomplexobj(copies):
        copies = jnp.stack((copies.real, copies.imag), axis=-1)
    entries = copies.reshape(place.shape)
    return jnp.zeros(place.size, entries.dtype).at[place].set(entries, unique_indices=True)


class BlockParts(NamedTuple):
    """J_t as B blocks of n entries that each act on m copies: A ⊗ I, I ⊗ A, block-diagonal, diagonal.

    `place` [B, n, m] says where in the flattened state row i of block b finds its copy j. Complex blocks act on complex
    entries: place is [B, n, 2m], the real part of copy j at 2j, its imaginary part at 2j + 1.
    """

    form: FormParts  # -> [B, n, n], or DiagonalLowRank of leading shape [B]
    place: np.ndarray
    affine: bool = False  # J_t does not depend on h_{t−1}: h_t = J_t h_{t−1} + f(0, x_t)
    constant: bool = False  # J_t depends on params alone

    # A cell may be a static argument: it is hashed, and NumPy's arrays are not.
    def __hash__(self) -> int:
        return hash((self.form, self.place.tobytes(), self.affine, self.constant))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockParts) or (self.form, *self[2:]) != (other.form, *other[2:]):
            return False
        return np.array_equal(self.place, other.place)

    def __ne__(self, other: object) -> bool:
        return not self == other


class Border(NamedTuple):
    """[[scale · I, column], [0, corner]]."""

    scale: jax.Array  # []
    column: jax.Array  # [N − 1]
    corner: jax.Array  # []


class BorderedParts(NamedTuple):
    """J_t as a multiple of the identity with one more column: the last entry of the state acts on all the others."""

    form: FormParts  # -> Border


def form_steps(parts: BlockParts | BorderedParts, params: Params, factors: Any, length: int) -> Any:
    """The blocks or borders of J_1 … J_T from factors [T, ...], of which there may be none."""
    return jax.vmap(lambda at: parts.form(params, at), axis_size=length)(factors)
