"""Forward gradients: the slope of the loss along random directions of θ, in forward mode."""

from typing import get_args

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.gradients.diagnosis import require_finite_result
from jaxbptt.gradients.forward import add_penalty, take_problem
from jaxbptt.models.model import Model, read, reduction_weight
from jaxbptt.partials import jvp
from jaxbptt.perturbation.draws import Kind, draw_like, require_one_of, take_draws
from jaxbptt.types import Inputs, Key, LossAndGrads, Params, State, Targets


def forward_gradient(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    key: Key | None = None,
    directions: Params | None = None,
    num_directions: int = 1,
    distribution: Kind = "rademacher",
    initial: State | None = None,
) -> LossAndGrads:
    """ĝ = 1/m Σ_i (dC/dθ · v_i) v_i with E[v vᵀ] = I: unbiased, by one pass forward with m tangents and none backward.

    Of the P entries of θ, m directions tell m numbers: E‖ĝ − g‖²/‖g‖² is (P − 1)/m for "rademacher" signs, (P + 1)/m
    for "normal" directions and P/m − 1 for "orthogonal" ones, √P times m columns of a random orthogonal basis, which
    are exact at m = P.

    Cost: one forward pass and m tangents of it, each about 2N(M + 2N) + 4NO flops per step of an Elman net whose
    forward pass has 2N(M + N) + 2NO, and 2P for the sum; "orthogonal" adds one QR of [P, m]. Memory m (P + N + T):
    the states are not kept. A penalty's gradient is added as it is.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      key: typed key that draws the directions; give exactly one of key and directions.
      directions: v_1 … v_m, shaped like params with leading m.
      num_directions: m ≥ 1, static, of the directions that are drawn.
      distribution: "rademacher", "normal" or "orthogonal", of the directions that are drawn.
      initial: h_0 as a constant; None: `model.initial_state(params)`, whose slope counts.

    Returns:
      (C scalar, the estimate of dC/dθ shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.
      TypeError: both or neither of key and directions; a num_directions that is no int.
      ValueError: directions of other shapes; a num_directions below 1, or above P for "orthogonal"; another
        distribution.

    Example:
      >>> import itertools, jax, jax.numpy as jnp
      >>> from jaxbptt import models, perturbation
      >>> step = lambda p, h, x: p[0] * h + p[1] * x
      >>> model = models.make_model(step, lambda p: jnp.zeros(()), lambda p, h: h, models.squared_error)
      >>> p, inputs, targets = jnp.array([2.0, 1.0]), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # dC/dp = 114, 85
      >>> signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=2)))  # all directions, of equal probability
      >>> perturbation.forward_gradient(model, p, inputs, targets, directions=signs)[1].tolist()
      [114.0, 85.0]

    Reference: Baydin et al. (2022), arXiv:2202.08587; Silver et al. (2021), arXiv:2108.06888.
    """
    _validation.require_choice("distribution", distribution, get_args(Kind))
    require_one_of(key, "directions", directions)
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, length = problem
    if key is None:
        directions = take_draws("directions", directions, params, (None,))
    else:
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        _validation.require_size("num_directions", num_directions, most=size if distribution == "orthogonal" else None)
        directions = draw_like(key, params, (num_directions,), distribution)

    def push(function, primal, tangents):
        """(f(primal), its tangents, leading m)."""
        return jax.vmap(lambda tangent: jvp(function, primal, tangent), out_axes=(None, 0))(tangents)

    def body(carry, step):
        state, tangents = carry
        x, target = step

        def advance(at):
            params, state = at
            new = model.step(params, state, x)
            return new, model.loss(read(model, params, new, x, state), target)

        (new, loss), (tangents, slopes) = push(advance, (params, state), (directions, tangents))
        return (new, tangents), (loss, slopes)

    start = push(lambda params: model.initial_state(params) if initial is None else initial, params, directions)
    _, (losses, slopes) = jax.lax.scan(body, start, (inputs, targets))
    weight = reduction_weight(model, length, losses.dtype)
    along = weight * jnp.sum(slopes, axis=0) / slopes.shape[1]
    grads = jax.tree.map(lambda leaf: jnp.tensordot(along.astype(leaf.dtype), leaf, axes=1), directions)
    require_finite_result(model, problem, losses, grads)
    return add_penalty(model, params, weight * jnp.sum(losses), grads)
