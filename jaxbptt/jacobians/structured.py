"""J_1 … J_T as diagonals and blocks, for cells whose derivation has them."""

import dataclasses
import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.cells.structure import JacobianParts
from jaxbptt.partials import step_partials
from jaxbptt.trajectories import Trajectory, take_trajectory
from jaxbptt.types import Params, Recurrence


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params", "factors"), meta_fields=("parts",))
@dataclasses.dataclass(frozen=True)
class StructuredJacobians:
    """J_1 … J_T as diagonals and blocks: T·O(N) numbers, multiplied without being assembled.

    `product`, `prefix_products` and `lyapunov_exponents` take it in place of [T, N, N].
    """

    params: Params
    factors: Any  # pytree [T, ...], the factors that multiply a cotangent
    parts: JacobianParts

    def __len__(self) -> int:
        return jax.tree.leaves(self.factors)[0].shape[0]

    @property
    def size(self) -> int:
        """N, the entries of the flattened state."""
        return self._one.shape[0]

    @property
    def dtype(self) -> Any:
        """The dtype of the assembled matrices."""
        return self._one.dtype

    @property
    def _one(self):
        return jax.eval_shape(self.dense, jax.tree.map(lambda leaf: leaf[0], self.factors))

    def at(self, factors: Any) -> Any:
        """The parts of one step, from its factors.

        Args:
          factors: those of one step.

        Returns:
          Pytree, in the form that the derivation's `parts` take.
        """
        return self.parts.form(self.params, factors)

    def dense(self, factors: Any) -> Float[Array, "state state"]:
        """J_t [N, N] of one step.

        Args:
          factors: those of one step.

        Returns:
          [N, N].
        """
        return self.parts.dense(self.at(factors))

    def assemble(self) -> Float[Array, "time state state"]:
        """All J_t, assembled.

        Returns:
          [T, N, N], as `step_jacobians`.
        """
        return jax.vmap(self.dense)(self.factors)


def structured_jacobians(cell: Recurrence, params: Params, trajectory: Trajectory) -> StructuredJacobians:
    """`step_jacobians` as diagonals and blocks, for a cell whose derivation has them (the built-in cells).

    Memory T·N instead of T·N²; a product with an LSTM's J_t costs half the flops. Costs one forward pass over all
    steps.

    Args:
      cell: Cell or Model.
      params: θ.
      trajectory: from `unroll`.

    Returns:
      StructuredJacobians of T steps.

    Raises:
      TypeError, ValueError: a cell without such a derivation; params or trajectory that do not fit the cell; outside
        jit, NaN or inf, with its first step.
    """
    partials = step_partials(cell)
    if not isinstance(partials.parts, JacobianParts):
        raise ValueError("cell: got one without parts of its Jacobian, expected a derivation with them")
    params, trajectory, _ = take_trajectory(cell, params, trajectory)
    factors = jax.vmap(partials.residuals, in_axes=(None, 0, 0))(params, trajectory.previous, trajectory.inputs)
    _validation.require_finite_steps("factors", factors)
    return StructuredJacobians(params, factors, partials.parts)
