"""A whole gradient, checked leaf by leaf."""

from collections.abc import Hashable
from typing import Any, Protocol

import jax
import numpy as np

from jaxbptt import _validation
from jaxbptt.derivations.clipping import fit_bounds
from jaxbptt.derivations.compiled import map_one, map_rows
from jaxbptt.derivations.doubts import settle_doubts
from jaxbptt.derivations.gradient_rows import gradient_batches
from jaxbptt.derivations.gradient_slips import Instance, key_of, make_instance, rounding_scale
from jaxbptt.derivations.kinks import Spot, find_visits, move_off
from jaxbptt.derivations.linearity import find_nonlinear_step
from jaxbptt.derivations.matching import Piece, is_wrong, name_slips
from jaxbptt.derivations.reports import Report, explain
from jaxbptt.derivations.samples import Stream, draw_instance, draw_targets, epsilon_of, perturb, responses, tolerances
from jaxbptt.derivations.step_slips import named_leaves, require_structure
from jaxbptt.gradients.exact import autodiff
from jaxbptt.gradients.forward import take_problem
from jaxbptt.models.model import Model, read
from jaxbptt.trajectories import run_steps, take_call
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
      missing_direct_term   of a parameter that step and readout use, the use of either
      missing_initial_state (∂h_0/∂θ)ᵀ J_1ᵀ λ_1                                       h_0 a function of params
      last_term_only        only L_T; only the parameter's use at T; only the terms k = t
      truncated             λ cut every K steps, from the start or the end; each loss carried back over its last L
                            steps; only the last K steps linked: any K, L < T         T > 2
      clipped_adjoint       λ_t, or J_{t+1}ᵀ λ_{t+1}, clipped at every step, by entry or by norm: the whole, each
                            sequence of a batch, each array of the state or one alone; the bound is found
      double_path           the total dh_k/dθ in place of the direct one beside λ_k (S4.6); one of two parts twice

    A missing φ', φ'(φ(a)) and (1 − y)² are looked for in the readout too. Two slips at once, their names joined by
    " + ", are looked for where no single one gives a leaf: two of the step; one of the step beside one of the list
    above; one of the readout beside any other; the sign, a factor or 1/T beside any; at most 30,000 wrong gradients.
    Kinks, steps whose vjp is not linear and the names of gates: as in `check`. A leaf of zeros is judged by how far
    rounding moves the reference itself; a note names each leaf that is too small for a wrong value to be seen.

    Args:
      model: f, g, L and the reduction, taken as correct.
      gradient: (model, params, inputs, targets) -> grads shaped like params, or (loss, grads).
      key: typed key for all random draws.
      params: θ; None: `model.init(key)`, every leaf perturbed.
      inputs: x_1 … x_T; None: standard normal [6, M].
      targets: y_1 … y_T; None: standard normal like the outputs, or classes, whichever the loss takes.

    Returns:
      Report; its pieces are "params.<leaf>", or "step" if the model has no gradient.

    Raises:
      TypeError, ValueError: an argument neither given nor possible to draw; grads of wrong structure.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from jaxbptt import derivations, models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> mine = functools.partial(truncation.lag, num_lags=2)  # not dC/dw, though nothing says so
      >>> data = {"params": jnp.array(0.5), "inputs": jnp.ones(4), "targets": jnp.zeros(4)}
      >>> report = derivations.check_gradient(model, mine, key=jax.random.key(0), **data)
      >>> [(finding.piece, finding.slip) for finding in report.findings]
      [('params', 'truncated')]

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063 (the double sum); S4.6, S4.9.
    """
    _validation.require_key(key)
    _validation.require_functions("model", model, ("initial_state", "step", "readout", "loss"))
    params, inputs = draw_instance(model, key, params, inputs)
    params, inputs, _, length = take_call(model, params, inputs)
    given = draw_targets(model, key, params, inputs, length) if targets is None else targets
    params, inputs, targets, _, _ = take_problem(model, params, inputs, given)
    spot, own = _find_spot(model, params, inputs, targets, key)
    params, inputs = spot.params, spot.inputs
    instance = make_instance(model, params, inputs, targets, own)
    checked = f"dC/dθ, over {length} steps"
    trajectory = instance.forward.trajectory
    nonlinear = find_nonlinear_step(model.step, params, trajectory.previous, trajectory.inputs, key, own)
    if nonlinear is not None:
        return Report((nonlinear,), checked, spot.notes)
    given = _validation.as_arrays("targets", given)  # weights as they came: the gradient divides by their sum itself
    actual = _take_grads(gradient(model, params, inputs, given), params)
    pieces = _compare(instance, actual, inputs, key)
    checked = f"{len(pieces)} leaves of dC/dθ ({', '.join(pieces)}), over {length} steps"
    pieces, notes = settle_doubts(pieces, jax.tree.leaves(params)[0].dtype)
    wrong = {name: piece for name, piece in pieces.items() if is_wrong(piece)}
    if spot.visits and wrong:
        undecided = f"{', '.join(wrong)}: another choice at such a point may explain the difference; left undecided"
        return Report((), checked, (*spot.notes, *notes, undecided))
    named = {}
    if wrong:
        factors = {"sign": -1.0, "double": 2.0, "half": 0.5}
        if model.reduction == "mean":
            factors |= {"lost_mean": float(length), "double_mean": 1 / length}
        numbers = {name: piece for name, piece in wrong.items() if not isinstance(piece.actual, str)}
        batches = gradient_batches(instance, lambda tables: fit_bounds(tables, numbers))
        named = name_slips(wrong, batches, factors)
    return Report(tuple(explain(wrong, named, by_step=False)), checked, (*spot.notes, *notes))


def _find_spot(model: Model, params: Params, inputs: Inputs, targets: Targets, key: Key) -> tuple[Spot, Hashable]:
    """Where to check, off the kinks of step, readout and loss if possible; and what tells the model's programs."""
    own = key_of(model, params, inputs, targets)

    def loss(params, state, rest):
        target, x, previous = rest
        return model.loss(read(model, params, state, x, previous), target)

    def body(_, row):
        return run_steps(model, row[0], row[1], None)

    def visits(params, inputs):
        at = map_one(own and ("unroll", own), body, (params, inputs))
        of_step = find_visits(own and ("step", own), model.step, params, at.previous, at.inputs)
        rest = targets, at.inputs, at.previous
        return (*of_step, *find_visits(own and ("loss", own), loss, params, at.states, rest))

    return move_off(visits, params, inputs, key), own


def _compare(instance: Instance, actual: dict[str, Any], inputs: Inputs, key: Key) -> dict[str, Piece]:
    """Every leaf beside what automatic differentiation gives."""
    model, params, targets = instance.model, instance.params, instance.targets

    def body(_, row):
        return autodiff(model, *row)[1]

    rows = perturb((params, inputs, targets), Stream(key, 8))
    grads = map_rows(instance.key and ("autodiff", instance.key), body, None, rows)
    scale, epsilon, pieces = rounding_scale(instance), epsilon_of(params), {}
    for name, leaf in named_leaves(grads).items():
        value = np.asarray(leaf, np.float64)[:, None]
        if value.size:
            tolerance = tolerances(value, np.asarray([scale[name]]), epsilon)
            other = actual[name]
            other = other if isinstance(other, str) else other[None]
            pieces[name] = Piece(value[0], other, tolerance, responses(value, epsilon), 200 * epsilon)
    return pieces


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
