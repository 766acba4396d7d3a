"""The adjoint λ_t = dC/dh_t from ∂C/∂h_t|o_t (the part through o_t alone), step by step or in √T blocks at once."""

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt.cells.structure import BlockParts, form_steps
from jaxbptt.trajectories import flatten_steps
from jaxbptt.trajectories._affine import solve_transposed
from jaxbptt.types import Params, Recurrence, State, States


class Pull(Protocol):
    def __call__(self, residuals: Any, cotangent: State, /) -> tuple[State, Any]:
        """(J_tᵀ λ_t, what to keep of step t) from the residuals of step t and λ_t."""
        ...


class Adjoint(Protocol):
    def __call__(self, pull: Pull, residuals: Any, local: States, later: State, /) -> tuple[Any, State]:
        """(what `pull` kept, leading T; μ_0) from μ_T and from residuals and ∂C/∂h_t|o_t with leading T."""
        ...


def sequential_adjoint(pull: Pull, residuals: Any, local: States, later: State) -> tuple[Any, State]:
    """λ_t = ∂C/∂h_t|o_t + μ_t,  μ_{t−1} = J_tᵀ λ_t,  μ_T = later, by one reverse scan."""

    def body(from_later, step):
        residuals, local = step
        return pull(residuals, jax.tree.map(jnp.add, local, from_later))

    initial_adjoint, kept = jax.lax.scan(body, later, (residuals, local), reverse=True)
    return kept, initial_adjoint


def parallel_adjoint(
    pull: Pull, residuals: Any, local: States, later: State, *, batch: int | None = None
) -> tuple[Any, State]:
    """`sequential_adjoint` in about 3√T dependent steps: μ before a block is affine in μ after it.

    All blocks of √T steps run at once. First each block's affine map is found by pulling N unit cotangents and one
    offset (2N³T flops, N times those of the sequential scan; the units share one matrix product per step). Then μ is
    carried over the blocks, then λ within them. Where a block's Jacobian product grows more than λ does, λ loses as
    many digits. Where more than half the digits are lost, or `pull` is not linear, the result is NaN: what each block
    passes on is compared with what its affine map said.
    """
    length = jax.tree.leaves(local)[0].shape[0]
    size = math.isqrt(length)
    whole = length // size * size
    begin = jax.tree.map(jnp.zeros_like, later)

    def blocked(leaf):
        return leaf[length - whole :].reshape(-1, size, *leaf.shape[1:])

    def within(steps, later):
        residuals, local = steps
        return sequential_adjoint(pull, residuals, local, later)

    def offset(steps):
        residuals, local = steps
        return sequential_adjoint(lambda *step: (pull(*step)[0], None), residuals, local, begin)[1]

    def unit_maps(residuals):
        def pull_all(units, residuals):
            return jax.vmap(lambda unit: pull(residuals, unit)[0])(units), None

        return jax.lax.scan(pull_all, _units(later, batch), residuals, reverse=True)[0]

    def over_blocks(after, block):
        maps, own = block
        return jax.tree.map(jnp.add, own, _apply(maps, after, batch)), after

    blocks = jax.tree.map(blocked, (residuals, local))
    affine = jax.vmap(unit_maps)(blocks[0]), jax.vmap(offset)(blocks)
    before, after = jax.lax.scan(over_blocks, later, affine, reverse=True)
    kept, passed = jax.vmap(within)(blocks, after)
    said = jax.tree.map(lambda first, rest: jnp.concatenate((first[None], rest[:-1])), before, after)
    agrees = agree(passed, said)
    kept = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), kept)
    rest, rest_local = jax.tree.map(lambda leaf: leaf[: length - whole], (residuals, local))
    first, before = sequential_adjoint(pull, rest, rest_local, before)
    result = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, kept), before
    return jax.tree.map(lambda leaf: jnp.where(agrees, leaf, jnp.nan), result)


def block_adjoint(
    parts: BlockParts, params: Params, pull: Pull, residuals: Any, local: States, later: State
) -> tuple[Any, State]:
    """`sequential_adjoint` of a cell that knows the blocks of its J_t: all λ_t by one scan over them, N times cheaper
    than `parallel_adjoint`. The residuals are the factors that the blocks are formed from.
    """
    flat, unravel = ravel_pytree(later)
    offsets = flatten_steps(local).at[-1].add(flat)
    core = form_steps(parts, params, residuals, len(offsets))
    passed, kept = jax.vmap(pull)(residuals, jax.vmap(unravel)(solve_transposed(core, parts.place, offsets)))
    return kept, jax.tree.map(lambda leaf: leaf[0], passed)


def agree(passed: Any, said: Any) -> jax.Array:
    """Whether two pytrees are the same to half the digits, by the largest entry of all."""
    pairs = list(zip(jax.tree.leaves(passed), jax.tree.leaves(said), strict=True))
    scale = jnp.max(jnp.stack([jnp.max(jnp.abs(b), initial=0) for _, b in pairs]))
    off = jnp.max(jnp.stack([jnp.max(jnp.abs(a - b), initial=0) for a, b in pairs]))
    return ~(off > jnp.sqrt(jnp.finfo(scale.dtype).eps).astype(scale.dtype) * scale)


def _units(state, batch):
    """The N unit cotangents of one state, leading [N]; for B states side by side the same in each."""
    one = state if batch is None else jax.tree.map(lambda leaf: leaf[0], state)
    flat, unravel = ravel_pytree(one)
    units = jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
    if batch is None:
        return units
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], batch, axis=1), units)


def _apply(maps, cotangent, batch):
    """Σ_i cotangent_i maps_i, for each of B side by side."""

    def apply(maps, cotangent):
        return jax.tree.map(lambda leaf: jnp.tensordot(ravel_pytree(cotangent)[0], leaf, axes=1), maps)

    return apply(maps, cotangent) if batch is None else jax.vmap(apply, in_axes=(1, 0))(maps, cotangent)


def add_initial(model: Recurrence, params: Params, grads: Params, initial_adjoint: State) -> Params:
    """grads + (∂h_0/∂θ)ᵀ dC/dh_0."""
    pull = jax.vjp(model.initial_state, params)[1]
    return jax.tree.map(jnp.add, grads, pull(initial_adjoint)[0])
