"""Truncated gradients as people run them: (model, params, inputs, targets) -> (loss, grads), as the exact routes.

windowed     windows of K steps, the state carried across or reset
sliding      every block of k1 losses replayed over the k2 steps before its end: TBPTT(k1, k2)
lag          every loss on its own over the last L steps: TBPTT(1, L)
randomised   links cut at random, what is kept reweighted: unbiased
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbptt import checks
from jaxbptt.gradients.adjoint import state_pullback
from jaxbptt.gradients.forward import run_forward
from jaxbptt.models import Model
from jaxbptt.trajectories import require_call
from jaxbptt.truncation.cuts import draw_cuts
from jaxbptt.truncation.replay import Steps, assemble, replay, replayed_gradient, sliding_blocks, window_blocks
from jaxbptt.truncation.weights import link_factors


def windowed(
    model: Model,
    params: Any,
    inputs: Any,
    targets: Any,
    *,
    initial: Any = None,
    length: int,
    carry_state: bool = True,
):
    """The gradient over windows 1 … K, K+1 … 2K, …: no adjoint crosses from a window to the one before.

    carry_state=True: the state does cross. C is the exact one, the gradient that of `window_weights`.
    carry_state=False: every window starts from h_0 (what the d2l book's code runs, with h_0 = 0). The forward pass is
    another one; C is its own loss, and the gradient is exact for that loss, not a weighted table of the carried one.

    One forward scan of T steps, one reverse scan of K steps over all windows at once, one parameter gradient over
    all T. Memory T·N beyond the gradient.

    Args:
      model: f, g, L and the reduction (1/T for the mean, in either variant).
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      initial: h_0, then a constant; None: `model.initial_state(params)`, whose gradient counts for every window that
        starts from it.
      length: K ≥ 1, static; the last window holds the T mod K steps left over, if any; K ≥ T is full BPTT.
      carry_state: static.

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`; length or carry_state not as stated.

    Reference: S3.7 (regular truncation).
    """
    checks.require_size("length", length)
    checks.require_choice("carry_state", carry_state, (True, False))
    run = run_forward if carry_state else _run_reset(length)
    trajectory, loss, local, direct = run(model, params, inputs, targets, initial)
    num_steps = checks.require_time_axis("targets", targets)
    blocks, depth = window_blocks(num_steps, length), min(length, num_steps)
    if carry_state:
        return loss, replayed_gradient(model, params, trajectory, local, direct, initial, blocks, depth)
    adjoint, carried = replay(model, params, trajectory, local, blocks, depth)
    initial_adjoint = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), carried) if initial is None else None
    return loss, assemble(model, params, trajectory, direct, adjoint, initial_adjoint)


def sliding(model: Model, params: Any, inputs: Any, targets: Any, *, initial: Any = None, losses: int, steps: int):
    """TBPTT(k1, k2): each block of k1 losses ending at step e is carried back over the steps k > e − k2.

    The gradient of `sliding_weights`, C the exact one. One forward scan, one reverse scan of min(k2, T) steps over all
    ⌈T/k1⌉ blocks at once, that is k2/k1 times the state pullbacks of full BPTT, and one parameter gradient over all T.
    Memory (T + T/k1)·N beyond the gradient.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, then a constant; None: its gradient goes with step 1.
      losses: k1 ≥ 1, static; where it does not divide T the last block has the losses left over and ends at T.
      steps: k2 ≥ 1, static; k2 < k1 leaves the first k1 − k2 losses of a block with their readout's direct part alone;
        k2 ≥ T is full BPTT.

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`; a size that is no int or below 1.

    Reference: Williams & Peng (1990), Neural Computation 2.
    """
    checks.require_size("losses", losses)
    checks.require_size("steps", steps)
    trajectory, loss, local, direct = run_forward(model, params, inputs, targets, initial)
    num_steps = checks.require_time_axis("targets", targets)
    blocks = sliding_blocks(num_steps, losses, steps)
    return loss, replayed_gradient(model, params, trajectory, local, direct, initial, blocks, min(steps, num_steps))


def lag(model: Model, params: Any, inputs: Any, targets: Any, *, initial: Any = None, steps: int):
    """TBPTT(1, L): every loss is carried back over its own last L steps; the terms of lag t − k < L are kept.

    `sliding` with k1 = 1: L times the state pullbacks of full BPTT, memory 2T·N beyond the gradient.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, then a constant; None: its gradient goes with step 1.
      steps: L ≥ 1, static.

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `sliding`.

    Reference: Aicher, Foti & Fox (2019), arXiv:1905.07473.
    """
    return sliding(model, params, inputs, targets, initial=initial, losses=1, steps=steps)


def randomised(
    model: Model,
    params: Any,
    inputs: Any,
    targets: Any,
    *,
    initial: Any = None,
    keep: Any,
    key: jax.Array | None = None,
    cuts: jax.Array | None = None,
):
    """λ_t = ∂C/∂h_t|o_t + ξ_{t+1} J_{t+1}ᵀ λ_{t+1},  ξ_t = 0 where link t is cut, else 1/π_t: unbiased for dC/dθ.

    The gradient of `random_weights`, C the exact one. With π the same everywhere, the slide's scheme; with cuts and π
    from `renewal_cuts`, ARTBP. One forward and one reverse scan of T steps and one parameter gradient: as an array
    program it costs what full BPTT costs; what cuts save is the memory of a run that forgets what lies behind one.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, then a constant; None: its gradient comes through link 1.
      keep: π, probability that link t (from h_{t−1} to h_t) is kept, in (0, 1], scalar or [T]; cast to the dtype of
        params.
      key: typed key the cuts are drawn with, or
      cuts: [T] booleans, True where link t is cut: exactly one of the two.

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`; keep, key or cuts not as stated.

    Reference: Tallec & Ollivier (2017), arXiv:1705.08209; S3.7.
    """
    num_steps = checks.require_time_axis("targets", targets)
    if (key is None) == (cuts is None):
        raise TypeError(f"key, cuts: got {'neither' if key is None else 'both'}, expected exactly one of them")
    cuts = draw_cuts(key, num_steps, keep) if cuts is None else cuts
    checks.require_array("cuts", cuts, (num_steps,), jnp.bool_)
    scale = link_factors(cuts, keep)
    trajectory, loss, local, direct = run_forward(model, params, inputs, targets, initial)
    factors, pull_state = state_pullback(model, params, trajectory)

    def body(from_later, step):
        factors, local, scale = step
        adjoint = jax.tree.map(jnp.add, local, from_later)
        pulled = jax.tree.map(lambda leaf: scale.astype(leaf.dtype) * leaf, pull_state(factors, adjoint))
        return pulled, adjoint

    start = jax.tree.map(jnp.zeros_like, trajectory.initial)
    initial_adjoint, adjoint = jax.lax.scan(body, start, (factors, local, scale), reverse=True)
    initial_adjoint = initial_adjoint if initial is None else None
    result = loss, assemble(model, params, trajectory, direct, adjoint, initial_adjoint)
    # A traced π outside (0, 1] need not reach every leaf by itself.
    return jax.tree.map(lambda leaf: jnp.where(jnp.all(jnp.isfinite(scale)), leaf, jnp.nan), result)


def _run_reset(window):
    """`run_forward` with the state reset to h_0 before steps 1, K+1, 2K+1, …; Steps in place of the trajectory."""

    def run(model, params, inputs, targets, initial):
        num_steps = require_call(model, params, inputs, initial)
        first = jnp.arange(num_steps) % window == 0
        begin = lambda params: model.initial_state(params) if initial is None else initial  # noqa: E731
        reset = lambda first, start, state: jax.tree.map(  # noqa: E731
            lambda start, state: jnp.where(first, start, state), start, state
        )

        def step(params, state, x_and_first):
            x, first = x_and_first
            return model.step(params, reset(first, begin(params), state), x)

        resetting = model._replace(step=step, derivation=None, num_inputs=None)
        trajectory, loss, local, direct = run_forward(resetting, params, (inputs, first), targets, initial)
        previous = jax.vmap(lambda first, state: reset(first, begin(params), state))(first, trajectory.previous)
        return Steps(previous, inputs), loss, local, direct

    return run
