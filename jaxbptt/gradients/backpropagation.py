"""Back-propagation through time by hand: the adjoint alone in the reverse scan, in blocks that fit the cache.

Tried and lost, as the speed relative to what is here (float32, T = 1024, B = 32, two cores, November 2026):

  all steps in one block                    0.55 to 0.9 at N ≥ 64, in twice the memory or more; 1.1 for tanh, N = 32
  every block run again                     0.65 to 0.95 at N = 256, 0.8 to 1.1 at N = 64, in a tenth to a third of it
  `vmap` of this function over 32 examples  0.4 to 0.7 (a weight gradient for each)
  λ from the scan, δ = factors · λ after it 0.94 to 0.98 (LSTM, N = 256)
  a weight's gradient as a product that contracts both leading axes, without the barrier in `Outer.matrix`: that product
  takes 0.95 to 1.65 times as long
  the drive as W @ x mapped over steps      comes out transposed, and each block is copied (not timed by itself)
  a recurrent weight transposed beforehand  its product 6 to 20 % faster, up to 15 % slower at B = 1: left out

Of a step alone, over automatic differentiation: its vjp in the reverse scan 0.6 to 1; a kick to the state, then one vjp
for the parameters, 0.6 to 1.3; automatic differentiation within blocks 0.7 to 1.4; as here 0.7 to 1.8.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import checks
from jaxbptt.gradients.adjoint import add_initial, parallel_adjoint, sequential_adjoint, state_pullback
from jaxbptt.gradients.forward import flatten_steps, read_out, run_forward
from jaxbptt.gradients.sequence import Runner, make_runner
from jaxbptt.models import Model
from jaxbptt.trajectories import require_call, unroll

WHOLE_BYTES = 4 * 2**20  # what all steps keep, up to which they are one block
BLOCK_BYTES = 3 * 2**18  # what the steps of one block keep, beyond that: with what is made from it, in cache
KEPT_BYTES = 2**28  # what all steps keep, beyond which blocks are run again instead
WRITTEN_BYTES = 48 * 2**20, 4 * 2**20  # in place of the first two for a batch of a step alone: all that it writes
METHODS = ("auto", "sequential", "parallel")


def bptt(
    model: Model,
    params: Any,
    inputs: Any,
    targets: Any,
    *,
    initial: Any = None,
    block: int | None = None,
    adjoint: str = "auto",
):
    """dC/dθ = Σ_t [(∂⁺h_t/∂⁺θ)ᵀ λ_t + (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t] + (∂h_0/∂θ)ᵀ J_1ᵀ λ_1, with λ_t from one reverse scan.

    Only the adjoint is carried through the scan; the parameter gradient of a block of steps follows at once, as one
    matrix product per weight. A factored derivation (the built-in cells) also takes the input's product out of the
    loop and keeps on the way forward what the way back needs. A cell known by its step alone has its products with
    weights found in its own program, and those gradients taken out of the loop. A derivation with a plain pullback
    computes each step once more and sums one cotangent of θ a step.

    Args:
      model: as `autodiff`; its `derivation` is used when there is one. For a batch, `models.batched(model, B)`.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, then a constant.
      block: K ≥ 1, static: only the states between blocks of K steps are kept on the way forward, and each block but
        the last is run again before its adjoint: memory (T/K) N and what K steps keep, for one more forward pass.
        None: blocks that stay in cache, run again only where all steps would keep more than 256 MiB, or for a batch
        of a cell known by its step alone. T or more: one block, nothing run twice.
      adjoint: λ by a "sequential" scan, or "parallel": √T steps of all of √T blocks at once, N times the work in 3√T
        dependent steps (within each of the K-step blocks, if there are several). "auto": parallel off the CPU
        for N ≤ 128 and T ≥ 4096 if block allows it, else sequential.

    Returns:
      (C scalar, dC/dθ shaped like params).

    Raises:
      TypeError, ValueError: as `autodiff`; block or adjoint not as stated.

    Reference: Werbos (1990), Proc. IEEE 78; S1.10, S2.28. Blocks: Chen et al. (2016), arXiv:1604.06174.
    """
    checks.require_choice("adjoint", adjoint, METHODS)
    if block is not None:
        checks.require_size("block", block)
    length = require_call(model, params, inputs, initial)
    checks.require_time_axis("targets", targets, length)
    state = jax.tree.map(jnp.asarray, model.initial_state(params) if initial is None else initial)
    parallel = adjoint == "parallel"
    if adjoint == "auto" and (block or length) >= length:
        parallel = _prefers_parallel(model, state, length)
    run = make_runner(model, params, parallel=parallel)
    plan = _plan(run, state, inputs, length, length if parallel and block is None else block, model.batch)
    head = jnp.arange(plan.count)
    tail = _steps_of((inputs, targets), plan.count, plan.block, length - plan.count * plan.block)
    if plan.count and checks.is_concrete((params, inputs, state)):
        unroll(model, params, inputs, initial=initial)  # names the first bad step

    def forward(state, index):
        steps = _steps_of(inputs, index, plan.block)
        return run.forward(state, steps) if plan.keep else (run.skip(state, steps), state)

    def pull(later, saved, inputs, targets):
        losses, direct, local = read_out(model, params, saved.states, targets, length)
        recurrent, earlier = run.backward(saved, inputs, local, later)
        return losses, jax.tree.map(jnp.add, direct, recurrent), earlier

    def backward(carry, step):
        grads, later = carry
        saved, index = step
        steps = _steps_of((inputs, targets), index, plan.block)
        saved = saved if plan.keep else run.forward(saved, steps[0])[1]
        losses, block_grads, earlier = pull(later, saved, *steps)
        return (jax.tree.map(jnp.add, grads, block_grads), earlier), losses

    if plan.count:
        state, saved_head = jax.lax.scan(forward, state, head)
    _, saved = run.forward(state, tail[0])
    checks.require_finite_steps("states", saved.states)
    losses, grads, earlier = pull(jax.tree.map(jnp.zeros_like, state), saved, *tail)
    if plan.count:
        (grads, earlier), before = jax.lax.scan(backward, (grads, earlier), (saved_head, head), reverse=True)
        losses = jnp.concatenate((before.reshape(-1), losses))
    checks.require_finite_steps("losses", losses)
    return jnp.sum(losses), add_initial(model, params, grads, earlier) if initial is None else grads


def adjoints(
    model: Model, params: Any, inputs: Any, targets: Any, *, initial: Any = None, adjoint: str = "auto"
) -> jax.Array:
    """λ_t = dC/dh_t = (∂⁺o_t/∂⁺h_t)ᵀ ∂C/∂o_t + J_{t+1}ᵀ λ_{t+1},  λ_{T+1} = 0.

    Args:
      model: as `autodiff`.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0.
      adjoint: as `bptt`.

    Returns:
      [T, N] on the flattened state; [t−1] is λ_t.

    Raises:
      TypeError, ValueError: as `bptt`.

    Reference: S1.10.
    """
    checks.require_choice("adjoint", adjoint, METHODS)
    trajectory, _, local, _ = run_forward(model, params, inputs, targets, initial)
    start = jax.tree.map(jnp.zeros_like, trajectory.initial)
    length = jax.tree.leaves(local)[0].shape[0]
    parallel = adjoint == "parallel" or (adjoint == "auto" and _prefers_parallel(model, start, length))
    scan = functools.partial(parallel_adjoint, batch=model.batch) if parallel else sequential_adjoint
    factors, pull_state = state_pullback(model, params, trajectory)
    pull = lambda factors, adjoint: (pull_state(factors, adjoint), adjoint)  # noqa: E731
    return flatten_steps(scan(pull, factors, local, start)[0])


class _Plan(NamedTuple):
    block: int  # K
    count: int  # blocks of K steps before the last, which has what is left: 1 … K
    keep: bool  # what they keep is stored; else they are run again


def _plan(run: Runner, state: Any, inputs: Any, length: int, block: int | None, batch: int | None) -> _Plan:
    if block is not None:
        return _Plan(block, -(-length // block) - 1, keep=False)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)
    if run.keeps:
        kept = jax.eval_shape(run.forward, state, one)[1]
    else:  # all that a step's program writes
        program = jax.make_jaxpr(run.skip)(state, one).jaxpr
        kept = [v.aval for e in program.eqns for v in e.params.get("jaxpr", program).eqns for v in e.outvars]
    per_step = max(1, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)))
    whole, one_block = (WHOLE_BYTES, BLOCK_BYTES) if run.keeps else WRITTEN_BYTES
    if not run.keeps and batch is None:  # products with one vector cost too much to be made twice
        whole = KEPT_BYTES
    longest = length if length * per_step <= whole else max(16, one_block // per_step)
    block = math.ceil(length / math.ceil(length / longest))
    return _Plan(block, -(-length // block) - 1, keep=run.keeps and length * per_step <= KEPT_BYTES)


def _steps_of(sequences, index, block, size=None):
    """Steps index·block … of pytrees with leading T: `block` of them, or `size`."""
    start, size = index * block, block if size is None else size
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), sequences)


def _prefers_parallel(model, state, length):
    size = sum(leaf.size for leaf in jax.tree.leaves(state)) // (model.batch or 1)
    return jax.default_backend() != "cpu" and size <= 128 and length >= 4096
