"""The forward and backward pass of any step, in the stages that are found in its program.

Forward: the drive of all steps at once; the loop keeps the states and the pre-activations a. Backward: the reverse
scan pulls λ_t through the rest of the step to ā_t, and ā_t through the products with weights. The weights' gradients,
Σ_t ā_t v_tᵀ, are one product over all steps, and the drive is pulled for all steps at once. What θ does in another way
(a gain inside the rest) is summed in the loop.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt._jaxprs.program import Unreadable, value_of
from jaxbptt._jaxprs.stages import SLOPES, StagedStep, execute, is_inexact, needed_for, product_of, read_stages
from jaxbptt.cells.factored import Outer
from jaxbptt.gradients.clipping import Clip
from jaxbptt.types import Input, Inputs, Params, State, States, Step


class Kept(NamedTuple):
    """What the backward pass needs from K steps besides their states and inputs."""

    values: list[jax.Array]  # a, or a function of it that gives its own derivative, [K, ...] each
    read: dict[int, jax.Array]  # what the rest reads of the drive: slot -> [K, ...]


class _Cotangents(NamedTuple):
    """Of the arguments of the rest of one step."""

    state: State
    kept: list[jax.Array]
    read: dict[int, jax.Array]
    held: dict[int, jax.Array]


def stage(step: Step, params: Params, state: State, x: Input, *, batched: bool = False) -> StagedStep | Unreadable:
    """The stages of a step, where its program can be read and runs in stages; batched: of one of B side by side."""
    try:
        at = (state, x) if not batched else jax.tree.map(lambda leaf: leaf[0], (state, x))
        staged = read_stages(step, params, *at)._replace(batched=batched)
        jax.eval_shape(lambda *at: run_stages(staged, *at), params, state, jax.tree.map(lambda leaf: leaf[None], x))
    except Exception as error:  # a program may be unreadable for unforeseen reasons: the caller has the plain way
        return Unreadable(str(error))
    return staged


def run_stages(staged: StagedStep, params: Params, state: State, inputs: Inputs) -> tuple[State, States, Kept]:
    """(h_K, h_1 … h_K, what is kept)."""
    shared = _share(staged, params)
    driven = _drive(staged, shared, inputs)
    program, at_once = staged.program, {group.products[0]: group for group in staged.affine}
    joined = {first: _join(product_of(program, group), shared) for first, group in at_once.items()}
    others = {at for group in staged.affine for at in group.products[1:]}

    def advance(state, driven):
        values = _values(staged, shared, state, driven)
        for position in staged.loop:
            if position in at_once:
                group = at_once[position]
                product = product_of(program, group)
                result = product.run(joined[position], value_of(group.vector, values))
                values.update(zip(product.results, product.part(result), strict=True))
            elif position not in others:
                execute(program, (position,), values)
        return [value_of(slot, values) for slot in program.outputs], [values[slot] for slot in staged.kept]

    def body(state, driven):
        new, values = _side_by_side(staged, advance)(state, driven)
        return jax.tree.unflatten(program.structure, new), (new, values)

    length = jax.tree.leaves(inputs)[0].shape[0]  # the loop may read nothing of the drive
    last, (states, values) = jax.lax.scan(body, state, driven, length=length)
    read = {slot: driven[slot] for slot in staged.read}
    return last, jax.tree.unflatten(program.structure, states), Kept(values, read)


def pull_stages(
    staged: StagedStep,
    params: Params,
    previous: States,
    kept: Kept,
    inputs: Inputs,
    local: States,
    later: State,
    clip: Clip | None = None,
) -> tuple[Params, State]:
    """(Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t, μ_0), with λ clipped at every step if asked for."""
    program, groups = staged.program, [(group, product_of(staged.program, group)) for group in staged.affine]
    everything = _share(staged, params)
    still = {slot: value for slot, value in everything.items() if slot not in staged.of_params}
    shared, pull_shared = jax.vjp(lambda params: _moving(staged, _share(staged, params)), params)
    driven, pull_drive = jax.vjp(lambda shared: _moving(staged, _drive(staged, still | shared, inputs)), shared)
    joined = {group: _join(product, everything) for group, product in groups}

    def straighten(group, bars, values):
        """ā of a group, from the cotangents of what was kept."""
        of = {slot: at for at, slot in enumerate(staged.kept)}
        ends = zip(group.kept, group.bends, strict=True)
        return [bars[of[slot]] * (1 if bend is None else SLOPES[bend](values[of[slot]])) for slot, bend in ends]

    def pull(state, kept, read, cotangent):
        """Of the arguments of the rest of one step, from λ_t; ā in the place of what was kept."""
        at = state, kept, _moving(staged, read)
        pull_rest = functools.partial(_pull_rest, staged, everything, read, at)
        total = pull_rest(program.outputs, jax.tree.leaves(cotangent))
        for depth in sorted({group.depth for group in staged.affine}, reverse=True):
            vectors, of_vectors = [], []
            for group, product in groups:
                if group.depth == depth:
                    bars = straighten(group, total.kept, kept)
                    after = lambda results, group=group: _after(staged, group, everything, results, {})
                    results = jax.vjp(after, [_zeros(program, slot) for slot in product.results])[1](bars)[0]
                    run = lambda v, product=product, group=group: product.run(joined[group], v)
                    vectors.append(group.vector)
                    of_vectors += jax.linear_transpose(run, product.vector)(product.join_results(results))
            total = jax.tree.map(jnp.add, total, pull_rest(vectors, of_vectors))
        return total._replace(kept=[bar for group in staged.affine for bar in straighten(group, total.kept, kept)])

    def body(carry, step):
        later, of_held = carry
        at, local = step
        adjoint = jax.tree.map(jnp.add, local, later)
        found = _side_by_side(staged, pull)(*at, adjoint if clip is None else clip.of_whole(adjoint))
        held = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), found.held) if staged.batched else found.held
        earlier = found.state if clip is None else clip.of_carried(found.state)
        return (earlier, jax.tree.map(jnp.add, of_held, held)), (found.kept, found.read)

    steps = (previous, kept.values, kept.read)
    begin = later, {slot: jnp.zeros_like(shared[slot]) for slot in staged.held if slot in shared}
    (earlier, of_held), (bars, of_read) = jax.lax.scan(body, begin, (steps, local), reverse=True)

    vectors_of = lambda *at: _rest(staged, [group.vector for group in staged.affine], everything, *at)
    vectors = jax.vmap(_side_by_side(staged, vectors_of))(*steps)
    of_driven, of_shared = jax.tree.map(jnp.zeros_like, (driven, shared))
    found, leading = [*of_held.items()], jax.tree.leaves(local)[0].shape[: 1 + staged.batched]
    for (group, product), vector in zip(groups, vectors, strict=True):
        after = lambda results, driven, shared, group=group: _after(staged, group, still | shared, results, driven)
        if staged.batched:
            after = jax.vmap(after, in_axes=(0, 0, None))
        zeros = [
            jnp.broadcast_to(zero, (*leading, *zero.shape)) for zero in (_zeros(program, at) for at in product.results)
        ]
        at_cuts = [bars[staged.kept.index(slot)] for slot in group.kept]
        results, by_driven, by_shared = jax.vjp(jax.vmap(after, in_axes=(0, 0, None)), zeros, driven, shared)[1](
            at_cuts
        )
        of_driven = jax.tree.map(jnp.add, of_driven, by_driven)
        found += [*by_shared.items(), *_of_weights(staged, product, everything, vector, results)]
    of_driven |= {slot: of_driven[slot] + own for slot, own in of_read.items()}
    for slot, own in (*found, *pull_drive(of_driven)[0].items()):
        of_shared[slot] = of_shared[slot] + own
    return pull_shared(of_shared)[0], earlier


def _rest(staged, targets, shared, state, kept, read):
    """These slots of one step, from h_{t−1}, a, the drive and θ: no product with a weight is left."""
    values = _values(staged, shared, state, read)
    values.update(zip(staged.kept, kept, strict=True))
    execute(staged.program, needed_for(staged.program, staged.loop, targets, list(values)), values)
    return [value_of(slot, values) for slot in targets]


def _pull_rest(staged, shared, read, at, targets, cotangents):
    held = {slot: shared[slot] for slot in staged.held if slot in staged.of_params}
    rest = lambda state, kept, floats, held: _rest(staged, targets, shared | held, state, kept, read | floats)
    return _Cotangents(*jax.vjp(rest, *at, held)[1](cotangents))


def _after(staged, group, shared, results, driven):
    """What the rest reads of a group, from the results of its products."""
    program = staged.program
    # What is added has no part in the derivatives: anything of its shape will do where none is asked for by it.
    anything = {slot: _zeros(program, slot) for slot in staged.driven if is_inexact(program, slot)}
    values = _values(staged, shared, None, anything | driven)
    values.update(zip(product_of(program, group).results, results, strict=True))
    execute(program, group.after, values)
    return [values[slot] for slot in group.cuts]


def _of_weights(staged, product, shared, vectors, results):
    """(slot, Σ_t ā_t v_tᵀ) of each weight of a group."""
    results = product.join_results(results)
    if product.is_matrix:
        left, right = jnp.moveaxis(results, product.axis, -1), jnp.moveaxis(vectors, product.axes[1], -1)
        gradients = product.part_weights(Outer(*((left, right) if product.axes[0] == 1 else (right, left))).matrix())
    else:
        one = _side_by_side(staged, product.run, shared=1)
        run = lambda weight: jax.vmap(one, in_axes=(None, 0))(weight, vectors)
        gradients = jax.vjp(run, _join(product, shared))[1](results)
    return [(slot, each) for slot, each in zip(product.weights, gradients, strict=True) if isinstance(slot, int)]


def _side_by_side(staged, function, shared=0):
    """For each of B, all but the first `shared` arguments with a leading B; as it is where there is no batch."""
    if not staged.batched:
        return function
    return lambda *at: jax.vmap(function, in_axes=(None,) * shared + (0,) * (len(at) - shared))(*at)


def _share(staged, params):
    """The values of θ alone that the rest of the program reads: slot -> value."""
    values = dict(enumerate(jax.tree.leaves(params)))
    execute(staged.program, staged.fixed, values)
    return {slot: values[slot] for slot in staged.shared}


def _drive(staged, shared, inputs):
    """The values of all steps that read the input alone: slot -> [K, ...]."""

    def one(x):
        leaves = dict(enumerate(jax.tree.leaves(x), start=sum(staged.program.counts[:2])))
        values = _values(staged, shared, None, leaves)
        execute(staged.program, staged.drive, values, staged.first)
        return {slot: values[slot] for slot in staged.driven}

    return jax.vmap(_side_by_side(staged, one))(inputs)


def _values(staged, shared, state, driven):
    return shared | driven | dict(enumerate(jax.tree.leaves(state), start=staged.program.counts[0]))


def _join(product, shared):
    return product.join([jnp.asarray(value_of(slot, shared)) for slot in product.weights])  # constants may be NumPy's


def _zeros(program, slot):
    return jnp.zeros(program.avals[slot].shape, program.avals[slot].dtype)


def _moving(staged, values):
    return {slot: value for slot, value in values.items() if slot in staged.of_params}
