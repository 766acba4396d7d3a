"""Evolution strategies over a whole sequence at fixed params, with the perturbations remembered or not."""

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.gradients.diagnosis import require_finite_result
from jaxbptt.gradients.forward import add_penalty, take_problem
from jaxbptt.models.model import Model, reduction_weight
from jaxbptt.perturbation.draws import require_one_of, take_draws
from jaxbptt.perturbation.particles import begin, over_window
from jaxbptt.types import Inputs, Key, LossAndGrads, Params, State, Targets


def evolution_strategies(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    key: Key | None = None,
    perturbations: Params | None = None,
    window: int,
    scale: float,
    num_pairs: int = 1,
    persistent: bool = True,
    initial: State | None = None,
) -> LossAndGrads:
    """ĝ = 1/m Σ_i Σ_w Ξ_iw (C⁺_iw − C⁻_iw) / 2σ,  Ξ_iw = ε_i1 + … + ε_iw: persistent evolution strategies (PES).

    C±_iw are the losses of window w (K steps) of a run at params θ ± σ ε_i1 in window 1, θ ± σ ε_i2 in window 2, …;
    each run keeps its own state from window to window. For normal ε this is unbiased, at any K, for the gradient of
    the smoothed loss E[C(θ + σ ε_1, θ + σ ε_2, …)]; that gradient is dC/dθ + O(σ²), and dC/dθ itself where the loss is
    a quadratic function of the params of the windows (there ε of signs will do, too). No derivative is taken: C may be
    a step function. h_0 belongs to the first window.

    persistent=False: Ξ_iw = ε_iw, and each window starts from the state of a run without noise: truncated evolution
    strategies. What earlier windows did to the state is forgotten, so σ → 0 gives `truncation.windowed`, not dC/dθ.

    The variance of PES grows with the number of windows ⌈T/K⌉ and with P, the entries of θ. Cost: 2m forward passes
    (and one more where not persistent), and 7P flops per window and pair to perturb and to weigh. Memory m (2N + 5P):
    no states are kept. A penalty's gradient is added as it is.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      key: typed key that draws normal perturbations; give exactly one of key and perturbations.
      perturbations: ε, shaped like params with leading [m, ⌈T/K⌉], of unit variance.
      window: K ≥ 1, static; the last window holds the T mod K steps left over, if any; K ≥ T is plain antithetic ES.
      scale: σ > 0.
      num_pairs: m ≥ 1, static, of the perturbations that are drawn.
      persistent: static.
      initial: h_0 as a constant; None: `model.initial_state` of the perturbed params.

    Returns:
      (the mean loss of the 2m runs, the estimate shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.
      TypeError: both or neither of key and perturbations; a window or num_pairs that is no int; a scale that is no
        number.
      ValueError: perturbations of other shapes; a window or num_pairs below 1; a scale that is not above 0; a
        persistent that is no bool.

    Example:
      >>> import itertools, jax.numpy as jnp
      >>> from jaxbptt import models, perturbation
      >>> model = models.make_model(lambda w, h, x: h + w * x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.ones(4), jnp.zeros(4)  # h = 2, 4, 6, 8: dC/dw = 60
      >>> signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=2)))  # all pairs of windows' perturbations
      >>> options = {"perturbations": signs, "window": 2, "scale": 0.5}
      >>> float(perturbation.evolution_strategies(model, w, inputs, targets, **options)[1])
      60.0
      >>> float(perturbation.evolution_strategies(model, w, inputs, targets, persistent=False, **options)[1])  # 10 + 22
      32.0

    Reference: Vicol, Metz & Sohl-Dickstein (2021), arXiv:2112.13835 (PES); Metz et al. (2019), arXiv:1810.10180
    (truncated ES).
    """
    require_one_of(key, "perturbations", perturbations)
    _validation.require_size("window", window)
    _validation.require_above("scale", scale, 0)
    _validation.require_choice("persistent", persistent, (True, False))
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, length = problem
    num_windows = -(-length // window)
    if key is None:
        perturbations = take_draws("perturbations", perturbations, params, (None, num_windows))
        num_pairs = jax.tree.leaves(perturbations)[0].shape[0]
        perturbations = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), perturbations)
    else:
        _validation.require_size("num_pairs", num_pairs)

    def body(carry, at):
        state, total = carry
        state, losses, grads = over_window(params, state, *at, scale=scale, persistent=persistent)
        return (state, jax.tree.map(jnp.add, total, grads)), losses

    whole = length // window
    steps = jax.tree.map(lambda leaf: leaf[: whole * window].reshape(whole, window, *leaf.shape[1:]), (inputs, targets))
    carry = begin(model, params, num_pairs, key, initial), jax.tree.map(jnp.zeros_like, params)
    carry, losses = jax.lax.scan(body, carry, (*steps, jax.tree.map(lambda leaf: leaf[:whole], perturbations)))
    losses = losses.reshape(-1)
    if whole < num_windows:
        rest = jax.tree.map(lambda leaf: leaf[whole * window :], (inputs, targets))
        carry, tail = body(carry, (*rest, jax.tree.map(lambda leaf: leaf[whole], perturbations)))
        losses = jnp.concatenate((losses, tail))
    weight = reduction_weight(model, length, losses.dtype)
    grads = jax.tree.map(lambda leaf: weight.astype(leaf.dtype) * leaf, carry[1])
    losses = weight * losses
    require_finite_result(model, problem, losses, grads)
    return add_penalty(model, params, jnp.sum(losses), grads)
