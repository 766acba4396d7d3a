"""Truncation as weights on the (t, k) table, and the gradient from the table, term by term: the reference.

Weights are [T, T + 1]: row t−1 is the loss L_t, column k the direct use of θ in step k, column 0 the use of θ in h_0;
entries with k > t are zero. Columns 1 … T match the table of `terms.gradient_terms`.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxbptt import _validation
from jaxbptt.gradients.adjoint import add_initial
from jaxbptt.gradients.diagnosis import require_finite_gradient
from jaxbptt.gradients.exact import automatic_jacobians, scan_terms
from jaxbptt.gradients.forward import run_forward, take_problem
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.truncation.cuts import Keep
from jaxbptt.types import ArrayLike, Inputs, LossAndGrads, Params, State, Targets

Weights: TypeAlias = Float[Array, "time columns"]  # T + 1 columns


def window_weights(num_steps: int, window: int) -> Weights:
    """w[t, k] = 1 where t and k ≤ t lie in one window of K steps, 1 … K, K+1 … 2K, …, else 0. h_0 goes with step 1.

    Args:
      num_steps: T ≥ 1.
      window: K ≥ 1; the last window holds the T mod K steps left over, if any; K ≥ T keeps all.

    Returns:
      [T, T + 1], default float dtype.

    Raises:
      TypeError: a size that is no int.
      ValueError: a size below 1.

    Example:
      >>> from jaxbptt import truncation
      >>> print(truncation.window_weights(4, window=2).astype(int))  # rows t = 1 … 4, columns k = 0 … 4
      [[1 1 0 0 0]
       [1 1 1 0 0]
       [0 0 0 1 0]
       [0 0 0 1 1]]

    Reference: Zhang et al., Dive into Deep Learning, §9.7; S3.7 (regular truncation).
    """
    t, k = _table(num_steps)
    _validation.require_size("window", window)
    return _floats((k <= t) & ((t - 1) // window == (np.maximum(k, 1) - 1) // window))


def sliding_weights(num_steps: int, stride: int, num_lags: int) -> Weights:
    """w[t, k] = 1 where e − k2 < k ≤ t, with e the end of t's block of k1 losses, else 0. h_0 goes with step 1.

    Args:
      num_steps: T ≥ 1.
      stride: k1 ≥ 1; blocks end at k1, 2 k1, … and, where k1 does not divide T, at T.
      num_lags: k2 ≥ 1. If k2 < k1, the first k1 − k2 losses of a block keep only their readout's direct part.

    Returns:
      [T, T + 1], default float dtype.

    Raises:
      TypeError: a size that is no int.
      ValueError: a size below 1.

    Example:
      >>> from jaxbptt import truncation
      >>> print(truncation.sliding_weights(4, stride=2, num_lags=3).astype(int))  # rows t = 1 … 4, columns k = 0 … 4
      [[1 1 0 0 0]
       [1 1 1 0 0]
       [0 0 1 1 0]
       [0 0 1 1 1]]

    Reference: Williams & Peng (1990), Neural Computation 2, BPTT(h; h'): h' = k1, h = k2.
    """
    t, k = _table(num_steps)
    _validation.require_size("stride", stride)
    _validation.require_size("num_lags", num_lags)
    end = np.minimum(((t - 1) // stride + 1) * stride, num_steps)
    return _floats((k <= t) & (np.maximum(k, 1) > end - num_lags))


def random_weights(cuts: Bool[ArrayLike, " time"], keep: Keep) -> Weights:
    """w[t, k] = Π_{j=k+1}^t ξ_j,  ξ_j = 0 where link j is cut, else 1/π_j; E w[t, k] = 1 for k ≤ t.

    This also holds where π_j depends on the cuts before j (`renewal_cuts`). The same π at every link gives the scheme
    z_t = b_t + ξ_t c_t z_{t−1} (S3.7). h_0 is reached through link 1. Plain floats: π^{−lag} can overflow.

    Args:
      cuts: [T] booleans, True where link t (from h_{t−1} to h_t) is cut.
      keep: π, in (0, 1], scalar or [T].

    Returns:
      [T, T + 1], dtype of keep, or the default float dtype.

    Raises:
      TypeError: cuts that are no array of bools; a keep that is no number or array of real floats.
      ValueError: cuts that are not [T]; a keep of another shape or, outside jit, outside (0, 1] (under jit: NaN).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> cuts = jnp.array([False, True, False])  # between h_1 and h_2
      >>> print(truncation.random_weights(cuts, 0.5).astype(int))  # rows t = 1 … 3, columns k = 0 … 3
      [[2 1 0 0]
       [0 0 1 0]
       [0 0 2 1]]

    Reference: Tallec & Ollivier (2017), arXiv:1705.08209; S3.7 (randomised truncation).
    """
    factors = link_factors(cuts, keep)
    columns = jnp.arange(len(factors) + 1)

    def body(row, step):
        t, factor = step
        row = jnp.where(columns == t, jnp.ones_like(factor), jnp.where(columns < t, factor * row, 0))
        return row, row

    first = (columns == 0).astype(factors.dtype)
    return jax.lax.scan(body, first, (columns[1:], factors))[1]


def one_link_weights(cuts: Bool[ArrayLike, " time"], keep: Keep) -> Weights:
    """w[t, t] = 1 and w[t, k] = ξ_t for k < t: ξ enters once, at the loss, exactly as in eq. 9.7.8 of the d2l book.

    This is unbiased too, but it shortens nothing: a loss whose link is kept still reaches back to h_0.

    Args:
      cuts: [T] booleans, True where link t is cut.
      keep: π, in (0, 1], scalar or [T].

    Returns:
      [T, T + 1], dtype of keep, or the default float dtype.

    Raises:
      TypeError: cuts that are no array of bools; a keep that is no number or array of real floats.
      ValueError: cuts that are not [T]; a keep of another shape or, outside jit, outside (0, 1] (under jit: NaN).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> cuts = jnp.array([False, True, False])
      >>> print(truncation.one_link_weights(cuts, 0.5).astype(int))  # rows t = 1 … 3, columns k = 0 … 3
      [[2 1 0 0]
       [0 0 1 0]
       [2 2 2 1]]

    Reference: Zhang et al., Dive into Deep Learning, eq. 9.7.8; S3.7 (randomised truncation).
    """
    factors = link_factors(cuts, keep)
    t, k = _table(len(factors))
    return jnp.where(k == t, jnp.ones_like(factors)[:, None], jnp.where(k < t, factors[:, None], 0))


def link_factors(cuts: Bool[ArrayLike, " time"], keep: Keep) -> Float[Array, " time"]:
    """ξ_t, [T]: 0 where link t is cut, else 1/π_t; NaN for a traced π outside (0, 1]."""
    _validation.require_array("cuts", cuts, ("T",), jnp.bool_)
    probability = _validation.require_probability("keep", keep, len(cuts))
    return (~jnp.asarray(cuts)).astype(probability.dtype) / probability


def weighted_gradient(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    weights: Float[ArrayLike, "time columns"],
    *,
    initial: State | None = None,
) -> LossAndGrads:
    """Σ_t Σ_{k≤t} w[t, k] (∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t + the readout's direct part + the terms of h_0.

    The readout's direct part has no weight, the terms of h_0 have w[t, 0]. With all weights 1 this is dC/dθ. Every term
    is formed before it is weighted and added: T²|θ|/2 numbers, T|θ| of them at a time. Like `gradients.double_sum`, it
    never uses the hand derivation.

    Args:
      model: f, g, L and the reduction.
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      weights: [T, T + 1], row t−1, column k = 0 … T, zero for k > t; cast to the dtype of params.
      initial: h_0 as a constant (column 0 is then not used); None: `model.initial_state(params)`.

    Returns:
      (C scalar, the weighted gradient shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.
      TypeError: weights that are no array of real floats.
      ValueError: weights that are not [T, T + 1]; outside jit, one that is not finite, or not 0 for k > t.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # terms 2, 2 × 8, 3 × 32
      >>> own_step = jnp.eye(4, 5, k=1)  # w[t, k] = 1 for k = t alone
      >>> float(truncation.weighted_gradient(model, w, inputs, targets, own_step)[1])
      42.0

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063 (the double sum); S3.7, S4.9.
    """
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, length = problem
    weights = _validation.as_arrays("weights", weights)
    _require_table(weights, length)
    trajectory, loss, local, direct, early = run_forward(model, params, inputs, targets, initial)
    unravel = ravel_pytree(trajectory.initial)[1]
    columns = weights.astype(jax.tree.leaves(local)[0].dtype).T  # [T + 1, T]
    partials = step_partials(model, source="automatic")

    def add_terms(carry, state, x, cotangents):
        gradient, k = carry
        terms = jax.vmap(lambda row: partials.pull_params(params, state, x, unravel(row)))(cotangents)
        weighted = jax.tree.map(lambda term: jnp.tensordot(columns[k].astype(term.dtype), term, 1), terms)
        return (jax.tree.map(jnp.add, gradient, weighted), k - 1), None

    jacobians = automatic_jacobians(model, params, trajectory)
    start = (direct, jnp.asarray(length))
    (grads, _), _, carried = scan_terms(add_terms, start, trajectory, jacobians, local, early=early)
    grads = add_initial(model, params, grads, unravel(columns[0] @ carried)) if initial is None else grads
    require_finite_gradient(model, problem, grads)
    return loss, grads


def _require_table(weights, length):
    _validation.require_array("weights", weights, (length, length + 1))
    if _validation.is_concrete(weights) and np.triu(weights, 2).any():
        raise ValueError("weights: got one that is not 0 for k > t, expected row t−1 to end at column k = t")


def _table(num_steps):
    """(t [T, 1], k [1, T + 1]), counted as in the equations."""
    _validation.require_size("num_steps", num_steps)
    return np.arange(1, num_steps + 1)[:, None], np.arange(num_steps + 1)[None, :]


def _floats(kept):
    return jnp.asarray(kept, jnp.result_type(float))
