"""Models, instances and compiled routes that the tests of gradients share."""

import functools

import jax
import jax.numpy as jnp

from jaxbptt import gradients, models
from tests import cases

KEY, BATCH = jax.random.key(5), 3
LOSSES = {"squared": models.squared_error, "cross_entropy": models.softmax_cross_entropy}
HAND = ("bptt", "forward_sensitivity", "double_sum")


@functools.cache
def model_of(name, loss="squared", reduction="sum"):
    """ "plain": the LSTM's derivation as a user writes it, with an ordinary pullback, not a factored one."""
    cell = cases.CELLS["lstm" if name == "plain" else name]
    if name == "plain":
        factored = cell.derivation.pullback
        cell = cell._replace(derivation=cell.derivation._replace(pullback=lambda *arguments: factored(*arguments)))
    return models.sequence_model(cell, cases.O, loss=LOSSES[loss], reduction=reduction)


@functools.cache
def jitted(route, model, own_initial=False):
    function = getattr(gradients, route)
    if own_initial:
        return jax.jit(lambda params, inputs, targets, _: function(model, params, inputs, targets))
    return jax.jit(lambda params, inputs, targets, h_0: function(model, params, inputs, targets, initial=h_0))


def loop_loss(model, params, inputs, targets, initial):
    """C by a plain Python loop: the reference that shares nothing with the library."""
    state = model.initial_state(params) if initial is None else initial
    total = 0.0
    for x, target in zip(inputs, targets, strict=True):
        state = model.step(params, state, x)
        total = total + model.loss(model.readout(params, state), target)
    return total / len(inputs) if model.reduction == "mean" else total


def batch_of(model, length=cases.T):
    """Params and inputs [T, B, M], targets [T, B, O], h_0 [B, ...]."""
    drawn = [cases.instance(model, jax.random.fold_in(KEY, i), gain=1.5, length=length) for i in range(BATCH)]
    stack = lambda axis: lambda *leaves: jnp.stack(leaves, axis)
    inputs, targets = (jax.tree.map(stack(1), *(one[i] for one in drawn)) for i in (1, 2))
    return drawn[0][0], inputs, targets, jax.tree.map(stack(0), *(one[3] for one in drawn))


def moving_start():
    """θ is used by step, readout and h_0: (model, data, dC/dθ by autodiff)."""
    model = cases.shared_model()._replace(initial_state=lambda params: jnp.sin(params.b_h))
    data = cases.instance(model, KEY, num_outputs=cases.N, gain=1.5)
    return model, data, jax.jit(lambda *data: gradients.autodiff(model, *data[:3])[1])(*data)
