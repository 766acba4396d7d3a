"""The error that changing params cause in an online rule: its gradient against the exact one at the current params."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.gradients.forward import take_problem
from jaxbptt.models.model import Model, read
from jaxbptt.online.rule import Rule
from jaxbptt.partials import vjp
from jaxbptt.types import Inputs, Key, Optimizer, Params, Targets


class Staleness(NamedTuple):
    """Per step t, along one online training run θ_0, θ_1, … (update t uses θ_{t−1}).

    Attributes:
      losses: [T], L_t during the online run.
      error: [T], ‖g_t − dL_t/dθ‖ / ‖dL_t/dθ‖, dL_t/dθ exact, replayed from h_0 at θ_{t−1}.
      cosine: [T], between g_t and dL_t/dθ.
      params: θ_T.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxbptt import models, online
      >>> model = models.make_model(lambda w, h, x: w * h + w * x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> arguments = online.rtrl(), model, jnp.array(0.5), jnp.ones(5), jnp.ones(5)
      >>> found = online.staleness(*arguments, optimizer=optax.sgd(0.0))  # params that do not change
      >>> float(found.params), bool(found.error.max() < 1e-6)
      (0.5, True)
    """

    losses: Float[Array, " time"]
    error: Float[Array, " time"]
    cosine: Float[Array, " time"]
    params: Params


def staleness(
    rule: Rule,
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    optimizer: Optimizer,
    key: Key | None = None,
) -> Staleness:
    """Train online with `optimizer` and compare every g_t with the exact dL_t/dθ at θ_{t−1}.

    Online, h_{t−1} and Â_{t−1} come from earlier params; the exact gradient replays all t steps at θ_{t−1}. For `rtrl`
    this staleness is the only error: of the order of the learning rate, and zero at t = 1 or for fixed params.

    Args:
      rule: an online rule.
      model: f, g and L, reduction "sum".
      params: θ_0.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      optimizer: an optax transformation (init, update).
      key: typed key, for a rule that draws signs.

    Returns:
      Staleness. It takes the time of T² steps of the model.

    Raises:
      TypeError, ValueError: as `run`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxbptt import models, online
      >>> model = models.make_model(lambda w, h, x: w * h + w * x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> arguments = online.rtrl(), model, jnp.array(0.5), jnp.ones(5), jnp.ones(5)
      >>> error = online.staleness(*arguments, optimizer=optax.sgd(1e-3)).error
      >>> bool(error[0] < 1e-6), bool(1e-4 < error[-1] < 0.1)  # h_4 and A_4 are of earlier params
      (True, True)
    """
    params, inputs, targets, _, length = take_problem(model, params, inputs, targets)
    state = rule.init(model, params, key=key, x=jax.tree.map(lambda leaf: leaf[0], inputs))

    def replayed(params, last):
        def body(carry, step):
            state, loss = carry
            index, x, target = step
            new = model.step(params, state, x)
            now = model.loss(read(model, params, new, x, state), target)
            return (new, jnp.where(index == last, now, loss)), None

        zero = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
        return jax.lax.scan(body, (model.initial_state(params), zero), (jnp.arange(length), inputs, targets))[0][1]

    def body(carry, step):
        state, params, memory = carry
        index, x, target = step
        loss, pull = vjp(lambda params: replayed(params, index), params)
        exact = ravel_pytree(pull(jnp.ones_like(loss)))[0]
        state, loss, grads = rule.update(params, state, x, target)
        online = ravel_pytree(grads)[0]
        size = jnp.linalg.norm(exact)
        error = jnp.linalg.norm(online - exact) / size
        cosine = jnp.vdot(online, exact) / (size * jnp.linalg.norm(online))
        updates, memory = optimizer.update(grads, memory, params)
        return (state, jax.tree.map(jnp.add, params, updates), memory), (loss, error, cosine)

    carry = (state, params, optimizer.init(params))
    (_, params, _), (losses, error, cosine) = jax.lax.scan(body, carry, (jnp.arange(length), inputs, targets))
    _validation.require_finite_steps("losses", losses)
    return Staleness(losses, error, cosine, params)
