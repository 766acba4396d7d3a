"""Derivatives of a whole run, by automatic differentiation through its unroll: what most claims are judged by.

A derivative in a state is measured by a kick: a vector added to it inside the unroll, and what that does to everything
after. Compiled once per model and shape.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import jacobians, trajectories
from jaxbptt.trajectories import flatten_steps

from .instances import Problem


class Nudges(NamedTuple):
    """Where a small change enters; as a result of `sensitivities`, the derivatives to it, step t on axis −2."""

    state: jax.Array  # [T, N] on h_t, every use of it
    carried: jax.Array  # [T, N] on the copy of h_t that h_{t+1} reads
    read: jax.Array  # [T, N] on the copy of h_t that o_t reads
    output: jax.Array  # [T, O] on o_t


def sensitivities(problem: Problem) -> tuple[Nudges, Nudges]:
    """(do_s [T, O, …], dL_s [T, …]) to each nudge, total, by jacrev through the whole unroll."""
    return _sensitivities(*problem)


@functools.partial(jax.jit, static_argnums=0)
def _sensitivities(model, params, inputs, targets, initial):
    flat, unravel = ravel_pytree(initial)

    def shift(state, by):
        return unravel(ravel_pytree(state)[0] + by)

    def step(params, h, x):
        x, carried, state = x
        return shift(model.step(params, shift(h, carried), x), state)

    nudged_model = model._replace(step=step, derivation=None, num_inputs=None)

    def run(nudges):
        carried = jnp.concatenate((jnp.zeros((1, flat.size)), nudges.carried[:-1]))  # step t + 1 reads h_t
        states = trajectories.unroll(nudged_model, params, (inputs, carried, nudges.state), initial=initial).states
        outputs = jax.vmap(lambda h, by: model.readout(params, shift(h, by)))(states, nudges.read)
        outputs += nudges.output.reshape(outputs.shape)
        return outputs.reshape(len(inputs), -1), jax.vmap(model.loss)(outputs, targets)

    num_outputs = jax.eval_shape(model.readout, params, initial).size
    none = jnp.zeros((len(inputs), flat.size))
    return jax.jacrev(run)(Nudges(none, none, none, jnp.zeros((len(inputs), num_outputs))))


def total_outputs(problem: Problem) -> jax.Array:
    """do_t/dθ, [T, O, P], total, by jacrev through the unroll."""
    return _total_outputs(problem.model, problem.params, problem.inputs, problem.initial)


@functools.partial(jax.jit, static_argnums=0)
def _total_outputs(model, params, inputs, initial):
    theta, unravel = ravel_pytree(params)

    def outputs(theta):
        states = trajectories.unroll(model, unravel(theta), inputs, initial=initial).states
        return jax.vmap(lambda state: jnp.atleast_1d(model.readout(unravel(theta), state)))(states)

    return jax.jacrev(outputs)(theta)


def total_states(problem: Problem, first: jax.Array) -> jax.Array:
    """dh_t/dθ, [T, N, P], by jacfwd through the unroll, h_0 moving with θ at the rate `first` [N, P]."""
    return _total_states(problem.model, problem.params, problem.inputs, problem.initial, first)


@functools.partial(jax.jit, static_argnums=0)
def _total_states(model, params, inputs, initial, first):
    theta, unravel = ravel_pytree(params)
    flat, unravel_state = ravel_pytree(initial)

    def states(moved):
        start = unravel_state(flat + first @ (moved - theta))
        return flatten_steps(trajectories.unroll(model, unravel(moved), inputs, initial=start).states)

    return jax.jacfwd(states)(theta)


def states_in_states(problem: Problem) -> jax.Array:
    """dh_t/dh_k at [t − 1, k − 1], [T, T, N, N], total, by kicks; zero for t < k."""
    return _answers(problem.model, problem.params, problem.inputs, problem.initial)[0]


def outputs_in_states(problem: Problem) -> jax.Array:
    """do_t/dh_k at [t − 1, k − 1], [T, T, O, N], total, by kicks."""
    return _answers(problem.model, problem.params, problem.inputs, problem.initial)[1]


@functools.partial(jax.jit, static_argnums=0)
def _answers(model, params, inputs, initial):
    flat, unravel = ravel_pytree(initial)

    def step(params, state, driven):
        x, kick = driven
        return unravel(ravel_pytree(model.step(params, state, x))[0] + kick)

    kicked = model._replace(step=step, derivation=None, num_inputs=None)

    def run(kicks):
        states = trajectories.unroll(kicked, params, (inputs, kicks), initial=initial).states
        outputs = jax.vmap(lambda state: jnp.atleast_1d(model.readout(params, state)))(states)
        return flatten_steps(states), outputs

    measured = jax.jacfwd(run)(jnp.zeros((len(inputs), flat.size)))
    return tuple(jnp.moveaxis(each, 2, 1) for each in measured)


def between(problem: Problem, start: int, stop: int) -> jax.Array:
    """dh_stop/dh_start, [N, N], by a kick on h_start."""
    return states_in_states(problem)[stop - 1, start - 1]


def end_in_start(problem: Problem) -> jax.Array:
    """dh_T/dh_0, [N, N], by jacfwd through the unroll."""
    return _end_in_start(problem.model, problem.params, problem.inputs, problem.initial)


@functools.partial(jax.jit, static_argnums=0)
def _end_in_start(model, params, inputs, initial):
    flat, unravel = ravel_pytree(initial)

    def end(h):
        states = trajectories.unroll(model, params, inputs, initial=unravel(h)).states
        return ravel_pytree(jax.tree.map(lambda leaf: leaf[-1], states))[0]

    return jax.jacfwd(end)(flat)


def via_output(problem: Problem) -> jax.Array:
    """(∂L_t/∂o_t)(∂⁺o_t/∂⁺h_t), [T, N]."""
    return jnp.einsum("to,ton->tn", problem.loss_output, problem.output_state)


@jax.jit
def state_pairs(steps: jax.Array) -> jax.Array:
    """dh_s/dh_t at [s − 1, t − 1], [T, T, N, N], as products of J [T, N, N]: 1 for s = t, zero for s < t."""
    length, size = steps.shape[:2]
    times, zero = range(1, length + 1), jnp.zeros((size, size))
    return jnp.array([[jacobians.product(steps, t, s) if s >= t else zero for t in times] for s in times])
