"""J_1 … J_T without the zeros and copies of the assembled matrices, for cells whose derivation knows what J_t is."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.cells.structure import BlockParts, BorderedParts, JacobianParts, form_steps
from jaxbptt.jacobians.blocks import BlockJacobians, BorderedJacobians
from jaxbptt.jacobians.dense import step_jacobians
from jaxbptt.partials import Partials, step_partials
from jaxbptt.trajectories import take_trajectory
from jaxbptt.types import Params, Recurrence, Unrolled


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params", "factors"), meta_fields=("parts",))
@dataclasses.dataclass(frozen=True)
class StructuredJacobians:
    """J_1 … J_T as diagonals and blocks: T·O(N) numbers, multiplied without being assembled.

    Attributes:
      params: θ.
      factors: pytree [T, ...], the factors that multiply a cotangent.
      parts: how J_t is formed from the factors of one step, static.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians, trajectories
      >>> cell = cells.elman(num_inputs=1, num_hidden=2, recurrent=cells.identity(0.5))
      >>> params = cell.init(jax.random.key(0))
      >>> trajectory = trajectories.unroll(cell, params, jnp.zeros((3, 1)))
      >>> chain = jacobians.structured_jacobians(cell, params, trajectory)
      >>> len(chain), chain.size, chain.assemble().shape, len(chain.span(1, 3))
      (3, 2, (3, 2, 2), 2)
    """

    params: Params
    factors: Any
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
    def steps(self) -> Any:
        """The factors of every step, leading T."""
        return self.factors

    @property
    def _one(self):
        return jax.eval_shape(self.dense, jax.tree.map(lambda leaf: leaf[0], self.factors))

    def span(self, start: int, stop: int) -> "StructuredJacobians":
        """The chain J_{start+1} … J_stop.

        Args:
          start, stop: static ints, 0 ≤ start ≤ stop ≤ T.

        Returns:
          StructuredJacobians of stop − start steps.
        """
        return dataclasses.replace(self, factors=jax.tree.map(lambda leaf: leaf[start:stop], self.factors))

    def at(self, factors: Any) -> Any:
        """The parts of one step, from its factors.

        Args:
          factors: those of one step.

        Returns:
          Pytree, in the form that the derivation's `parts` take.
        """
        return self.parts.form(self.params, factors)

    def left(self, factors: Any, matrix: Float[Array, "state columns"]) -> Float[Array, "state columns"]:
        """J_t · matrix.

        Args:
          factors: those of one step.
          matrix: [N, K].

        Returns:
          [N, K].
        """
        return self.parts.left(self.at(factors), matrix)

    def right(self, factors: Any, matrix: Float[Array, "rows state"]) -> Float[Array, "rows state"]:
        """matrix · J_t.

        Args:
          factors: those of one step.
          matrix: [K, N].

        Returns:
          [K, N].
        """
        return self.parts.right(self.at(factors), matrix)

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


Structured: TypeAlias = StructuredJacobians | BlockJacobians | BorderedJacobians
STRUCTURED = StructuredJacobians, BlockJacobians, BorderedJacobians


def structured_jacobians(cell: Recurrence, params: Params, trajectory: Unrolled | int) -> Structured:
    """`step_jacobians` without zeros and copies, for a cell whose derivation knows its structure (the built-in ones).

    What comes depends on the cell. `product`, `prefix_products`, `log_singular_values`, `lyapunov_exponents`,
    `pair_norms` and `gradient_terms` work on it without assembling the whole chain. Costs one forward pass over all
    steps.

    | cells | chain | work per step |
    |---|---|---|
    | linear, elman, leaky, gru, lstm, slstm | StructuredJacobians: diagonals and blocks | N³, memory T·N |
    | lru, min_gru, min_lstm, rg_lru, selective_ssm | BlockJacobians: a diagonal | N |
    | delta_net, rwkv7 | BlockJacobians: one block [K, K] for all V copies | K³ |
    | mlstm | BorderedJacobians: a multiple of the identity and one column | N |

    Args:
      cell: Cell or Model.
      params: θ.
      trajectory: from `unroll`; or, for a cell whose J_t depends on params alone (lru), T as an int: that J is stored
        once.

    Returns:
      StructuredJacobians, BlockJacobians or BorderedJacobians, of T steps.

    Raises:
      TypeError, ValueError: a cell without such a derivation; params or trajectory that do not fit the cell; an int for
        a cell whose J_t depends on the trajectory; outside jit, NaN or inf, with its first step.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians
      >>> cell = cells.lru(num_inputs=1, num_hidden=2)
      >>> chain = jacobians.structured_jacobians(cell, cell.init(jax.random.key(0)), 100_000)
      >>> len(chain), chain.size, chain.diagonal().shape  # complex λ, stored once
      (100000, 4, (1, 2))
    """
    partials = step_partials(cell)
    parts = partials.parts
    if parts is None:
        raise ValueError("cell: got one without parts of its Jacobian, expected a derivation with them")
    if isinstance(parts, BlockParts) and parts.constant:
        return _constant(cell, params, trajectory, partials, parts)
    if isinstance(trajectory, int | np.integer):
        raise TypeError("trajectory: got an int, expected a Trajectory: this cell's J_t depends on it")
    params, trajectory, length = take_trajectory(cell, params, trajectory)
    factors = jax.vmap(partials.residuals, in_axes=(None, 0, 0))(params, trajectory.previous, trajectory.inputs)
    _validation.require_finite_steps("factors", factors)
    if isinstance(parts, JacobianParts):
        return StructuredJacobians(params, factors, parts)
    formed = form_steps(parts, params, factors, length)
    return (
        BorderedJacobians(formed) if isinstance(parts, BorderedParts) else BlockJacobians(formed, parts.place, length)
    )


def require_one_chain(jacobians: Any) -> None:
    """Raise if a structured chain is many, stacked: their leaves have one more axis."""
    stacked = (isinstance(jacobians, BlockJacobians) and np.ndim(jacobians.place) != 3) or (
        isinstance(jacobians, BorderedJacobians) and np.ndim(jacobians.steps.scale) != 1
    )
    if stacked:
        got = f"a stack of {type(jacobians).__name__}"
        raise ValueError(f"jacobians: got {got}, expected one chain (jax.vmap or jax.lax.map the call)")


def moving_jacobians(model: Recurrence, params: Params, trajectory: Unrolled) -> jax.Array | Structured:
    """J_t as blocks or borders where the derivation knows them, else [T, N, N]: whichever moves rows faster."""
    parts = step_partials(model).parts
    if isinstance(parts, BlockParts | BorderedParts):
        return structured_jacobians(model, params, trajectory)
    return step_jacobians(model, params, trajectory)


def row_mover(jacobians: jax.Array | Structured) -> tuple[Any, Callable[[jax.Array, Any], jax.Array]]:
    """(what a scan reads, (rows [K, N], one step of it) -> rows · J_t)."""
    if isinstance(jacobians, STRUCTURED):
        return jacobians.steps, lambda rows, step: jacobians.right(step, rows)
    return jacobians, lambda rows, jacobian: rows @ jacobian


def _constant(
    cell: Recurrence, params: Params, trajectory: Unrolled | int, partials: Partials, parts: BlockParts
) -> BlockJacobians:
    """One step, at h = 0 and x = 0, for all."""
    if isinstance(trajectory, int | np.integer):
        trajectory = trajectory if isinstance(trajectory, bool) else int(trajectory)
        _validation.require_size("trajectory", trajectory)
        params = _validation.as_arrays("params", params)
        dtype = _validation.require_params(params)
        _validation.require_like_init(params, cell.init)
        length, x = trajectory, jnp.zeros(cell.num_inputs or 0, dtype)
    else:
        params, trajectory, length = take_trajectory(cell, params, trajectory)
        x = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), trajectory.inputs)
    state = jax.tree.map(jnp.zeros_like, cell.initial_state(params))
    core = parts.form(params, partials.residuals(params, state, x))
    core = jax.tree.map(lambda leaf: leaf[None], core)
    _validation.require_finite_steps("jacobians", core)
    return BlockJacobians(core, parts.place, length)
