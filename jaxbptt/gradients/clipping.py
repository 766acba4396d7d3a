"""The adjoint clipped at every step on its way back in time: what people do so that it cannot explode. No gradient."""

from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.gradients.adjoint import Pull, sequential_adjoint
from jaxbptt.types import ClipKind, ClipPlace, Scalar, State, States

KINDS, PLACES = get_args(ClipKind), get_args(ClipPlace)


class Clip(NamedTuple):
    """What is clipped at every step, how, and at which bound."""

    bound: float | Scalar  # c
    by: ClipKind
    of: ClipPlace
    batch: int | None = None  # B, where the state is B states side by side: each is clipped by its own norm

    def of_carried(self, cotangent: State) -> State:
        """μ_{t−1} from J_tᵀ λ_t."""
        return self._apply(cotangent) if self.of == "carried" else cotangent

    def of_whole(self, cotangent: State) -> State:
        """λ_t from ∂C/∂h_t|o_t + μ_t."""
        return self._apply(cotangent) if self.of == "whole" else cotangent

    def _apply(self, cotangent):
        if self.by == "value":
            return jax.tree.map(lambda leaf: clip_by_value(leaf, self.bound), cotangent)
        clip = lambda one: clip_by_norm(one, self.bound)
        return clip(cotangent) if self.batch is None else jax.vmap(clip)(cotangent)


def take_clip(bound: Any, by: ClipKind, of: ClipPlace, batch: int | None) -> Clip | None:
    """The clip that these options ask for; None: none. Raise unless they are ones."""
    _validation.require_choice("clip_by", by, KINDS)
    _validation.require_choice("clip_of", of, PLACES)
    if bound is None:
        return None
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    if not number and not (hasattr(bound, "dtype") and jnp.issubdtype(bound.dtype, jnp.floating)):
        raise TypeError(f"clip_adjoint: got {type(bound).__name__}, expected a number ≥ 0")
    if jnp.shape(bound):
        raise ValueError(f"clip_adjoint: got shape {list(jnp.shape(bound))}, expected a scalar")
    if not _validation.is_concrete(bound):
        bound = jnp.where(bound >= 0, bound, jnp.nan)
    elif not np.asarray(bound) >= 0:
        raise ValueError(f"clip_adjoint: got {bound}, expected a number ≥ 0 (inf: nothing is clipped)")
    elif np.isinf(bound):
        return None
    return Clip(bound, by, of, batch)


def clipped_adjoint(clip: Clip, pull: Pull, residuals: Any, local: States, later: State) -> tuple[Any, State]:
    """`sequential_adjoint` with μ_{t−1} = clip(J_tᵀ λ_t), or with λ_t = clip(∂C/∂h_t|o_t + μ_t)."""

    def clipped(residuals, cotangent):
        earlier, kept = pull(residuals, clip.of_whole(cotangent))
        return clip.of_carried(earlier), kept

    return sequential_adjoint(clipped, residuals, local, later)


def clip_by_value(leaf: jax.Array, bound: float | Scalar) -> jax.Array:
    """Every entry between −c and c; one that has left the float range is NaN, not c."""
    bound = jnp.asarray(bound, leaf.dtype)
    return jnp.where(jnp.isinf(leaf), jnp.nan, jnp.clip(leaf, -bound, bound))


def clip_by_norm(tree: State, bound: float | Scalar) -> State:
    """v min(1, c/‖v‖) over all leaves; v itself where ‖v‖ ≤ c. The squares of v need not be floats."""
    leaves = jax.tree.leaves(tree)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    scale = jnp.where(largest > 0, largest, 1)
    units = jax.tree.map(lambda leaf: leaf / scale, tree)
    square = sum(jnp.sum(unit**2) for unit in jax.tree.leaves(units))
    length = jnp.sqrt(jnp.where(largest > 0, square, 1))  # ‖v‖ / scale, in 1 … √N
    bound = jnp.asarray(bound, scale.dtype)
    keep = scale * length <= bound
    return jax.tree.map(lambda leaf, unit: jnp.where(keep, leaf, unit * (bound / length)), tree, units)
