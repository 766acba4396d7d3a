"""Models, instances and quadratures that the tests of perturbations share."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, gradients, models
from tests import cases

KEY = jax.random.key(11)


@functools.cache
def model_of(name):
    return models.sequence_model(cases.CELLS[name], cases.O, reduction="mean")


@functools.cache
def instance_of(name):
    return cases.instance(model_of(name), KEY, gain=1.2)


@functools.cache
def exact_of(name, own):
    params, inputs, targets, initial = instance_of(name)
    initial = None if own else initial
    route = lambda p, x, y: gradients.bptt(model_of(name), p, x, y, initial=initial)
    return jax.jit(route)(params, inputs, targets)


def reading_model():
    """(model, params, inputs, targets): every output reads x_t and h_{t−1}, h_0 depends on params, and there is a
    penalty."""
    cell = cells.elman(1, 2)
    model = models.make_model(
        cell.step,
        lambda params: jnp.sin(params.b_h + 1),
        lambda params, h, x, previous: h * x[0] + jnp.tanh(params.w_hh @ previous),
        models.squared_error,
        init=cell.init,
        reduction="mean",
        num_inputs=1,
    )
    model = models.penalised(model, lambda params: jnp.sum(params.w_hh**2) / 3)
    return model, *cases.instance(model, KEY, length=4, gain=1.2, num_outputs=2)[:3]


def all_signs(count):
    """[2^count, count] every vector of signs."""
    return jnp.array(list(itertools.product((-1.0, 1.0), repeat=count)))


def hermite(dimensions, order):
    """(nodes [order^dimensions, dimensions], weights that add up to one) of E over independent normal numbers: exact
    for polynomials of degree 2·order − 1 in each."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / weights.sum()
    grid = np.array(list(itertools.product(nodes, repeat=dimensions)))
    return jnp.array(grid), jnp.array(np.prod(list(itertools.product(weights, repeat=dimensions)), axis=1))


def shaped_like(tree, rows):
    """Rows [m, …, P] as pytrees with leading [m, …]."""
    unravel = ravel_pytree(tree)[1]
    for _ in range(rows.ndim - 1):
        unravel = jax.vmap(unravel)
    return unravel(rows)
