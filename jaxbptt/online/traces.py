"""Immediate derivatives ∂⁺h_t/∂⁺θ, alone or with a trace that decays exponentially."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.models.model import Model
from jaxbptt.online import sparse
from jaxbptt.online.method import Method
from jaxbptt.online.patterns import Constant
from jaxbptt.online.rule import Rule, make_rule
from jaxbptt.types import ArrayLike, Input, Params


class Plan(NamedTuple):
    own: sparse.Plan
    decay: Constant  # [N]


def immediate(*, decay: float | ArrayLike = 0.0) -> Rule:
    """A_t = diag(κ) A_{t−1} + ∂⁺h_t/∂⁺θ: immediate derivatives with a decaying trace, κ = `decay`.

    With κ = 0 it is ∂⁺h_t/∂⁺θ alone: each loss sees the last step only, as in a truncation window of one step (the
    path from h_0 to θ apart). It is exact where J_t = diag(κ), and equals `rflo(leak=κ)` for a number κ, without that
    rule's [N, N] transition.

    State: the entries of ∂⁺h/∂⁺θ (and ∂h_0/∂θ) that are not zero, G·K·C numbers as `snap(1)`. Cost: 4GKC flops per
    step. Works for any cell. The pattern is found and looked at as in `snap`. The key is not used.

    Args:
      decay: κ, a number for all entries of the state, or one for each [N], in flattened order.

    Returns:
      Rule. `init` raises ValueError for a decay of another length than N.

    Raises:
      TypeError: a decay that is no number or array of floats.
      ValueError: one of more than one axis, or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, online
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # dC/dw = 114
      >>> [float(online.run(online.immediate(decay=k), model, w, inputs, targets)[1]) for k in (0.0, 1.0, 2.0)]
      [42.0, 70.0, 114.0]

    Reference: Merin (2026), arXiv:2603.28750 (κ = 0); Murray (2019), eLife 8:e43299 (κ = 1 − 1/τ).
    """
    if not _validation.is_concrete(decay):
        raise TypeError("decay: got a traced array, expected concrete numbers (make the rule outside jit)")
    values = np.asarray(decay)
    if isinstance(decay, bool) or not (np.issubdtype(values.dtype, np.floating) or isinstance(decay, int)):
        raise TypeError(f"decay: got {type(decay).__name__}, expected a number or an array of floats [N]")
    if values.ndim > 1:
        raise ValueError(f"decay: got shape {list(values.shape)}, expected finite numbers, one or [N]")
    if not np.isfinite(values).all():
        raise ValueError("decay: got NaN or inf, expected finite numbers")
    return make_rule(METHOD, functools.partial(_plan, Constant(values.astype(np.float64))))


def decayed(plan: sparse.Plan, decay: jax.Array, entries: jax.Array) -> jax.Array:
    """diag(κ) A for the kept entries [G, K, C]."""
    return decay[plan.rows.array][:, :, None] * entries


def plan_of_direct(model: Model, params: Params, x: Input, constant_start: bool) -> sparse.Plan:
    """The places of ∂⁺h/∂⁺θ and ∂h_0/∂θ."""
    return sparse.make_plan(None, 0, model, params, x, constant_start)


def _plan(decay, model, params, x, constant_start):
    state = jax.eval_shape(model.initial_state, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    if decay.array.ndim and decay.array.shape != (size,):
        raise ValueError(f"decay: got {decay.array.size} numbers, expected one, or {size}: one for each entry of h")
    return Plan(
        plan_of_direct(model, params, x, constant_start), Constant(np.broadcast_to(decay.array, (size,)).copy())
    )


def _start(plan, initial_state, params, signs):
    return sparse.METHOD.start(plan.own, initial_state, params, signs)


def _advance(plan, model, params, state, x, sensitivity, signs):
    new, direct = sparse.direct_partial(plan.own, model, params, state, x)
    return new, decayed(plan.own, jnp.asarray(plan.decay.array, sensitivity.dtype), sensitivity) + direct


def _contract(plan, params, sensitivity, local):
    return sparse.METHOD.contract(plan.own, params, sensitivity, local)


def _flops(plan):
    groups, height = plan.own.rows.array.shape
    return 4 * groups * height * plan.own.columns.array.shape[1]


METHOD = Method(_start, _advance, _contract, _flops)
