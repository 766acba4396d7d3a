"""Backpropagation through time by hand: the reverse scan carries the adjoint alone, then one product per weight.

λ_t = ∂C/∂h_t|o_t + μ_t,   μ_{t−1} = J_tᵀ λ_t,   μ_T = 0
dC/dθ = Σ_t [ (∂⁺h_t/∂⁺θ)ᵀ λ_t + (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t ] + (∂h_0/∂θ)ᵀ μ_0
"""

import functools
from typing import Literal, get_args, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.gradients.adjoint import add_initial, parallel_adjoint, sequential_adjoint
from jaxbptt.gradients.bidirectional import bptt_both
from jaxbptt.gradients.blocks import choose_blocks, pull_in_blocks, run_in_blocks
from jaxbptt.gradients.clipping import Clip, clipped_adjoint, take_clip
from jaxbptt.gradients.diagnosis import require_finite_gradient, require_finite_result
from jaxbptt.gradients.forward import add_penalty, join_early, read_out, run_forward, take_problem
from jaxbptt.gradients.sequence import make_runner
from jaxbptt.models._bidirectional import BidirectionalModel
from jaxbptt.models.model import Model
from jaxbptt.partials import is_linear, step_partials
from jaxbptt.trajectories import flatten_steps, run_steps
from jaxbptt.types import AdjointMethod, ClipKind, ClipPlace, Inputs, LossAndGrads, Params, Scalar, State, Targets

METHODS = get_args(AdjointMethod)
# Except on a CPU: largest N and least T for which "auto" carries λ in parallel. On an H100 that is 1.3 to 3.9 times as
# fast as the scan for 32 to 256 units and T of 1024 to 16384 (Elman, LSTM, GRU, float32; 2026-11-26). A batch was not
# measured.
PARALLEL_SIZE, PARALLEL_STEPS = 256, 1024


@overload
def bptt(
    model: Model | BidirectionalModel,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = ...,
    block: int | None = ...,
    memory: int | None = ...,
    adjoint: AdjointMethod = ...,
    clip_adjoint: float | Scalar | None = ...,
    clip_by: ClipKind = ...,
    clip_of: ClipPlace = ...,
    return_state: Literal[False] = ...,
) -> LossAndGrads: ...
@overload
def bptt(
    model: Model | BidirectionalModel,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = ...,
    block: int | None = ...,
    memory: int | None = ...,
    adjoint: AdjointMethod = ...,
    clip_adjoint: float | Scalar | None = ...,
    clip_by: ClipKind = ...,
    clip_of: ClipPlace = ...,
    return_state: Literal[True],
) -> tuple[Scalar, Params, State]: ...
def bptt(
    model: Model | BidirectionalModel,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    block: int | None = None,
    memory: int | None = None,
    adjoint: AdjointMethod = "auto",
    clip_adjoint: float | Scalar | None = None,
    clip_by: ClipKind = "norm",
    clip_of: ClipPlace = "carried",
    return_state: bool = False,
) -> LossAndGrads | tuple[Scalar, Params, State]:
    """dC/dθ = Σ_t [(∂⁺h_t/∂⁺θ)ᵀ λ_t + (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t] + (∂h_0/∂θ)ᵀ J_1ᵀ λ_1, with λ_t from one reverse scan.

    The scan carries only the adjoint; the gradient of params over a block of steps is then one matrix product per
    weight. A factored derivation (the built-in cells) also takes the product with the input out of the loop, and its
    forward pass keeps what the backward pass needs. A cell known by its step alone (other people's, by `adapters`) is
    treated alike, by what is found in the step's program: what reads the input alone, and the products with weights.
    A derivation with a plain pullback computes each step once more and sums one cotangent of θ per step.

    Args:
      model: as in `autodiff`; its `derivation` is used when there is one. For a batch, `models.batched(model, B)`. A
        bidirectional model takes none of the options but those of clipping.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, as in `autodiff`.
      block: K ≥ 1, static: the forward pass keeps only the states between blocks of K steps, and each block but the
        last runs again before its adjoint. Memory (T/K) N and what K steps keep, for one more forward pass. None:
        blocks that fit in the cores' second-level caches, as the system tells them; they run again only where all
        steps would keep more than `memory`. K ≥ T: one block, nothing runs twice.
      memory: bytes that the forward pass may keep, static, without a block. Where all steps keep more, blocks run again
        (up to 1.5 times the time), of about √T steps where longer ones do not fit; the least possible is taken where
        even these do not. The backward pass of one block, the data and the gradient come on top. None: a quarter of
        the memory that is free when the function is traced, as a power of two, and at least 256 MiB.
      adjoint: "sequential", λ by one scan; "parallel", all of √T blocks of √T steps at once, N times the work in 3√T
        dependent steps (within each block of K steps, if there are several), NaN for a pullback that is not linear, or
        for a cell that knows the blocks of its J_t by one associative scan over these;
        "auto", parallel except on a CPU for a factored, linear derivation, N ≤ 256 and T ≥ 1024 of a single sequence
        if `block` leaves one block, else sequential.
      clip_adjoint: c ≥ 0, scalar, may be traced: μ_t = clip(J_{t+1}ᵀ λ_{t+1}) in place of J_{t+1}ᵀ λ_{t+1}, at every
        step and for h_0, so that nothing can explode on its way back; about 6 N operations a step. The result is no
        gradient: biased wherever a step is clipped (`assessment.assess` says how far). inf clips nothing; 0 carries
        nothing back, windows of one step with h_0 a constant. Never in parallel. None: the gradient.
      clip_by: "norm", v min(1, c/‖v‖) over the whole state, of each sequence of a batch by itself; "value", every
        entry between −c and c.
      clip_of: "carried", μ_t, as a clip on the loop's carry does; "whole", λ_t = clip(∂C/∂h_t|o_t + μ_t), the loss's
        own part too, as a hook on the tensor h_t does.
      return_state: whether h_T is returned as well: the `initial` of the next window, from the same forward pass.

    Returns:
      (C scalar, dC/dθ shaped like params), and with return_state h_T.

    Raises:
      TypeError, ValueError: as `autodiff`.
      TypeError: a block or memory that is no int.
      TypeError: a clip_adjoint that is no number.
      ValueError: a block or memory below 1, or both; an unknown adjoint; a negative bound, or one beside
        adjoint="parallel"; an option for a bidirectional model.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # h = 1, 2, 4, 8
      >>> loss, grads, last = gradients.bptt(model, w, inputs, targets, return_state=True)
      >>> float(loss), float(grads), float(last)
      (42.5, 114.0, 8.0)

      Clipped in time, and what that costs:

      >>> import functools
      >>> from jaxbptt import assessment
      >>> clipped = functools.partial(gradients.bptt, clip_adjoint=10.0)  # μ = 0, 16, 40, 84 before
      >>> found = assessment.assess(model, clipped, w, inputs, targets)
      >>> float(clipped(model, w, inputs, targets)[1]), round(float(found.whole.bias), 3)  # 12 + 2 · 14 + 4 · 8
      (72.0, 0.368)

    Reference: Werbos (1990), Proc. IEEE 78; Chen et al. (2016), arXiv:1604.06174 (blocks); S1.10 (λ_t), S2.28 (W_hh);
    clipping inside time: Mikolov (2012), PhD thesis, Brno; Graves (2013), arXiv:1308.0850 (of the gates' arguments).
    """
    adjoint, clip = _take_adjoint(getattr(model, "batch", None), adjoint, clip_adjoint, clip_by, clip_of)
    if block is not None:
        _validation.require_size("block", block)
    if memory is not None:
        _validation.require_size("memory", memory)
    if isinstance(model, BidirectionalModel):
        if (block, memory, adjoint, return_state) != (None, None, "auto" if clip is None else "sequential", False):
            given = "block, memory, adjoint and return_state"
            raise ValueError(f"model: got a BidirectionalModel, expected {given} left out")
        scan = sequential_adjoint if clip is None else functools.partial(clipped_adjoint, clip)
        return bptt_both(model, params, inputs, targets, initial, scan)
    if block is not None and memory is not None:
        raise ValueError(f"memory: got {memory} beside block = {block}, expected one of them")
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, length = problem
    state = jax.tree.map(jnp.asarray, model.initial_state(params) if initial is None else initial)
    parallel = _takes_parallel(adjoint, model, params, state, inputs, whole=(block or length) >= length)
    x = jax.tree.map(lambda leaf: leaf[0], inputs)
    run = make_runner(model, params, state, x, parallel=parallel, clip=clip)
    size = length if parallel and block is None else block
    blocks = choose_blocks(run, state, inputs, size, memory)
    if blocks.before_last and all(map(_validation.is_concrete, jax.tree.leaves((params, inputs, state)))):
        run_steps(model, params, inputs, initial)  # names the first bad step

    def pull(later, saved, inputs, targets):
        """The recursion of one block: from μ after it to μ before it, and what it adds to dC/dθ."""
        losses, local, direct, early = read_out(model, params, saved.steps(inputs), targets, length)
        local, first = join_early(local, early)
        recurrent, earlier = run.backward(saved, inputs, local, later)
        earlier = earlier if first is None else jax.tree.map(jnp.add, earlier, first)
        return losses, jax.tree.map(jnp.add, direct, recurrent), earlier

    saved, last = run_in_blocks(run, blocks, state, inputs)
    nothing = jax.tree.map(jnp.zeros_like, state)
    losses, grads, earlier = pull_in_blocks(run, blocks, pull, saved, inputs, targets, nothing)
    grads = add_initial(model, params, grads, earlier) if initial is None else grads
    loss, grads = add_penalty(model, params, jnp.sum(losses), grads)
    require_finite_result(model, problem, losses, grads)
    return (loss, grads, last) if return_state else (loss, grads)


def adjoints(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    adjoint: AdjointMethod = "auto",
    clip_adjoint: float | Scalar | None = None,
    clip_by: ClipKind = "norm",
    clip_of: ClipPlace = "carried",
) -> Float[Array, "time state"]:
    """λ_t = dC/dh_t = (∂⁺o_t/∂⁺h_t)ᵀ ∂C/∂o_t + J_{t+1}ᵀ λ_{t+1},  λ_{T+1} = 0.

    Args:
      model: as in `autodiff`.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, as in `autodiff`.
      adjoint: as in `bptt`.
      clip_adjoint, clip_by, clip_of: as in `bptt`; clipped, λ is what `bptt` sums.

    Returns:
      [T, N] on the flattened state; [t−1] is λ_t.

    Raises:
      TypeError, ValueError: as `autodiff`.
      TypeError, ValueError: an unknown adjoint; clipping as in `bptt`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # h = 1, 2, 4, 8
      >>> gradients.adjoints(model, w, inputs, targets)[:, 0].tolist()  # λ_t = h_t + 2 λ_{t+1}
      [85.0, 42.0, 20.0, 8.0]

    Reference: Werbos (1990), Proc. IEEE 78; S1.10.
    """
    adjoint, clip = _take_adjoint(getattr(model, "batch", None), adjoint, clip_adjoint, clip_by, clip_of)
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, _ = problem
    trajectory, _, local, _, early = run_forward(model, params, inputs, targets, initial)
    local, _ = join_early(local, early)
    last = jax.tree.map(jnp.zeros_like, trajectory.initial)
    parallel = _takes_parallel(adjoint, model, params, last, inputs, whole=True)
    scan = functools.partial(parallel_adjoint, batch=model.batch) if parallel else sequential_adjoint
    scan = scan if clip is None else functools.partial(clipped_adjoint, clip)
    residuals, pull = step_partials(model).pull_over(params, trajectory)
    kept, _ = scan(lambda at, cotangent: (pull(at, cotangent), cotangent), residuals, local, last)
    require_finite_gradient(model, problem, kept)
    return flatten_steps(kept)


def _take_adjoint(
    batch: int | None,
    adjoint: AdjointMethod,
    bound: float | Scalar | None,
    by: ClipKind,
    of: ClipPlace,
) -> tuple[AdjointMethod, Clip | None]:
    """How λ is carried back, sequentially where it is clipped; raise for options that do not fit each other."""
    _validation.require_choice("adjoint", adjoint, METHODS)
    clip = take_clip(bound, by, of, batch)
    if clip is None:
        return adjoint, None
    if adjoint == "parallel":
        raise ValueError("adjoint: got 'parallel' beside clip_adjoint, expected 'sequential': clipping is not linear")
    return "sequential", clip


def _takes_parallel(
    adjoint: AdjointMethod, model: Model, params: Params, state: State, inputs: Inputs, *, whole: bool
) -> bool:
    if adjoint != "auto":
        return adjoint == "parallel"
    if jax.default_backend() == "cpu" or not whole or model.batch is not None:
        return False
    partials, length = step_partials(model), jax.tree.leaves(inputs)[0].shape[0]
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    if partials.factored is None or size > PARALLEL_SIZE or length < PARALLEL_STEPS:
        return False
    return is_linear(partials, params, state, jax.tree.map(lambda leaf: leaf[0], inputs))
