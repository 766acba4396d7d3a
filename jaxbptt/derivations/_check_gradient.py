"""A whole gradient, checked leaf by leaf."""

from typing import Any, Protocol

import jax
import numpy as np

from jaxbptt import _validation
from jaxbptt.derivations.gradient_slips import gradient_candidates, make_instance, rounding_scale
from jaxbptt.derivations.reports import Piece, Report, explain, is_wrong
from jaxbptt.derivations.samples import draw_instance, draw_targets, epsilon_of, perturb, tolerances
from jaxbptt.derivations.step_slips import named_leaves, require_structure
from jaxbptt.gradients.exact import autodiff
from jaxbptt.models.model import Model
from jaxbptt.trajectories import require_call
from jaxbptt.types import Inputs, Key, Params, Targets


class Gradient(Protocol):
    def __call__(self, model: Model, params: Params, inputs: Inputs, targets: Targets, /) -> Any:
        """dC/dθ shaped like params, or (C, dC/dθ)."""
        ...


def check_gradient(
    model: Model,
    gradient: Gradient,
    *,
    key: Key,
    params: Params | None = None,
    inputs: Inputs | None = None,
    targets: Targets | None = None,
) -> Report:
    """Compare a gradient dC/dθ with automatic differentiation, leaf by leaf, and name the slip.

    Known slips, with c_t = ∂C/∂h_t|o_t, besides those of `check` (at every step: in dh_t/dh_{t−1}, ∂⁺h_t/∂⁺θ or both):

      transposed_jacobian   λ_t = c_t + J_{t+1} λ_{t+1}                               any model of N > 1, T > 1
      reversed_product      dh_t/dh_k = J_{k+1} … J_t                                T > 2, J_t not constant
      wrong_time_index      h_t for h_{t−1} in a parameter's factor; J_t for J_{t+1}; λ_{t±1} for λ_t
      lost_mean, double_mean   ×T, ÷T                                                reduction "mean"
      missing_direct_term   the readout's own use of a parameter that step uses too; that of h_0
      last_term_only        only L_T; only the parameter's use at T; only the terms k = t
      double_path           the total dh_k/dθ in place of the direct one beside λ_k (S4.6); one of two parts twice

    Args:
      model: f, g, L and the reduction, taken as correct.
      gradient: (model, params, inputs, targets) -> grads shaped like params, or (loss, grads).
      key: typed key for all random draws.
      params: θ; None: `model.init(key)`, every leaf perturbed.
      inputs: x_1 … x_T; None: standard normal [6, M].
      targets: y_1 … y_T; None: standard normal like the outputs, or classes, whichever the loss takes.

    Returns:
      Report; its pieces are "params.<leaf>".

    Raises:
      TypeError, ValueError: an argument neither given nor possible to draw; grads of wrong structure.

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063 (the double sum); S4.6, S4.9.
    """
    _validation.require_key(key)
    keys = jax.random.split(key, 5)
    params, inputs = draw_instance(model, keys, params, inputs)
    length = require_call(model, params, inputs, None)
    targets = draw_targets(model, keys[2], params, length) if targets is None else targets
    result = gradient(model, params, inputs, targets)
    actual = _take_grads(result, params)

    arguments = perturb((params, inputs, targets), keys[3])
    # One after another, all compiled as one program.
    grads = jax.lax.map(lambda at: autodiff(model, at[0], at[1], at[2])[1], arguments)
    values = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(grads).items()}
    instance = make_instance(model, params, inputs, targets)
    scale = rounding_scale(instance)
    epsilon = epsilon_of(params)
    pieces = {}
    for name, value in values.items():
        if value.size:
            tolerance = tolerances(value[:, None], np.asarray([scale[name]]), epsilon)
            other = actual[name]
            pieces[name] = Piece(value[:1], other if isinstance(other, str) else other[None], tolerance)
    checked = f"{len(pieces)} leaves of dC/dθ ({', '.join(pieces)}), over {length} steps"
    candidates = gradient_candidates(instance) if any(map(is_wrong, pieces.values())) else []
    return Report(tuple(explain(pieces, candidates, None)), checked)


def _take_grads(result, params):
    """{"params.<leaf>": float64 array, or what is wrong with its shape} from grads or (loss, grads)."""
    is_pair = isinstance(result, tuple) and len(result) == 2
    own: Any = jax.tree.structure(params)
    if is_pair and jax.tree.structure(result) != own:
        result = result[1]
    require_structure("gradient", result, params)
    taken = {}
    for (name, leaf), like in zip(named_leaves(result).items(), jax.tree.leaves(params), strict=True):
        value = np.asarray(leaf, np.float64)
        matches = value.shape == like.shape
        taken[name] = value if matches else f"has shape {list(value.shape)}, expected {list(like.shape)}"
    return taken
