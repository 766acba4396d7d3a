"""The (t, k) table: how much step k's direct use of θ contributes to the gradient of the loss at step t."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.cells.derivation import norms as leaf_norms
from jaxbptt.gradients.adjoint import pull_params
from jaxbptt.gradients.exact import scan_terms
from jaxbptt.gradients.forward import flatten_steps, run_forward
from jaxbptt.jacobians import step_jacobians
from jaxbptt.models import Model
from jaxbptt.trajectories import Trajectory

STRETCHES = 4  # of k: (1 + 1/4) / 2 of the products' flops are left
LEAST_STEPS = 32  # below, one stretch: compilation is dearer


class GradientTerms(NamedTuple):
    """Norms of the terms of dC/dθ; row and column t−1, k−1 for the pair (t, k)."""

    norms: jax.Array  # [T, T], zero for k > t
    by_leaf: Any  # shaped like params, each leaf [T, T]; norms² = Σ over leaves of by_leaf²

    def profile(self, lag: Any = None) -> jax.Array:
        """Σ_t norms[t, t−ℓ], the norm carried by all terms of lag ℓ.

        Args:
          lag: ℓ, an int or ints in 0 … T−1; None: all of them, in order.

        Returns:
          Scalar, or an array shaped like lag ([T] for None).

        Raises:
          TypeError, ValueError: a lag that is no integer or outside 0 … T−1 (under jit: NaN).
        """
        length = self.norms.shape[0]
        steps = jnp.arange(length)
        lags = jnp.abs(steps[:, None] - steps[None, :])  # t − k where k ≤ t; above the diagonal norms are zero
        by_lag = jax.ops.segment_sum(self.norms.ravel(), lags.ravel(), num_segments=length)
        if lag is None:
            return by_lag
        if not jnp.issubdtype(jnp.result_type(lag), jnp.integer):
            raise TypeError(f"lag: got {jnp.result_type(lag)}, expected an integer")
        if checks.is_concrete(lag) and not np.all((np.asarray(lag) >= 0) & (np.asarray(lag) < length)):
            raise ValueError(f"lag: got {lag}, expected 0 … T−1 = {length - 1}")
        inside = (jnp.asarray(lag) >= 0) & (jnp.asarray(lag) < length)
        return jnp.where(inside, by_lag[jnp.where(inside, lag, 0)], jnp.nan)

    def reach(self, quantile: Any) -> jax.Array:
        """The least lag ℓ with Σ_{ℓ'≤ℓ} profile(ℓ') ≥ quantile · Σ profile.

        Args:
          quantile: q in (0, 1], scalar.

        Returns:
          Integer scalar, 0 … T−1; 0 where the whole profile is zero.

        Raises:
          ValueError: q outside (0, 1].
        """
        if checks.is_concrete(quantile) and not 0 < quantile <= 1:
            raise ValueError(f"quantile: got {quantile}, expected a number in (0, 1]")
        cumulative = jnp.cumsum(self.profile())
        return jnp.argmax(cumulative >= jnp.asarray(quantile, cumulative.dtype) * cumulative[-1])


def gradient_terms(model: Model, params: Any, inputs: Any, targets: Any, *, initial: Any = None) -> GradientTerms:
    """‖(∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t‖ for every k ≤ t, in total and per parameter leaf.

    The terms sum to dC/dθ less two parts that are not in the table: the readout's direct part, and the terms of an
    h_0 that depends on θ. The weight ∂C/∂L_t (1/T for the mean) is in them. All t ≥ k of one k at once, N²T² flops for
    the cotangents (a quarter more for moving them in stretches of k); a weight matrix's term is rank one in the
    built-in cells and its norm is had from the two vectors.

    Args:
      model: f, g, L and the reduction.
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      initial: h_0, then a constant.

    Returns:
      GradientTerms, memory O(T² · leaves) (and T·|θ| for a cell without factored derivation).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063; S4.9.
    """
    trajectory, _, local, _ = run_forward(model, params, inputs, targets, initial)
    unravel = ravel_pytree(trajectory.initial)[1]
    if model.derivation is None:
        pull = lambda params, state, x, v: jax.vjp(lambda p: model.step(p, state, x), params)[1](v)[0]  # noqa: E731
    else:
        pull = pull_params(model.derivation.pullback)

    def visit(carry, state, x, cotangents):
        return carry, leaf_norms(jax.vmap(lambda v: pull(params, state, x, unravel(v)))(cotangents))

    jacobians = step_jacobians(model, params, trajectory)
    by_leaf = _scan_in_stretches(visit, trajectory, jacobians, flatten_steps(local))
    squares = [leaf * leaf for leaf in jax.tree.leaves(by_leaf)]
    return GradientTerms(jnp.sqrt(sum(squares[1:], squares[0])), by_leaf)


def _scan_in_stretches(visit, trajectory, jacobians, local):
    """The results of `visit` by [t, k]: for late k there are few t, so that the last steps need not move all T rows."""
    length = len(local)
    bounds = [length * i // STRETCHES for i in range(STRETCHES + 1)] if length >= LEAST_STEPS else [0, length]
    previous, later, tables = trajectory.previous, None, []
    for first, stop in reversed(list(itertools.pairwise(bounds))):
        part = lambda tree, first=first, stop=stop: jax.tree.map(lambda leaf: leaf[first:stop], tree)  # noqa: E731
        start = jax.tree.map(lambda leaf, first=first: leaf[first], previous)
        steps = Trajectory(start, part(trajectory.inputs), part(trajectory.states))
        _, rows, later = scan_terms(visit, None, steps, part(jacobians), part(local), later)
        tables.append(jax.tree.map(lambda leaf, first=first: jnp.pad(leaf, ((0, 0), (first, 0))), rows))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves).T, *reversed(tables))
