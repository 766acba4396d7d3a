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
    """J_t as diagonals and blocks, which multiply a matrix without being assembled.

    Attributes:
      form: (params, factors) -> parts, any pytree, from the factors of a `FactoredPullback` at one step.
      dense: (parts) -> J_t [N, N].
      left: (parts, matrix [N, K]) -> J_t · matrix [N, K].
      right: (parts, matrix [K, N]) -> matrix · J_t [K, N].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.elman(num_inputs=1, num_hidden=2)
      >>> params, (_, pullback, parts) = cell.init(jax.random.key(0)), cell.derivation
      >>> formed = parts.form(params, pullback.factors(params, jnp.ones(2), jnp.ones(1)))  # (φ', W_hh)
      >>> bool(jnp.allclose(parts.left(formed, jnp.eye(2)), parts.dense(formed)))
      True
    """

    form: FormParts
    dense: Assemble
    left: Multiply
    right: Multiply


class DiagonalLowRank(NamedTuple):
    """diag(d) + L Rᵀ, r = 0 for a diagonal; complex where the state holds real and imaginary parts.

    Attributes:
      diagonal: d [..., n].
      left: L [..., n, r].
      right: R [..., n, r].

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> core = cells.DiagonalLowRank(jnp.array([2.0, 3.0]), left=jnp.ones((2, 1)), right=jnp.array([[0.0], [1.0]]))
      >>> core.matrix().tolist()
      [[2.0, 1.0], [0.0, 4.0]]
    """

    diagonal: jax.Array
    left: jax.Array
    right: jax.Array

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

    Attributes:
      form: (params, factors) -> the blocks [B, n, n] at one step, or `DiagonalLowRank` of leading shape [B].
      place: [B, n, m] of ints, or [B, n, 2m] for complex blocks.
      affine: J_t does not depend on h_{t−1}: h_t = J_t h_{t−1} + f(0, x_t).
      constant: J_t depends on params alone.

    Example:
      >>> from jaxbptt import cells
      >>> diagonal, matrix = cells.min_gru(2, 3).derivation.parts, cells.delta_net(2, 3, 4).derivation.parts
      >>> diagonal.place.shape, matrix.place.shape  # N blocks [1, 1]; one block [K, K] on V copies
      ((3, 1, 1), (1, 3, 4))
    """

    form: FormParts
    place: np.ndarray
    affine: bool = False
    constant: bool = False

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
    """One J_t [N, N] as [[scale · I, column], [0, corner]].

    Attributes:
      scale: [], of the first N − 1 entries.
      column: [N − 1], the effect of the last entry on them.
      corner: [], of the last entry on itself.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians
      >>> border = cells.Border(scale=jnp.asarray(0.5), column=jnp.array([3.0, 4.0]), corner=jnp.asarray(1.0))
      >>> jacobians.BorderedJacobians(jax.tree.map(lambda leaf: leaf[None], border)).assemble()[0].tolist()
      [[0.5, 0.0, 3.0], [0.0, 0.5, 4.0], [0.0, 0.0, 1.0]]
    """

    scale: jax.Array
    column: jax.Array
    corner: jax.Array


class BorderedParts(NamedTuple):
    """J_t as a multiple of the identity with one more column: the last entry of the state acts on all the others.

    Attributes:
      form: (params, factors) -> `Border`, J_t from the factors of a `FactoredPullback` at one step.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> form = lambda params, gate: cells.Border(scale=gate, column=jnp.ones(2), corner=jnp.ones(()))
      >>> parts = cells.BorderedParts(form)  # of a cell u' = gate u + m, m' = m, whose factors are its gate
      >>> parts.form(None, jnp.asarray(0.5)).scale.item()
      0.5
    """

    form: FormParts


def form_steps(parts: BlockParts | BorderedParts, params: Params, factors: Any, length: int) -> Any:
    """The blocks or borders of J_1 … J_T from factors [T, ...], of which there may be none."""
    return jax.vmap(lambda at: parts.form(params, at), axis_size=length)(factors)
