"""Truncation as weights on the (t, k) table, and the gradient by the table, term by term: the reference.

Weights are [T, T + 1]: row t−1 is the loss L_t, column k is the direct use of θ in step k, and column 0 the use of θ in
h_0; zero for k > t. Columns 1 … T lie on the table of `terms.gradient_terms`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.gradients.adjoint import add_initial
from jaxbptt.gradients.exact import scan_terms
from jaxbptt.gradients.forward import flatten_steps, run_forward
from jaxbptt.jacobians import step_jacobians
from jaxbptt.models import Model


def window_weights(num_steps: int, length: int) -> jax.Array:
    """w[t, k] = 1 where t and k ≤ t lie in one window of K steps, 1 … K, K+1 … 2K, …, else 0. h_0 goes with step 1.

    Args:
      num_steps: T ≥ 1.
      length: K ≥ 1; the last window holds the T mod K steps left over, if any; K ≥ T keeps all.

    Returns:
      [T, T + 1], default float dtype.

    Raises:
      TypeError, ValueError: a size that is no int or below 1.

    Reference: S3.7 (regular truncation).
    """
    t, k = _table(num_steps)
    checks.require_size("length", length)
    return _floats((k <= t) & ((t - 1) // length == (np.maximum(k, 1) - 1) // length))


def sliding_weights(num_steps: int, losses: int, steps: int) -> jax.Array:
    """w[t, k] = 1 where e − k2 < k ≤ t, e the end of the block of k1 losses that t is in, else 0. h_0 goes with step 1.

    Args:
      num_steps: T ≥ 1.
      losses: k1 ≥ 1; blocks end at k1, 2 k1, … and, where k1 does not divide T, at T.
      steps: k2 ≥ 1. k2 < k1 leaves the first k1 − k2 losses of a block with their readout's direct part alone.

    Returns:
      [T, T + 1], default float dtype.

    Raises:
      TypeError, ValueError: a size that is no int or below 1.

    Reference: Williams & Peng (1990), Neural Computation 2, BPTT(h; h'): h' = k1, h = k2.
    """
    t, k = _table(num_steps)
    checks.require_size("losses", losses)
    checks.require_size("steps", steps)
    end = np.minimum(((t - 1) // losses + 1) * losses, num_steps)
    return _floats((k <= t) & (np.maximum(k, 1) > end - steps))


def random_weights(cuts: jax.Array, keep: Any) -> jax.Array:
    """w[t, k] = Π_{j=k+1}^t ξ_j,  ξ_j = 0 where link j is cut, else 1/π_j; E w[t, k] = 1 for k ≤ t.

    It holds also where π_j depends on the cuts before j (`renewal_cuts`). The same π at every link is the slide's
    ξ scheme, z_t = b_t + ξ_t c_t z_{t−1}. h_0 is reached through link 1. Plain floats: π^{−lag} can overflow.

    Args:
      cuts: [T] booleans, True where link t (from h_{t−1} to h_t) is cut.
      keep: π, in (0, 1], scalar or [T].

    Returns:
      [T, T + 1], dtype of keep, or the default float dtype.

    Raises:
      TypeError, ValueError: cuts or keep not as stated (keep under jit: NaN).

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


def one_link_weights(cuts: jax.Array, keep: Any) -> jax.Array:
    """w[t, t] = 1 and w[t, k] = ξ_t for k < t: ξ once, where the loss is, as the d2l book's 9.7.8 has it to the letter.

    Unbiased as well, but it shortens nothing: a loss whose link is kept still reaches back to h_0.

    Args:
      cuts: [T] booleans, True where link t is cut.
      keep: π, in (0, 1], scalar or [T].

    Returns:
      [T, T + 1], dtype of keep, or the default float dtype.

    Raises:
      TypeError, ValueError: cuts or keep not as stated (keep under jit: NaN).

    Reference: S3.7.
    """
    factors = link_factors(cuts, keep)
    t, k = _table(len(factors))
    return jnp.where(k == t, jnp.ones_like(factors)[:, None], jnp.where(k < t, factors[:, None], 0))


def link_factors(cuts: jax.Array, keep: Any) -> jax.Array:
    """ξ_t, [T]: 0 where link t is cut, else 1/π_t; NaN for a traced π outside (0, 1]."""
    checks.require_array("cuts", cuts, ("T",), jnp.bool_)
    keep = checks.require_probability("keep", keep, len(cuts))
    return (~cuts).astype(keep.dtype) / keep


def weighted_gradient(model: Model, params: Any, inputs: Any, targets: Any, weights: jax.Array, *, initial: Any = None):
    """Σ_t Σ_{k≤t} w[t, k] (∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t + the readout's direct part, whole + h_0's, by w[t, 0].

    Every term is formed before it is weighted and added: T²|θ|/2 numbers, T|θ| of them at a time. As
    `gradients.double_sum`, it never uses the hand derivation. All weights 1: dC/dθ.

    Args:
      model: f, g, L and the reduction.
      params: θ, float leaves of one dtype.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T.
      targets: y_1 … y_T, leading T.
      weights: [T, T + 1], row t−1, column k = 0 … T, zero for k > t; cast to the dtype of params.
      initial: h_0, then a constant, and column 0 counts for nothing.

    Returns:
      (C scalar, the weighted gradient shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`; weights not as stated.

    Reference: S3.7, S4.9.
    """
    trajectory, loss, local, direct = run_forward(model, params, inputs, targets, initial)
    unravel = ravel_pytree(trajectory.initial)[1]
    local = flatten_steps(local)
    _require_table(weights, len(local))
    columns = weights.astype(local.dtype).T  # [T + 1, T]

    def add_terms(carry, state, x, cotangents):
        gradient, k = carry
        pull = jax.vjp(lambda params: model.step(params, state, x), params)[1]
        terms = jax.vmap(lambda cotangent: pull(unravel(cotangent))[0])(cotangents)
        add = lambda total, term: total + jnp.tensordot(columns[k].astype(term.dtype), term, 1)  # noqa: E731
        return (jax.tree.map(add, gradient, terms), k - 1), None

    jacobians = step_jacobians(model, params, trajectory, method="reverse")
    (grads, _), _, carried = scan_terms(add_terms, (direct, jnp.asarray(len(local))), trajectory, jacobians, local)
    return loss, add_initial(model, params, grads, unravel(columns[0] @ carried)) if initial is None else grads


def _require_table(weights, length):
    checks.require_array("weights", weights, (length, length + 1))
    if checks.is_concrete(weights) and np.triu(weights, 2).any():
        raise ValueError("weights: got one that is not 0 for k > t, expected row t−1 to end at column k = t")


def _table(num_steps):
    """(t [T, 1], k [1, T + 1]), counted as in the equations."""
    checks.require_size("num_steps", num_steps)
    return np.arange(1, num_steps + 1)[:, None], np.arange(num_steps + 1)[None, :]


def _floats(kept):
    return jnp.asarray(kept, jnp.result_type(float))
