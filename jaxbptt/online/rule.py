"""What every rule shares: the state, the step's loss, and g_t = Â_tᵀ ∂L_t/∂h_t + (∂⁺o_t/∂⁺θ)ᵀ ∂L_t/∂o_t."""

import dataclasses
import functools
from typing import NamedTuple, Protocol, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt.gradients.diagnosis import require_finite_gradient, require_finite_result
from jaxbptt.gradients.forward import Problem, take_problem
from jaxbptt.models.model import Model, read
from jaxbptt.online.method import MakePlan, Method, Plan, Sensitivity, Signs
from jaxbptt.partials import vjp
from jaxbptt.types import (
    Input,
    Inputs,
    Key,
    LossAndGrads,
    Params,
    Scalar,
    State,
    Target,
    Targets,
)

Update: TypeAlias = tuple["OnlineState", Scalar, Params]


class Cost(NamedTuple):
    """The cost of a rule for one model, counted from shapes.

    Attributes:
      state_floats: floats in its state, h_t included.
      flops: per step, leading terms of the rule's own work: without the step, its partials and the readout.

    Example:
      >>> import jax
      >>> from jaxbptt import cells, models, online
      >>> model = models.sequence_model(cells.elman(num_inputs=2, num_hidden=4), num_outputs=1)
      >>> params = model.init(jax.random.key(0))  # 28 numbers that the step reads
      >>> online.rtrl().cost(model, params).state_floats, online.kf_rtrl().cost(model, params).state_floats
      (116, 27)
    """

    state_floats: int
    flops: int


class RuleInit(Protocol):
    def __call__(
        self, model: Model, params: Params, *, key: Key | None = None, initial: State | None = None, x: Input = None
    ) -> "OnlineState":
        """The state at h_0; x: an example of one input, for a model without num_inputs."""
        ...


class RuleUpdate(Protocol):
    def __call__(self, params: Params, state: "OnlineState", x: Input, target: Target) -> Update:
        """(state, L_t, the gradient of L_t shaped like params)."""
        ...


class RuleCost(Protocol):
    def __call__(self, model: Model, params: Params, *, x: Input = None) -> Cost:
        """The cost of the rule for a model, counted from shapes."""
        ...


class Rule(NamedTuple):
    """An online estimator of dC/dθ. Static, like a Model; its state goes through scan, jit and vmap.

    Attributes:
      init: (model, params, *, key, initial, x) -> OnlineState at h_0.
      update: (params, state, x_t, y_t) -> (state, L_t, its gradient shaped like params).
      cost: (model, params, *, x) -> Cost.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, online
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> rule, w = online.rtrl(), jnp.array(2.0)
      >>> state = rule.init(model, w, x=jnp.array(0.0))  # x: one input, of which the shape counts
      >>> state, loss, grads = rule.update(w, state, jnp.array(1.0), jnp.array(0.0))  # h_1 = 1
      >>> state, loss, grads = rule.update(w, state, jnp.array(0.0), jnp.array(0.0))  # h_2 = 2 h_1
      >>> float(loss), float(grads)  # L_2 and dL_2/dw = h_2 h_1
      (2.0, 2.0)
    """

    init: RuleInit
    update: RuleUpdate
    cost: RuleCost


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["model_state", "sensitivity", "key"],
    meta_fields=["model", "method", "plan"],
)
@dataclasses.dataclass(frozen=True)
class OnlineState:
    """What one update passes to the next: arrays, and as static fields the model and the method they belong to.

    Attributes:
      model_state: h_t, pytree.
      sensitivity: Â_t ≈ dh_t/dθ, pytree in the method's own form.
      key: typed key for the following steps; None for a rule that draws nothing.
      model, method, plan: what the state belongs to, static.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import models, online
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> state = online.rtrl().init(model, jnp.array(2.0), initial=jnp.array(3.0), x=jnp.array(0.0))
      >>> float(state.model_state), len(jax.tree.leaves(state))  # h_0; with A_0 the only arrays
      (3.0, 2)
    """

    model_state: State
    sensitivity: Sensitivity
    key: Key | None
    model: Model
    method: Method
    plan: Plan


def make_rule(method: Method, make_plan: MakePlan) -> Rule:
    """The Rule of a method; `make_plan(model, params, x, constant_start)` decides all that is static."""

    def init(
        model: Model, params: Params, *, key: Key | None = None, initial: State | None = None, x: Input = None
    ) -> OnlineState:
        """The state at h_0.

        Args:
          model: f, g and L, reduction "sum".
          params: θ, float leaves of one dtype.
          key: typed key for all later draws; a rule that draws nothing ignores it.
          initial: h_0 as a constant (Â_0 = 0); None: `model.initial_state(params)`, with Â_0 = ∂h_0/∂θ.
          x: an example of one input, needed for a model without num_inputs; only its shapes and dtypes count.

        Returns:
          OnlineState, a pytree; it carries the model.

        Raises:
          TypeError, ValueError: an argument not as stated; a model for which the rule is not defined.
        """
        params, x = _validation.as_arrays("params", params), _validation.as_arrays("x", x, shapes=True)
        initial = _validation.as_arrays("initial", initial)
        plan = _plan(model, params, initial, x)
        if not (method.num_signs(plan) or _num_start(method, plan)):
            return start_with(method, plan, model, params, None, initial=initial)
        _validation.require_key(key)
        later, draw = jax.random.split(cast(Key, key))
        signs = _draw_signs(_num_start(method, plan), params, draw)
        key = later if method.num_signs(plan) else None
        return start_with(method, plan, model, params, signs, initial=initial, key=key)

    def cost(model: Model, params: Params, *, x: Input = None) -> Cost:
        """Cost(state_floats, flops per step) of the rule for a model, from shapes; arguments as `init`."""
        plan = _plan(model, params, None, x)
        signs = jax.ShapeDtypeStruct((_num_start(method, plan),), jax.tree.leaves(params)[0].dtype)
        state = jax.eval_shape(lambda params, signs: start_with(method, plan, model, params, signs), params, signs)
        floats = [leaf.size for leaf in jax.tree.leaves((state.model_state, state.sensitivity))]
        return Cost(sum(floats), method.flops(plan))

    def _plan(model, params, initial, x):
        _validation.require_functions("model", model, ("initial_state", "step", "readout", "loss"))
        if model.reduction != "sum":
            raise ValueError(f"model.reduction: got {model.reduction!r}, expected 'sum' (an online rule knows no T)")
        if model.penalty is not None:
            raise ValueError("model.penalty: got a penalty, expected none: an online rule sees single steps")
        dtype = _validation.require_params(params)
        if dtype is None:
            raise ValueError("params: got no arrays, expected at least one")
        _validation.require_like_init(params, model.init)
        own = _validation.require_initial_state(model.initial_state, params, dtype)
        if initial is not None:
            _validation.require_state("initial", initial, own)
        if x is None and model.num_inputs is not None:
            x = jax.ShapeDtypeStruct((model.num_inputs,), dtype)
        elif x is not None:
            _validation.require_input(x, model.num_inputs, dtype)
        return make_plan(model, params, x, initial is not None)

    return Rule(init, update, cost)


def start_with(
    method: Method,
    plan: Plan,
    model: Model,
    params: Params,
    signs: Signs,
    *,
    initial: State | None = None,
    key: Key | None = None,
) -> OnlineState:
    """The state at h_0 with the signs given: Â_0 = ∂h_0/∂θ, or 0 for a given h_0."""
    initial_state = model.initial_state if initial is None else lambda params: initial
    state = jax.tree.map(jnp.asarray, initial_state(params))
    return OnlineState(state, method.start(plan, initial_state, params, signs), key, model, method, plan)


def update(params: Params, state: OnlineState, x: Input, target: Target) -> Update:
    """One step: h_t, Â_t, L_t and g_t = Â_tᵀ (∂⁺o_t/∂⁺h_t)ᵀ ∂L_t/∂o_t + (∂⁺o_t/∂⁺θ)ᵀ ∂L_t/∂o_t.

    Args:
      params: θ of this step; if it has changed since the last update, Â holds sensitivities to earlier params.
      state: from `init` or the last update.
      x: x_t [M], or one step of the input pytree.
      target: y_t.

    Returns:
      (state, L_t scalar, g_t shaped like params). At fixed params Σ_t g_t is the rule's estimate of dC/dθ.

    Raises:
      TypeError, ValueError: an argument of wrong structure, shape or dtype; outside jit, numbers that are not finite.
    """
    _validation.require_type("state", state, OnlineState, "an OnlineState: update(params, state, x, target)")
    params, x = _validation.as_arrays("params", params), _validation.as_arrays("x", x)
    target = _validation.as_arrays("target", target)
    if state.key is None:
        return update_with(params, state, x, target, None)
    key, draw = jax.random.split(state.key)
    signs = _draw_signs(state.method.num_signs(state.plan), params, draw)
    return update_with(params, dataclasses.replace(state, key=key), x, target, signs)


def update_with(params: Params, state: OnlineState, x: Input, target: Target, signs: jax.Array | None) -> Update:
    """`update` with the signs given."""
    model, method, plan = state.model, state.method, state.plan
    dtype = _validation.require_params(params)
    _validation.require_like_init(params, model.init)
    _validation.require_same("params", jax.eval_shape(model.initial_state, params), state.model_state)
    _validation.require_input(x, model.num_inputs, dtype)
    new, sensitivity = method.advance(plan, model, params, state.model_state, x, state.sensitivity, signs)
    _validation.require_same("step's new state", new, state.model_state)

    if method.feed is None:
        loss, direct, local, early = _differentiate(model, params, new, x, state.model_state, target)
    else:
        loss, direct, error = _differentiate_output(model, params, new, x, state.model_state, target)
        local, sensitivity = method.feed(plan, sensitivity, ravel_pytree(new)[0], error)
        early = None
    _validation.require_finite("loss", loss)
    recurrent = method.contract(plan, params, sensitivity, local)
    if early is not None:
        earlier = method.contract(plan, params, state.sensitivity, early)
        recurrent = jax.tree.map(jnp.add, recurrent, earlier)
    grads = jax.tree.map(jnp.add, direct, recurrent)
    inputs, targets = jax.tree.map(lambda leaf: leaf[None], (x, target))
    require_finite_gradient(model, Problem(params, inputs, targets, state.model_state, 1), grads)
    return dataclasses.replace(state, model_state=new, sensitivity=sensitivity), loss, grads


def run(
    rule: Rule,
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    key: Key | None = None,
    initial: State | None = None,
) -> LossAndGrads:
    """Σ_t L_t and Σ_t g_t of a rule over a whole sequence at fixed params, by one `lax.scan` of its update.

    Args:
      rule: from `rtrl()`, `snap(n)`, `uoro()` or any other maker of this module.
      model: f, g and L, reduction "sum".
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      key: typed key, for a rule that draws signs.
      initial: h_0 as a constant; None: `model.initial_state(params)`, whose gradient is estimated too.

    Returns:
      (C scalar, the estimate of dC/dθ shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.
      TypeError: no typed key, for a rule that draws signs.
      ValueError: reduction "mean"; a penalty; a model for which the rule is not defined.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, online
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # h = 1, 2, 4, 8
      >>> loss, grads = online.run(online.rtrl(), model, w, inputs, targets)
      >>> float(loss), float(grads)  # as `gradients.bptt`, with no pass backward
      (42.5, 114.0)
    """
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, _ = problem
    state = rule.init(model, params, key=key, initial=initial, x=jax.tree.map(lambda leaf: leaf[0], inputs))

    def body(carry, step):
        state, total = carry
        state, loss, grads = rule.update(params, state, *step)
        return (state, jax.tree.map(jnp.add, total, grads)), loss

    (_, grads), losses = jax.lax.scan(body, (state, jax.tree.map(jnp.zeros_like, params)), (inputs, targets))
    require_finite_result(model, problem, losses, grads)
    return jnp.sum(losses), grads


def _differentiate(model, params, new, x, previous, target):
    """(L_t, its direct gradient, ∂L_t/∂h_t [N], ∂L_t/∂h_{t−1} [N] or None where the readout does not read h_{t−1})."""

    def step_loss(params, new, previous):
        return model.loss(read(model, params, new, x, previous), target)

    differentiate = jax.value_and_grad(step_loss, argnums=(0, 1, 2))
    loss, (direct, local, early) = differentiate(params, new, previous)
    reads_previous = model.reads == "state, x, previous"
    return loss, direct, ravel_pytree(local)[0], ravel_pytree(early)[0] if reads_previous else None


def _differentiate_output(model, params, new, x, previous, target):
    """(L_t, its direct gradient, ∂L_t/∂o_t [O])."""
    output, pull = vjp(lambda params: read(model, params, new, x, previous), params)
    loss, error = jax.value_and_grad(model.loss)(output, target)
    return loss, pull(error), ravel_pytree(error)[0]


def _num_start(method, plan):
    return (method.num_signs if method.num_start is None else method.num_start)(plan)


def _draw_signs(count, params, key):
    return jax.random.rademacher(key, (count,), jax.tree.leaves(params)[0].dtype)
