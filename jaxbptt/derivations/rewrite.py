"""One step with its value kept and its derivative changed on purpose: what a slip in a derivation computes.

`evaluate` runs a `StepProgram` with coefficients where slips happen:

    site     y = φ(a), any elementwise nonlinearity:  dy = (direct φ'(a) + identity + lagged φ'|_{y = h_{t−1}}) da
    carry    the previous state alone, where it is joined with anything else:  its derivative times `carry`; after a
             matrix W, W + turned (Wᵀ − W) takes the place of W, gate by gate
    product  A·B of a parameter's A and a state's B:  A's cotangent reads B(h_{t−1}) + shifted (B(other) − B(h_{t−1}))

Coefficients (1, 0, 0), (1, 0), 0 give the true derivative; direct = 0 freezes a gate; direct = 0 with identity = 1
forgets φ'.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbptt._jaxprs.program import Operation, value_of
from jaxbptt._jaxprs.sites import StepProgram, turned
from jaxbptt.types import ArrayLike, Input, Params, State

_SLOPES = {"tanh": lambda y: (1 - y) * (1 + y), "logistic": lambda y: y * (1 - y)}  # φ' by φ's own value


class Coefficients(NamedTuple):
    direct: ArrayLike  # [sites]
    identity: ArrayLike  # [sites]
    lagged: ArrayLike  # [sites]
    carry: ArrayLike  # [carries]
    turned: ArrayLike  # [carries]
    shifted: ArrayLike  # [products]


def neutral(program: StepProgram, dtype: Any = np.float64) -> Coefficients:
    """The coefficients of the true derivative."""
    ones, zeros = np.ones(len(program.sites), dtype), np.zeros(len(program.sites), dtype)
    carries, products = np.ones(len(program.carries), dtype), np.zeros(len(program.products), dtype)
    return Coefficients(ones, zeros, zeros, carries, 0 * carries, products)


def evaluate(
    program: StepProgram, coefficients: Coefficients, params: Params, state: State, x: Input, other: State
) -> State:
    """The step's value, exactly, with the derivative the coefficients describe; `other` is the wrong state, h_t."""
    flat = program.flat
    if flat is None:
        return program.step(params, state, x)
    values = dict(enumerate(jax.tree.leaves((params, state, x))))
    seconds = {slot: jax.lax.stop_gradient(leaf) for slot, leaf in enumerate(jax.tree.leaves((params, other, x)))}
    for position, operation in enumerate(flat.operations):
        if not operation.outputs:  # an effect, such as jax.debug.print
            continue
        inputs = [value_of(slot, values) for slot in operation.inputs]
        extras = []
        for number, (where, side) in enumerate(program.carries):
            if where == position:
                extras += _turned_extra(operation, inputs, side, coefficients.turned[number])
                inputs[side] = _with_slope(inputs[side], [(coefficients.carry[number], inputs[side])])
        results = operation.run(*inputs)
        for number, (where, side) in enumerate(program.products):
            if where == position:
                moved = value_of(operation.inputs[side], seconds) - inputs[side]
                extras.append(_shifted_extra(operation, inputs, side, moved, coefficients.shifted[number]))
        if extras:
            results = [sum(extras, results[0])]
        results = [
            _at_sites(program, coefficients, values, slot, result)
            for slot, result in zip(operation.outputs, results, strict=True)
        ]
        values.update(zip(operation.outputs, results, strict=True))
        if any(program.shifting[slot] for slot in operation.outputs):
            results = operation.run(*[value_of(slot, seconds) for slot in operation.inputs])
        seconds.update(zip(operation.outputs, map(jax.lax.stop_gradient, results), strict=True))
    return jax.tree.unflatten(flat.structure, [value_of(slot, values) for slot in flat.outputs])


def _turned_extra(operation: Operation, inputs: list[Any], side: int, coefficient: jax.Array) -> list[jax.Array]:
    """Zero, with the derivative in the state that the transposed weight adds; [] where no weight can be transposed."""
    weight = turned(operation, inputs[1 - side], side)
    if weight is None:
        return []
    pair = [jax.lax.stop_gradient(weight - inputs[1 - side])] * 2
    pair[side] = _zero(inputs[side])
    (extra,) = operation.run(*pair)
    return [coefficient.astype(extra.dtype) * extra]


def _shifted_extra(
    operation: Operation, inputs: list[Any], side: int, moved: jax.Array, coefficient: jax.Array
) -> jax.Array:
    """Zero, with the derivative in the parameter that the other state's factor adds."""
    pair = [_zero(inputs[1 - side])] * 2
    pair[side] = jax.lax.stop_gradient(moved)
    (extra,) = operation.run(*pair)
    return coefficient.astype(extra.dtype) * extra


def _at_sites(program: StepProgram, coefficients: Coefficients, values: dict, slot: int, result: Any) -> Any:
    """The value of a slot with the slope its sites' coefficients give it."""
    for number, site in enumerate(program.sites):
        if site.output != slot:
            continue
        argument = values[site.argument]
        terms = [(coefficients.direct[number], result), (coefficients.identity[number], argument)]
        if program.lag is not None and site.name in _SLOPES and argument.shape == values[program.lag].shape:
            slope = jax.lax.stop_gradient(_SLOPES[site.name](values[program.lag]))
            terms.append((coefficients.lagged[number] * slope, argument))
        result = _with_slope(result, terms)
    return result


def _with_slope(value, terms):
    """The value of `value` with the derivative Σ weight · d(term)."""
    total = jax.lax.stop_gradient(value)
    for weight, term in terms:
        total = total + weight.astype(term.dtype) * _zero(term)
    return total


def _zero(value):
    """Zero, with the derivative of `value`."""
    return value - jax.lax.stop_gradient(value)
