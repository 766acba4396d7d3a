"""The directions that a QR scan starts from, which of them can meet at all, and how far they have turned."""

import jax
import jax.numpy as jnp

from jaxbptt.spectra.products.graded import generic_orthogonal


def initial_frame(size: int, width: int, same: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    """Q_0 [N, width]: the first columns of a generic orthogonal matrix; with `same`, generic inside each component.

    Components never mix, so that each keeps its own directions however far the others run ahead.
    """
    generic = jnp.asarray(generic_orthogonal(size), dtype)
    if same is None:
        return generic[:, :width]
    return jnp.where(same, jnp.linalg.qr(jnp.where(same, generic, 0))[0], 0)


def connected(couples: jax.Array) -> jax.Array:
    """[N, N] whether two entries of the state are linked by couplings [N, N], directly or not, in any direction."""
    linked = couples | couples.T | jnp.eye(len(couples), dtype=bool)
    twice = lambda _, linked: linked.astype(jnp.float32) @ linked.astype(jnp.float32) > 0
    return jax.lax.fori_loop(0, len(couples).bit_length(), twice, linked)


def unfinished_turning(start: jax.Array, end: jax.Array, same: jax.Array | None) -> jax.Array:
    """[K] nats by which Σ ln r_ii over the counted steps may be off, because Q was still turning when they began.

    A direction i that holds a share e^Δ of a slower direction j, Δ = ℓ_j − ℓ_i of the sums so far, is longer by
    ½ ln(1 + Σ_j e^(2Δ_ji)). What of this is gone by the end was counted as growth; what is left was counted twice.

    Args:
      start: [K] Σ ln r_ii when the counting begins.
      end: [K] the same at the last step.
      same: [K, K] whether two directions can mix; None: all can.
    """
    fits = ~jnp.eye(len(start), dtype=bool)
    if same is not None:
        fits = fits & same

    def excess(sums):
        alive = jnp.isfinite(sums)
        sums = jnp.where(alive, sums, 0)
        gaps = sums[:, None] - sums[None, :]  # ℓ_j − ℓ_i at [j, i]
        pairs = fits & alive[:, None] & alive[None, :]
        lower = jnp.tril(jnp.ones(gaps.shape, bool))
        shares = (jnp.where(pairs & lower, gaps, -jnp.inf), jnp.where(pairs & lower, gaps, -jnp.inf).T)
        return 0.5 * jnp.logaddexp(0, jax.nn.logsumexp(2 * jnp.stack(shares), axis=1))

    return jnp.sum(jnp.abs(excess(start) - excess(end)), axis=0)
