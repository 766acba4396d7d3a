"""How many lags to keep for a given bias: the measured norms by lag, and a geometric bound on the rest."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.cells.factored import join_norms, length_of, sum_over_steps
from jaxbptt.cells.factored import norms as leaf_norms
from jaxbptt.gradients.diagnosis import require_finite_gradient
from jaxbptt.gradients.forward import ForwardPass, run_forward, take_problem
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.truncation.replay import replayed_gradient, sliding_blocks
from jaxbptt.types import ArrayLike, Inputs, Integer, LossAndGrads, Params, Scalar, State, Targets


class LagProfile(NamedTuple):
    """The terms of dC/dθ by their lag t − k, without the readout's direct part; entry ℓ is lag ℓ.

    Attributes:
      norms: [R], Σ_t ‖term (t, t−ℓ)‖, with that of h_0 where t−ℓ = 1.
      kept: [R], ‖Σ of all terms of lag ≤ ℓ‖.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # terms 2, 2 × 8, 3 × 32
      >>> profile = truncation.lag_profile(model, w, inputs, targets, num_lags=2)
      >>> profile.norms.tolist(), profile.kept.tolist()
      ([42.0, 40.0], [42.0, 82.0])
    """

    norms: Float[Array, " lags"]
    kept: Float[Array, " lags"]


class ChosenLag(NamedTuple):
    """The least number of lags whose bound is within the tolerance.

    Attributes:
      num_lags: integer scalar, L in 1 … R: lags 0 … L−1 are kept; R where no bound is within the tolerance.
      decay: scalar, β, the fitted factor per lag; 1 or more: the tail has no bound.
      bound: [R], entry L−1 bounds ‖ĝ_L − g‖ / ‖g‖; inf where nothing can be said.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> chosen = truncation.choose_lag(0.5 ** jnp.arange(20.0), 0.1)
      >>> int(chosen.num_lags), round(float(chosen.decay), 3)
      (4, 0.5)
      >>> print(chosen.bound[:5].round(3))  # the fourth is the first below 0.1
      [0.5   0.25  0.125 0.063 0.031]
    """

    num_lags: Integer
    decay: Scalar
    bound: Float[Array, " lags"]


def lag_profile(
    model: Model, params: Params, inputs: Inputs, targets: Targets, *, initial: State | None = None, num_lags: int
) -> LagProfile:
    """Σ_t ‖(∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t‖ with k = t − ℓ, and the norm of their running sum, for ℓ < R.

    One scan of R steps over all t at once costs R times the backward pass of full BPTT; memory T·N + |θ| (T·|θ| for a
    cell without a factored derivation).

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0 as a constant; None: `model.initial_state(params)`, whose terms count with step 1.
      num_lags: R in 1 … T, static.

    Returns:
      LagProfile.

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.
      TypeError: a num_lags that is no int.
      ValueError: a num_lags outside 1 … T.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(-2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # −2 − 2 × 8 − 3 × 32
      >>> truncation.lag_profile(model, w, inputs, targets, num_lags=4).norms.tolist()
      [42.0, 40.0, 32.0, 0.0]

    Reference: Aicher, Foti & Fox (2019), arXiv:1905.07473; there the norms are those of ∂L_t/∂h_{t−ℓ}.
    """
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, num_steps = problem
    _validation.require_size("num_lags", num_lags, most=num_steps)
    profile = _measure(model, params, run_forward(model, params, inputs, targets, initial), initial, num_lags)
    require_finite_gradient(model, problem, profile)
    return profile


def choose_lag(
    norms: Float[ArrayLike, " lags"], tolerance: float, *, kept: Float[ArrayLike, " lags"] | None = None
) -> ChosenLag:
    """The least L with E(L) / max_{L'} (‖ĝ_{L'}‖ − E(L')) ≤ tolerance,  E(L) = Σ_{ℓ=L}^{R−1} φ_ℓ + A β^R / (1 − β).

    The quotient bounds the relative bias: ‖ĝ_L − g‖ ≤ E(L) if φ stays below A β^ℓ beyond the R measured lags. ln β is
    the least-squares slope of ln φ over the later half of the lags without zeros (fewer than two positive: β = 0), and
    A is the least number with φ_ℓ ≤ A β^ℓ on all of that half. The tail is that of an endless sequence, which is
    conservative for T steps, whose terms end at lag T − 1.

    Args:
      norms: φ [R], R ≥ 2, not negative: `lag_profile(...).norms`, `terms.gradient_terms(...).profile()`, or norms of
        ∂L_t/∂h_{t−ℓ} averaged over t; only their ratios matter.
      tolerance: δ in (0, 1], static.
      kept: [R], ‖ĝ_{ℓ+1}‖ in the units of norms. None: the running sum of norms, as if no two terms cancelled; the
        bound is then on the share of the summed norms, not on the bias.

    Returns:
      ChosenLag.

    Raises:
      TypeError: norms or kept that are no arrays of real floats; a tolerance that is no number, or traced.
      ValueError: norms that are not [R ≥ 2], or negative; kept of another shape; NaN or inf; a tolerance outside (0,
        1].

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> [int(truncation.choose_lag(decay ** jnp.arange(20.0), 0.1).num_lags) for decay in (0.2, 0.5, 1.0)]
      [2, 4, 20]

    Reference: after Aicher, Foti & Fox (2019), arXiv:1905.07473, who extrapolate from a lag chosen beforehand.
    """
    _validation.require_array("norms", norms, ("R",))
    _validation.require_size("R, the size of norms", len(norms), least=2)
    if _validation.is_concrete(norms) and np.any(np.asarray(norms) < 0):
        raise ValueError("norms: got a negative number, expected norms")
    if not _validation.is_concrete(tolerance):
        raise TypeError("tolerance: got a traced value, expected a static number")
    _validation.require_probability("tolerance", tolerance)
    if kept is not None:
        _validation.require_array("kept", kept, norms.shape)
    decay, log_amplitude = _fit(norms)
    size = len(norms)
    log_tail = log_amplitude + size * jnp.log(decay) - jnp.log1p(-jnp.minimum(decay, 1))
    tail = jnp.where(decay == 0, 0, jnp.where(decay < 1, jnp.exp(log_tail), jnp.inf))
    error = jnp.append(jnp.cumsum(norms[::-1])[::-1][1:], 0) + tail  # entry L−1: lags L and beyond
    kept = jnp.cumsum(norms) if kept is None else kept
    least = jnp.max(kept - error)
    bound = jnp.where(error == 0, 0, jnp.where(least > 0, error / jnp.where(least > 0, least, 1), jnp.inf))
    known = jnp.all(jnp.isfinite(norms)) & jnp.all(jnp.isfinite(kept))
    decay, bound = jnp.where(known, decay, jnp.nan), jnp.where(known, bound, jnp.nan)
    within = bound <= jnp.asarray(tolerance, bound.dtype)
    return ChosenLag(jnp.where(jnp.any(within), jnp.argmax(within) + 1, size), decay, bound)


def adaptive(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    tolerance: float,
    num_lags: int,
) -> LossAndGrads:
    """`lag` with the L that `choose_lag` takes from the `lag_profile` at the same arguments.

    Costs R + L times the backward pass of full BPTT. To measure only now and then, call these three functions
    separately. Under jit L is traced and the loop stops after L steps; this gradient has no reverse-mode derivative.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0 as a constant; None: `model.initial_state(params)`, whose gradient goes with step 1.
      tolerance: δ in (0, 1], static: relative bias of the gradient without the readout's direct part.
      num_lags: R in 2 … T, static: the lags measured, and the most that are kept.

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.
      TypeError: a num_lags that is no int; a tolerance that is no number.
      ValueError: a num_lags outside 2 … T; a tolerance outside (0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> arguments = model, jnp.array(0.5), jnp.ones(10), jnp.zeros(10)
      >>> _, grads = truncation.adaptive(*arguments, tolerance=0.1, num_lags=8)
      >>> bool(abs(grads / gradients.bptt(*arguments)[1] - 1) < 0.1)
      True

    Reference: Aicher, Foti & Fox (2019), arXiv:1905.07473.
    """
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, num_steps = problem
    _validation.require_size("num_lags", num_lags, least=2, most=num_steps)
    _validation.require_probability("tolerance", tolerance)
    forward = run_forward(model, params, inputs, targets, initial)
    profile = _measure(model, params, forward, initial, num_lags)
    require_finite_gradient(model, problem, profile)
    chosen = choose_lag(profile.norms, tolerance, kept=profile.kept).num_lags
    blocks = sliding_blocks(num_steps, 1, chosen)
    return forward.loss, replayed_gradient(model, params, forward, initial, blocks, chosen)


def _measure(model: Model, params: Params, forward: ForwardPass, initial: State | None, num_lags: int) -> LagProfile:
    trajectory, _, local, _, early = forward
    previous, inputs = trajectory.previous, trajectory.inputs
    partials = step_partials(model)
    residuals, pull_state = partials.pull_over(params, trajectory)
    pull_initial = jax.vjp(model.initial_state, params)[1]
    steps = jnp.arange(jax.tree.leaves(local)[0].shape[0])

    def body(carry, offset):
        cotangents, gradient = carry
        at = jnp.maximum(steps - offset, 0)
        before, x, taken = jax.tree.map(lambda leaf: leaf[at], (previous, inputs, residuals))
        terms = jax.vmap(lambda *step: partials.pull_params(params, *step))(before, x, cotangents)
        norm = jnp.sum(join_norms(leaf_norms(terms)))
        gradient = jax.tree.map(jnp.add, gradient, sum_over_steps(terms))
        cotangents = jax.vmap(pull_state)(taken, cotangents)
        if early is not None:  # each loss moves from h_t to h_{t−1} at offset 0
            add = lambda leaf, before: leaf + jnp.where(offset == 0, before, 0)
            cotangents = jax.tree.map(add, cotangents, early)
        # The row that has just passed step 1 is the cotangent of h_0; it ends here and is zero from now on.
        reached = jax.tree.map(lambda leaf: leaf[offset], cotangents)
        cotangents = jax.tree.map(lambda leaf: leaf.at[offset].set(0), cotangents)
        if initial is None:
            from_initial = pull_initial(reached)[0]
            norm = norm + _norm(from_initial)
            gradient = jax.tree.map(jnp.add, gradient, from_initial)
        return (cotangents, gradient), (norm, _norm(gradient))

    start = (local, jax.tree.map(jnp.zeros_like, params))
    return LagProfile(*jax.lax.scan(body, start, jnp.arange(num_lags))[1])


def _fit(norms):
    """(β, ln A) of the envelope A β^ℓ over the later half of the lags."""
    size = len(norms)
    lags = jnp.arange(size, dtype=norms.dtype)
    fitted = (jnp.arange(size) >= (size - 1) // 2) & (norms > 0)
    count = jnp.sum(fitted.astype(norms.dtype))
    logs = jnp.log(jnp.where(fitted, norms, 1))
    mean = lambda values: jnp.sum(jnp.where(fitted, values, 0)) / jnp.maximum(count, 1)
    centred = lags - mean(lags)
    spread = jnp.where(count >= 2, mean(centred**2), 1)
    slope = mean(centred * logs) / spread
    log_amplitude = jnp.max(jnp.where(fitted, logs - slope * lags, -jnp.inf))
    return jnp.where(count >= 2, jnp.exp(slope), 0), log_amplitude


def _norm(tree):
    return join_norms([length_of(leaf, tuple(range(leaf.ndim))) for leaf in jax.tree.leaves(tree)])
