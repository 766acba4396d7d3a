"""dC/dθ with the adjoint carried forward in time, and how far rounding lets it be carried.

δ_t = dC/dh_t,   δ_{t+1} = J_{t+1}⁻ᵀ (δ_t − ∂l_t),   ∂l_t the part of dC/dh_t through outputs alone
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.gradients.adjoint import add_initial
from jaxbptt.gradients.diagnosis import require_finite_gradient
from jaxbptt.gradients.forward import ForwardPass, Problem, join_early, run_forward, take_problem
from jaxbptt.gradients.rounding import (
    Probed,
    Sizes,
    add_repeated,
    add_rounding,
    exact,
    measure,
    multiply,
    solve_transposed,
)
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.trajectories import flatten_steps
from jaxbptt.types import Inputs, Integer, LossAndGrads, Params, State, Targets

Start: TypeAlias = Literal["backward", "warm-up"]
ALIKE = 0.03  # of a unit roundoff: what the roundings of a refined solution at equal steps have in common


class PropagatedErrors(NamedTuple):
    """δ_t = dC/dh_t carried forward in time, as far as it is known.

    Attributes:
      adjoints: [T, N], row t−1 is δ_t; NaN from the horizon on, and where it may be all error.
      horizon: integer scalar, the first t at which the error of δ_t may be of the size of δ_1 … δ_t; T + 1: none.
      log_error: [T], ln of the estimated ‖error of δ_t‖, over √(mean ‖δ‖²) of δ_1 … δ_t.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> found = gradients.propagate_errors(model, jnp.array(1.0), jnp.ones(100), jnp.zeros(100))  # J_t = 1
      >>> found.adjoints.shape, found.log_error.shape, int(found.horizon)  # T + 1: rounding never won
      ((100, 1), (100,), 101)
    """

    adjoints: Float[Array, "time state"]
    horizon: Integer
    log_error: Float[Array, " time"]


class Later(NamedTuple):
    """What carries δ_1 to δ_2 … δ_T; each J is computed when it is needed."""

    jacobian: Callable[[Any], jax.Array]  # of one entry of `steps`
    steps: Any  # (h_1 … h_{T−1}, x_2 … x_T)
    local: jax.Array  # ∂l_1 … ∂l_{T−1}, [T − 1, N]
    keys: jax.Array  # [T − 1]
    key: jax.Array  # one for all steps


def propagate_errors(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    start: Start = "backward",
) -> PropagatedErrors:
    """δ_{t+1} = J_{t+1}⁻ᵀ (δ_t − ∂l_t): the adjoint carried forward in time, with the step at which rounding wins.

    Exact in exact arithmetic. In floats every step adds a rounding error, which J⁻ᵀ then multiplies: a direction that
    the recurrence forgets at rate λ_N comes back as e^(−λ_N t). The error is measured on the way: eight random errors
    of the size of one rounding are added at every step and carried by the same J⁻ᵀ; the error of δ_t is taken for
    three times their root mean square. Where that reaches the root mean square of ‖δ_1‖ … ‖δ_t‖ is the horizon.

    Args:
      model: as in `autodiff`.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, as in `autodiff`.
      start: where δ_1 comes from. "backward": one backward pass. "warm-up": by linearity, a forward pass from δ_1 = 0
        ends in e_T in place of δ_T = ∂l_T, so that δ_1 = (J_T … J_2)ᵀ (∂l_T − e_T), with the product carried beside it:
        no step runs backward, N³ flops a step more, and a shorter horizon (`spectra.error_horizon`).

    Returns:
      PropagatedErrors, of the dtype of the state; NaN throughout where a J_t is singular, under jit.

    Raises:
      TypeError, ValueError: as `autodiff`.
      ValueError: an unknown start; outside jit, a J_t, t ≥ 2, that is singular up to rounding, with its step.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> found = gradients.propagate_errors(model, jnp.array(0.5), jnp.ones(100), jnp.zeros(100))  # a bit a step
      >>> horizon = int(found.horizon)  # in float64 no later than step 53, in float32 than step 24
      >>> horizon < 60, bool(jnp.isnan(found.adjoints[horizon - 1 :]).all())
      (True, True)

    Reference: Zucchet et al. (2026), "Forward propagation of errors through time".
    """
    return _propagate(model, params, inputs, targets, initial, start)[3]


def forward_adjoint(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    start: Start = "backward",
) -> LossAndGrads:
    """dC/dθ = Σ_t [(∂⁺h_t/∂⁺θ)ᵀ δ_t + (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t] + (∂h_0/∂θ)ᵀ J_1ᵀ δ_1,  δ_{t+1} = J_{t+1}⁻ᵀ (δ_t − ∂l_t).

    Args:
      model: as in `autodiff`.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, as in `autodiff`.
      start: as in `propagate_errors`.

    Returns:
      (C scalar, dC/dθ shaped like params); every leaf of the gradient is NaN where T is beyond the horizon.

    Raises:
      TypeError, ValueError: as `propagate_errors`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # h = 1, 2, 4, 8
      >>> loss, grads = gradients.forward_adjoint(model, w, inputs, targets)
      >>> float(loss), round(float(grads), 3)
      (42.5, 114.0)

    Reference: Zucchet et al. (2026), "Forward propagation of errors through time".
    """
    problem, run, values, found = _propagate(model, params, inputs, targets, initial, start)
    params, inputs, steps, partials = problem.params, problem.inputs, run.trajectory, step_partials(model)
    unravel = ravel_pytree(steps.initial)[1]
    adjoints = jax.vmap(unravel)(values)
    grads = jax.tree.map(jnp.add, run.direct, partials.sum_params(params, steps.previous, inputs, adjoints))
    if problem.initial is None:
        first = jax.tree.map(lambda leaf: leaf[0], (inputs, adjoints))
        before = partials.pull_state(params, partials.residuals(params, steps.initial, first[0]), first[1])
        early = join_early(run.local, run.early)[1]
        grads = add_initial(model, params, grads, before if early is None else jax.tree.map(jnp.add, before, early))
    known = found.horizon > problem.length
    grads = jax.tree.map(lambda leaf: jnp.where(known, leaf, jnp.nan), grads)
    if _validation.is_concrete(known):
        if known:
            require_finite_gradient(model, problem, grads)
        else:
            said = f"rounding has won by step t = {int(found.horizon)} of {problem.length}"
            warnings.warn(f"gradient: NaN, {said} (propagate_errors gives what is known)", RuntimeWarning, stacklevel=2)
    return run.loss, grads


def _propagate(
    model: Model, params: Params, inputs: Inputs, targets: Targets, initial: State | None, start: Start
) -> tuple[Problem, ForwardPass, jax.Array, PropagatedErrors]:
    """(…, δ_t [T, N] as computed, what is known of it)."""
    _validation.require_choice("start", start, get_args(Start))
    problem = take_problem(model, params, inputs, targets, initial)
    run = run_forward(model, problem.params, problem.inputs, problem.targets, problem.initial)
    local = flatten_steps(join_early(run.local, run.early)[0])
    require_finite_gradient(model, problem, local)
    partials, trajectory = step_partials(model), run.trajectory
    keys = jax.random.split(jax.random.key(0), len(local))
    later = Later(
        jacobian=lambda at: partials.jacobian(problem.params, *at),
        steps=jax.tree.map(lambda leaf: leaf[1:], (trajectory.previous, trajectory.inputs)),
        local=local[:-1],
        keys=keys[1:],
        key=jax.random.key(1),
    )
    begin = _by_backward_pass if start == "backward" else _by_warm_up
    first = begin(later, keys[0], local[-1])

    def body(probed, step):
        probed, singular = _pass_on(later, probed, step)
        return probed, (probed.value, measure(probed), singular)

    _, (values, sizes, singular) = jax.lax.scan(body, first, later[1:4])
    _require_regular(singular)
    values, sizes = jax.tree.map(
        lambda one, others: jnp.concatenate((one[None], others)), (first.value, measure(first)), (values, sizes)
    )
    return problem, run, values, _judge(values, sizes, jnp.any(singular))


def _judge(values: jax.Array, sizes: Sizes, singular: jax.Array) -> PropagatedErrors:
    """What is known of δ_1 … δ_T. A true δ_t is at least as long as the computed one less its error."""
    count = jnp.arange(1, 1 + len(values), dtype=values.dtype)
    ratio = jnp.exp(sizes.error - sizes.norm)
    least = jnp.where(ratio < 1, sizes.norm + jnp.log1p(-ratio), -jnp.inf)
    log_error = sizes.error - (jax.lax.cumlogsumexp(2 * least) - jnp.log(count)) / 2
    none = sizes.error == -jnp.inf
    log_error = jnp.where(none, -jnp.inf, jnp.where(singular, jnp.nan, log_error))
    known = jnp.cumprod((log_error < 0) & ~singular) > 0
    given = known & (none | (ratio < 0.5))
    return PropagatedErrors(jnp.where(given[:, None], values, jnp.nan), jnp.sum(known) + 1, log_error)


def _pass_on(later: Later, probed: Probed, step: Any) -> tuple[Probed, jax.Array]:
    """(δ_{t+1} from δ_t, whether J_{t+1} is singular)."""
    at, local, key = step
    one, other = jax.random.split(key)
    left = probed._replace(value=probed.value - local)
    left = add_rounding(one, left, jnp.abs(probed.value) + jnp.abs(local))
    probed, singular = solve_transposed(other, later.jacobian(at), left)
    return add_repeated(later.key, probed, ALIKE), singular


def _by_backward_pass(later: Later, key: jax.Array, last: jax.Array) -> Probed:
    """δ_1, by δ_t = ∂l_t + J_{t+1}ᵀ δ_{t+1} from δ_T = ∂l_T."""

    def body(probed, step):
        at, local, key = step
        one, other = jax.random.split(key)
        pulled = multiply(one, later.jacobian(at).T, probed)
        total = pulled._replace(value=local + pulled.value)
        return add_rounding(other, total, jnp.abs(total.value) + jnp.abs(local)), None

    begin = add_rounding(key, exact(last), jnp.abs(last))
    return jax.lax.scan(body, begin, later[1:4], reverse=True)[0]


def _by_warm_up(later: Later, key: jax.Array, last: jax.Array) -> Probed:
    """δ_1 = (J_T … J_2)ᵀ (∂l_T − e_T), where the recursion leads from 0 to e_T."""

    def body(carry, step):
        probed, product = carry
        at, _, key = step
        product = multiply(jax.random.fold_in(key, 2), later.jacobian(at), product)
        product = add_repeated(later.key, product, 1.0)
        return (_pass_on(later, probed, step)[0], product), None

    one, other = jax.random.split(key)
    begin = exact(jnp.zeros_like(last)), exact(jnp.eye(len(last), dtype=last.dtype))
    (ended, product), _ = jax.lax.scan(body, begin, later[1:4])
    gap = Probed(last - ended.value, -ended.errors)
    gap = add_rounding(one, gap, jnp.abs(ended.value) + jnp.abs(last))
    pulled = multiply(other, product.value.T, gap)
    return pulled._replace(errors=pulled.errors + jnp.einsum("kij,i->kj", product.errors, gap.value))


def _require_regular(singular: jax.Array) -> None:
    """Raise, naming the first step, if a concrete J_t, t ≥ 2, is singular."""
    if _validation.is_concrete(singular) and np.any(singular):
        t = int(np.argmax(singular)) + 2
        raise ValueError(
            f"model: got a J_t that is singular up to rounding, first at step t = {t}, expected an inverse at every"
            " step t ≥ 2 (dC/dh_t cannot be carried forward through it)"
        )
