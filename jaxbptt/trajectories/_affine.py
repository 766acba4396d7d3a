"""h_t = A_t h_{t−1} + b_t for all t at once: the blocks of A_t on the copies of a flattened state.

Reference: Blelloch (1990), CMU-CS-90-190 (scans); Yang et al. (2024), arXiv:2406.06484, and Bischof & Van Loan (1987),
SIAM J. Sci. Stat. Comput. 8 (products of I + l rᵀ by one triangular system).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt.cells.structure import (
    Core,
    DiagonalLowRank,
    apply_core,
    dtype_of,
    gather_copies,
    scatter_copies,
    transpose_core,
)
from jaxbptt.types import ArrayLike

CHUNK = 16  # steps whose product of diagonal + low rank is one triangular system


def solve_recursion(
    core: Core, place: ArrayLike, offsets: Float[Array, "time state"], initial: Float[Array, " state"]
) -> Float[Array, "time state"]:
    """h_1 … h_T, with h_t = A_t h_{t−1} + b_t.

    Args:
      core: the blocks of A_t, leading axes [T, B].
      place: where their rows and copies lie in the state, as in `BlockParts`.
      offsets: b_t.
      initial: h_0.

    Returns:
      [T, N]. Depth O(log T); T / CHUNK for diagonal + low rank blocks.
    """
    dtype = dtype_of(core)
    copies = jax.vmap(lambda row: gather_copies(row, place, dtype))(offsets)
    states = _method_of(core)(core, copies, gather_copies(initial, place, dtype))
    return jax.vmap(lambda row: scatter_copies(row, place))(states)


def apply_steps(core: Core, place: ArrayLike, states: Float[Array, "time state"]) -> Float[Array, "time state"]:
    """A_t h_t for each t by itself."""
    copies = jax.vmap(lambda row: gather_copies(row, place, dtype_of(core)))(states)
    return jax.vmap(lambda row: scatter_copies(row, place))(apply_core(core, copies))


def solve_transposed(core: Core, place: ArrayLike, offsets: Float[Array, "time state"]) -> Float[Array, "time state"]:
    """λ_1 … λ_T, with λ_t = c_t + A_{t+1}ᵀ λ_{t+1} and λ_{T+1} = 0: the transpose of `solve_recursion` from h_0 = 0.

    Args:
      core, place: as in `solve_recursion`.
      offsets: c_t.

    Returns:
      [T, N].
    """
    later = jax.tree.map(lambda leaf: jnp.flip(jnp.roll(leaf, -1, axis=0), axis=0), transpose_core(core))
    return jnp.flip(solve_recursion(later, place, jnp.flip(offsets, axis=0), jnp.zeros_like(offsets[0])), axis=0)


def _method_of(core: Core) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    if not isinstance(core, DiagonalLowRank):
        return _solve_dense
    return _solve_low_rank if core.left.shape[-1] else lambda core, *data: _solve_diagonal(core.diagonal, *data)


def _solve_diagonal(decay, offsets, initial):
    """[T, ..., n, m] from decay [T, ..., n], offsets [T, ..., n, m] and h_0 [..., n, m]."""

    def join(earlier, later):
        return later[0] * earlier[0], later[0] * earlier[1] + later[1]

    decay = decay[..., None]
    offsets = offsets.at[0].add(decay[0] * initial)
    return jax.lax.associative_scan(join, (decay, offsets))[1]


def _solve_dense(core, offsets, initial):
    def join(earlier, later):
        return later[0] @ earlier[0], later[0] @ earlier[1] + later[1]

    offsets = offsets.at[0].add(apply_core(core[0], initial))
    return jax.lax.associative_scan(join, (core, offsets))[1]


def _solve_low_rank(core, offsets, initial):
    """In chunks: with u_t = R_tᵀ h_{t−1} known, h_t = D_t h_{t−1} + (L_t u_t + b_t) is diagonal.

    Within a chunk that starts from h, u_t = R_tᵀ D_{t−1} … D_1 h + Σ_{s<t} R_tᵀ D_{t−1} … D_{s+1} (L_s u_s + b_s) is
    one unit lower triangular system, solved for what does not depend on h and for the matrix that acts on h. The
    products of decays are formed as products, never as quotients, so that a decay may be 0.
    """
    length = len(offsets)
    size = min(CHUNK, length)
    padding = -length % size
    core = DiagonalLowRank(_pad(core.diagonal, padding, 1), _pad(core.left, padding, 0), _pad(core.right, padding, 0))
    core, offsets = jax.tree.map(
        lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), (core, _pad(offsets, padding, 0))
    )
    blocks = jax.vmap(jax.vmap(_prepare, in_axes=(1, 1)))(core, offsets)

    def over_chunks(state, chunk):
        fixed, acting, spread, decay, own = chunk
        u = fixed + acting @ state
        return decay[..., None] * state + spread @ u + own, (state, u)

    _, (starts, u) = jax.lax.scan(over_chunks, initial, blocks)
    # [chunks, B, C·r, m] -> [chunks, C, B, r, m]
    u = u.reshape(*u.shape[:2], size, core.left.shape[-1], u.shape[-1]).swapaxes(1, 2)
    states = jax.vmap(_solve_diagonal)(core.diagonal, offsets + core.left @ u, starts)
    return states.reshape(-1, *states.shape[2:])[:length]


def _prepare(core, offsets):
    """Of one block over one chunk: u = fixed + acting · h, and the state after it is decay ⊙ h + spread · u + own."""
    size, entries, rank = core.left.shape
    steps = jnp.arange(size)
    kept = jnp.where((steps[None, :] > steps[:, None])[..., None], core.diagonal[None], 1)
    between = jnp.cumprod(kept, axis=1)  # [s, t, n]: D_t … D_{s+1}, 1 for t ≤ s
    whole = jnp.cumprod(core.diagonal, axis=0)
    own = _solve_diagonal(core.diagonal, offsets, jnp.zeros_like(offsets[0]))

    before = lambda leaf, first: jnp.concatenate((jnp.full_like(leaf[:1], first), leaf[:-1]))
    from_start = core.right.swapaxes(1, 2) * before(whole, 1)[:, None]  # [t, r, n]
    from_offsets = core.right.swapaxes(1, 2) @ before(own, 0)  # [t, r, m]
    earlier = steps[None, :] < steps[:, None]  # [t, s]
    carried = jnp.where(earlier[..., None], before(between.swapaxes(0, 1), 0), 0)  # [t, s, n]: D_{t−1} … D_{s+1}
    reach = jnp.einsum("tna,tsn,snb->tasb", core.right, carried, core.left)
    system = jnp.eye(size * rank, dtype=reach.dtype) - reach.reshape(size * rank, -1)
    sides = jnp.concatenate((from_offsets, from_start), axis=-1).reshape(size * rank, -1)
    solved = jax.scipy.linalg.solve_triangular(system, sides, lower=True, unit_diagonal=True)
    copies = offsets.shape[-1]
    spread = (between[:, -1, :, None] * core.left).swapaxes(0, 1).reshape(entries, -1)
    return solved[:, :copies], solved[:, copies:], spread, whole[-1], own[-1]


def _pad(leaf, count, value):
    return jnp.concatenate((leaf, jnp.full((count, *leaf.shape[1:]), value, leaf.dtype)))
