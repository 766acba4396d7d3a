"""The blocks of a batch's block-diagonal Jacobians, without the zeros between them."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.models.model import Model
from jaxbptt.partials import jvp
from jaxbptt.trajectories import take_trajectory
from jaxbptt.types import Params, Unrolled


def batch_jacobians(model: Model, params: Params, trajectory: Unrolled) -> Float[Array, "time batch entries entries"]:
    """J_t of every sequence of `batched(model, B)`, where `step_jacobians` has one matrix [BN, BN], zero between them.

    One tangent serves all sequences: N jvps of the batch, not BN. Singular values and exponents of a batch are those of
    its sequences, and `log_singular_values` takes the blocks: B² times less work, and no rounding between sequences.

    Args:
      model: a batch, from `batched`.
      params: θ.
      trajectory: from `unroll`.

    Returns:
      [T, B, N, N], N the entries of one sequence's flattened state.

    Raises:
      TypeError, ValueError: a model that is no batch; params or trajectory that do not fit it; outside jit, NaN or inf,
        with its first step.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import jacobians, models, trajectories
      >>> model = models.make_model(lambda a, h, x: h * x, jnp.ones_like, lambda a, h: h, models.squared_error)
      >>> batch, a = models.batched(model, 2), jnp.asarray(1.0)
      >>> trajectory = trajectories.unroll(batch, a, jnp.array([[2.0, 3.0], [4.0, 5.0]]))  # [T, B]
      >>> jacobians.batch_jacobians(batch, a, trajectory)[:, :, 0, 0].tolist()  # J_t = x_t
      [[2.0, 3.0], [4.0, 5.0]]
    """
    if getattr(model, "batch", None) is None:
        raise ValueError("model: got one sequence, expected a batch (models.batched)")
    params, trajectory, _ = take_trajectory(model, params, trajectory)
    one, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], trajectory.initial))
    flatten = jax.vmap(lambda state: ravel_pytree(state)[0])

    def at(state, x):
        def column(direction):
            repeated = jnp.broadcast_to(direction, (model.batch, one.size))
            tangent = jax.vmap(unravel)(repeated)
            return flatten(jvp(lambda h: model.step(params, h, x), state, tangent)[1])

        return jax.vmap(column, out_axes=2)(jnp.eye(one.size, dtype=one.dtype))

    blocks = jax.vmap(at)(trajectory.previous, trajectory.inputs)
    _validation.require_finite_steps("jacobians", blocks)
    return blocks
