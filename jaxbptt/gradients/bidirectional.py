"""The routes on a bidirectional model: each direction is a model of its own, once what its states get is known.

∂C/∂f_t and ∂C/∂b_t through the outputs come from the readout. With them fixed, C_f = Σ_t ⟨∂C/∂f_t, f_t⟩ has the same
gradient in the forward cell's params as C, and likewise backwards: any route of one direction gives that part.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.cells._stack import hidden_part
from jaxbptt.gradients.adjoint import Adjoint, add_initial, sequential_adjoint
from jaxbptt.models._bidirectional import BidirectionalModel, BidirectionalParams
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.trajectories import Trajectory, run_steps, take_call
from jaxbptt.types import Inputs, LossAndGrads, Params, State, States, Targets


class Direction(NamedTuple):
    """One direction as a model whose C is linear in its states; its time runs from its own first step."""

    model: Model
    params: Params
    inputs: Inputs
    targets: Targets  # ∂C/∂h_t through the outputs


class Reading(NamedTuple):
    """A forward pass: the losses, and what the outputs pass back to the top layer."""

    losses: Any  # [T], parts of C
    direct: BidirectionalParams  # (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t over all steps
    local: tuple[States, States]  # ∂C/∂f_t, ∂C/∂b_t, leading T in the sequence's time
    layers: list[tuple[Trajectory, Trajectory]]  # each in its own time


def autodiff_both(
    model: BidirectionalModel, params: BidirectionalParams, inputs: Inputs, targets: Targets, initial: State | None
) -> LossAndGrads:
    """dC/dθ by reverse mode through all layers."""
    params, inputs, targets = _take(model, params, inputs, targets, initial)
    total = lambda params: _total(model, params, inputs, targets)
    (loss, losses), grads = jax.value_and_grad(total, has_aux=True)(params)
    return _finite(loss, losses, grads)


def bptt_both(
    model: BidirectionalModel,
    params: BidirectionalParams,
    inputs: Inputs,
    targets: Targets,
    initial: State | None,
    adjoint: Adjoint = sequential_adjoint,
) -> LossAndGrads:
    """λ of both directions of each layer from the top down: what a layer's inputs get is what the layer below reads."""
    params, inputs, targets = _take(model, params, inputs, targets, initial)
    losses, direct, local, layers = _read(model, params, inputs, targets)
    found: list[tuple[Params, Params]] = []
    for number in reversed(range(len(layers))):
        cells, owns = model.layers[number], params.layers[number]
        below = None if number == 0 else layers[number - 1]
        pulled = [
            _pull_back(cell, own, steps, _in_own_time(each, backward), below is not None, adjoint)
            for backward, (cell, own, steps, each) in enumerate(zip(cells, owns, layers[number], local, strict=True))
        ]
        found.insert(0, (pulled[0][0], pulled[1][0]))
        if below is not None:
            of_inputs = pulled[0][1] + jnp.flip(pulled[1][1], axis=0)
            local = jax.vjp(jax.vmap(_side_by_side), *_in_time(below))[1](of_inputs)
    grads = jax.tree.map(jnp.add, direct, BidirectionalParams(tuple(found), _zeros(params.readout)))
    return _finite(jnp.sum(losses), losses, grads)


def directions(
    model: BidirectionalModel, params: BidirectionalParams, inputs: Inputs, targets: Targets, initial: State | None
) -> tuple[tuple[Direction, Direction], Any, BidirectionalParams]:
    """((forward, backward), the losses' parts of C [T], the readout's direct part) of a model of one layer."""
    params, inputs, targets = _take(model, params, inputs, targets, initial)
    if len(model.layers) != 1:
        raise ValueError(f"model.layers: got {len(model.layers)}, expected 1 (autodiff and bptt take any depth)")
    losses, direct, local, _ = _read(model, params, inputs, targets)
    parts = zip(model.layers[0], params.layers[0], local, strict=True)
    made = [
        Direction(_linear(cell), own, *(_in_own_time(each, backward) for each in (inputs, local)))
        for backward, (cell, own, local) in enumerate(parts)
    ]
    return (made[0], made[1]), losses, direct


def route_both(
    route: Callable[..., LossAndGrads],
    model: BidirectionalModel,
    params: BidirectionalParams,
    inputs: Inputs,
    targets: Targets,
    initial: State | None,
) -> LossAndGrads:
    """A route of one direction, on both."""
    both, losses, direct = directions(model, params, inputs, targets, initial)
    grads = [route(*direction)[1] for direction in both]
    found = BidirectionalParams(((grads[0], grads[1]),), _zeros(params.readout))
    return _finite(jnp.sum(losses), losses, jax.tree.map(jnp.add, direct, found))


def _take(model, params, inputs, targets, initial):
    if initial is not None:
        raise ValueError("initial: got a state, expected None: a bidirectional model starts from its cells' own states")
    _validation.require_type("params", params, BidirectionalParams, "models.BidirectionalParams(layers, readout)")
    if len(params.layers) != len(model.layers):
        raise ValueError(f"params.layers: got {len(params.layers)}, expected {len(model.layers)}")
    params = _validation.as_arrays("params", params)
    _validation.require_params(params)
    targets = _validation.as_arrays("targets", targets)
    for cell, own in zip(model.layers[0], params.layers[0], strict=True):
        _, inputs, _, length = take_call(cell, own, inputs)
    _validation.require_time_axis("targets", targets, length)
    _require_sizes(model, params)
    shapes = jax.eval_shape(lambda: _total(model, params, inputs, targets)[1])
    if len(shapes.shape) != 1:
        raise ValueError(f"loss: got shape {list(shapes.shape[1:])}, expected a scalar (sum over the outputs)")
    return params, inputs, targets


def _require_sizes(model, params):
    """Raise unless each layer takes as many inputs as the two cells below give."""
    below = None
    for number, (cells, owns) in enumerate(zip(model.layers, params.layers, strict=True), start=1):
        for cell in cells:
            if below is not None and cell.num_inputs not in (None, below):
                got = f"layer {number}: it takes {cell.num_inputs} inputs"
                raise ValueError(f"layers: got {got}, expected {below} as the two cells below give")
        starts = [cell.initial_state(own) for cell, own in zip(cells, owns, strict=True)]
        below = None if number == len(model.layers) else len(jax.eval_shape(_side_by_side, *starts))


def _run(model, params, inputs):
    """Each layer's two trajectories, each in its own time."""
    found = []
    for cells, own in zip(model.layers, params.layers, strict=True):
        steps = [
            run_steps(cell, each, _in_own_time(inputs, backward), None)
            for backward, (cell, each) in enumerate(zip(cells, own, strict=True))
        ]
        found.append(tuple(steps))
        if len(found) < len(model.layers):
            inputs = jax.vmap(_side_by_side)(*_in_time(steps))
    return found


def _losses(model, params, states, targets):
    """∂C/∂L_t L_t [T]."""
    losses = jax.vmap(lambda states, target: model.loss(model.readout(params, *states), target))(states, targets)
    return losses if model.reduction == "sum" else losses / jnp.asarray(len(losses), losses.dtype)


def _total(model, params, inputs, targets):
    losses = _losses(model, params, _in_time(_run(model, params, inputs)[-1]), targets)
    return jnp.sum(losses), losses


def _read(model, params, inputs, targets):
    layers = _run(model, params, inputs)

    def total(params, states):
        losses = _losses(model, params, states, targets)
        return jnp.sum(losses), losses

    (_, losses), (direct, local) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, _in_time(layers[-1]))
    return Reading(losses, direct, local, layers)


def _finite(loss, losses, grads):
    """(C, dC/dθ); raise if they are numbers and one of them is NaN or inf."""
    _validation.require_finite_steps("losses", losses)
    _validation.require_finite("gradient", grads)
    return loss, grads


def _pull_back(cell, params, steps, local, to_inputs, adjoint):
    """(dC/dθ of one cell, dC/dx_t [T, M], or None where nobody asks), in its own time."""
    partials = step_partials(cell)
    residuals, pull = partials.pull_over(params, steps)
    later = jax.tree.map(jnp.zeros_like, steps.initial)
    adjoints, earlier = adjoint(lambda at, each: (pull(at, each), each), residuals, local, later)
    grads = add_initial(cell, params, partials.sum_params(params, steps.previous, steps.inputs, adjoints), earlier)
    if not to_inputs:
        return grads, None
    of_inputs = jax.vmap(partials.pull_input, in_axes=(None, 0, 0, 0))
    return grads, of_inputs(params, steps.previous, steps.inputs, adjoints)


def _linear(cell):
    """The cell as a model with L_t = ⟨target, h_t⟩."""

    def inner(state, target):
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(target), strict=True)
        return functools.reduce(jnp.add, [jnp.vdot(*pair) for pair in pairs])

    return Model(None, cell.initial_state, cell.step, lambda _, state: state, inner, "sum", cell.derivation)


def _side_by_side(forward, backward):
    return jnp.concatenate((hidden_part(forward), hidden_part(backward)))


def _in_own_time(tree, backward):
    return jax.tree.map(lambda leaf: jnp.flip(leaf, axis=0), tree) if backward else tree


def _in_time(steps):
    """The states of both directions, in the sequence's time."""
    return tuple(_in_own_time(each.states, backward) for backward, each in enumerate(steps))


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)
