"""Evolution strategies: the losses of perturbed params, window by window, with the perturbations remembered or not."""

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.gradients.diagnosis import require_finite_result
from jaxbptt.gradients.forward import add_penalty, take_problem
from jaxbptt.models.model import Model, read, reduction_weight
from jaxbptt.perturbation.draws import draw_like, require_one_of, take_draws
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
        draws = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), perturbations)
    else:
        _validation.require_size("num_pairs", num_pairs)
        draws = jax.random.split(key, num_windows)

    def start(params):
        return jax.tree.map(jnp.asarray, model.initial_state(params) if initial is None else initial)

    def unroll(params, state, steps):
        """(the last state, the losses)."""

        def body(state, step):
            x, target = step
            new = model.step(params, state, x)
            return new, model.loss(read(model, params, new, x, state), target)

        return jax.lax.scan(body, state, steps)

    def of_pair(noise, states, steps, is_first):
        """One antithetic pair over one window: its states, its losses [2, K]."""

        def one(sign, state):
            moved = jax.tree.map(lambda leaf, noise: leaf + sign.astype(leaf.dtype) * scale * noise, params, noise)
            own = start(moved)
            state = jax.tree.map(lambda own, state: jnp.where(is_first, own, state), own, state)
            return unroll(moved, state, steps)

        return jax.vmap(one)(jnp.array([1, -1]), states)

    def over_window(carry, at):
        states, clean, remembered = carry
        draw, is_first, steps = at
        noise = draw if key is None else draw_like(draw, params, (num_pairs,), "normal")
        weights = jax.tree.map(jnp.add, remembered, noise)
        states, losses = jax.vmap(of_pair, in_axes=(0, 0, None, None))(noise, states, steps, is_first)
        change = jnp.sum(losses[:, 0] - losses[:, 1], axis=1)
        grads = jax.tree.map(lambda leaf: jnp.tensordot(change.astype(leaf.dtype), leaf, axes=1), weights)
        if persistent:
            return (states, clean, weights), (grads, jnp.sum(losses, axis=(0, 1)))
        clean, _ = unroll(params, clean, steps)
        return (_repeat(clean, num_pairs), clean, remembered), (grads, jnp.sum(losses, axis=(0, 1)))

    clean = start(params)
    remembered = jax.tree.map(lambda leaf: jnp.zeros((num_pairs, *leaf.shape), leaf.dtype), params)
    carry = (_repeat(clean, num_pairs), clean, remembered)
    whole = length // window
    is_first = jnp.arange(num_windows) == 0
    blocks = jax.tree.map(
        lambda leaf: leaf[: whole * window].reshape(whole, window, *leaf.shape[1:]), (inputs, targets)
    )
    full = jax.tree.map(lambda leaf: leaf[:whole], (draws, is_first))
    carry, (parts, losses) = jax.lax.scan(over_window, carry, (*full, blocks))
    grads, losses = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), parts), losses.reshape(-1)
    if whole < num_windows:
        rest = jax.tree.map(lambda leaf: leaf[whole * window :], (inputs, targets))
        last = jax.tree.map(lambda leaf: leaf[whole], (draws, is_first))
        _, (more, tail) = over_window(carry, (*last, rest))
        grads, losses = jax.tree.map(jnp.add, grads, more), jnp.concatenate((losses, tail))
    weight = reduction_weight(model, length, losses.dtype) / (2 * num_pairs)
    grads = jax.tree.map(lambda leaf: (weight / scale).astype(leaf.dtype) * leaf, grads)
    losses = weight * losses
    require_finite_result(model, problem, losses, grads)
    return add_penalty(model, params, jnp.sum(losses), grads)


def _repeat(state, num_pairs):
    """The state of each of m pairs, [m, 2, …]."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_pairs, 2, *leaf.shape)), state)
