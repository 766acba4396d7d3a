"""Models, instances and compiled calls that the tests of truncation share."""

import functools
import itertools

import jax
import jax.numpy as jnp

from jaxbptt import cells, gradients, models, truncation
from jaxbptt.comparison import compare
from jaxbptt.gradients.forward import run_forward
from tests import cases

KEY, T = jax.random.key(11), cases.T
CUTS, KEEP = jnp.array([False, True, False, False, False]), jnp.array([0.9, 0.5, 0.8, 1.0, 0.7])
PATTERNS = jnp.array(list(itertools.product((False, True), repeat=4)))  # of cuts, for the small problem


@functools.cache
def model_of(name, reduction):
    return models.sequence_model(cases.CELLS[name], cases.O, reduction=reduction)


def given(function, own_initial=False, **options):
    """One jitted call (params, inputs, targets, h_0); own_initial: h_0 is the model's own."""
    return jax.jit(lambda *data: function(*data[:3], initial=None if own_initial else data[3], **options))


def of(model, name, own_initial=False, module=truncation, **options):
    return given(functools.partial(getattr(module, name), model), own_initial, **options)


def by_table(model, own_initial, data, tables):
    """Gradients of many [T, T + 1] tables, leading axis of the tables, and C."""
    run = lambda *data, initial: jax.vmap(
        lambda table: truncation.weighted_gradient(model, *data, table, initial=initial)
    )(jnp.stack(tables))
    loss, grads = given(run, own_initial)(*data)
    return loss, [jax.tree.map(lambda leaf, i=i: leaf[i], grads) for i in range(len(tables))]


def direct_part(model, data, own_initial=False):
    return run_forward(model, *data[:3], None if own_initial else data[3]).direct


def worst(trees, others):
    """The largest relative error of a leaf, over pairs of pytrees."""
    return max(compare(*pair).relative for pair in zip(trees, others, strict=True))


@functools.cache
def small():
    """(model, data, dC/dθ): N = 2, T = 4, h_0 a function of θ."""
    cell = cells.elman(1, 2)
    cell = cell._replace(initial_state=lambda params: jnp.sin(params.b_h + 1))
    model = models.sequence_model(cell, 1, reduction="mean")
    data = cases.instance(model, KEY, length=4, gain=1.5, num_outputs=1)[:3]
    return model, data, gradients.autodiff(model, *data)[1]
