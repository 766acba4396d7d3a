"""Sensitivities kept on a fixed sparse pattern: SnAp-n, and the eligibility traces of RFLO and e-prop."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt.models.model import Model
from jaxbptt.online.active import Active, active_leaves
from jaxbptt.online.colouring import colour_rows, seeds
from jaxbptt.online.method import MakePlan, Method
from jaxbptt.online.patterns import Constant, find_kept, group_columns
from jaxbptt.online.rule import Rule, make_rule
from jaxbptt.partials import jacobian, step_partials, vjp
from jaxbptt.types import Input, Params, State


class Plan(NamedTuple):
    """The places of the kept entries, in G groups of K rows and C columns."""

    active: Active
    transition: Callable | None  # (model, params, state, x) -> [N, N]; None: J_t
    rows: Constant  # [G, K], −1 pads
    columns: Constant  # [G, C], −1 pads
    direct: Constant  # [G, K, C] bool: where ∂⁺h/∂⁺θ is not zero
    colours: Constant  # [N]: rows of ∂⁺h/∂⁺θ that one vjp may share
    claims: "Claims"


class Claims(NamedTuple):
    """What the plan takes to be zero, bool; the numbers are looked at in every step."""

    params: Constant  # [P]: entries of θ
    transition: Constant  # [N, N]
    shared: Constant  # [colours, P]: of the vjps that rows share


def snap(order: int) -> Rule:
    """A_t = P_n ⊙ (J_t A_{t−1} + ∂⁺h_t/∂⁺θ): the sensitivities that n steps can reach, the others zero (SnAp-n).

    P_1 is the pattern of ∂⁺h/∂⁺θ (and ∂h_0/∂θ); P_n is what P_1 reaches in n−1 further steps through the pattern of J.
    Both are found at `init`, from the program of the step and from concrete params, and hold for every input and state:
    whatever a branch, an index or a mask may decide counts as a dependence, and so does all that an operation without
    known structure reads (a `while_loop`, a callback, a solver). Zeros of `params` stay zero: a weight of exactly zero
    is no connection (also in an identity initialisation). Exact once n−1 is the diameter of J, the longest of its
    shortest paths. For Elman, linear and GRU, SnAp-1 keeps each unit's own diag(J); for the LSTM the 2 × 2 block of
    (C_i, h_i).

    `update` looks whether the step stays within what was found. If not, as when a weight on whose zero P_n relies is
    not zero any more, it raises ValueError, or under jit its gradient is NaN from then on: call `init` again.

    State: the kept entries, in G groups of columns with the same K rows, G·K·C numbers (|θ| for SnAp-1 of a dense
    Elman net, up to N|θ|). Cost: (2K + 3) GKC flops per step, and N² for J. Works for any cell. The key is not used; a
    model without num_inputs needs an example `x` at `init`.

    Args:
      order: n ≥ 1.

    Returns:
      Rule.

    Raises:
      TypeError: an order that is no int.
      ValueError: an order below 1.

    Example:
      >>> import jax
      >>> from jaxbptt import cells, models, online
      >>> model = models.sequence_model(cells.elman(num_inputs=2, num_hidden=4), num_outputs=1)
      >>> params = model.init(jax.random.key(0))  # W_hh without zeros: two steps reach everything
      >>> [rule.cost(model, params).state_floats for rule in (online.snap(1), online.snap(2), online.rtrl())]
      [32, 116, 116]

    Reference: Menick et al. (2020), arXiv:2006.07232.
    """
    _validation.require_size("order", order)
    return make_rule(METHOD, functools.partial(make_plan, None, order - 1))


def rflo(*, leak: float | None = None) -> Rule:
    """A_t = K_t A_{t−1} + ∂⁺h_t/∂⁺θ, K_t = ∂⁺h_t/∂⁺h_{t−1} without any path through a recurrent weight matrix.

    K keeps exactly, for the LSTM, C_{t−1} → C_t (f) and C_{t−1} → C_t → h_t (o (1−tanh²C) f); for the GRU, z ⊙ h_{t−1};
    for Elman and linear, nothing. They have no leak, so their trace is the direct partial alone, a one-step truncation;
    `snap(1)` also keeps each unit's own weight. The rule is e-prop with the exact learning signal ∂L_t/∂h_t, and RFLO
    with the transposed readout in place of random feedback.

    State: the entries of ∂⁺h/∂⁺θ that are not zero, G·K·C numbers (Elman |θ|, LSTM 2 per weight). Cost: (2K + 3) GKC
    flops per step, and N² for K. Works for cells with a factored derivation, and with `leak` for any cell:
    K = leak · I (1 − 1/τ in RFLO). The pattern is found and looked at as in `snap`. The key is not used.

    Args:
      leak: the factor of a leaky cell h_t = leak · h_{t−1} + …; None: K is read from the cell's derivation.

    Returns:
      Rule. `init` raises ValueError for a cell known only by its step when no leak is given.

    Raises:
      TypeError, ValueError: a leak that is no finite number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, online
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # dC/dw = 114
      >>> [float(online.run(online.rflo(leak=leak), model, w, inputs, targets)[1]) for leak in (0.0, 2.0)]  # 2: J
      [42.0, 114.0]

    Reference: Murray (2019), eLife 8:e43299; Bellec et al. (2020), Nature Communications 11:3625.
    """
    return make_rule(METHOD, plan_of_traces(leak, "rflo"))


def plan_of_traces(leak: float | None, rule: str) -> MakePlan:
    """What makes the plan of eligibility traces, those of `rflo`, for the rule of that name."""
    if leak is not None:
        _validation.require_number("leak", leak, "a number or None")
    transition: Any = _carry if leak is None else _Leak(leak)

    def plan(model, params, x, constant_start):
        if leak is None and step_partials(model).factored is None:
            raise ValueError(
                f"{rule}: got a cell without factored derivation, expected one, or leak= (its K is not known)"
            )
        return make_plan(transition, None, model, params, x, constant_start)

    return plan


def make_plan(
    transition: Callable | None, steps: int | None, model: Model, params: Params, x: Input, constant_start: bool
) -> Plan:
    """The places reached in so many steps (None: any number) through J_t or what replaces it."""
    if x is None:
        raise ValueError("x: got None, expected an example input (this model's num_inputs is None)")
    active = active_leaves(model, params, x, constant_start)
    kept = find_kept(model, params, x, active, transition, constant_start, steps)
    rows, columns = group_columns(kept.entries)
    direct = kept.direct[rows[:, :, None], columns[:, None, :]] & _valid(rows, columns)
    colours = colour_rows(kept.direct)
    shared = seeds(colours, np.dtype(bool)) @ kept.direct
    claims = Claims(*map(Constant, (kept.zeros, kept.barred, ~shared)))
    return Plan(active, transition, Constant(rows), Constant(columns), Constant(direct), Constant(colours), claims)


def _valid(rows, columns):
    return (rows >= 0)[:, :, None] & (columns >= 0)[:, None, :]


def _start(plan, initial_state, params, signs):
    rows, columns = plan.rows.array, plan.columns.array
    theta = plan.active.ravel(params)
    dense = jacobian(
        lambda theta: ravel_pytree(initial_state(plan.active.unravel(params, theta)))[0], theta, prefer="reverse"
    )
    return jnp.where(_valid(rows, columns), dense[rows[:, :, None], columns[:, None, :]], jnp.zeros_like(dense[0, 0]))


def _advance(plan, model, params, state, x, sensitivity, signs):
    return advance_by(plan, model, params, state, x, sensitivity)[:2]


def advance_by(
    plan: Plan, model: Model, params: Params, state: State, x: Input, sensitivity: jax.Array
) -> tuple[State, jax.Array, jax.Array]:
    """(h_t, the kept entries [G, K, C], the transition [N, N])."""
    find = _jacobian if plan.transition is None else plan.transition
    transition = find(model, params, state, x)
    new, direct = direct_partial(plan, model, params, state, x, transition)
    rows = plan.rows.array
    pairs = (rows >= 0)[:, :, None] & (rows >= 0)[:, None, :]
    gathered = transition[rows[:, :, None], rows[:, None, :]]
    blocks = jnp.where(pairs, gathered, jnp.zeros_like(gathered))  # [G, K, K]
    return new, blocks @ sensitivity + direct, transition


def direct_partial(
    plan: Plan, model: Model, params: Params, state: State, x: Input, transition: jax.Array | None = None
) -> tuple[State, jax.Array]:
    """(h_t, ∂⁺h_t/∂⁺θ [G, K, C]), NaN or an error where it or the transition is not as found at init."""
    rows, columns = plan.rows.array, plan.columns.array
    unravel = ravel_pytree(state)[1]
    theta = plan.active.ravel(params)
    new, pull = vjp(lambda theta: model.step(plan.active.unravel(params, theta), state, x), theta)
    colours = plan.colours.array
    shared = jax.vmap(lambda seed: pull(unravel(seed)))(seeds(colours, theta.dtype))  # [colours, P]
    found = shared[colours[rows][:, :, None], columns[:, None, :]]
    direct = jnp.where(plan.direct.array, found, jnp.zeros_like(found))
    return new, direct + _doubt(plan.claims, theta, transition, shared)


def _doubt(claims, theta, transition, shared):
    """0, or NaN where a number that the plan takes to be zero is not; outside jit, an error then."""
    doubt = jnp.zeros((), theta.dtype)
    for claim, values, what in (
        (claims.params, theta, "params: got a weight that was zero at init, expected zero there (it is no connection)"),
        (claims.transition, transition, "step: got a Jacobian J_t with entries outside the pattern found at init"),
        (claims.shared, shared, "step: got a direct partial ∂⁺h/∂⁺θ with entries outside the pattern found at init"),
    ):
        if claim.array.any() and values is not None:
            outside = jnp.vdot(claim.array.astype(values.dtype), jnp.abs(values))  # a sum, which XLA takes fast
            if _validation.is_concrete(outside) and outside > 0:
                raise ValueError(f"{what}; call init again with these params, or use rtrl()")
            doubt = jnp.where(outside > 0, jnp.full_like(doubt, jnp.nan), doubt)
    return doubt


def _contract(plan, params, sensitivity, local):
    return spread(plan, params, by_group(plan, sensitivity, local))


def by_group(plan: Plan, sensitivity: jax.Array, local: jax.Array) -> jax.Array:
    """Âᵀ ∂L/∂h for the columns of each group, [G, C]; padded rows of the sensitivity are zero."""
    return jnp.einsum("gk,gkc->gc", local[plan.rows.array], sensitivity)


def spread(plan: Plan, params: Params, by_group: jax.Array) -> Params:
    """Shaped like params, from the columns of each group, [G, C]."""
    columns = plan.columns.array
    place = np.full(plan.active.size, -1, np.int64)
    place[columns[columns >= 0]] = np.flatnonzero(columns.ravel() >= 0)
    flat = by_group.ravel()
    if np.any(place < 0):  # an entry of no group is zero, but NaN with the rest
        flat = jnp.concatenate((flat, 0 * jnp.sum(flat, keepdims=True)))
    return plan.active.expand(params, flat[place])


def _flops(plan):
    groups, height = plan.rows.array.shape
    return groups * height * plan.columns.array.shape[1] * (2 * height + 3)


def _jacobian(model: Model, params: Params, state: State, x: Input) -> jax.Array:
    """J_t [N, N]."""
    return step_partials(model).jacobian(params, state, x)


def _carry(model: Model, params: Params, state: State, x: Input) -> jax.Array:
    """K_t [N, N]: the pullback of the state with every weight matrix set to zero, except in the factors."""
    pullback = step_partials(model).factored
    assert pullback is not None  # checked by _plan
    factors = pullback.factors(params, state, x)
    bare = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if leaf.ndim > 1 else leaf, params)
    flat, unravel = ravel_pytree(state)
    pull = lambda unit: ravel_pytree(pullback.pull_state(bare, factors, unravel(unit)))[0]
    return jax.vmap(pull)(jnp.eye(flat.size, dtype=flat.dtype))


class _Leak(NamedTuple):
    """K = leak · I for any step."""

    leak: float

    def __call__(self, model, params, state, x):
        flat = ravel_pytree(state)[0]
        return jnp.asarray(self.leak, flat.dtype) * jnp.eye(flat.size, dtype=flat.dtype)


METHOD = Method(_start, _advance, _contract, _flops)
