"""The (t, k) table: how much step k's direct use of θ contributes to the gradient of the loss at step t."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxbptt import _validation
from jaxbptt.cells.factored import norms as leaf_norms
from jaxbptt.gradients.diagnosis import require_finite_gradient
from jaxbptt.gradients.exact import scan_terms
from jaxbptt.gradients.forward import run_forward, take_problem
from jaxbptt.jacobians.dense import step_jacobians
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.trajectories import Trajectory
from jaxbptt.types import Inputs, Integer, Params, State, Targets

__all__ = ["GradientTerms", "gradient_terms"]

STRETCHES = 4  # parts that k = 1 … T is cut into: (1 + 1/4) / 2 of the products' flops are left
LEAST_STEPS = 32  # with fewer steps, one stretch: more of them cost more to compile


class GradientTerms(NamedTuple):
    """Norms of the terms of dC/dθ; the pair (t, k) is in row t−1, column k−1."""

    norms: Float[Array, "time time"]  # zero for k > t
    by_leaf: Params  # shaped like params, each leaf [T, T]; norms² = Σ over leaves of by_leaf²

    def profile(self, lag: Int[Array, "*lags"] | int | None = None) -> Float[Array, "*lags"]:
        """Σ_t norms[t, t−ℓ], the summed norms of all terms of lag ℓ.

        Args:
          lag: ℓ, an int or ints in 0 … T−1; None: all of them, in order.

        Returns:
          Scalar, or an array shaped like lag ([T] for None).

        Raises:
          TypeError, ValueError: a lag that is not an integer or is outside 0 … T−1 (under jit: NaN).
        """
        length = self.norms.shape[0]
        steps = jnp.arange(length)
        lags = jnp.abs(steps[:, None] - steps[None, :])  # t − k where k ≤ t; above the diagonal norms are zero
        by_lag = jax.ops.segment_sum(self.norms.ravel(), lags.ravel(), num_segments=length)
        if lag is None:
            return by_lag
        if not jnp.issubdtype(jnp.result_type(lag), jnp.integer):
            raise TypeError(f"lag: got {jnp.result_type(lag)}, expected an integer")
        if _validation.is_concrete(lag) and not np.all((np.asarray(lag) >= 0) & (np.asarray(lag) < length)):
            raise ValueError(f"lag: got {lag}, expected 0 … T−1 = {length - 1}")
        inside = (jnp.asarray(lag) >= 0) & (jnp.asarray(lag) < length)
        return jnp.where(inside, by_lag[jnp.where(inside, lag, 0)], jnp.nan)

    def reach(self, quantile: float | Float[Array, ""]) -> Integer:
        """The least lag ℓ with Σ_{ℓ'≤ℓ} profile(ℓ') ≥ quantile · Σ profile.

        Args:
          quantile: q in (0, 1], scalar.

        Returns:
          Integer scalar, 0 … T−1; 0 where the whole profile is zero.

        Raises:
          ValueError: q outside (0, 1].
        """
        if _validation.is_concrete(quantile) and not 0 < quantile <= 1:
            raise ValueError(f"quantile: got {quantile}, expected a number in (0, 1]")
        cumulative = jnp.cumsum(self.profile())
        return jnp.argmax(cumulative >= jnp.asarray(quantile, cumulative.dtype) * cumulative[-1])


def gradient_terms(
    model: Model, params: Params, inputs: Inputs, targets: Targets, *, initial: State | None = None
) -> GradientTerms:
    """‖(∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t‖ for every k ≤ t, in total and per parameter leaf.

    The terms include the weight ∂C/∂L_t (1/T for the mean). They sum to dC/dθ without what is not in the table: the
    readout's direct part, the terms of an h_0 that depends on θ, and a penalty. For each k, all t ≥ k are computed at
    once: N²T² flops for the cotangents (a quarter more because they move in stretches of k). In the built-in cells the
    term of a weight matrix has rank one, and its norm is the product of the norms of two vectors.

    Args:
      model: f, g, L and the reduction.
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      initial: h_0 as a constant; None: `model.initial_state(params)`.

    Returns:
      GradientTerms. Memory O(T² · leaves), and T·|θ| for a cell without a factored derivation.

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063; S4.9 (the double sum).
    """
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, _ = problem
    trajectory, _, local, _, early = run_forward(model, params, inputs, targets, initial)
    unravel = ravel_pytree(trajectory.initial)[1]
    pull = step_partials(model).pull_params

    def visit(carry, state, x, cotangents):
        return carry, leaf_norms(jax.vmap(lambda v: pull(params, state, x, unravel(v)))(cotangents))

    jacobians = step_jacobians(model, params, trajectory)
    by_leaf = _scan_in_stretches(visit, trajectory, jacobians, local, early)
    require_finite_gradient(model, problem, by_leaf)
    squares = [leaf * leaf for leaf in jax.tree.leaves(by_leaf)]
    return GradientTerms(jnp.sqrt(sum(squares[1:], squares[0])), by_leaf)


def _scan_in_stretches(visit, trajectory, jacobians, local, early):
    """The results of `visit` as [t, k]. A late k has few t ≥ k, so the last steps need not move all T rows."""
    length = len(jacobians)
    bounds = [length * i // STRETCHES for i in range(STRETCHES + 1)] if length >= LEAST_STEPS else [0, length]
    previous, later, tables = trajectory.previous, None, []
    for first, stop in reversed(list(itertools.pairwise(bounds))):
        start = jax.tree.map(lambda leaf, first=first: leaf[first], previous)
        part = (trajectory.inputs, trajectory.states, jacobians, local, early)
        inputs, states, chain, own, before = jax.tree.map(lambda leaf, first=first, stop=stop: leaf[first:stop], part)
        steps = Trajectory(start, inputs, states)
        _, rows, later = scan_terms(visit, None, steps, chain, own, later, early=before)
        tables.append(jax.tree.map(lambda leaf, first=first: jnp.pad(leaf, ((0, 0), (first, 0))), rows))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves).T, *reversed(tables))
