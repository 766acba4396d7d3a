"""How many blocks the backward pass takes: blocks that fit in cache are fast, blocks that run again need no memory."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.gradients.resources import cache_size, default_memory
from jaxbptt.gradients.sequence import Runner, Saved
from jaxbptt.types import Inputs, Params, State, Targets

WHOLE_BYTES = 2**22  # all steps are one block if they keep at most this
LEAST_STEPS = 16  # fewest steps of a block that was not asked for


class Blocks(NamedTuple):
    size: int  # K
    before_last: int  # number of blocks of K steps before the last, which has the 1 … K steps left
    keep: bool  # whether what they keep is stored; else they run again


def choose_blocks(run: Runner, state: State, inputs: Inputs, size: int | None, memory: int | None = None) -> Blocks:
    """Blocks of `size` steps, which run again; for None, blocks that fit in cache, within `memory` bytes.

    All steps keep T·P bytes. Where that is more than `memory`, blocks of K steps run again: T/K states between them,
    and K·P; the least of both together is at K = √(T·S/P), S the bytes of one state.
    """
    length = jax.tree.leaves(inputs)[0].shape[0]
    if size is not None:
        return Blocks(size, -(-length // size) - 1, keep=False)
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)
    per_state = max(1, _size_in_bytes(state))
    saved = jax.eval_shape(run.forward, state, first)[1]
    per_step = max(1, _size_in_bytes((saved.states, saved.kept)))
    memory = default_memory() if memory is None else memory
    keep = length * per_step <= memory
    on_cpu = jax.default_backend() == "cpu"  # elsewhere a block has no cache of its own
    cache = max(WHOLE_BYTES, cache_size()) if on_cpu else memory
    longest = length if length * per_step <= cache else max(LEAST_STEPS, cache // per_step)
    if not keep:
        fits = length // longest * per_state + longest * per_step <= memory
        longest = min(length, longest if fits else math.isqrt(length * per_state // per_step) + 1)
    size = math.ceil(length / math.ceil(length / longest))
    return Blocks(size, -(-length // size) - 1, keep=keep)


class SavedBlocks(NamedTuple):
    """What the forward pass keeps for the backward pass of all blocks."""

    before_last: Any  # of each block before the last, leading axis: `Saved`, or the state that it starts from
    last: Saved


def run_in_blocks(run: Runner, blocks: Blocks, state: State, inputs: Inputs) -> tuple[SavedBlocks, State]:
    """(what is kept; h_T)."""

    def forward(state, index):
        steps = _steps_of(inputs, index, blocks.size)
        return run.forward(state, steps) if blocks.keep else (run.skip(state, steps), state)

    head = None
    if blocks.before_last:
        state, head = jax.lax.scan(forward, state, jnp.arange(blocks.before_last))
    last, saved = run.forward(state, _last_steps(inputs, blocks))
    _validation.require_finite_steps("states", saved.states)
    return SavedBlocks(head, saved), last


def skip_in_blocks(run: Runner, blocks: Blocks, state: State, inputs: Inputs) -> State:
    """h_T; of all that a step reads or keeps, no more than one block is there at once."""
    skip = lambda state, index: (run.skip(state, _steps_of(inputs, index, blocks.size)), None)
    if blocks.before_last:
        state, _ = jax.lax.scan(skip, state, jnp.arange(blocks.before_last))
    return run.skip(state, _last_steps(inputs, blocks))


def pull_in_blocks(
    run: Runner,
    blocks: Blocks,
    pull: Callable[..., Any],
    saved: SavedBlocks,
    inputs: Inputs,
    targets: Targets,
    later: Any,
) -> tuple[Float[Array, " time"], Params, Any]:
    """(∂C/∂L_t L_t [T], the gradients summed over blocks, μ_0), from μ_T = `later`.

    pull(μ_K, saved, inputs, targets) = (losses, gradient, μ_0) of one block.
    """
    sequences = inputs, targets

    def backward(carry, step):
        grads, later = carry
        saved, index = step
        steps = _steps_of(sequences, index, blocks.size)
        saved = saved if blocks.keep else run.forward(saved, steps[0])[1]
        losses, block_grads, earlier = pull(later, saved, *steps)
        return (jax.tree.map(jnp.add, grads, block_grads), earlier), losses

    losses, grads, earlier = pull(later, saved.last, *_last_steps(sequences, blocks))
    if blocks.before_last:
        head = saved.before_last, jnp.arange(blocks.before_last)
        (grads, earlier), before = jax.lax.scan(backward, (grads, earlier), head, reverse=True)
        losses = jnp.concatenate((before.reshape(-1), losses))
    return losses, grads, earlier


def _size_in_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _last_steps(sequences, blocks):
    length = jax.tree.leaves(sequences)[0].shape[0]
    return _steps_of(sequences, blocks.before_last, blocks.size, length - blocks.before_last * blocks.size)


def _steps_of(sequences, index, block, size=None):
    """`block` steps (or `size`) from step index·block on, of pytrees with leading T."""
    start, size = index * block, block if size is None else size
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), sequences)
