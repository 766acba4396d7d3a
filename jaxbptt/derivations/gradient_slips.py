"""A whole gradient dC/dθ with something wrong, computed: the parts that BPTT adds, each under its own slip."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt._jaxprs.sites import StepProgram, find_sites
from jaxbptt._jaxprs.text import key_of_program
from jaxbptt.derivations import recursions
from jaxbptt.derivations.compiled import map_many, map_one, map_rows
from jaxbptt.derivations.recursions import Carried
from jaxbptt.derivations.rewrite import as_dtype, evaluate, neutral, without_slopes
from jaxbptt.derivations.step_slips import named_leaves
from jaxbptt.derivations.variants import TRUE, Names, Variant, name_places, stack, step_variants
from jaxbptt.gradients.forward import ForwardPass, add_penalty, join_early, run_forward
from jaxbptt.models.model import READS, Model, reduction_weight, step_losses
from jaxbptt.partials import jacobian, vjp
from jaxbptt.trajectories import flatten_steps
from jaxbptt.types import Inputs, Params, Targets


class Instance(NamedTuple):
    """A model at the point where its gradient is checked."""

    model: Model
    key: Hashable  # tells its programs from others
    program: StepProgram
    readout: StepProgram  # the readout as a step whose input is (x_t, h_{t−1}), or what it reads of them
    names: Names
    params: Params
    targets: Targets
    forward: ForwardPass
    local: np.ndarray  # [T, N] ∂C/∂h_t through the outputs
    early: np.ndarray  # [N] ∂C/∂h_0 through the outputs


class Row(NamedTuple):
    """One wrong gradient: Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t + (∂h_0/∂θ)ᵀ μ_0 + the readout's direct part."""

    slip: str
    note: str
    carried: Carried  # λ [T, N] and μ_0 [N]
    variant: Variant = TRUE  # of the step, for ∂⁺h_t/∂⁺θ
    factor: float = 1  # of the direct part
    direct: int = 0  # which direct part: 0 that of all losses, K that of the last K, then the readout's slips


class Reading(NamedTuple):
    """A slip of the readout's derivative, and what it passes back."""

    variant: Variant
    local: np.ndarray  # [T, N]
    direct: dict[str, np.ndarray]


def key_of(model: Model, params: Params, inputs: Inputs, targets: Targets) -> Hashable:
    """Tells the programs of this model at arguments like these from all others; None: it cannot be told."""

    def total(params, inputs, targets):
        return run_forward(model, params, inputs, targets).loss

    functions = model.initial_state, model.step, model.readout, model.loss, model.reduction, model.penalty
    return key_of_program(functions, total, params, inputs, targets)


def make_instance(model: Model, params: Params, inputs: Inputs, targets: Targets, key: Hashable) -> Instance:
    """Run the model forward and read the programs of its step and of its readout."""

    def body(_, row):
        return run_forward(model, *row)

    forward = map_one(key and ("forward", key), body, jax.tree.map(jnp.asarray, (params, inputs, targets)))
    state, x = forward.trajectory.initial, jax.tree.map(lambda leaf: leaf[0], inputs)
    program = find_sites(model.step, params, state, x)
    seen = (x, state)[: READS.index(model.reads)]
    readout = find_sites(lambda params, state, seen: model.readout(params, state, *seen), params, state, seen)
    local, early = _through_outputs(forward.local, forward.early)
    names = name_places(program, params, state)
    return Instance(model, key, program, readout, names, params, targets, forward, local, early)


def _through_outputs(local, early):
    """(∂C/∂h_t [T, N], ∂C/∂h_0 [N]) through the outputs that read them."""
    local, first = join_early(local, early)
    local = np.asarray(flatten_steps(local), np.float64)
    return local, np.zeros_like(local[0]) if first is None else np.asarray(ravel_pytree(first)[0], np.float64)


def rounding_scale(instance: Instance) -> dict[str, float]:
    """The size of each leaf against which rounding is judged: |λ| carried by |J|, with absolute values throughout.

    φ' is also taken as 1 once, because where φ is nearly 1 the rounding of 1 − φ² is that of a number near 1.
    """
    program, key, shared = instance.program, instance.key, _shared(instance)
    both = [neutral(program, instance.params), without_slopes(program, instance.params, direct=0)]

    def chains(shared, _):
        return [_jacobians(program, each, False, *shared) for each in both]

    def pulls(shared, row):
        return [_pull_back(instance, each, False, shared, *row) for each in both]

    found = map_rows(key and ("|J|", key), chains, shared, np.zeros(1))
    true, plain = (np.abs(np.asarray(each[0], np.float64)) for each in found)
    drive = np.abs(instance.local)
    later = recursions.adjoints(true, drive).adjoints[1:]
    drive[:-1] += (later[:, None, :] @ plain[1:])[:, 0]
    row = [as_dtype(each[None], instance.params) for each in recursions.adjoints(true, drive)]
    pulled = map_rows(key and ("|pull|", key), pulls, shared, row)
    sizes = [
        {name: np.max(np.abs(leaf), initial=0) for name, leaf in _numbers(part).items()}
        for part in (instance.forward.direct, *(part for each in pulled for part in each))
    ]
    direct, recurrent, initial = sizes[0], sizes[1::2], sizes[2::2]
    return {name: direct[name] + max(e[name] for e in recurrent) + max(e[name] for e in initial) for name in direct}


def evaluate_rows(instance: Instance, directs: Sequence[dict[str, np.ndarray]], rows: list[Row]) -> dict:
    """{leaf: [R, 1, ...]} of R rows."""
    adjoints, initial = (np.stack(each) for each in zip(*(row.carried for row in rows), strict=True))
    carried = [as_dtype(each, instance.params) for each in (adjoints, initial + instance.early)]
    coefficients, shift = stack(instance.program, [row.variant for row in rows], instance.params)

    def body(shared, row):
        return _pull_back(instance, row[2], row[3], shared, row[0], row[1])

    key = instance.key and ("pull", instance.key)
    pulled = map_many(key, body, _shared(instance), (*carried, coefficients, shift))
    recurrent, of_initial = map(_numbers, pulled)
    total = {}
    for name in recurrent:
        direct = np.stack([row.factor * directs[row.direct][name] for row in rows])
        total[name] = (recurrent[name] + of_initial[name] + direct)[:, None]
    return total


def chains_of(instance: Instance, variants: list[Variant]) -> np.ndarray:
    """J_t of every variant, [variants, T, N, N]."""

    def body(shared, row):
        return _jacobians(instance.program, *row, *shared)

    rows = stack(instance.program, variants, instance.params)
    return np.asarray(map_many(instance.key and ("J", instance.key), body, _shared(instance), rows), np.float64)


def direct_parts(instance: Instance) -> list[dict[str, np.ndarray]]:
    """Σ_t (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t of all losses, then of the last 1 … T − 1; each with the penalty's gradient."""
    model, length = instance.model, len(instance.local)

    def body(shared, weights):
        params, previous, inputs, states, targets = shared
        losses = lambda params: step_losses(model, params, states, targets, inputs=inputs, previous=previous)
        direct = vjp(losses, params)[1](weights * reduction_weight(model, length, weights.dtype))
        return add_penalty(model, params, jnp.zeros(()), direct)[1]

    last = np.arange(length) >= length - np.arange(1, length + 1)[:, None]  # [K − 1, t]
    key = instance.key and ("direct", instance.key)
    found = map_many(key, body, (*_shared(instance), instance.targets), as_dtype(last, instance.params))
    each = [{name: leaf[k, ...] for name, leaf in _numbers(found).items()} for k in range(length)]
    return [each[-1], *each[:-1]]


def readings_of(instance: Instance) -> list[Reading]:
    """The slips of the readout's derivative at its nonlinearities."""
    model, length = instance.model, len(instance.local)
    kinds = ("missing_activation_derivative", "activated_value", "squared_complement")
    state = instance.forward.trajectory.initial
    variants = step_variants(instance.readout, name_places(instance.readout, instance.params, state))
    variants = [variant for variant in variants if variant.slip in kinds]
    if not variants:
        return []

    def body(shared, row):
        params, previous, inputs, states, targets = shared

        def total(params, states, previous):
            def loss(state, target, x, before):
                seen = (x, before)[: READS.index(model.reads)]
                return model.loss(evaluate(instance.readout, row[0], params, state, seen, state), target)

            losses = jax.vmap(loss)(states, targets, inputs, previous)
            return jnp.sum(losses) * reduction_weight(model, length, losses.dtype)

        pulled = vjp(lambda at: total(*at), (params, states, previous))[1](jnp.ones((), row[1].dtype))
        direct, local, early = pulled
        return add_penalty(model, params, jnp.zeros(()), direct)[1], flatten_steps(join_early(local, early)[0])

    ones = as_dtype(np.ones(len(variants)), instance.params)
    rows = stack(instance.readout, variants, instance.params)[0], ones
    shared = *_shared(instance), instance.targets
    direct, local = map_many(instance.key and ("readout", instance.key), body, shared, rows)
    numbers = _numbers(direct)
    return [
        Reading(
            variant._replace(note=f"{variant.note} in the readout"),
            np.asarray(local[k], np.float64),
            {name: leaf[k] for name, leaf in numbers.items()},
        )
        for k, variant in enumerate(variants)
    ]


def _shared(instance):
    trajectory = instance.forward.trajectory
    return instance.params, trajectory.previous, trajectory.inputs, trajectory.states


def _jacobians(program, coefficients, shift, params, previous, inputs, states):
    """J_t of all steps, [T, N, N]."""

    def at_step(state, x, after):
        flat, unravel = ravel_pytree(state)
        after = ravel_pytree(after)[0]
        start, other = jnp.where(shift, after, flat), unravel(jnp.where(shift, flat, after))
        return jacobian(lambda h: ravel_pytree(evaluate(program, coefficients, params, unravel(h), x, other))[0], start)

    return jax.vmap(at_step)(previous, inputs, states)


def _pull_back(instance, coefficients, shift, shared, adjoints, initial):
    """(Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t, (∂h_0/∂θ)ᵀ μ_0)."""
    params, previous, inputs, states = shared
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], previous))[1]

    def step(params, state, x, after):
        pick = lambda a, b: jax.tree.map(lambda a, b: jnp.where(shift, a, b), a, b)
        return evaluate(instance.program, coefficients, params, pick(after, state), x, pick(state, after))

    all_steps = lambda params: jax.vmap(lambda *at: step(params, *at))(previous, inputs, states)
    recurrent = vjp(all_steps, params)[1](jax.vmap(unravel)(adjoints))
    return recurrent, vjp(instance.model.initial_state, params)[1](unravel(initial))


def _numbers(tree: Any) -> dict[str, np.ndarray]:
    """{"params.<leaf>": float64 array}."""
    return {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(tree).items()}
