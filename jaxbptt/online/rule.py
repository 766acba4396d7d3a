"""What every rule shares: the state, the step's loss, and g_t = Â_tᵀ ∂L_t/∂h_t + (∂⁺o_t/∂⁺θ)ᵀ ∂L_t/∂o_t."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.models import Model
from jaxbptt.trajectories import require_call


class Cost(NamedTuple):
    """The price of a rule for one model, counted from shapes."""

    state_floats: int  # floats in its state, h_t included
    flops: int  # per step, leading terms of the rule's own work: without the step, its partials and the readout


class Rule(NamedTuple):
    """An online estimator of dC/dθ. Static, like a Model; the state it makes goes through scan, jit and vmap."""

    init: Callable  # (model, params, key, *, initial=None, x=None) -> OnlineState at h_0; x: an example of one input
    update: Callable  # (state, params, x, target) -> (state, L_t, gradient of L_t shaped like params)
    cost: Callable  # (model, params, *, x=None) -> Cost


class Method(NamedTuple):
    """How a rule carries Â_t ≈ dh_t/dθ. `plan` is hashable: all that is known before the first step."""

    start: Callable  # (plan, initial_state, params, signs) -> sensitivity of h_0
    advance: Callable  # (plan, model, params, h_{t-1}, x, sensitivity, signs) -> (h_t, sensitivity)
    contract: Callable  # (plan, params, sensitivity, ∂L/∂h [N]) -> Âᵀ ∂L/∂h shaped like params
    flops: Callable  # (plan) -> int
    num_signs: Callable = lambda plan: 0  # (plan) -> number of random signs a step draws


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["hidden", "sensitivity", "key"],
    meta_fields=["model", "method", "plan"],
)
@dataclasses.dataclass(frozen=True)
class OnlineState:
    """What one update hands to the next: arrays, and beside them, static, the model and the method they belong to."""

    hidden: Any  # h_t, as the model's state
    sensitivity: Any  # Â_t, in the rule's own form
    key: jax.Array | None  # of the steps to come; None for a rule that draws nothing
    model: Model
    method: Method
    plan: Any


def make_rule(method: Method, make_plan: Callable) -> Rule:
    """The Rule of a method; `make_plan(model, params, x, constant_start)` decides all that is static."""

    def init(model: Model, params: Any, key: Any, *, initial: Any = None, x: Any = None) -> OnlineState:
        """The state at h_0.

        Args:
          model: f, g and L, reduction "sum".
          params: θ, float leaves of one dtype.
          key: typed key of all draws to come; not looked at by a rule that draws nothing.
          initial: h_0, then a constant (Â_0 = 0); None: `model.initial_state(params)`, Â_0 = ∂h_0/∂θ.
          x: an example of one input; only its form counts, and only for a model without num_inputs.

        Returns:
          OnlineState, a pytree; it carries the model.

        Raises:
          TypeError, ValueError: an argument not as stated; a model for which the rule is not defined.
        """
        plan = _plan(model, params, initial, x)
        signs = None
        if method.num_signs(plan):
            checks.require_key(key)
            key, draw = jax.random.split(key)
            signs = _draw_signs(method, plan, params, draw)
        return start_with(method, plan, model, params, signs, initial=initial, key=None if signs is None else key)

    def cost(model: Model, params: Any, *, x: Any = None) -> Cost:
        """Cost(state_floats, flops per step) of the rule for a model, from shapes; arguments as `init`."""
        plan = _plan(model, params, None, x)
        signs = jax.ShapeDtypeStruct((method.num_signs(plan),), jax.tree.leaves(params)[0].dtype)
        state = jax.eval_shape(lambda params, signs: start_with(method, plan, model, params, signs), params, signs)
        floats = [leaf.size for leaf in jax.tree.leaves((state.hidden, state.sensitivity))]
        return Cost(sum(floats), method.flops(plan))

    def _plan(model, params, initial, x):
        if model.reduction != "sum":
            raise ValueError(f"model.reduction: got {model.reduction!r}, expected 'sum' (an online rule knows no T)")
        dtype = checks.require_params(params)
        if dtype is None:
            raise ValueError("params: got no arrays, expected at least one")
        checks.require_like_init(params, model.init)
        own = jax.eval_shape(model.initial_state, params)
        checks.require_state("initial_state(params)", own, own)
        if initial is not None:
            checks.require_state("initial", initial, own)
        if x is None and model.num_inputs is not None:
            x = jax.ShapeDtypeStruct((model.num_inputs,), dtype)
        elif x is not None:
            checks.require_input(x, model.num_inputs, dtype)
        return make_plan(model, params, x, initial is not None)

    return Rule(init, update, cost)


def start_with(method, plan, model, params, signs, *, initial=None, key=None) -> OnlineState:
    """The state at h_0 with the signs given: Â_0 = ∂h_0/∂θ, or 0 for a given h_0."""
    initial_state = model.initial_state if initial is None else lambda params: initial
    hidden = jax.tree.map(jnp.asarray, initial_state(params))
    return OnlineState(hidden, method.start(plan, initial_state, params, signs), key, model, method, plan)


def update(state: OnlineState, params: Any, x: Any, target: Any) -> tuple[OnlineState, jax.Array, Any]:
    """One step: h_t, Â_t, L_t and g_t = Â_tᵀ (∂⁺o_t/∂⁺h_t)ᵀ ∂L_t/∂o_t + (∂⁺o_t/∂⁺θ)ᵀ ∂L_t/∂o_t.

    Args:
      state: from `init` or the last update.
      params: θ now; it may have moved since (then Â holds sensitivities to the params of their time).
      x: x_t [M], or one step of the input pytree.
      target: y_t.

    Returns:
      (state, L_t scalar, g_t shaped like params). At fixed params Σ_t g_t is the rule's estimate of dC/dθ.

    Raises:
      TypeError, ValueError: an argument of wrong structure, shape or dtype; outside jit, numbers that are not finite.
    """
    if state.key is None:
        return update_with(state, params, x, target, None)
    key, draw = jax.random.split(state.key)
    signs = _draw_signs(state.method, state.plan, params, draw)
    return update_with(dataclasses.replace(state, key=key), params, x, target, signs)


def update_with(state: OnlineState, params: Any, x: Any, target: Any, signs: Any):
    """`update` with the signs given."""
    model, method, plan = state.model, state.method, state.plan
    dtype = checks.require_params(params)
    checks.require_like_init(params, model.init)
    checks.require_same("params", jax.eval_shape(model.initial_state, params), state.hidden)
    checks.require_input(x, model.num_inputs, dtype)
    hidden, sensitivity = method.advance(plan, model, params, state.hidden, x, state.sensitivity, signs)
    checks.require_same("step's new state", hidden, state.hidden)

    def step_loss(params, hidden):
        return model.loss(model.readout(params, hidden), target)

    loss, (direct, local) = jax.value_and_grad(step_loss, argnums=(0, 1))(params, hidden)
    checks.require_finite("loss", loss)
    recurrent = method.contract(plan, params, sensitivity, ravel_pytree(local)[0])
    state = dataclasses.replace(state, hidden=hidden, sensitivity=sensitivity)
    return state, loss, jax.tree.map(jnp.add, direct, recurrent)


def run(rule: Rule, model: Model, params: Any, inputs: Any, targets: Any, *, key: Any = None, initial: Any = None):
    """Σ_t L_t and Σ_t g_t of a rule over a whole sequence at fixed params, by one `lax.scan` of its update.

    Args:
      rule: from `rtrl()`, `snap(n)`, `uoro()`, `kf_rtrl()` or `rflo()`.
      model: f, g and L, reduction "sum".
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      key: typed key, for a rule that draws signs.
      initial: h_0, then a constant; None: `model.initial_state(params)`, whose gradient is estimated too.

    Returns:
      (C scalar, the estimate of dC/dθ shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`, and what the rule's `init` refuses.
    """
    length = require_call(model, params, inputs, initial)
    checks.require_time_axis("targets", targets, length)
    state = rule.init(model, params, key, initial=initial, x=jax.tree.map(lambda leaf: leaf[0], inputs))

    def body(carry, step):
        state, total = carry
        state, loss, grads = rule.update(state, params, *step)
        return (state, jax.tree.map(jnp.add, total, grads)), loss

    (_, grads), losses = jax.lax.scan(body, (state, jax.tree.map(jnp.zeros_like, params)), (inputs, targets))
    checks.require_finite_steps("losses", losses)
    return jnp.sum(losses), grads


def _draw_signs(method, plan, params, key):
    return jax.random.rademacher(key, (method.num_signs(plan),), jax.tree.leaves(params)[0].dtype)
