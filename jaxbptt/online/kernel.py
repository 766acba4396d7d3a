"""KeRNL: sensitivity weights and time constants that are learned from perturbations of the state."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt.online import sparse
from jaxbptt.online.method import Method
from jaxbptt.online.rule import Rule, make_rule
from jaxbptt.online.traces import decayed, plan_of_direct
from jaxbptt.partials import step_partials


class Kernel(NamedTuple):
    """dh_t/dθ ≈ weights · trace, and what the weights and rates are learned from."""

    trace: jax.Array  # [G, K, C] e, in the places of ∂⁺h/∂⁺θ
    weights: jax.Array  # [N, N] β
    rates: jax.Array  # [N] γ
    shift: jax.Array  # [N] δ, what all perturbations so far have done to h_t
    filtered: jax.Array  # [N] Ω
    slope: jax.Array  # [N] Γ = ∂Ω/∂γ


class Plan(NamedTuple):
    own: sparse.Plan
    num_state: int
    timescale: float
    rate: float


def kernl(*, rate: float, timescale: float) -> Rule:
    """dh_t/dθ ≈ β e_t,  e_t = diag(e^{−γ}) e_{t−1} + ∂⁺h_t/∂⁺θ: dh_t/dh_k is taken for β diag(e^{−γ (t−k)}).

    β and γ are learned at each step from what perturbations of the state do, ζ_t ∈ {−1, 1}^N random:

        δ_t = J_t δ_{t−1} + ζ_t            what they have done to h_t
        Ω_t = e^{−γ} Ω_{t−1} + ζ_t         so that β Ω_t should be δ_t
        Γ_t = e^{−γ} (Γ_{t−1} − Ω_{t−1})   = ∂Ω_t/∂γ
        β ← β − η ε Ω_tᵀ / ‖Ω_t‖²,  γ ← max(0, γ − η (βᵀ ε) ⊙ Γ_t / ‖β diag(Γ_t)‖²),  ε = β Ω_t − δ_t

    Two points differ from the paper. It runs a second network with small noise added to its state, where δ is the limit
    of small noise, by one jvp. And it takes plain gradient steps, where these are divided by ‖Ω‖² and ‖β diag(Γ)‖², so
    that a rate η < 1 cannot diverge whatever N and γ are. At h_0: β = 1, γ = 1/τ, e_0 = ∂h_0/∂θ, δ = Ω = Γ = 0.

    State: e, G·K·C numbers as `snap(1)`, β [N, N], four vectors [N] and a key. Cost: 4GKC + 10N² flops per step and a
    jvp. Works for any cell. The pattern is found and looked at as in `snap`.

    Args:
      rate: η, 0 … 1; 0 leaves β and γ as they are: `immediate(decay=e^{−1/τ})`.
      timescale: τ > 0 in steps, where the traces start from.

    Returns:
      Rule. Biased, unless dh_t/dh_k has that form; random through β and γ alone.

    Raises:
      TypeError, ValueError: a rate outside 0 … 1; a timescale that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, models, online
      >>> model = models.sequence_model(cells.elman(num_inputs=2, num_hidden=4), num_outputs=1)
      >>> params, rule = model.init(jax.random.key(0)), online.kernl(rate=0.1, timescale=2.0)
      >>> state = rule.init(model, params, key=jax.random.key(1))
      >>> state, loss, grads = rule.update(params, state, jnp.ones(2), jnp.ones(1))
      >>> state.sensitivity.weights.shape, state.sensitivity.rates.shape
      ((4, 4), (4,))

    Reference: Roth, Kanitscheider & Fiete (2019), ICLR, openreview.net/forum?id=ryGfnoC5KQ.
    """
    for name, value in (("rate", rate), ("timescale", timescale)):
        _validation.require_number(name, value)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: got {rate}, expected a number between 0 and 1")
    if not timescale > 0:
        raise ValueError(f"timescale: got {timescale}, expected a positive number of steps")
    return make_rule(METHOD, functools.partial(_plan, rate=float(rate), timescale=float(timescale)))


def _plan(model, params, x, constant_start, *, rate, timescale):
    state = jax.eval_shape(model.initial_state, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    return Plan(plan_of_direct(model, params, x, constant_start), size, timescale, rate)


def _start(plan, initial_state, params, signs):
    trace = sparse.METHOD.start(plan.own, initial_state, params, signs)
    zeros = jnp.zeros(plan.num_state, trace.dtype)
    return Kernel(trace, jnp.eye(plan.num_state, dtype=trace.dtype), zeros + 1 / plan.timescale, zeros, zeros, zeros)


def _advance(plan, model, params, state, x, kernel, signs):
    tangent = ravel_pytree(state)[1](kernel.shift)
    pushed = step_partials(model).push_state(params, state, x, tangent)[1]
    new, direct = sparse.direct_partial(plan.own, model, params, state, x)
    decay = jnp.exp(-kernel.rates)
    trace = decayed(plan.own, decay, kernel.trace) + direct
    shift = ravel_pytree(pushed)[0] + signs
    filtered, slope = decay * kernel.filtered + signs, decay * (kernel.slope - kernel.filtered)
    error = kernel.weights @ filtered - shift
    by_rates = jnp.sum(kernel.weights**2, axis=0) @ slope**2  # ‖β diag(Γ)‖²
    weights = kernel.weights - jnp.outer(_divided(plan.rate * error, filtered @ filtered), filtered)
    rates = jnp.maximum(kernel.rates - _divided(plan.rate * (error @ kernel.weights) * slope, by_rates), 0)
    return new, Kernel(trace, weights, rates, shift, filtered, slope)


def _divided(gradient, square):
    return gradient / jnp.where(square == 0, jnp.ones_like(square), square)


def _contract(plan, params, kernel, local):
    return sparse.METHOD.contract(plan.own, params, kernel.trace, local @ kernel.weights)


def _flops(plan):
    groups, height = plan.own.rows.array.shape
    return 4 * groups * height * plan.own.columns.array.shape[1] + 10 * plan.num_state**2


METHOD = Method(_start, _advance, _contract, _flops, num_signs=lambda plan: plan.num_state, num_start=lambda plan: 0)
