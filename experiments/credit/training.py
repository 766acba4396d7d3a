"""Learning a stream step by step, by every gradient and optimiser, at every rate."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxbptt import cells, gradients, online
from jaxbptt.models import Model, sequence_model, step_losses
from jaxbptt.trajectories import unroll

GAIN = 1.0  # of the recurrent weights at the start
DECAY = 0.95  # of the eligibility trace that the paper calls standard
BETA, EPSILON = 0.999, 1e-8
WINDOW, WHOLE = 10, 100  # steps of TBPTT, of BPTT
RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
OPTIMISERS = {
    "SGD": optax.identity(),
    "RMSprop": optax.scale_by_rms(BETA, EPSILON, eps_in_sqrt=False, bias_correction=True),  # Adam without momentum
    "Adam": optax.scale_by_adam(b2=BETA, eps=EPSILON),
}


class Method(NamedTuple):
    """Where a gradient comes from: an online rule, or BPTT over windows with the state carried."""

    rule: online.Rule | None = None
    window: int = 1  # steps an update
    reach: str = ""  # of one loss, in steps back


READOUT = "readout alone"
METHODS = {
    READOUT: Method(online.rflo(), reach="none"),
    "immediate": Method(online.rflo(), reach="this step"),  # of an Elman net, which has no leak: ∂⁺h_t/∂⁺θ alone
    "RFLO": Method(online.rflo(leak=DECAY), reach="fades by .95"),
    "SnAp-1": Method(online.snap(1), reach="own weight"),
    "UORO": Method(online.uoro(), reach="all, noisy"),
    "TBPTT": Method(window=WINDOW, reach=f"up to {WINDOW - 1} back"),
    "BPTT": Method(window=WHOLE, reach=f"up to {WHOLE - 1} back"),
    "RTRL": Method(online.rtrl(), reach="all"),
}


class Found(NamedTuple):
    """One training: losses, and where it stood at the shift."""

    curve: jax.Array  # [B] mean losses of B stretches of WHOLE steps
    frozen: jax.Array  # [B/2] of the stretches after the shift, of the net as it was at the shift
    params: Any  # at the shift
    state: Any  # h at the shift


def make_net(hidden: int) -> Model:
    """An Elman net of N = hidden units that sees one number and answers with one, L_t = ½ error²."""
    return sequence_model(cells.elman(1, hidden, recurrent=cells.gaussian(GAIN)), 1)


def make_learner(name: str, model: Model, params: Any) -> Callable:
    """(params, inputs [T, 1], targets [T, 1], rate, optimiser's index, key) -> Found, for T a multiple of 2 WHOLE.

    An online rule moves the params at every step by the gradient of that step's loss; BPTT at the end of every window,
    by the sum of its steps' gradients, so that SGD moves as far a step of data; the others move once a window. The
    rule's sensitivities stay as they are when params move.

    Args:
      name: of METHODS.
      model: `make_net`'s.
      params: any, for shapes and patterns; h_0 = 0 and Â_0 = 0 whatever they are.
    """
    method = METHODS[name]
    start = (
        model.initial_state(params) if method.rule is None else method.rule.init(model, params, key=jax.random.key(0))
    )
    optimisers = list(OPTIMISERS.values())

    def measure(params, memory, inputs, targets):
        """(memory, losses [K], gradient) of one window."""
        if method.rule is not None:
            memory, loss, grads = method.rule.update(params, memory, inputs[0], targets[0])
            if name == READOUT:
                grads = grads._replace(cell=jax.tree.map(jnp.zeros_like, grads.cell))
            return memory, loss[None], grads
        states = unroll(model, params, inputs, initial=memory).states
        grads = gradients.bptt(model, params, inputs, targets, initial=memory)[1]
        return states[-1], step_losses(model, params, states, targets), grads

    def learn(params, inputs, targets, rate, chosen, key):
        def move(carry, window):
            params, memory, moments = carry
            memory, losses, grads = measure(params, memory, *window)
            every = [step.update(grads, now, params) for step, now in zip(optimisers, moments, strict=True)]
            moves, moments = zip(*every, strict=True)
            pick = lambda *leaves: jax.lax.select_n(chosen, *leaves)
            params = jax.tree.map(lambda leaf, *way: leaf - rate * pick(*way), params, *moves)
            return (params, memory, moments), losses

        def stretch(carry, window):
            carry, losses = jax.lax.scan(move, carry, window)
            return carry, jnp.mean(losses)

        def half(carry, stretches):
            carry, curve = jax.lax.scan(stretch, carry, stretches)
            return carry, (curve, carry[0], carry[1] if method.rule is None else carry[1].model_state)

        middle = len(inputs) // 2
        cut = lambda values: values.reshape(2, middle // WHOLE, WHOLE // method.window, method.window, 1)
        memory = start
        if method.rule is not None and start.key is not None:
            memory = dataclasses.replace(start, key=key)
        carry = params, memory, tuple(step.init(params) for step in optimisers)
        curves, *ends = jax.lax.scan(half, carry, (cut(inputs), cut(targets)))[1]
        params, state = jax.tree.map(lambda leaf: leaf[0], ends)
        states = unroll(model, params, inputs[middle:], initial=state).states
        frozen = step_losses(model, params, states, targets[middle:]).reshape(-1, WHOLE).mean(axis=1)
        return Found(curves.ravel(), frozen, params, state)

    return learn
