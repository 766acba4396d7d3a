"""The steps of one sequence, walked forward with a tangent and back with cotangents, from the step's partials."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxbptt.cells.factored import sum_over_steps
from jaxbptt.partials import Partials, is_linear
from jaxbptt.trajectories import Trajectory
from jaxbptt.types import Inputs, Params, State


class Walk(NamedTuple):
    """What one sequence's scans need, at fixed θ."""

    drives: Callable[[Inputs], Any]  # what is scanned in place of the inputs
    advance: Callable[[State, State, Any], tuple[State, State, Any]]  # (h, v, drive) -> (h', J v, what it keeps)
    residuals: Callable[[Trajectory, Any], Any]  # of all steps, from what `advance` kept
    pull: Callable[[Any, State], State]  # (residuals of one step, λ) -> Jᵀ λ
    terms: Callable[[Any, State, Any, State], Params]  # (residuals, h_{t−1}, x_t, λ) -> (∂⁺h_t/∂⁺θ)ᵀ λ
    total: Callable[[Any, Trajectory, State], Params]  # Σ_t of `terms`
    at_once: bool  # whether the terms of all steps fit in memory: weights as pairs of vectors


def plan_walk(partials: Partials, params: Params, state: State, inputs: Inputs) -> Walk:
    """By the factors of a derivation, which the forward scan keeps for the way back; else by the step itself."""
    pullback = partials.factored
    first = jax.tree.map(lambda leaf: leaf[0], inputs)
    if pullback is None or not is_linear(partials, params, state, first):
        return _by_step(partials, params)

    def pull(factors, cotangent):
        return partials.pull_state(params, factors, cotangent)

    def advance(state, tangent, drive):
        new, kept = pullback.advance(params, state, drive)
        factors = pullback.expand(state, new, kept)
        return new, jax.linear_transpose(lambda cotangent: pull(factors, cotangent), tangent)(tangent)[0], kept

    def terms(factors, state, x, cotangent):
        return pullback.params(params, state, x, pullback.delta(factors, cotangent))

    return Walk(
        drives=lambda inputs: jax.vmap(pullback.drive, in_axes=(None, 0))(params, inputs),
        advance=advance,
        residuals=lambda steps, kept: jax.vmap(pullback.expand)(steps.previous, steps.states, kept),
        pull=pull,
        terms=terms,
        total=lambda factors, steps, rows: sum_over_steps(jax.vmap(terms)(factors, steps.previous, steps.inputs, rows)),
        at_once=True,
    )


def _by_step(partials: Partials, params: Params) -> Walk:
    def advance(state, tangent, x):
        return (*partials.push_state(params, state, x, tangent), None)

    return Walk(
        drives=lambda inputs: inputs,
        advance=advance,
        residuals=lambda steps, _: jax.vmap(partials.residuals, in_axes=(None, 0, 0))(
            params, steps.previous, steps.inputs
        ),
        pull=lambda at, cotangent: partials.pull_state(params, at, cotangent),
        terms=lambda _, *at: partials.pull_params(params, *at),
        total=lambda _, steps, rows: partials.sum_params(params, steps.previous, steps.inputs, rows),
        at_once=partials.factored is not None,
    )
