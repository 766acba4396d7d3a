"""J_1 … J_T as blocks that act on copies, and as bordered multiples of the identity."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from jaxbptt.cells.structure import (
    Border,
    Core,
    apply_core,
    dtype_of,
    entries_of,
    gather_copies,
    real_matrices,
    scatter_copies,
    transpose_core,
)
from jaxbptt.types import ArrayLike


@functools.partial(jax.tree_util.register_dataclass, data_fields=("core", "place"), meta_fields=("length",))
@dataclasses.dataclass(frozen=True)
class BlockJacobians:
    """J_1 … J_T, each of B blocks [n, n] that act on m copies: diagonal, A ⊗ I, I ⊗ A, block-diagonal.

    Functions of chains work on the blocks alone: B n³ per step where the assembled matrices cost (B n m)³, and every
    singular value counts m times. Row i of block b finds its copy j at entry place[b, i, j] of the flattened state;
    complex blocks find its real part at 2j and its imaginary part at 2j + 1, and count twice.

    Attributes:
      core: [T, B, n, n] or DiagonalLowRank of leading shape [T, B]; one step if all are equal.
      place: [B, n, m], or [B, n, 2m] for complex blocks.
      length: T, static.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians, trajectories
      >>> cell = cells.delta_net(num_inputs=2, num_keys=3, num_values=4)
      >>> params = cell.init(jax.random.key(0))
      >>> chain = jacobians.structured_jacobians(cell, params, trajectories.unroll(cell, params, jnp.ones((5, 2))))
      >>> chain.matrices().shape, chain.size  # one block [K, K] a step, for V copies
      ((5, 1, 3, 3), 12)
    """

    core: Core
    place: ArrayLike
    length: int

    def __len__(self) -> int:
        return self.length

    @property
    def size(self) -> int:
        """N, the entries of the flattened state."""
        return int(np.prod(np.shape(self.place)))

    @property
    def dtype(self) -> Any:
        """The dtype of the assembled matrices."""
        return jnp.finfo(dtype_of(self.core)).dtype

    @property
    def is_constant(self) -> bool:
        """Whether one step is stored for all."""
        return jax.tree.leaves(self.core)[0].shape[0] < self.length

    @property
    def steps(self) -> Core:
        """The blocks of every step, leading T."""
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.length, *leaf.shape[1:])), self.core)

    def span(self, start: int, stop: int) -> "BlockJacobians":
        """The chain J_{start+1} … J_stop.

        Args:
          start, stop: static ints, 0 ≤ start ≤ stop ≤ T.

        Returns:
          BlockJacobians of stop − start steps.
        """
        core = self.core if self.is_constant else jax.tree.map(lambda leaf: leaf[start:stop], self.core)
        return dataclasses.replace(self, core=core, length=stop - start)

    def diagonal(self) -> Inexact[Array, "steps entries"] | None:
        """The entries of a chain of diagonals; None for other blocks.

        Returns:
          [T, B·n], or [1, B·n] if all steps are equal; complex entries act on real and imaginary parts.
        """
        return entries_of(self.core)

    def matrices(self) -> Float[Array, "steps blocks entries entries"]:
        """The blocks as real matrices; a complex block [n, n] as one [2n, 2n].

        Returns:
          [T, B, n, n], or [1, B, n, n] if all steps are equal.
        """
        return real_matrices(self.core)

    def left(self, step: Core, matrix: Float[Array, "state columns"]) -> Float[Array, "state columns"]:
        """J_t · matrix.

        Args:
          step: the blocks of one step.
          matrix: [N, K].

        Returns:
          [N, K].
        """
        return self._act(step, matrix, axis=1)

    def right(self, step: Core, matrix: Float[Array, "rows state"]) -> Float[Array, "rows state"]:
        """matrix · J_t.

        Args:
          step: the blocks of one step.
          matrix: [K, N].

        Returns:
          [K, N].
        """
        return self._act(transpose_core(step), matrix, axis=0)

    def _act(self, core, matrix, axis):
        def act(vector):
            copies = gather_copies(vector, self.place, dtype_of(core))
            return scatter_copies(apply_core(core, copies), self.place)

        return jax.vmap(act, in_axes=axis, out_axes=axis)(matrix)

    def dense(self, step: Core) -> Float[Array, "state state"]:
        """J_t [N, N] of one step.

        Args:
          step: the blocks of one step.

        Returns:
          [N, N].
        """
        return self.left(step, jnp.eye(self.size, dtype=self.dtype))

    def assemble(self) -> Float[Array, "time state state"]:
        """All J_t, assembled.

        Returns:
          [T, N, N], as `step_jacobians`.
        """
        return jax.vmap(self.dense)(self.steps)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("steps",), meta_fields=())
@dataclasses.dataclass(frozen=True)
class BorderedJacobians:
    """J_1 … J_T, each [[scale · I, column], [0, corner]]: N numbers a step.

    Their product has the same form, so that all its singular values but two are Π scale.

    Attributes:
      steps: `cells.Border` of scale [T], column [T, N − 1], corner [T].

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians
      >>> steps = cells.Border(scale=jnp.array([0.5, 0.25]), column=jnp.ones((2, 2)), corner=jnp.ones(2))
      >>> jacobians.product(jacobians.BorderedJacobians(steps), 0, 2).tolist()  # J_2 J_1: scales multiply
      [[0.125, 0.0, 1.25], [0.0, 0.125, 1.25], [0.0, 0.0, 1.0]]
    """

    steps: Border

    def __len__(self) -> int:
        return len(self.steps.scale)

    @property
    def size(self) -> int:
        """N, the entries of the flattened state."""
        return self.steps.column.shape[1] + 1

    @property
    def dtype(self) -> Any:
        """The dtype of the assembled matrices."""
        return self.steps.column.dtype

    def span(self, start: int, stop: int) -> "BorderedJacobians":
        """The chain J_{start+1} … J_stop.

        Args:
          start, stop: static ints, 0 ≤ start ≤ stop ≤ T.

        Returns:
          BorderedJacobians of stop − start steps.
        """
        return BorderedJacobians(jax.tree.map(lambda leaf: leaf[start:stop], self.steps))

    def left(self, step: Border, matrix: Float[Array, "state columns"]) -> Float[Array, "state columns"]:
        """J_t · matrix.

        Args:
          step: scale, column and corner of one step.
          matrix: [N, K].

        Returns:
          [N, K].
        """
        top = step.scale * matrix[:-1] + step.column[:, None] * matrix[-1:]
        return jnp.concatenate((top, step.corner * matrix[-1:]))

    def right(self, step: Border, matrix: Float[Array, "rows state"]) -> Float[Array, "rows state"]:
        """matrix · J_t.

        Args:
          step: scale, column and corner of one step.
          matrix: [K, N].

        Returns:
          [K, N].
        """
        last = matrix[:, :-1] @ step.column + step.corner * matrix[:, -1]
        return jnp.concatenate((step.scale * matrix[:, :-1], last[:, None]), axis=1)

    def dense(self, step: Border) -> Float[Array, "state state"]:
        """J_t [N, N] of one step.

        Args:
          step: scale, column and corner of one step.

        Returns:
          [N, N].
        """
        return self.left(step, jnp.eye(self.size, dtype=self.dtype))

    def assemble(self) -> Float[Array, "time state state"]:
        """All J_t, assembled.

        Returns:
          [T, N, N], as `step_jacobians`.
        """
        return jax.vmap(self.dense)(self.steps)
