"""The adjoint of many blocks of losses at once, each carried back a limited number of steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.gradients.adjoint import add_initial, parameter_gradient, state_pullback
from jaxbptt.models import Model


class Steps(NamedTuple):
    """What each step started from and read."""

    previous: Any  # h_0 … h_{T−1}, pytree [T, ...]
    inputs: Any  # x_1 … x_T, pytree [T, ...]


class Blocks(NamedTuple):
    """Losses first+1 … ends, carried back to step starts+1; t counted from 1."""

    first: np.ndarray  # [B] ints
    ends: np.ndarray  # [B] ints
    starts: Any  # [B] ints, traced where the reach is chosen at run time


def window_blocks(num_steps: int, length: int) -> Blocks:
    """Windows of K steps, each with its own losses and no step before them."""
    first = np.arange(0, num_steps, length)
    return Blocks(first, np.minimum(first + length, num_steps), first)


def sliding_blocks(num_steps: int, losses: int, steps: Any) -> Blocks:
    """Blocks of k1 losses, each with the k2 steps up to its end; k2 may be traced."""
    first = np.arange(0, num_steps, losses)
    ends = np.minimum(first + losses, num_steps)
    library = np if isinstance(steps, int) else jnp
    return Blocks(first, ends, library.maximum(ends - steps, 0))


def replay(model: Model, params: Any, steps: Steps, local: Any, blocks: Blocks, depth: Any) -> tuple[Any, Any]:
    """Σ_b λ^b_t,  λ^b_t = [t in b] ∂C/∂h_t|o_t + J_{t+1}ᵀ λ^b_{t+1} for starts_b < t ≤ ends_b.

    All blocks move one step back together, `depth` times (the longest ends − starts; a traced one stops the loop
    early): depth · B state pullbacks, memory (T + B) · N. ∂⁺h_t/∂⁺θ is the same for all blocks, so that their adjoints
    may be added before the parameter gradient is formed, once.

    Returns (the sum, pytree [T, ...]; J_tᵀ λ^b_t at t = starts_b + 1, the adjoint of the state that b started from,
    pytree [B, ...]).
    """
    factors, pull_state = state_pullback(model, params, steps)
    first, ends, starts = (jnp.asarray(steps, jnp.int32) for steps in blocks)

    def body(offset, carry):
        carried, total = carry
        index = ends - 1 - jnp.asarray(offset, jnp.int32)
        inside, at = index >= starts, jnp.maximum(index, 0)
        own = jax.tree.map(lambda leaf: _select(index >= first, leaf[at], 0), local)
        adjoint = jax.tree.map(lambda own, later: _select(inside, own + later, 0), own, carried)
        pulled = jax.vmap(pull_state)(jax.tree.map(lambda leaf: leaf[at], factors), adjoint)
        carried = jax.tree.map(lambda new, old: _select(inside, new, old), pulled, carried)
        return carried, jax.tree.map(lambda total, adjoint: total.at[at].add(adjoint), total, adjoint)

    nothing = jax.tree.map(lambda leaf: jnp.zeros((len(ends), *leaf.shape[1:]), leaf.dtype), local)
    carried, total = jax.lax.fori_loop(0, depth, body, (nothing, jax.tree.map(jnp.zeros_like, local)))
    return total, carried


def assemble(model: Model, params: Any, steps: Steps, direct: Any, adjoint: Any, initial_adjoint: Any) -> Any:
    """direct + Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t + (∂h_0/∂θ)ᵀ of the initial adjoint (None: h_0 is a constant)."""
    grads = jax.tree.map(jnp.add, direct, parameter_gradient(model, params, steps, adjoint))
    return grads if initial_adjoint is None else add_initial(model, params, grads, initial_adjoint)


def replayed_gradient(
    model: Model, params: Any, trajectory: Any, local: Any, direct: Any, initial: Any, blocks: Blocks, depth: Any
):
    """The gradient of all blocks on one trajectory; h_0 belongs to the blocks that reach step 1."""
    adjoint, carried = replay(model, params, trajectory, local, blocks, depth)
    reach = jnp.asarray(blocks.starts) == 0
    sum_reaching = lambda leaf: jnp.sum(_select(reach, leaf, 0), axis=0)  # noqa: E731
    initial_adjoint = jax.tree.map(sum_reaching, carried) if initial is None else None
    return assemble(model, params, trajectory, direct, adjoint, initial_adjoint)


def _select(chosen, leaf, other):
    """leaf where its row is chosen, else other."""
    other = jnp.broadcast_to(jnp.asarray(other, leaf.dtype), leaf.shape)
    return jnp.where(chosen.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, other)
