"""λ_t from ∂C/∂h_t|o_t, one step after another or √T blocks at once, and what follows from it for the parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt.cells.derivation import FactoredPullback, sum_over_steps


def sequential_adjoint(pull: Any, factors: Any, local: Any, later: Any) -> tuple[Any, Any]:
    """λ_t = ∂C/∂h_t|o_t + μ_t,  μ_{t−1} = J_tᵀ λ_t,  μ_T = later, by one reverse scan.

    pull(factors_t, λ_t) = (J_tᵀ λ_t, what to keep of step t). Returns (what was kept, leading T; μ_0).
    """

    def body(from_later, step):
        factors, local = step
        return pull(factors, jax.tree.map(jnp.add, local, from_later))

    initial_adjoint, kept = jax.lax.scan(body, later, (factors, local), reverse=True)
    return kept, initial_adjoint


def parallel_adjoint(pull: Any, factors: Any, local: Any, later: Any, *, batch: int | None = None) -> tuple[Any, Any]:
    """`sequential_adjoint` in about 3√T dependent steps: μ before a block is affine in μ after it.

    All blocks of √T steps at once: first each block's map, N pulled unit cotangents and one pulled offset (2N³T flops,
    N times those of the sequential scan; the units share one matrix product a step); then μ over the blocks; then λ
    within them. Where the blocks' Jacobian products grow beyond what λ does, that much of its digits is lost.
    """
    length = jax.tree.leaves(local)[0].shape[0]
    size = math.isqrt(length)
    whole = length // size * size
    blocked = lambda leaf: leaf[length - whole :].reshape(-1, size, *leaf.shape[1:])  # noqa: E731
    blocks, begin = jax.tree.map(blocked, (factors, local)), jax.tree.map(jnp.zeros_like, later)
    within = jax.vmap(lambda steps, later: sequential_adjoint(pull, *steps, later))
    own = jax.vmap(lambda steps: sequential_adjoint(lambda *step: (pull(*step)[0], None), *steps, begin)[1])(blocks)

    def unit_maps(steps):
        pull_all = lambda units, factors: (jax.vmap(lambda unit: pull(factors, unit)[0])(units), None)  # noqa: E731
        return jax.lax.scan(pull_all, _units(later, batch), steps, reverse=True)[0]

    def over_blocks(after, block):
        maps, own = block
        return jax.tree.map(jnp.add, own, _apply(maps, after, batch)), after

    before, after = jax.lax.scan(over_blocks, later, (jax.vmap(unit_maps)(blocks[0]), own), reverse=True)
    kept = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), within(blocks, after)[0])
    rest = jax.tree.map(lambda leaf: leaf[: length - whole], (factors, local))
    first, before = sequential_adjoint(pull, *rest, before)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), first, kept), before


def _units(state, batch):
    """The N unit cotangents of one state, leading [N]; for B side by side the same in each of them."""
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


def state_pullback(model, params, trajectory):
    """(what the reverse scan reads at each step, its map (that, λ_t) -> J_tᵀ λ_t), by the best the model knows."""
    steps = (trajectory.previous, trajectory.inputs)
    if model.derivation is None:

        def by_vjp(step, cotangent):
            state, x = step
            return jax.vjp(lambda state: model.step(params, state, x), state)[1](cotangent)[0]

        return steps, by_vjp
    pullback = model.derivation.pullback
    if not isinstance(pullback, FactoredPullback):
        return steps, lambda step, cotangent: pullback(params, *step, cotangent)[1]
    factors = jax.vmap(lambda state, x: pullback.factors(params, state, x))(*steps)
    return factors, lambda factors, cotangent: pullback.pull_state(params, factors, cotangent)


def parameter_gradient(model, params, trajectory, adjoint):
    """Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t over all steps at once."""
    steps = (trajectory.previous, trajectory.inputs)
    if model.derivation is None:
        all_steps = lambda params: jax.vmap(lambda state, x: model.step(params, state, x))(*steps)  # noqa: E731
        return jax.vjp(all_steps, params)[1](adjoint)[0]
    pull = pull_params(model.derivation.pullback)
    return sum_over_steps(jax.vmap(lambda *step: pull(params, *step))(*steps, adjoint))


def pull_params(pullback: Any):
    """(params, state, x, cotangent) -> the parameter cotangent of one step, rank-one where the pullback keeps it so."""
    if not isinstance(pullback, FactoredPullback):
        return lambda *arguments: pullback(*arguments)[0]

    def pull(params, state, x, cotangent):
        return pullback.params(params, state, x, pullback.delta(pullback.factors(params, state, x), cotangent))

    return pull


def add_initial(model, params, grads, initial_adjoint):
    """grads + (∂h_0/∂θ)ᵀ dC/dh_0."""
    pull = jax.vjp(model.initial_state, params)[1]
    return jax.tree.map(jnp.add, grads, pull(initial_adjoint)[0])
