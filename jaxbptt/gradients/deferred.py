"""Any step with its weight gradients taken out of the loop: its products of weights with data are found in its program.

A step's program splits into what depends on θ alone and what reads the state or the input. Where a value of the first
kind meets one of the second in a matrix product, z = A(θ) v, the loop is differentiated in a kick to z in place of A:
dC/dz_t comes out of the reverse scan, and dC/dA = Σ_t dC/dz_t v_tᵀ is one product over all steps. What else depends on
θ alone (biases, time constants) is differentiated through the loop as usual.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt.program import Constant, FlatProgram, bind, read_program


class _Product(NamedTuple):
    """z = A v: the operation, and which of its two operands is A."""

    operation: int
    side: int


class DeferredStep(NamedTuple):
    program: FlatProgram
    of_data: tuple[bool, ...]  # per slot: depends on the state or the input
    products: tuple[_Product, ...]
    weights: tuple[int, ...]  # per product, A's slot
    others: tuple[int, ...]  # slots that depend on θ alone and are used with data otherwise


def read_step(step: Any, params: Any, state: Any, x: Any) -> DeferredStep:
    """Find the products of `step`."""
    program = read_program(step, params, state, x)
    of_data = [slot >= program.counts[0] for slot in range(len(program.shapes))]
    for operation in program.operations:
        read = any(of_data[slot] for slot in operation.inputs if isinstance(slot, int))
        for slot in operation.outputs:
            of_data[slot] = read
    products, weights, others = [], [], []
    for position, operation in enumerate(program.operations):
        fixed = [side for side, slot in enumerate(operation.inputs) if isinstance(slot, int) and not of_data[slot]]
        if not any(of_data[slot] for slot in operation.outputs):
            continue
        if operation.equation.primitive.name == "dot_general" and len(fixed) == 1 and _unbatched(operation.equation):
            products.append(_Product(position, fixed[0]))
            weights.append(operation.inputs[fixed[0]])
        else:
            others += [operation.inputs[side] for side in fixed]
    others += [slot for slot in program.outputs if isinstance(slot, int) and not of_data[slot]]
    return DeferredStep(program, tuple(of_data), tuple(products), tuple(weights), tuple(dict.fromkeys(others)))


def run_deferred(step: Any, params: Any, state: Any, inputs: Any):
    """(h_1 … h_T, its pullback (∂C/∂h_t|o_t, μ_T) -> (Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t, μ_0))."""
    form = read_step(step, params, state, jax.tree.map(lambda leaf: leaf[0], inputs))
    (weights, others), pull_fixed = jax.vjp(lambda params: _fixed(form, params), params)
    length = jax.tree.leaves(inputs)[0].shape[0]
    equations = [form.program.operations[product.operation].equation for product in form.products]
    kicks = [jnp.zeros((length, *e.outvars[0].aval.shape), e.outvars[0].aval.dtype) for e in equations]

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
        for weight, product, equation, vector, z in zip(weights, form.products, equations, vectors, moved, strict=True):

            def all_steps(weight, product=product, equation=equation, vector=vector):
                pair = lambda v: (weight, v) if product.side == 0 else (v, weight)  # noqa: E731
                return jax.vmap(lambda v: bind(equation, pair(v))[0])(vector)

            gradients.append(jax.vjp(all_steps, weight)[1](z)[0])
        return pull_fixed((gradients, others_gradient))[0], earlier

    return states, pull_all


def _fixed(form, params):
    """(A of each product, the other values that depend on θ alone)."""
    values = dict(enumerate(jax.tree.leaves(params)))
    for operation in form.program.operations:
        if not any(form.of_data[slot] for slot in operation.outputs):
            results = bind(operation.equation, [_value(slot, values) for slot in operation.inputs])
            values.update(zip(operation.outputs, results, strict=True))
    return [values[slot] for slot in form.weights], [values[slot] for slot in form.others]


def _advance(form, weights, others, state, x, kicks):
    """(h_t, v of each product), each product kicked."""
    values = dict(zip(form.others, others, strict=True))
    values.update(enumerate(jax.tree.leaves((state, x)), start=form.program.counts[0]))
    number, vectors = {product.operation: i for i, product in enumerate(form.products)}, []
    for position, operation in enumerate(form.program.operations):
        if not any(form.of_data[slot] for slot in operation.outputs):
            continue
        if position in number:
            i = number[position]
            side = form.products[i].side
            vector = _value(operation.inputs[1 - side], values)
            pair = (weights[i], vector) if side == 0 else (vector, weights[i])
            results = [bind(operation.equation, pair)[0] + kicks[i]]
            vectors.append(vector)
        else:
            results = bind(operation.equation, [_value(slot, values) for slot in operation.inputs])
        values.update(zip(operation.outputs, results, strict=True))
    return form.program.structure.unflatten([_value(slot, values) for slot in form.program.outputs]), vectors


def _value(slot, values):
    return slot.value if isinstance(slot, Constant) else values[slot]


def _unbatched(equation):
    return not equation.params["dimension_numbers"][1][0]
