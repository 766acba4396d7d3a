"""What moving params do to an online rule: its gradient against the exact one at the params of that time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.models import Model
from jaxbptt.online.rule import Rule
from jaxbptt.trajectories import require_call


class Staleness(NamedTuple):
    """Per step t, along one online training run θ_0, θ_1, … (update t uses θ_{t−1})."""

    losses: jax.Array  # [T] L_t as met online
    error: jax.Array  # [T] ‖g_t − dL_t/dθ‖ / ‖dL_t/dθ‖, the exact one from h_0 replayed at θ_{t−1}
    cosine: jax.Array  # [T] between the two
    params: Any  # θ_T


def staleness(
    rule: Rule, model: Model, params: Any, inputs: Any, targets: Any, *, optimizer: Any, key: Any = None
) -> Staleness:
    """Train online with `optimizer` and compare every g_t with the exact dL_t/dθ at θ_{t−1}.

    Online, h_{t−1} and Â_{t−1} come from the params of their time; the exact gradient replays all t steps at θ_{t−1}.
    For `rtrl` the error is that staleness alone, of the order of the learning rate; zero at t = 1 or for fixed params.

    Args:
      rule: an online rule.
      model: reduction "sum".
      params: θ_0.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      optimizer: an optax transformation (init, update).
      key: typed key, for a rule that draws signs.

    Returns:
      Staleness; T² steps of the model in time.

    Raises:
      TypeError, ValueError: as `run`.
    """
    length = require_call(model, params, inputs, None)
    checks.require_time_axis("targets", targets, length)
    state = rule.init(model, params, key, x=jax.tree.map(lambda leaf: leaf[0], inputs))

    def replayed(params, last):
        def body(carry, step):
            hidden, loss = carry
            index, x, target = step
            hidden = model.step(params, hidden, x)
            now = model.loss(model.readout(params, hidden), target)
            return (hidden, jnp.where(index == last, now, loss)), None

        zero = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
        return jax.lax.scan(body, (model.initial_state(params), zero), (jnp.arange(length), inputs, targets))[0][1]

    def body(carry, step):
        state, params, memory = carry
        index, x, target = step
        exact = ravel_pytree(jax.grad(replayed)(params, index))[0]
        state, loss, grads = rule.update(state, params, x, target)
        online = ravel_pytree(grads)[0]
        size = jnp.linalg.norm(exact)
        error = jnp.linalg.norm(online - exact) / size
        cosine = jnp.vdot(online, exact) / (size * jnp.linalg.norm(online))
        updates, memory = optimizer.update(grads, memory, params)
        return (state, jax.tree.map(jnp.add, params, updates), memory), (loss, error, cosine)

    carry = (state, params, optimizer.init(params))
    (_, params, _), (losses, error, cosine) = jax.lax.scan(body, carry, (jnp.arange(length), inputs, targets))
    checks.require_finite_steps("losses", losses)
    return Staleness(losses, error, cosine, params)
