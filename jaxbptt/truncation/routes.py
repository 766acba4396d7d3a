"""Truncated gradients as people run them: (model, params, inputs, targets) -> (loss, grads), like the exact routes.

windowed     windows of K steps, with the state carried over or reset
sliding      every block of k1 losses replayed over the k2 steps before its end: TBPTT(k1, k2)
lag          every loss by itself over the last L steps: TBPTT(1, L)
randomised   links cut at random and the kept terms reweighted: unbiased
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from jaxbptt import _validation
from jaxbptt.gradients.diagnosis import require_finite_gradient
from jaxbptt.gradients.forward import (
    ForwardPass,
    add_penalty,
    read_out,
    require_finite_losses,
    run_forward,
    take_problem,
)
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.trajectories import run_steps
from jaxbptt.truncation.cuts import Keep, draw_cuts
from jaxbptt.truncation.replay import assemble, replay_adjoint, replayed_gradient, sliding_blocks, window_blocks
from jaxbptt.truncation.weights import link_factors
from jaxbptt.types import ArrayLike, Inputs, Key, LossAndGrads, Params, State, States, Targets


def windowed(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    window: int,
    carry_state: bool = True,
) -> LossAndGrads:
    """The gradient over windows 1 … K, K+1 … 2K, …: no adjoint passes from a window to the one before it.

    carry_state=True: the state passes from window to window. C is exact, the gradient is that of `window_weights`.
    carry_state=False: every window starts from h_0 (as in the code of the d2l book, with h_0 = 0). The forward pass is
    then a different one: C is its loss, and the gradient is exact for that loss, not a weighted table of the carried
    state's terms.

    One forward scan of T steps, one reverse scan of K steps over all windows at once, one gradient of params over
    all T. Memory T·N beyond the gradient.

    Args:
      model: f, g, L and the reduction (1/T for the mean, in either variant).
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      initial: h_0 as a constant; None: `model.initial_state(params)`, whose gradient counts for every window that
        starts from it.
      window: K ≥ 1, static; the last window holds the T mod K steps left over, if any; K ≥ T is full BPTT.
      carry_state: static.

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.
      TypeError: a window that is no int.
      ValueError: a window below 1; a carry_state that is no bool.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # terms 2, 2 × 8, 3 × 32
      >>> [float(truncation.windowed(model, w, inputs, targets, window=window)[1]) for window in (1, 2, 4)]
      [42.0, 74.0, 114.0]

    Reference: Zhang et al., Dive into Deep Learning, §9.7; S3.7 (regular truncation).
    """
    _validation.require_size("window", window)
    _validation.require_choice("carry_state", carry_state, (True, False))
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, num_steps = problem
    blocks, depth = window_blocks(num_steps, window), min(window, num_steps)
    if carry_state:
        forward = run_forward(model, params, inputs, targets, initial)
        grads = replayed_gradient(model, params, forward, initial, blocks, depth)
    else:
        forward, steps = _run_reset(model, params, inputs, targets, initial, window)
        _, _, local, direct, early = forward
        adjoint, carried = replay_adjoint(model, params, steps, local, early, blocks, depth)
        initial_adjoint = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), carried) if initial is None else None
        grads = assemble(model, params, steps, direct, adjoint, initial_adjoint)
    require_finite_gradient(model, problem, grads)
    return forward.loss, grads


def sliding(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    stride: int,
    num_lags: int,
) -> LossAndGrads:
    """TBPTT(k1, k2): each block of k1 losses ending at step e is carried back over the steps k > e − k2.

    The gradient is that of `sliding_weights`; C is exact. One forward scan, one reverse scan of min(k2, T) steps over
    all ⌈T/k1⌉ blocks at once (k2/k1 times the state pullbacks of full BPTT), and one gradient of params over all T.
    Memory (T + T/k1)·N beyond the gradient.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0 as a constant; None: `model.initial_state(params)`, whose gradient goes with step 1.
      stride: k1 ≥ 1, static; where it does not divide T, the last block has the remaining losses and ends at T.
      num_lags: k2 ≥ 1, static; if k2 < k1, the first k1 − k2 losses of a block keep only their readout's direct part;
        k2 ≥ T is full BPTT.

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.
      TypeError: a stride or num_lags that is no int.
      ValueError: a stride or num_lags below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # terms 2, 2 × 8, 3 × 32
      >>> [float(truncation.sliding(model, w, inputs, targets, stride=2, num_lags=k2)[1]) for k2 in (1, 2, 3)]
      [34.0, 74.0, 114.0]

    Reference: Williams & Peng (1990), Neural Computation 2.
    """
    _validation.require_size("stride", stride)
    _validation.require_size("num_lags", num_lags)
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, num_steps = problem
    forward = run_forward(model, params, inputs, targets, initial)
    blocks, depth = sliding_blocks(num_steps, stride, num_lags), min(num_lags, num_steps)
    grads = replayed_gradient(model, params, forward, initial, blocks, depth)
    require_finite_gradient(model, problem, grads)
    return forward.loss, grads


def lag(
    model: Model, params: Params, inputs: Inputs, targets: Targets, *, initial: State | None = None, num_lags: int
) -> LossAndGrads:
    """TBPTT(1, L): every loss is carried back over its own last L steps; the terms of lag t − k < L are kept.

    `sliding` with k1 = 1: L times the state pullbacks of full BPTT, memory 2T·N beyond the gradient.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0 as a constant; None: `model.initial_state(params)`, whose gradient goes with step 1.
      num_lags: L ≥ 1, static: a count, one more than the largest lag kept (the reach of `terms` + 1).

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `sliding`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # terms 2, 2 × 8, 3 × 32
      >>> [float(truncation.lag(model, w, inputs, targets, num_lags=k2)[1]) for k2 in (1, 2, 3)]
      [42.0, 82.0, 114.0]

    Reference: Aicher, Foti & Fox (2019), arXiv:1905.07473.
    """
    return sliding(model, params, inputs, targets, initial=initial, stride=1, num_lags=num_lags)


def randomised(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    keep: Keep,
    key: Key | None = None,
    cuts: Bool[ArrayLike, " time"] | None = None,
) -> LossAndGrads:
    """λ_t = ∂C/∂h_t|o_t + ξ_{t+1} J_{t+1}ᵀ λ_{t+1},  ξ_t = 0 where link t is cut, else 1/π_t: unbiased for dC/dθ.

    The gradient is that of `random_weights`; C is exact. The same π at every link gives z_t = b_t + ξ_t c_t z_{t−1}
    (S3.7); cuts and π from `renewal_cuts` give ARTBP. One forward and one reverse scan of T steps and one gradient of
    params: this costs as much as full BPTT. Cuts save memory only in a run that discards the steps before a cut.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0 as a constant; None: `model.initial_state(params)`, whose gradient comes through link 1.
      keep: π, the probability that link t (from h_{t−1} to h_t) is kept, in (0, 1], scalar or [T]; cast to the dtype of
        params.
      key: typed key that draws the cuts; give exactly one of key and cuts.
      cuts: [T] booleans, True where link t is cut.

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`; keep and key as in `draw_cuts`.
      TypeError: both or neither of key and cuts; cuts that are no array of bools.
      ValueError: cuts that are not [T].

    Example:
      >>> import itertools, jax, jax.numpy as jnp
      >>> from jaxbptt import models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # dC/dw = 114
      >>> estimate = lambda cuts: truncation.randomised(model, w, inputs, targets, keep=0.5, cuts=cuts)[1]
      >>> patterns = jnp.array(list(itertools.product([False, True], repeat=4)))  # of equal probability
      >>> float(jax.vmap(estimate)(patterns).mean())
      114.0

    Reference: Tallec & Ollivier (2017), arXiv:1705.08209; S3.7 (randomised truncation).
    """
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, num_steps = problem
    if cuts is None and key is not None:
        cuts = draw_cuts(key, num_steps, keep)
    elif cuts is None or key is not None:
        raise TypeError(f"key, cuts: got {'neither' if key is None else 'both'}, expected exactly one of them")
    _validation.require_array("cuts", cuts, (num_steps,), jnp.bool_)
    scale = link_factors(cuts, keep)
    trajectory, loss, local, direct, early = run_forward(model, params, inputs, targets, initial)
    residuals, pull_state = step_partials(model).pull_over(params, trajectory)

    def body(from_later, step):
        residuals, local, early, scale = step
        adjoint = jax.tree.map(jnp.add, local, from_later)
        pulled = pull_state(residuals, adjoint)
        pulled = pulled if early is None else jax.tree.map(jnp.add, pulled, early)
        return jax.tree.map(lambda leaf: scale.astype(leaf.dtype) * leaf, pulled), adjoint

    start = jax.tree.map(jnp.zeros_like, trajectory.initial)
    initial_adjoint, adjoint = jax.lax.scan(body, start, (residuals, local, early, scale), reverse=True)
    initial_adjoint = initial_adjoint if initial is None else None
    result = loss, assemble(model, params, trajectory, direct, adjoint, initial_adjoint)
    require_finite_gradient(model, problem, result)
    # A traced π outside (0, 1] need not reach every leaf by itself.
    return jax.tree.map(lambda leaf: jnp.where(jnp.all(jnp.isfinite(scale)), leaf, jnp.nan), result)


class _ResetSteps(NamedTuple):
    """The state before each step, the input of each, and the states that they lead to."""

    previous: States
    inputs: Inputs
    states: States


def _run_reset(
    model: Model, params: Params, inputs: Inputs, targets: Targets, initial: State | None, window: int
) -> tuple[ForwardPass, _ResetSteps]:
    """`run_forward` with the state reset to h_0 before steps 1, K+1, 2K+1, …, and its steps."""
    length = jax.tree.leaves(inputs)[0].shape[0]
    first = jnp.arange(length) % window == 0

    def reset(first, state):
        start = model.initial_state(params) if initial is None else initial
        return jax.tree.map(lambda start, state: jnp.where(first, start, state), start, state)

    def step(params, state, x_and_first):
        x, first = x_and_first
        return model.step(params, reset(first, state), x)

    resetting = model._replace(step=step, derivation=None, num_inputs=None)
    trajectory = run_steps(resetting, params, (inputs, first), initial)
    steps = _ResetSteps(jax.vmap(reset)(first, trajectory.previous), inputs, trajectory.states)
    losses, local, direct, early = read_out(model, params, steps, targets, length)
    require_finite_losses(model, params, steps, targets, losses)
    loss, direct = add_penalty(model, params, jnp.sum(losses), direct)
    return ForwardPass(trajectory, loss, local, direct, early), steps
