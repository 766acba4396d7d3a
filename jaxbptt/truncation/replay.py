"""The adjoint of many blocks of losses at once, each carried back a limited number of steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.gradients.adjoint import add_initial
from jaxbptt.gradients.forward import ForwardPass
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.types import Params, State, States, Steps


class Blocks(NamedTuple):
    """Each block holds the losses first+1 … ends, carried back to step starts+1; t counts from 1."""

    first: np.ndarray  # [B] ints
    ends: np.ndarray  # [B] ints
    starts: np.ndarray | jax.Array  # [B] ints, traced where the reach is chosen at run time


def window_blocks(num_steps: int, window: int) -> Blocks:
    """Windows of K steps, each with its own losses and no earlier step."""
    first = np.arange(0, num_steps, window)
    return Blocks(first, np.minimum(first + window, num_steps), first)


def sliding_blocks(num_steps: int, stride: int, num_lags: int | jax.Array) -> Blocks:
    """Blocks of k1 losses, each with the k2 steps up to its end; k2 may be traced."""
    first = np.arange(0, num_steps, stride)
    ends = np.minimum(first + stride, num_steps)
    library = np if isinstance(num_lags, int) else jnp
    return Blocks(first, ends, library.maximum(ends - num_lags, 0))


def replay_adjoint(
    model: Model,
    params: Params,
    steps: Steps,
    local: States,
    early: States | None,
    blocks: Blocks,
    depth: int | jax.Array,
) -> tuple[States, State]:
    """Σ_b λ^b_t,  λ^b_t = [t in b] ∂C/∂h_t|o_t + J_{t+1}ᵀ λ^b_{t+1} for starts_b < t ≤ ends_b.

    Where o_t reads h_{t−1}, J_tᵀ λ^b_t gains [t in b] ∂C/∂h_{t−1}|o_t (`early`).

    All blocks move one step back together, `depth` times (the largest ends − starts; a traced depth stops the loop
    early): depth · B state pullbacks, memory (T + B) · N. ∂⁺h_t/∂⁺θ is the same for all blocks, so their adjoints are
    added first and the gradient of params is formed once.

    Returns (the sum, pytree [T, ...]; J_tᵀ λ^b_t at t = starts_b + 1, the adjoint of the state that b started from,
    pytree [B, ...]).
    """
    residuals, pull_state = step_partials(model).pull_over(params, steps)
    first, ends, starts = (jnp.asarray(steps, jnp.int32) for steps in blocks)

    def body(offset, carry):
        carried, total = carry
        index = ends - 1 - jnp.asarray(offset, jnp.int32)
        inside, at = index >= starts, jnp.maximum(index, 0)
        chosen = lambda tree: jax.tree.map(lambda leaf: _select(index >= first, leaf[at], 0), tree)
        own, before = chosen(local), chosen(early)
        adjoint = jax.tree.map(lambda own, later: _select(inside, own + later, 0), own, carried)
        pulled = jax.vmap(pull_state)(jax.tree.map(lambda leaf: leaf[at], residuals), adjoint)
        pulled = pulled if before is None else jax.tree.map(jnp.add, pulled, before)
        carried = jax.tree.map(lambda new, old: _select(inside, new, old), pulled, carried)
        return carried, jax.tree.map(lambda total, adjoint: total.at[at].add(adjoint), total, adjoint)

    nothing = jax.tree.map(lambda leaf: jnp.zeros((len(ends), *leaf.shape[1:]), leaf.dtype), local)
    carried, total = jax.lax.fori_loop(0, depth, body, (nothing, jax.tree.map(jnp.zeros_like, local)))
    return total, carried


def assemble(
    model: Model, params: Params, steps: Steps, direct: Params, adjoint: States, initial_adjoint: State | None
) -> Params:
    """direct + Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t + (∂h_0/∂θ)ᵀ of the initial adjoint (None: h_0 is a constant)."""
    recurrent = step_partials(model).sum_params(params, steps.previous, steps.inputs, adjoint)
    grads = jax.tree.map(jnp.add, direct, recurrent)
    return grads if initial_adjoint is None else add_initial(model, params, grads, initial_adjoint)


def replayed_gradient(
    model: Model, params: Params, forward: ForwardPass, initial: State | None, blocks: Blocks, depth: int | jax.Array
) -> Params:
    """The gradient of all blocks on one trajectory; that of h_0 comes from the blocks that reach step 1."""
    steps, _, local, direct, early = forward
    adjoint, carried = replay_adjoint(model, params, steps, local, early, blocks, depth)
    reach = jnp.asarray(blocks.starts) == 0
    reaching = jax.tree.map(lambda leaf: jnp.sum(_select(reach, leaf, 0), axis=0), carried)
    initial_adjoint = reaching if initial is None else None
    return assemble(model, params, steps, direct, adjoint, initial_adjoint)


def _select(chosen: jax.Array, leaf: jax.Array, other: jax.Array | int) -> jax.Array:
    """leaf where its row is chosen, else other."""
    other = jnp.broadcast_to(jnp.asarray(other, leaf.dtype), leaf.shape)
    return jnp.where(chosen.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, other)
