"""Instances the identities run on: nets that avoid the blind spots, the unit problem, and every derivative of them.

Dense non-symmetric W, non-zero h_0, T = 5, N = 3, M = 2: identity activation hides a missing φ', h_0 = 0 the k = 0
terms, T ≤ 2 the far terms, a symmetric W order and transposes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, gradients, jacobians, models, trajectories
from jaxbptt.trajectories import flatten_steps

N, M, O, T = 3, 2, 2, 5
THETAS = (2.0, 3.0, 0.7)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(function, model, *arguments):
    return function(model, *arguments)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _product(product, steps, start, stop):
    return product(steps, start, stop)


class Problem(NamedTuple):
    """A model with numbers; step t of the mathematics is index t − 1. Compiled once per model and shape."""

    model: models.Model
    params: Any
    inputs: jax.Array  # [T, M]
    targets: Any  # [T, ...]
    initial: Any  # h_0

    def _run(self, function):
        return _call(function, *self)

    @property
    def length(self) -> int:
        return len(self.inputs)

    @property
    def weight(self) -> float:
        """∂C/∂L_t."""
        return 1.0 if self.model.reduction == "sum" else 1 / self.length

    @property
    def trajectory(self) -> trajectories.Trajectory:
        return self._run(_trajectory)

    @property
    def states(self) -> jax.Array:
        """h_1 … h_T, [T, N], flattened."""
        return flatten_steps(self.trajectory.states)

    @property
    def previous(self) -> jax.Array:
        """h_0 … h_{T−1}, [T, N], flattened."""
        return flatten_steps(self.trajectory.previous)

    @property
    def outputs(self) -> jax.Array:
        """o_1 … o_T."""
        return self._run(_outputs)

    @property
    def losses(self) -> jax.Array:
        """L_1 … L_T before the reduction."""
        return self._run(_losses)

    @property
    def loss(self) -> jax.Array:
        """C."""
        return self.gradient()[0]

    def gradient(self, route: str = "autodiff"):
        """(C, dC/dθ) by a route of the toolkit."""
        return self._run(_route(route))

    def flat_gradient(self, route: str = "autodiff") -> jax.Array:
        """dC/dθ, [P]."""
        return ravel_pytree(self.gradient(route)[1])[0]

    @property
    def adjoints(self) -> jax.Array:
        """λ_t = dC/dh_t, [T, N]."""
        return self._run(_adjoints)

    @property
    def jacobians(self) -> jax.Array:
        """J_t, [T, N, N], by the toolkit (closed form when the cell has one)."""
        return self._run(_jacobians)

    @property
    def direct_params(self) -> jax.Array:
        """∂⁺h_t/∂⁺θ, [T, N, P]."""
        return self._run(_direct_params)

    @property
    def total_params(self) -> jax.Array:
        """dh_t/dθ, [T, N, P], through the whole history (jacfwd of the unroll; h_0 constant)."""
        return self._run(_total_params)

    @property
    def direct_inputs(self) -> jax.Array:
        """∂⁺h_t/∂⁺x_t, [T, N, M]."""
        return self._run(_direct_inputs)

    @property
    def output_state(self) -> jax.Array:
        """∂⁺o_t/∂⁺h_t, [T, O, N]."""
        return self._run(_output_state)

    @property
    def output_params(self) -> jax.Array:
        """∂⁺o_t/∂⁺θ, [T, O, P], h_t frozen."""
        return self._run(_output_params)

    @property
    def loss_output(self) -> jax.Array:
        """∂⁺L_t/∂⁺o_t, [T, O], before the reduction."""
        return self._run(_loss_output)

    @property
    def total_losses(self) -> jax.Array:
        """dL_t/dθ, [T, P], total, before the reduction, by jacrev through the unroll."""
        return self._run(_total_losses)

    def product(self, start: int, stop: int) -> jax.Array:
        """dh_stop/dh_start, [N, N]."""
        return _product(jacobians.product, self.jacobians, start, stop)


def net(key: jax.Array, *, activation: Any = jnp.tanh, reduction: str = "mean", length: int = T) -> Problem:
    """An Elman net with its own readout, squared error; θ = (cell, readout)."""
    return _fill(_elman_model(activation, reduction), key, length)


def linear_net(key: jax.Array, *, reduction: str = "mean", length: int = T) -> Problem:
    """The same with φ = identity (the toolkit's `linear`)."""
    return _fill(_elman_model(None, reduction), key, length)


def shared_net(key: jax.Array, *, reduction: str = "sum", length: int = T) -> Problem:
    """θ used by f and g both: tanh cell, o_t = sin(W_hh h_t)."""
    return _fill(_shared_model(reduction), key, length, num_outputs=N)


def lstm_net(key: jax.Array, *, reduction: str = "sum", length: int = T, hidden: int = N) -> Problem:
    """An LSTM read from its hidden part."""
    return _fill(_lstm_model(hidden, reduction), key, length)


def unit(theta: float = 2.0, length: int = 3) -> Problem:
    """The unit problem: h_t = θ h_{t−1}, h_0 = 1, o_t = θ h_t, L_t = o_t; θ = 2, T = 3 give C = 28, dC/dθ = 48."""
    empty = jnp.zeros((length, 0))
    return Problem(_unit_model(), jnp.array(theta), empty, empty, jnp.ones(()))


def scalar(a: float, length: int, initial: float = 1.0) -> Problem:
    """h_t = a h_{t−1}, o_t = h_t, L_t = o_t: λ_t = 1 + a λ_{t+1}."""
    empty = jnp.zeros((length, 0))
    return Problem(_scalar_model(), jnp.array(a), empty, empty, jnp.array(initial))


def matrix(key: jax.Array, size: int = N, gain: float = 1.0) -> jax.Array:
    """A dense non-symmetric matrix with spectral radius about `gain`."""
    return gain * jax.random.normal(key, (size, size)) / size**0.5


def _fill(model, key, length, num_outputs=O):
    keys = jax.random.split(key, 4)
    drawn = model.init(keys[0])
    flat, unravel = ravel_pytree(drawn)
    params = unravel(flat + 0.3 * jax.random.normal(keys[0], flat.shape))
    initial = jax.tree.map(lambda leaf: 0.2 + 0.5 * jax.random.normal(keys[3], leaf.shape), model.initial_state(params))
    inputs = jax.random.normal(keys[1], (length, M))
    return Problem(model, params, inputs, jax.random.normal(keys[2], (length, num_outputs)), initial)


@functools.cache
def _elman_model(activation, reduction):
    cell = cells.linear(M, N) if activation is None else cells.elman(M, N, activation=activation)
    return models.sequence_model(cell, O, reduction=reduction)


@functools.cache
def _lstm_model(hidden, reduction):
    return models.sequence_model(cells.lstm(M, hidden), O, reduction=reduction)


@functools.cache
def _shared_model(reduction):
    cell = cells.elman(M, N)
    readout = lambda params, state: jnp.sin(params.w_hh @ state)
    return models.Model(
        cell.init, cell.initial_state, cell.step, readout, models.squared_error, reduction, cell.derivation, M
    )


@functools.cache
def _unit_model():
    return _scalar_recurrence(lambda theta, h: theta * h)


@functools.cache
def _scalar_model():
    return _scalar_recurrence(lambda a, h: h)


def _scalar_recurrence(readout):
    cell = cells.from_step(lambda theta, h, x: theta * h, lambda theta: jnp.ones(()))
    return models.Model(cell.init, cell.initial_state, cell.step, readout, lambda output, target: output)


@functools.cache
def _route(name):
    function = getattr(gradients, name)
    return lambda model, params, inputs, targets, initial: function(model, params, inputs, targets, initial=initial)


def _trajectory(model, params, inputs, targets, initial):
    return trajectories.unroll(model, params, inputs, initial=initial)


def _outputs(model, params, *data):
    return jax.vmap(lambda state: model.readout(params, state))(_trajectory(model, params, *data).states)


def _losses(model, params, inputs, targets, initial):
    states = _trajectory(model, params, inputs, targets, initial).states
    return models.step_losses(model, params, states, targets)


def _adjoints(model, params, inputs, targets, initial):
    return gradients.adjoints(model, params, inputs, targets, initial=initial)


def _jacobians(model, params, *data):
    return jacobians.step_jacobians(model, params, _trajectory(model, params, *data))


def _flat_step(model, params, state, x):
    return jnp.atleast_1d(ravel_pytree(model.step(params, state, x))[0])


def _direct_params(model, params, *data):
    theta, unravel = ravel_pytree(params)
    trajectory = _trajectory(model, params, *data)
    partial = jax.jacrev(lambda theta, state, x: _flat_step(model, unravel(theta), state, x))
    return jax.vmap(partial, (None, 0, 0))(theta, trajectory.previous, trajectory.inputs)


def _total_params(model, params, *data):
    theta, unravel = ravel_pytree(params)
    states = lambda theta: flatten_steps(_trajectory(model, unravel(theta), *data).states)
    return jax.jacfwd(states)(theta)


def _direct_inputs(model, params, *data):
    trajectory = _trajectory(model, params, *data)
    partial = jax.jacrev(lambda x, state: _flat_step(model, params, state, x))
    return jax.vmap(partial)(trajectory.inputs, trajectory.previous)


def _output_state(model, params, *data):
    states = _trajectory(model, params, *data).states
    _, unravel = ravel_pytree(data[-1])
    partial = jax.jacrev(lambda h: jnp.atleast_1d(model.readout(params, unravel(h))))
    return jax.vmap(partial)(flatten_steps(states))


def _output_params(model, params, *data):
    theta, unravel = ravel_pytree(params)
    states = _trajectory(model, params, *data).states
    partial = jax.jacrev(lambda theta, state: jnp.atleast_1d(model.readout(unravel(theta), state)))
    return jax.vmap(partial, (None, 0))(theta, states)


def _loss_output(model, params, inputs, targets, initial):
    outputs = _outputs(model, params, inputs, targets, initial)
    local = jax.vmap(jax.grad(model.loss))(outputs, targets)
    return local.reshape(len(inputs), -1)


def _total_losses(model, params, *data):
    theta, unravel = ravel_pytree(params)
    return jax.jacrev(lambda theta: _losses(model, unravel(theta), *data))(theta)
