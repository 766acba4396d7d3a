"""Node perturbation: noise on the states, and how it correlates with the losses after it."""

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.gradients.diagnosis import require_finite_gradient
from jaxbptt.gradients.forward import add_penalty, read_out, require_finite_losses, take_problem
from jaxbptt.models.model import Model
from jaxbptt.online.active import reads_at_start
from jaxbptt.partials import step_partials
from jaxbptt.perturbation.draws import draw_like, require_one_of, take_draws
from jaxbptt.trajectories import Trajectory, run_steps
from jaxbptt.truncation.replay import assemble
from jaxbptt.types import Inputs, Key, LossAndGrads, Params, State, States, Targets


def node_perturbation(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    key: Key | None = None,
    noise: States | None = None,
    num_samples: int = 1,
    scale: float | None = None,
    baseline: bool = True,
    initial: State | None = None,
) -> LossAndGrads:
    """λ̂_t = ξ_t G_t in place of λ_t = dC/dh_t, where G_t is what the noise ξ does to the losses from step t on.

    scale=None: G_t = Σ_{s ≥ t} dL_s, the derivatives of the losses along noise on all states: δ_s = J_s δ_{s−1} + ξ_s,
    dL_s = ⟨∂C/∂h_s|o_s, δ_s⟩. E[ξ ξᵀ] = I makes it unbiased: E[ξ_t dL_s] = (dh_s/dh_t)ᵀ ∂C/∂h_s|o_s for s ≥ t. It is
    UORO without its scales, and one pass forward with m tangents. The noise drawn is ±1.

    scale=σ: h̃_t = f(h̃_{t−1}, x_t, θ) + σ ξ_t and G_t = Σ_{s ≥ t} (L̃_s − L_s)/σ, with the direct partials at h̃:
    REINFORCE for a Gaussian recurrence. For normal ξ it is unbiased for the gradient of E[C(h̃)], hence biased by O(σ²)
    for dC/dθ. The baseline L_s, the loss without noise, changes no mean; baseline=False leaves it out: the variance
    then grows as 1/σ². The noise drawn is normal.

    Both take the readout's direct part as it is, and drop the noise on an h_0 that no param reaches. A loss before t
    says nothing of ξ_t and is left out. The variance grows with N and with T.

    Cost, scale=None: three evaluations of the steps (forward, beside J_t δ and for the gradient), m products J_t δ and
    one gradient of θ; flops per step of an Elman net 8N(M + N) + 2m N² + 6NO. scale=σ: for each sample two evaluations
    and one gradient of θ, 2N(M + 3N) + 6NO, and once 2N(3M + N) + 6NO for the run without noise and what the inputs
    add to every run. Memory T·N (m + 1) with the noise; scale=σ: a few T·N for each sample.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      key: typed key that draws the noise; give exactly one of key and noise.
      noise: ξ_0 … ξ_T, shaped like the state with leading [m, T + 1]; ξ_0 is that of an h_0 that depends on params.
      num_samples: m ≥ 1, static, of the noise that is drawn; the estimates of the samples are averaged.
      scale: σ > 0, or None for σ → 0.
      baseline: static; with scale=None it has no meaning.
      initial: h_0 as a constant; None: `model.initial_state(params)`.

    Returns:
      (C scalar, without noise; the estimate of dC/dθ shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.
      TypeError: both or neither of key and noise; a num_samples that is no int; a scale that is no number.
      ValueError: noise of other shapes; a num_samples below 1; a scale that is not above 0; a baseline that is no bool.

    Example:
      >>> import itertools, jax.numpy as jnp
      >>> from jaxbptt import models, perturbation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # dC/dw = 114
      >>> signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=5)))  # all noise, of equal probability
      >>> float(perturbation.node_perturbation(model, w, inputs, targets, noise=signs)[1])
      114.0

    Reference: Williams (1992), Machine Learning 8 (REINFORCE); Fiete & Seung (2006), PRL 97:048104; Tallec & Ollivier
    (2017), arXiv:1702.05043 (the rank-one product of the limit).
    """
    require_one_of(key, "noise", noise)
    _validation.require_choice("baseline", baseline, (True, False))
    if scale is not None:
        _validation.require_above("scale", scale, 0)
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, length = problem
    state = jax.eval_shape(model.initial_state, params)
    if key is None:
        noise = take_draws("noise", noise, state, (None, length + 1))
    else:
        _validation.require_size("num_samples", num_samples)
        noise = draw_like(key, state, (num_samples, length + 1), "rademacher" if scale is None else "normal")
    felt = initial is None and any(reads_at_start(model, params))
    first, rest = (jax.tree.map(lambda leaf, part=part: leaf[:, part], noise) for part in (0, slice(1, None)))
    first = first if felt else jax.tree.map(jnp.zeros_like, first)
    trajectory = run_steps(model, params, inputs, initial)
    clean = read_out(model, params, trajectory, targets, length)
    require_finite_losses(model, params, trajectory, targets, clean.losses)
    if scale is None:
        grads = _in_the_limit(model, params, trajectory, clean, first, rest, felt)
    else:
        subtracted = clean.losses if baseline else jnp.zeros_like(clean.losses)
        grads = _of_noisy_runs(model, params, trajectory, targets, subtracted, scale, first, rest, felt)
    require_finite_gradient(model, problem, grads)
    return add_penalty(model, params, jnp.sum(clean.losses), grads)


def _in_the_limit(model, params, trajectory, clean, first, rest, felt):
    """All samples share the trajectory: their λ̂ are averaged, and the gradient of θ is formed once."""
    push = step_partials(model).push_state

    def body(tangent, step):
        state, x, local, early, noise = step
        new = jax.tree.map(jnp.add, push(params, state, x, tangent)[1], noise)
        slope = _inner(local, new)
        return new, slope if early is None else slope + _inner(early, tangent)

    def one(first, rest):
        at = trajectory.previous, trajectory.inputs, clean.local, clean.early, rest
        return _credit(first, rest, jax.lax.scan(body, first, at)[1])

    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(one)(first, rest))
    return assemble(model, params, trajectory, clean.direct, mean[1], mean[0] if felt else None)


def _of_noisy_runs(model, params, trajectory, targets, subtracted, scale, first, rest, felt):
    """Every sample has a trajectory of its own, and direct partials along it."""
    inputs = trajectory.inputs

    def noisy_step(params, state, x_and_noise):
        x, noise = x_and_noise
        return _add(model.step(params, state, x), scale, noise)

    noisy = model._replace(step=noisy_step, derivation=None, num_inputs=None)

    def one(first, rest):
        initial = _add(trajectory.initial, scale, first)
        steps = Trajectory(initial, inputs, run_steps(noisy, params, (inputs, rest), initial).states)
        losses, _, direct, _ = read_out(model, params, steps, targets, len(subtracted))
        initial_adjoint, adjoint = _credit(first, rest, (losses - subtracted) / scale)
        return assemble(model, params, steps, direct, adjoint, initial_adjoint if felt else None)

    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(one)(first, rest))


def _credit(first, rest, effects):
    """(ξ_0 G_1, [T] ξ_t G_t) with G_t = Σ_{s ≥ t} of the effects [T] of the noise on the losses."""
    later = jnp.cumsum(effects[::-1])[::-1]
    times = lambda factor, leaf: leaf * factor.astype(leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1))
    return (
        jax.tree.map(lambda leaf: later[0].astype(leaf.dtype) * leaf, first),
        jax.tree.map(lambda leaf: times(later, leaf), rest),
    )


def _inner(left, right):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, left, right)))


def _add(state, scale, noise):
    return jax.tree.map(lambda leaf, noise: leaf + scale * noise, state, noise)
