"""How many lags to keep for a tolerable bias: the measured norms by lag, and a geometric bound on the rest."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import checks
from jaxbptt.cells.derivation import norms as leaf_norms
from jaxbptt.cells.derivation import sum_over_steps
from jaxbptt.gradients.adjoint import pull_params, state_pullback
from jaxbptt.gradients.forward import run_forward
from jaxbptt.models import Model
from jaxbptt.truncation.replay import replayed_gradient, sliding_blocks


class LagProfile(NamedTuple):
    """The terms of dC/dθ by their lag t − k, without the readout's direct part; entry ℓ is lag ℓ."""

    norms: jax.Array  # [R], Σ_t ‖term (t, t−ℓ)‖, with that of h_0 where t−ℓ = 1
    kept: jax.Array  # [R], ‖Σ of all terms of lag ≤ ℓ‖


class ChosenLag(NamedTuple):
    """The least number of lags whose bound is within the tolerance."""

    lag: jax.Array  # integer scalar L in 1 … R: lags 0 … L−1 are kept; R where no bound is within the tolerance
    decay: jax.Array  # scalar β, the fitted factor per lag; 1 or more: the tail has no bound
    bound: jax.Array  # [R], entry L−1 bounds ‖ĝ_L − g‖ / ‖g‖; inf where nothing can be said


def lag_profile(model: Model, params: Any, inputs: Any, targets: Any, *, initial: Any = None, lags: int) -> LagProfile:
    """Σ_t ‖(∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t‖ with k = t − ℓ, and the norm of their running sum, for ℓ < R.

    One scan of R steps over all t at once: R times the backward pass of full BPTT, memory T·N + |θ| (T·|θ| for a cell
    without factored derivation).

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, then a constant; None: its terms count with step 1.
      lags: R in 1 … T, static.

    Returns:
      LagProfile.

    Raises:
      TypeError, ValueError: as `gradients.autodiff`; lags not as stated.

    Reference: Aicher, Foti & Fox (2019), arXiv:1905.07473; there the norms are those of ∂L_t/∂h_{t−ℓ}.
    """
    checks.require_size("lags", lags, most=checks.require_time_axis("targets", targets))
    return _measure(model, params, run_forward(model, params, inputs, targets, initial), initial, lags)


def choose_lag(norms: jax.Array, tolerance: float, *, kept: jax.Array | None = None) -> ChosenLag:
    """The least L with E(L) / max_{L'} (‖ĝ_{L'}‖ − E(L')) ≤ tolerance,  E(L) = Σ_{ℓ=L}^{R−1} φ_ℓ + A β^R / (1 − β).

    The quotient bounds the relative bias: ‖ĝ_L − g‖ ≤ E(L) if φ stays below A β^ℓ beyond the R measured lags. ln β is
    the least-squares slope of ln φ over the later half of the lags, zeros left out (fewer than two positive: β = 0),
    and A the least with φ_ℓ ≤ A β^ℓ on all of that half. The tail is that of an endless sequence: conservative for one
    of T steps, whose terms end at lag T − 1.

    Args:
      norms: φ [R], R ≥ 2, not negative: `lag_profile(...).norms`, `terms.gradient_terms(...).profile()`, or norms of
        ∂L_t/∂h_{t−ℓ} averaged over t; only their ratios count.
      tolerance: δ in (0, 1], static.
      kept: [R], ‖ĝ_{ℓ+1}‖ in the units of norms. None: the running sum of norms, as if no two terms cancelled; the
        bound is then one on the share of the summed norms, not on the bias.

    Returns:
      ChosenLag.

    Raises:
      TypeError, ValueError: an argument not as stated.

    Reference: after Aicher, Foti & Fox (2019), arXiv:1905.07473, who extrapolate from a lag chosen beforehand.
    """
    checks.require_array("norms", norms, ("R",))
    checks.require_size("R, the size of norms", len(norms), least=2)
    if checks.is_concrete(norms) and np.any(np.asarray(norms) < 0):
        raise ValueError("norms: got a negative number, expected norms")
    if not checks.is_concrete(tolerance):
        raise TypeError("tolerance: got a traced value, expected a static number")
    checks.require_probability("tolerance", tolerance)
    if kept is not None:
        checks.require_array("kept", kept, norms.shape)
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


def adaptive(model: Model, params: Any, inputs: Any, targets: Any, *, initial: Any = None, tolerance: float, lags: int):
    """`lag` with the L that `choose_lag` takes from the `lag_profile` of this very call.

    R + L times the backward pass of full BPTT. To measure seldom and train on the result, call the three by themselves.
    Under jit L is traced, and the loop stops after L steps; such a gradient has no reverse-mode derivative.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, then a constant; None: its gradient goes with step 1.
      tolerance: δ in (0, 1], static: relative bias of the gradient without the readout's direct part.
      lags: R in 2 … T, static: the lags measured, and the most that are kept.

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `lag_profile` and `choose_lag`.

    Reference: Aicher, Foti & Fox (2019), arXiv:1905.07473.
    """
    num_steps = checks.require_time_axis("targets", targets)
    checks.require_size("lags", lags, least=2, most=num_steps)
    checks.require_probability("tolerance", tolerance)
    forward = run_forward(model, params, inputs, targets, initial)
    trajectory, loss, local, direct = forward
    profile = _measure(model, params, forward, initial, lags)
    steps = choose_lag(profile.norms, tolerance, kept=profile.kept).lag
    blocks = sliding_blocks(num_steps, 1, steps)
    return loss, replayed_gradient(model, params, trajectory, local, direct, initial, blocks, steps)


def _measure(model, params, forward, initial, lags):
    trajectory, _, local, _ = forward
    previous, inputs = trajectory.previous, trajectory.inputs
    factors, pull_state = state_pullback(model, params, trajectory)
    pull_initial = jax.vjp(model.initial_state, params)[1]
    if model.derivation is None:
        pull = lambda params, state, x, v: jax.vjp(lambda p: model.step(p, state, x), params)[1](v)[0]  # noqa: E731
    else:
        pull = pull_params(model.derivation.pullback)
    steps = jnp.arange(jax.tree.leaves(local)[0].shape[0])

    def body(carry, offset):
        cotangents, gradient = carry
        at = jnp.maximum(steps - offset, 0)
        take = lambda tree: jax.tree.map(lambda leaf: leaf[at], tree)  # noqa: E731
        terms = jax.vmap(lambda *step: pull(params, *step))(take(previous), take(inputs), cotangents)
        norm = jnp.sum(jnp.sqrt(_total(leaf * leaf for leaf in jax.tree.leaves(leaf_norms(terms)))))
        gradient = jax.tree.map(jnp.add, gradient, sum_over_steps(terms))
        cotangents = jax.vmap(pull_state)(take(factors), cotangents)
        # The row that has just passed step 1 is the cotangent of h_0; it ends here and stays zero.
        reached = jax.tree.map(lambda leaf: leaf[offset], cotangents)
        cotangents = jax.tree.map(lambda leaf: leaf.at[offset].set(0), cotangents)
        if initial is None:
            from_initial = pull_initial(reached)[0]
            norm = norm + _norm(from_initial)
            gradient = jax.tree.map(jnp.add, gradient, from_initial)
        return (cotangents, gradient), (norm, _norm(gradient))

    start = (local, jax.tree.map(jnp.zeros_like, params))
    return LagProfile(*jax.lax.scan(body, start, jnp.arange(lags))[1])


def _fit(norms):
    """(β, ln A) of the envelope A β^ℓ over the later half of the lags."""
    size = len(norms)
    lags = jnp.arange(size, dtype=norms.dtype)
    fitted = (jnp.arange(size) >= (size - 1) // 2) & (norms > 0)
    count = jnp.sum(fitted.astype(norms.dtype))
    logs = jnp.log(jnp.where(fitted, norms, 1))
    mean = lambda values: jnp.sum(jnp.where(fitted, values, 0)) / jnp.maximum(count, 1)  # noqa: E731
    centred = lags - mean(lags)
    spread = jnp.where(count >= 2, mean(centred**2), 1)
    slope = mean(centred * logs) / spread
    log_amplitude = jnp.max(jnp.where(fitted, logs - slope * lags, -jnp.inf))
    return jnp.where(count >= 2, jnp.exp(slope), 0), log_amplitude


def _norm(tree):
    return jnp.sqrt(_total(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))


def _total(arrays):
    return functools.reduce(jnp.add, arrays)
