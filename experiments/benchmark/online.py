"""The exact online gradient: `online.rtrl` against braintrace's SnAp, which on one dense layer keeps all of A_t."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxbptt import online
from jaxbptt.cells import ElmanParams
from jaxbptt.models import SequenceParams

from .cases import make_case
from .timing import Contestant, race

STEPS, UNITS = 128, (32, 64)  # A_t is [N, N(N + M + 1)]
TOLERANCE = 1e-3


def online_rows(config: Any, progress: Callable) -> Iterator[dict]:
    """Σ_t g_t over a sequence at fixed params, tanh, float32."""
    for units in sorted({min(n, max(config.sizes)) for n in UNITS}):
        case = make_case("tanh", min(STEPS, max(config.lengths)), units)
        progress(f"online: T {case.length}, N {units}")
        makers = [(name, partial(make, case)) for name, make in CONTESTANTS.items()]
        for row in race(makers, seconds=config.seconds, tolerance=TOLERANCE):
            yield {"suite": "online", **case.label(), **row}


def _rtrl(case):
    rule = online.rtrl()
    function = lambda params, inputs, targets: online.run(rule, case.model, params, inputs, targets)
    return Contestant(function, (case.params, case.inputs, case.targets), note="online.rtrl")


def _braintrace(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces which sparsity it could not prove; the result is compared
        return _make_snap(case)


def _make_snap(case):
    import brainstate
    import braintrace

    cell = braintrace.nn.ValinaRNNCell(case.units, case.units, activation="tanh")
    learner = braintrace.compile(cell, braintrace.SnAp, case.inputs[0], n=2)
    ours, readout = case.params
    recurrent = {"weight": jnp.concatenate([ours.w_hx.T, ours.w_hh.T]), "bias": ours.b_h}
    learner.param_states["W", "weight"].value = recurrent
    outputs = brainstate.ParamState(readout)  # outside of the learner, which gives weights after the state no gradient

    def step_loss(x, target):
        return jnp.sum((outputs.value.w_yh @ learner(x) + outputs.value.b_y - target) ** 2) / 2

    @brainstate.transform.jit
    def gradient(inputs, targets):
        brainstate.nn.reset_all_states(cell)
        learner.reset_state()
        options = {"reduction": "sum", "return_value": True, "loss_output": "scalar"}
        weights = {**learner.param_states, ("readout",): outputs}
        return learner.etrace_grad(inputs, targets, step_fn=step_loss, weights=weights, **options)

    def convert(result):
        grads, loss = result
        recurrent = grads["W", "weight"]
        w_hx, w_hh = jnp.split(recurrent["weight"].T, 2, axis=1)
        return loss, SequenceParams(ElmanParams(w_hx, w_hh, recurrent["bias"]), grads["readout",])

    finished = lambda *data: jax.block_until_ready(gradient(*data))
    return Contestant(finished, (case.inputs, case.targets), convert, traced=False, note="SnAp, jitted by brainstate")


CONTESTANTS = {"jaxbptt": _rtrl, "braintrace": _braintrace}
