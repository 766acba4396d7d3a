"""Tables over all pairs (t, k): what the use of θ at step k adds to the gradient of L_t, and how L_t feels x_k."""

from collections.abc import Callable
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxbptt import _validation
from jaxbptt.cells.factored import join_norms
from jaxbptt.cells.factored import norms as leaf_norms
from jaxbptt.gradients.bidirectional import directions
from jaxbptt.gradients.diagnosis import require_finite_gradient
from jaxbptt.gradients.forward import run_forward, take_problem
from jaxbptt.gradients.rows import add_at, split
from jaxbptt.jacobians.structured import moving_jacobians, row_mover
from jaxbptt.models._bidirectional import BidirectionalModel
from jaxbptt.models.model import READS, Model, read, reduction_weight
from jaxbptt.partials import step_partials
from jaxbptt.trajectories import Trajectory, flatten_steps
from jaxbptt.types import Inputs, Integer, Params, State, States, Targets

__all__ = ["GradientTerms", "InputSaliency", "gradient_terms", "input_saliency"]

BLOCKS, LEAST_STEPS = 4, 32  # of rows that the table is cut into, (1 + 1/4) / 2 of the flops are left; of fewer steps 1


class GradientTerms(NamedTuple):
    """Norms of the terms of dC/dθ; the pair (t, k) is in row t−1, column k−1.

    Attributes:
      norms: [T, T], zero for k > t.
      by_leaf: shaped like params, each leaf [T, T]; norms² = Σ over leaves of by_leaf².

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, terms
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> table = terms.gradient_terms(model, jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4))
      >>> table.profile().tolist(), float(table.profile(1))  # the summed norms of each lag, and of lag 1
      ([42.0, 40.0, 32.0, 0.0], 40.0)
      >>> int(table.reach(0.5)), int(table.reach(0.9))  # half of their sum lies within 1 step, 90 % within 2
      (1, 2)
    """

    norms: Float[Array, "time time"]
    by_leaf: Params

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
        return _reach(self.profile(), quantile)


class InputSaliency(NamedTuple):
    """How much each loss feels each input, in natural logs; the pair (t, k) is in row t−1, column k−1.

    Attributes:
      log_norms: [T, T], ln‖∂C/∂L_t · ∂L_t/∂x_k‖; −inf for k > t.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, terms
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> table = terms.input_saliency(model, jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4))
      >>> print(jnp.exp(table.profile()).round())  # Σ over t of |∂L_t/∂x_{t−ℓ}|: what is long ago counts most here
      [15. 28. 48. 64.]
      >>> int(table.reach(0.5))  # half of all that lies within 2 steps
      2
      >>> print(table.recall_density(0.2))  # by lag: the share of losses that feel x_k at least a fifth as much as any
      [0.75 1.   1.   1.  ]
    """

    log_norms: Float[Array, "time time"]

    def profile(self) -> Float[Array, " time"]:
        """ln Σ_t ‖∂L_t/∂x_{t−ℓ}‖ at every lag ℓ = 0 … T−1.

        Returns:
          [T], natural logs.
        """
        return jax.nn.logsumexp(_by_lag(self.log_norms), axis=1)

    def reach(self, quantile: float | Float[Array, ""]) -> Integer:
        """The least lag ℓ with Σ_{ℓ'≤ℓ} e^profile(ℓ') ≥ quantile · Σ e^profile.

        Args:
          quantile: q in (0, 1], scalar.

        Returns:
          Integer scalar, 0 … T−1; 0 where no loss feels any input.

        Raises:
          ValueError: q outside (0, 1].
        """
        profile = self.profile()
        top = jnp.max(profile)
        return _reach(jnp.exp(profile - jnp.where(jnp.isfinite(top), top, 0)), quantile)

    def recall_density(self, threshold: float | Float[Array, ""] = 0.01) -> Float[Array, " time"]:
        """The share of the losses t > ℓ that still feel x_{t−ℓ}: ‖∂L_t/∂x_{t−ℓ}‖ ≥ threshold · max_k ‖∂L_t/∂x_k‖.

        Args:
          threshold: in (0, 1], scalar.

        Returns:
          [T], each in 0 … 1, for ℓ = 0 … T−1. A loss that feels no input at all counts as one that does not.

        Raises:
          TypeError, ValueError: a threshold that is no number in (0, 1] (under jit: NaN).
        """
        allowed = _validation.require_probability("threshold", threshold).astype(self.log_norms.dtype)
        largest = jnp.max(self.log_norms, axis=1, keepdims=True)
        felt = (self.log_norms >= largest + jnp.log(allowed)) & (largest > -jnp.inf)
        by_lag = _by_lag(jnp.where(felt, 0, -jnp.inf).astype(self.log_norms.dtype))
        length = len(by_lag)
        density = jnp.sum(jnp.exp(by_lag), axis=1) / (length - jnp.arange(length)).astype(by_lag.dtype)
        return jnp.where(allowed > 0, density, jnp.nan)


@overload
def gradient_terms(
    model: Model, params: Params, inputs: Inputs, targets: Targets, *, initial: State | None = ...
) -> GradientTerms: ...
@overload
def gradient_terms(
    model: BidirectionalModel, params: Params, inputs: Inputs, targets: Targets, *, initial: State | None = ...
) -> tuple[GradientTerms, GradientTerms]: ...
def gradient_terms(
    model: Model | BidirectionalModel, params: Params, inputs: Inputs, targets: Targets, *, initial: State | None = None
) -> GradientTerms | tuple[GradientTerms, GradientTerms]:
    """‖(∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t‖ for every k ≤ t, in total and per parameter leaf.

    The terms include the weight ∂C/∂L_t (1/T for the mean). They sum to dC/dθ without what is not in the table: the
    readout's direct part, the terms of an h_0 that depends on θ, and a penalty. For each k, all t ≥ k are computed at
    once: N²T² flops for the cotangents (a quarter more because rows move in blocks). In the built-in cells the
    term of a weight matrix has rank one, and its norm is the product of the norms of two vectors.

    Args:
      model: f, g, L and the reduction.
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      initial: h_0 as a constant; None: `model.initial_state(params)`.

    Returns:
      GradientTerms. Memory O(T² · leaves), and T·|θ|/4 for a cell without a factored derivation. For a bidirectional
      model of one layer the tables of both directions; the backward one counts its steps from the sequence's end.

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, terms
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> table = terms.gradient_terms(model, jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4))
      >>> print(table.norms.astype(int))  # row t, column k: h_{k−1} 2^(t−k) h_t, with h = 1, 2, 4, 8
      [[ 0  0  0  0]
       [ 0  2  0  0]
       [ 0  8  8  0]
       [ 0 32 32 32]]
      >>> int(table.reach(0.9))  # 90 % of the sum of all norms lies within t − k = 2
      2

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063; S4.9 (the double sum).
    """
    if isinstance(model, BidirectionalModel):
        (forward, backward), _, _ = directions(model, params, inputs, targets, initial)
        return gradient_terms(*forward), gradient_terms(*backward)
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, _ = problem
    trajectory, _, local, _, early = run_forward(model, params, inputs, targets, initial)
    unravel = ravel_pytree(trajectory.initial)[1]
    pull = step_partials(model).pull_params

    def measure(state, x, cotangent):
        # Of one cotangent at a time: XLA folds the norms of a leaf that the step does not read, which is zero, and to
        # fold those of many copies takes it a second.
        pulled = jax.tree.map(lambda leaf: leaf[None], pull(params, state, x, unravel(cotangent)))
        return jax.tree.map(lambda norm: norm[0], leaf_norms(pulled))

    jacobians = moving_jacobians(model, params, trajectory)
    by_leaf = _table_by_rows(measure, trajectory, jacobians, local, early)
    require_finite_gradient(model, problem, by_leaf)
    return GradientTerms(join_norms(by_leaf), by_leaf)


def _table_by_rows(
    measure: Callable[..., Any], trajectory: Trajectory, jacobians: Any, local: States, early: States | None
) -> Any:
    """`measure(h_{k−1}, x_k, (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t)`, a pytree of numbers of which zero gives zero, as [t, k].

    The losses t are taken in BLOCKS of rows, each from its last step to k = 1: rows of an early block never meet a late
    k. All blocks run through one scan, so that one program is compiled for them.
    """
    rows, before = flatten_steps(local), None if early is None else flatten_steps(early)
    factors, move = row_mover(jacobians)
    steps = trajectory.previous, trajectory.inputs, factors, rows, before
    length = len(rows)
    width = -(-length // (BLOCKS if length >= LEAST_STEPS else 1))
    firsts = range(0, length, width)
    visits = [(first, k) for first in firsts for k in reversed(range(min(first + width, length)))]
    first, k = np.array(visits).T
    begins = np.append(True, np.diff(first) > 0)

    def visit(cotangents, at):
        begins, first, k = at
        state, x, factor, row, row_before = jax.tree.map(lambda leaf: leaf[k], steps)
        own = (jnp.arange(width) == k - first)[:, None]  # none, where k is a step before the block
        cotangents = jnp.where(own, row, jnp.where(begins, 0, cotangents))
        measured = jax.vmap(lambda cotangent: measure(state, x, cotangent))(cotangents)
        moved = move(cotangents, factor)
        return moved if row_before is None else moved + jnp.where(own, row_before, 0), measured

    nothing = jnp.zeros((width, rows.shape[1]), rows.dtype)
    measured = jax.lax.scan(visit, nothing, (jnp.asarray(begins), jnp.asarray(first), jnp.asarray(k)))[1]
    places = np.full((len(firsts), length), len(visits))  # of each block's row k; none: one more row, of zeros
    places[first // width, k] = np.arange(len(visits))

    def as_table(leaf):
        blocks = jnp.concatenate((leaf, jnp.zeros_like(leaf[:1])))[places]  # [block, k, t]
        return blocks.swapaxes(1, 2).reshape(-1, length)[:length]

    return jax.tree.map(as_table, measured)


def input_saliency(
    model: Model, params: Params, inputs: Inputs, targets: Targets, *, initial: State | None = None
) -> InputSaliency:
    """ln‖(∂⁺h_k/∂⁺x_k)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t‖ for every k ≤ t: how much the loss at step t feels the input x_k.

    An output that reads x_t or h_{t−1} adds its own terms.

    The weight ∂C/∂L_t is in it (1/T for the mean). For each k, the cotangents of all t are pulled at once: 2N²T² flops.
    Each is kept as a direction and the log of its length, so that a norm of e^−10000 is as accurate as one of 1. The
    norm runs over all float leaves of x_k together.

    Args:
      model: f, g, L and the reduction.
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T and at least one float leaf.
      targets: y_1 … y_T, leading T.
      initial: h_0 as a constant; None: `model.initial_state(params)`.

    Returns:
      InputSaliency of the dtype of params. Memory O(T² + T·N²).

    Raises:
      TypeError: inputs without a float leaf, such as integer tokens: they have no derivative.
      TypeError, ValueError: as `gradients.autodiff`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, terms
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> table = terms.input_saliency(model, jnp.array(1e-20), jnp.ones(20), jnp.zeros(20))
      >>> round(float(table.log_norms[19, 0]))  # ln of ‖∂L_20/∂x_1‖ = 1e-380, below the least float64
      -875

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063 (the chain dh_t/dh_k that both tables share).
    """
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, _ = problem
    if not any(map(_validation.is_float, jax.tree.leaves(inputs))):
        kinds = ", ".join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(inputs)}))
        raise TypeError(f"inputs: got {kinds}, expected at least one float leaf (nothing else has a derivative)")
    trajectory, _, local, _, early = run_forward(model, params, inputs, targets, initial)
    unravel = ravel_pytree(trajectory.initial)[1]
    pull = step_partials(model).pull_input
    chain, move = row_mover(moving_jacobians(model, params, trajectory))
    rows = flatten_steps(local)
    before = None if early is None else flatten_steps(early)
    own = _through_readout(model, params, trajectory, targets) if READS.index(model.reads) else None
    length = len(rows)
    nothing = jnp.zeros_like(rows), jnp.full(length, -jnp.inf, rows.dtype)

    def pull_flat(state, x, direction):
        pulled = pull(params, state, x, unravel(direction))
        return ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(rows.dtype), pulled))[0]

    def visit(later, step):
        index, state, x, jacobian, row, row_before, of_input = step
        directions, log_lengths = later
        # Where loss t = k enters: its cotangent through the readout alone.
        direction, log_length = split(row[None])
        directions, log_lengths = directions.at[index].set(direction[0]), log_lengths.at[index].set(log_length[0])
        felt, log_norms = split(jax.vmap(lambda direction: pull_flat(state, x, direction))(directions))
        _, log_norms = add_at(index, (felt, log_lengths + log_norms), of_input)
        directions, grown = split(move(directions, jacobian))
        return add_at(index, (directions, log_lengths + grown), row_before), log_norms

    steps = (jnp.arange(length), trajectory.previous, inputs, chain, rows, before, own)
    log_norms = jax.lax.scan(visit, nothing, steps, reverse=True)[1].T
    require_finite_gradient(model, problem, jnp.where(log_norms == -jnp.inf, 0, log_norms))
    return InputSaliency(log_norms)


def _through_readout(model, params, trajectory, targets):
    """(∂⁺o_t/∂⁺x_t)ᵀ ∂C/∂o_t of the float leaves of x_t, [T, M]."""

    def at(state, x, previous, target):
        def loss(floats):
            joined = jax.tree.map(lambda old, new: old if new is None else new, x, floats)
            return model.loss(read(model, params, state, joined, previous), target)

        floats = jax.tree.map(lambda leaf: leaf if _validation.is_float(leaf) else None, x)
        return ravel_pytree(jax.grad(loss)(floats))[0]

    found = jax.vmap(at)(trajectory.states, trajectory.inputs, trajectory.previous, targets)
    return found * reduction_weight(model, len(found), found.dtype)


def _by_lag(log_norms):
    """[lag, time]: entry (ℓ, t) is that of the pair (t, t−ℓ), −inf where t−ℓ < 1."""
    earlier = jnp.arange(len(log_norms))[None, :] - jnp.arange(len(log_norms))[:, None]
    taken = jnp.take_along_axis(log_norms.T, jnp.maximum(earlier, 0), axis=0)
    return jnp.where(earlier >= 0, taken, -jnp.inf)


def _reach(profile, quantile):
    if _validation.is_concrete(quantile) and not 0 < quantile <= 1:
        raise ValueError(f"quantile: got {quantile}, expected a number in (0, 1]")
    cumulative = jnp.cumsum(profile)
    return jnp.argmax(cumulative >= jnp.asarray(quantile, cumulative.dtype) * cumulative[-1])
