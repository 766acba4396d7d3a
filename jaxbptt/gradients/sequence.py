"""The forward and backward pass over a stretch of steps, by the most specific source of the step's partials."""

import functools
from typing import Any, NamedTuple, Protocol

import jax

from jaxbptt._jaxprs.program import Unreadable
from jaxbptt._jaxprs.stages import StagedStep
from jaxbptt.cells.factored import FactoredPullback, sum_over_steps
from jaxbptt.cells.structure import BlockParts
from jaxbptt.gradients.adjoint import Adjoint, block_adjoint, parallel_adjoint, sequential_adjoint
from jaxbptt.gradients.clipping import Clip, clipped_adjoint
from jaxbptt.gradients.deferred import pull_stages, run_stages, stage
from jaxbptt.models._batched import BatchedStep
from jaxbptt.models.model import Model
from jaxbptt.partials import Partials, step_partials
from jaxbptt.trajectories import Trajectory
from jaxbptt.types import Input, Inputs, Params, State, States, Step

UNREADABLE = (Exception,)  # a program may not run in stages for unforeseen reasons: then it runs the plain way


class Saved(NamedTuple):
    """What the backward pass needs from a stretch of K steps, besides its inputs."""

    initial: State  # the state before its first step
    states: States  # pytree [K, ...]
    kept: Any

    def steps(self, inputs: Inputs) -> Trajectory:
        """The stretch as a trajectory."""
        return Trajectory(self.initial, inputs, self.states)


class Skip(Protocol):
    def __call__(self, state: State, inputs: Inputs, /) -> State:
        """The last state."""
        ...


class Forward(Protocol):
    def __call__(self, state: State, inputs: Inputs, /) -> tuple[State, Saved]:
        """The last state, and what the backward pass needs."""
        ...


class Backward(Protocol):
    def __call__(self, saved: Saved, inputs: Inputs, local: States, later: State, /) -> tuple[Params, State]:
        """(Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t, μ_0) from ∂C/∂h_t|o_t and μ_K, where μ_t = J_{t+1}ᵀ λ_{t+1}."""
        ...


class Runner(NamedTuple):
    """The forward and backward pass over a stretch of steps, at fixed θ."""

    skip: Skip
    forward: Forward
    backward: Backward


def make_runner(
    model: Model, params: Params, state: State, x: Input, *, parallel: bool = False, clip: Clip | None = None
) -> Runner:
    """The runner by a factored derivation, else by a plain one, else by the stages of the step's program; its adjoint
    clipped at every step (with `clip`, never parallel)."""
    adjoint = functools.partial(parallel_adjoint, batch=model.batch) if parallel else sequential_adjoint
    adjoint = adjoint if clip is None else functools.partial(clipped_adjoint, clip)
    partials = step_partials(model)
    if partials.factored is not None:
        if parallel and isinstance(partials.parts, BlockParts):
            adjoint = functools.partial(block_adjoint, partials.parts, params)
        return _factored(partials.factored, params, adjoint)
    plain = _plain(model.step, partials, params, adjoint)
    if partials.source == "plain" or parallel:
        return plain
    if isinstance(model.step, BatchedStep):
        staged = stage(model.step.one, params, state, x, batched=True)
    else:
        staged = stage(model.step, params, state, x)
    return plain if isinstance(staged, Unreadable) else _staged(staged, params, plain, clip)


def _factored(pullback: FactoredPullback, params: Params, adjoint: Adjoint) -> Runner:
    def scan(body, state, inputs):
        return jax.lax.scan(body, state, jax.vmap(pullback.drive, in_axes=(None, 0))(params, inputs))

    def skip(state, inputs):
        return scan(lambda state, drive: (pullback.advance(params, state, drive)[0], None), state, inputs)[0]

    def forward(state, inputs):
        def body(state, drive):
            new, kept = pullback.advance(params, state, drive)
            return new, (new, kept)

        last, (states, kept) = scan(body, state, inputs)
        return last, Saved(state, states, kept)

    def pull(factors, cotangent):
        delta = pullback.delta(factors, cotangent)
        return pullback.state(params, factors, cotangent, delta), delta

    def backward(saved, inputs, local, later):
        previous = saved.steps(inputs).previous
        factors = jax.vmap(pullback.expand)(previous, saved.states, saved.kept)
        deltas, earlier = adjoint(pull, factors, local, later)
        cotangents = jax.vmap(pullback.params, in_axes=(None, 0, 0, 0))(params, previous, inputs, deltas)
        return sum_over_steps(cotangents), earlier

    return Runner(skip, forward, backward)


def _plain(step: Step, partials: Partials, params: Params, adjoint: Adjoint) -> Runner:
    """One pullback of the state per step in the scan, and one pullback of params for all steps."""

    def skip(state, inputs):
        return jax.lax.scan(lambda state, x: (step(params, state, x), None), state, inputs)[0]

    def forward(state, inputs):
        last, states = jax.lax.scan(lambda state, x: (step(params, state, x),) * 2, state, inputs)
        return last, Saved(state, states, None)

    def backward(saved, inputs, local, later):
        steps = saved.steps(inputs)
        residuals, pull = partials.pull_over(params, steps)
        adjoints, earlier = adjoint(lambda at, cotangent: (pull(at, cotangent), cotangent), residuals, local, later)
        return partials.sum_params(params, steps.previous, inputs, adjoints), earlier

    return Runner(skip, forward, backward)


def _staged(staged: StagedStep, params: Params, plain: Runner, clip: Clip | None) -> Runner:
    """By the stages of the step's program; backward the plain way where an operation has no reverse rule."""

    def forward(state, inputs):
        last, states, kept = run_stages(staged, params, state, inputs)
        return last, Saved(state, states, kept)

    def backward(saved, inputs, local, later):
        try:
            previous = saved.steps(inputs).previous
            return pull_stages(staged, params, previous, saved.kept, inputs, local, later, clip)
        except UNREADABLE:
            return plain.backward(saved, inputs, local, later)

    return Runner(plain.skip, forward, backward)
