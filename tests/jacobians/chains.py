"""A cell, its params, a trajectory and its Jacobians, that the tests of Jacobians share."""

import functools

import jax

from jaxbptt import jacobians, trajectories
from tests import cases

KEY = jax.random.key(4)
ALL = {**cases.CELLS, **cases.MODERN}


@functools.cache
def compiled(name, method):
    cell = ALL[name]

    def call(params, inputs, initial):
        trajectory = trajectories.unroll(cell, params, inputs, initial=initial)
        return trajectory, jacobians.step_jacobians(cell, params, trajectory, method=method)

    return jax.jit(call)


def chain_of(name, gain, method="auto"):
    cell = ALL[name]
    params, inputs, _, initial = cases.instance(cell, KEY, gain=gain)
    return cell, params, *compiled(name, method)(params, inputs, initial)
