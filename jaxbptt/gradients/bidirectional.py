"""The routes on a bidirectional model: each direction is a model of its own, once what its states get is known.

∂C/∂f_t and ∂C/∂b_t through the outputs come from the readout. With them fixed, C_f = Σ_t ⟨∂C/∂f_t, f_t⟩ has the same
gradient in the forward cell's params as C, and likewise backwards: any route of one direction gives that part.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt.cells._stack import hidden_part
from jaxbptt.gradients.adjoint import add_initial, sequential_adjoint
from jaxbptt.models.model import Model
from jaxbptt.models._bidirectional import BidirectionalModel, BidirectionalParams
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
    """A forward pass: the loss, and what the outputs pass back to the top layer."""

    loss: Any
    direct: BidirectionalParams  # (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t over all steps
    local: tuple[States, States]  # ∂C/∂f_t, ∂C/∂b_t, leading T in the sequence's time
    layers: list[tuple[Trajectory, Trajectory]]  # each in its own time


def autodiff_both(
    model: BidirectionalModel, params: BidirectionalParams, inputs: Inputs, targets: Targets, initial: State | None
) -> LossAndGrads:
    """dC/dθ by reverse mode through all layers."""
    inputs, targets = _take(model, params, inputs, targets, initial)
    return jax.value_and_grad(lambda params: _total(model, params, _tops(model, params, inputs)[0], targets))(params)


def bptt_both(
    model: BidirectionalModel, params: BidirectionalParams, inputs: Inputs, targets: Targets, initial: State | None
) -> LossAndGrads:
    """λ of both directions of each layer from the top down: what a layer's inputs get is what the layer below reads."""
    inputs, targets = _take(model, params, inputs, targets, initial)
    loss, direct, local, layers = _read(model, params, inputs, targets)
    found: list[tuple[Params, Params]] = []
    for number in reversed(range(len(layers))):
        cells, owns = model.layers[number], params.layers[number]
        below = None if number == 0 else layers[number - 1]
        pulled = [
            _pull_back(cell, own, steps, _in_own_time(each, backward))
            for backward, (cell, own, steps, each) in enumerate(zip(cells, owns, layers[number], local, strict=True))
        ]
        found.insert(0, (pulled[0][0], pulled[1][0]))
        if below is not None:
            of_inputs = pulled[0][1] + jnp.flip(pulled[1][1], axis=0)
            states = tuple(_in_own_time(steps.states, backward) for backward, steps in enumerate(below))
            local = jax.vjp(jax.vmap(_side_by_side), *states)[1](of_inputs)
    return loss, jax.tree.map(jnp.add, direct, BidirectionalParams(tuple(found), _zeros(params.readout)))


def directions(
    model: BidirectionalModel, params: BidirectionalParams, inputs: Inputs, targets: Targets, initial: State | None
) -> tuple[tuple[Direction, Direction], Any, BidirectionalParams]:
    """((forward, backward), C, the readout's direct part) of a model of one layer."""
    inputs, targets = _take(model, params, inputs, targets, initial)
    if len(model.layers) != 1:
        raise ValueError(f"model.layers: got {len(model.layers)}, expected 1 (autodiff and bptt take any depth)")
    loss, direct, local, _ = _read(model, params, inputs, targets)
    parts = zip(model.layers[0], params.layers[0], local, strict=True)
    made = [
        Direction(_linear(cell), own, *(_in_own_time(each, backward) for each in (inputs, local)))
        for backward, (cell, own, local) in enumerate(parts)
    ]
    return (made[0], made[1]), loss, direct


def route_both(
    route: Callable[..., LossAndGrads],
    model: BidirectionalModel,
    params: BidirectionalParams,
    inputs: Inputs,
    targets: Targets,
    initial: State | None,
) -> LossAndGrads:
    """A route of one direction, on both."""
    both, loss, direct = directions(model, params, inputs, targets, initial)
    grads = [route(*direction)[1] for direction in both]
    found = BidirectionalParams(((grads[0], grads[1]),), _zeros(params.readout))
    return loss, jax.tree.map(jnp.add, direct, found)


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
        inputs, length = take_call(cell, own, inputs)[1], take_call(cell, own, inputs)[3]
    _validation.require_time_axis("targets", targets, length)
    _validation.require_scalar("loss", jax.eval_shape(lambda: _losses(model, params, *_tops(model, params, inputs), targets))[0])
    return inputs, targets
