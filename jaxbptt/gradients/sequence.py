"""A stretch of steps and its pullback, by the best the model knows of its own derivative."""

import functools
from typing import Any, NamedTuple

import jax

from jaxbptt.cells.derivation import FactoredPullback, sum_over_steps
from jaxbptt.gradients.adjoint import parallel_adjoint, parameter_gradient, sequential_adjoint, state_pullback
from jaxbptt.gradients.deferred import run_deferred
from jaxbptt.models import Model
from jaxbptt.trajectories import Trajectory


class Saved(NamedTuple):
    """What the way back needs of a stretch of K steps, besides its inputs."""

    initial: Any  # the state it began from
    states: Any  # pytree [K, ...]
    kept: Any


class Runner(NamedTuple):
    """Both ways through a stretch of steps, θ held."""

    skip: Any  # (state, inputs) -> last state
    forward: Any  # (state, inputs) -> (last state, Saved)
    backward: Any  # (Saved, inputs, ∂C/∂h_t|o_t, μ_K) -> (Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t, μ_0),  μ_t = J_{t+1}ᵀ λ_{t+1}
    keeps: bool  # Saved holds arrays alone: a scan may return it


def make_runner(model: Model, params: Any, *, parallel: bool = False) -> Runner:
    """By a factored derivation; by a plain one; by the products with weights found in the step's own program."""
    adjoint = functools.partial(parallel_adjoint, batch=model.batch) if parallel else sequential_adjoint
    if model.derivation is not None and isinstance(model.derivation.pullback, FactoredPullback):
        return _factored(model.derivation.pullback, params, adjoint)
    skip = lambda state, inputs: jax.lax.scan(lambda state, x: (model.step(params, state, x), None), state, inputs)[0]  # noqa: E731
    if model.derivation is not None or parallel:
        return _plain(model, params, adjoint, skip)

    def forward(state, inputs):
        states, pull = run_deferred(model.step, params, state, inputs)
        return jax.tree.map(lambda leaf: leaf[-1], states), Saved(state, states, pull)

    return Runner(skip, forward, lambda saved, inputs, local, later: saved.kept(local, later), keeps=False)


def _factored(pullback, params, adjoint):
    def forward(state, inputs, keep=True):
        def body(state, drive):
            new, kept = pullback.advance(params, state, drive)
            return new, (new, kept) if keep else None

        drives = jax.vmap(pullback.drive, in_axes=(None, 0))(params, inputs)
        last, saved = jax.lax.scan(body, state, drives)
        return last, Saved(state, *saved) if keep else None

    def pull(factors, cotangent):
        delta = pullback.delta(factors, cotangent)
        return pullback.state(params, factors, cotangent, delta), delta

    def backward(saved, inputs, local, later):
        previous = Trajectory(saved.initial, inputs, saved.states).previous
        factors = jax.vmap(pullback.expand)(previous, saved.states, saved.kept)
        deltas, earlier = adjoint(pull, factors, local, later)
        cotangents = jax.vmap(pullback.params, in_axes=(None, 0, 0, 0))(params, previous, inputs, deltas)
        return sum_over_steps(cotangents), earlier

    return Runner(lambda *steps: forward(*steps, keep=False)[0], forward, backward, keeps=True)


def _plain(model, params, adjoint, skip):
    """By the derivation's own pullback, or the step's vjp, once a step in the scan and once more for the parameters."""

    def forward(state, inputs):
        last, states = jax.lax.scan(lambda state, x: (model.step(params, state, x),) * 2, state, inputs)
        return last, Saved(state, states, None)

    def backward(saved, inputs, local, later):
        trajectory = Trajectory(saved.initial, inputs, saved.states)
        factors, pull_state = state_pullback(model, params, trajectory)
        adjoints, earlier = adjoint(lambda factors, one: (pull_state(factors, one), one), factors, local, later)
        return parameter_gradient(model, params, trajectory, adjoints), earlier

    return Runner(skip, forward, backward, keeps=True)
