"""The gradients of weights formed outside the loop, for any step: its products with weights are found in its program.

The values in a step's program depend on θ alone, or read the state or the input. Where a matrix product joins one of
each, z = A(θ) v, the loop is differentiated in a zero that is added to z (a kick) and not in A: the reverse scan gives
dC/dz_t, and dC/dA = Σ_t dC/dz_t v_tᵀ is one product over all steps. Other values that depend on θ alone (biases, time
constants) are differentiated through the loop as usual.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt._jaxprs.program import FlatProgram, Operation, Unreadable, depends, read_program, reads_any, value_of
from jaxbptt.types import Input, Inputs, Params, State, States, Step


class _Product(NamedTuple):
    """z = A v: the operation, and which of its two operands is A."""

    operation: int
    side: int


class DeferredStep(NamedTuple):
    program: FlatProgram
    in_loop: tuple[bool, ...]  # per operation: reads the state or the input
    products: tuple[_Product, ...]
    weights: tuple[int, ...]  # per product, A's slot
    others: tuple[int, ...]  # slots that depend on θ alone and meet data in another way


class DeferredRun(NamedTuple):
    states: States  # h_1 … h_T
    pull: Callable[[States, State], tuple[Params, State]]  # (∂C/∂h_t|o_t, μ_T) -> (Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t, μ_0)


def read_step(step: Step, params: Params, state: State, x: Input) -> DeferredStep:
    """Find the products of `step`."""
    program = read_program(step, params, state, x)
    first = program.counts[0]
    of_data = depends(program, range(first, sum(program.counts)))
    in_loop = tuple(reads_any(operation, of_data) for operation in program.operations)
    products: list[_Product] = []
    weights: list[int] = []
    others: list[int] = []
    for position, operation in enumerate(program.operations):
        if not in_loop[position]:
            continue
        operands = enumerate(operation.inputs)
        fixed = {side: slot for side, slot in operands if isinstance(slot, int) and not of_data[slot]}
        if operation.name == "dot_general" and len(fixed) == 1 and _unbatched(operation):
            ((side, slot),) = fixed.items()
            products.append(_Product(position, side))
            weights.append(slot)
        else:
            others += fixed.values()
    others += [slot for slot in program.outputs if isinstance(slot, int) and not of_data[slot]]
    return DeferredStep(program, in_loop, tuple(products), tuple(weights), tuple(dict.fromkeys(others)))


def run_deferred(step: Step, params: Params, state: State, inputs: Inputs) -> DeferredRun | Unreadable:
    """The forward pass, with a pullback that forms the weights' gradients outside the loop."""
    try:
        form = read_step(step, params, state, jax.tree.map(lambda leaf: leaf[0], inputs))
        return _run(form, params, state, inputs)
    except Exception as error:  # a program may be unreadable for unforeseen reasons: the caller has the plain way
        return Unreadable(str(error))


def _run(form: DeferredStep, params: Params, state: State, inputs: Inputs) -> DeferredRun:
    (weights, others), pull_fixed = jax.vjp(lambda params: _fixed(form, params), params)
    length = jax.tree.leaves(inputs)[0].shape[0]
    operations = [form.program.operations[product.operation] for product in form.products]
    results = [form.program.avals[operation.outputs[0]] for operation in operations]
    kicks = [jnp.zeros((length, *aval.shape), aval.dtype) for aval in results]

    def unrolled(kicks, others, state):
        def body(state, x_and_kicks):
            state, vectors = _advance(form, weights, others, state, *x_and_kicks)
            return state, (state, vectors)

        last, (states, vectors) = jax.lax.scan(body, state, (inputs, kicks))
        return (states, last), vectors

    (states, _), pull, vectors = jax.vjp(unrolled, kicks, others, state, has_aux=True)

    def pull_all(local, later):
        moved, others_gradient, earlier = pull((local, later))
        gradients = []
        for weight, product, operation, vector, z in zip(
            weights, form.products, operations, vectors, moved, strict=True
        ):

            def all_steps(weight, product=product, operation=operation, vector=vector):
                return jax.vmap(lambda v: operation.run(*_in_order(product, weight, v))[0])(vector)

            gradients.append(jax.vjp(all_steps, weight)[1](z)[0])
        return pull_fixed((gradients, others_gradient))[0], earlier

    return DeferredRun(states, pull_all)


def _in_order(product, weight, vector):
    return (weight, vector) if product.side == 0 else (vector, weight)


def _fixed(form, params):
    """(A of each product, the other values that depend on θ alone)."""
    values = dict(enumerate(jax.tree.leaves(params)))
    for operation, in_loop in zip(form.program.operations, form.in_loop, strict=True):
        if not in_loop:
            results = operation.run(*[value_of(slot, values) for slot in operation.inputs])
            values.update(zip(operation.outputs, results, strict=True))
    return [values[slot] for slot in form.weights], [values[slot] for slot in form.others]


def _advance(form, weights, others, state, x, kicks):
    """(h_t, v of each product), with its kick added to each product."""
    values = dict(zip(form.others, others, strict=True))
    values.update(enumerate(jax.tree.leaves((state, x)), start=form.program.counts[0]))
    number, vectors = {product.operation: i for i, product in enumerate(form.products)}, []
    for position, operation in enumerate(form.program.operations):
        if not form.in_loop[position]:
            continue
        if position in number:
            i = number[position]
            product = form.products[i]
            vector = value_of(operation.inputs[1 - product.side], values)
            results = [operation.run(*_in_order(product, weights[i], vector))[0] + kicks[i]]
            vectors.append(vector)
        else:
            results = operation.run(*[value_of(slot, values) for slot in operation.inputs])
        values.update(zip(operation.outputs, results, strict=True))
    results = [value_of(slot, values) for slot in form.program.outputs]
    return jax.tree.unflatten(form.program.structure, results), vectors


def _unbatched(operation: Operation) -> bool:
    return not operation.equation.params["dimension_numbers"][1][0]
