"""A program that takes all of its routes at once, so that its derivative at one point shows every path there is.

At a point, the derivative of a program is made of the value and the slope that each of its operations has there. What a
run decides by its numbers (a branch, an index, an order, a side of a kink, a mask) is replaced by a random mixture of
all it can decide, and an operation that cannot be read by random slopes throughout. A run is the mixture with one share
1 and the others 0, and the derivative is a rational function of the shares: if it is not zero in some run, at any
arguments, then it is not zero for random shares either. What does not depend on the arguments, such as a constant mask,
stays as it is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxbptt._jaxprs.mixtures import (
    ELEMENTWISE,
    Shares,
    bounded,
    depend_on_all,
    is_float,
    mixed,
    operand_avals,
    result_avals,
    typed,
)
from jaxbptt._jaxprs.program import FlatProgram, Operation, depends, read_program, reads_any, value_of

CUSTOM = frozenset(("custom_jvp_call", "custom_vjp_call"))


class Varying(NamedTuple):
    """What depends on the arguments: numbers drawn for it, or None where it has no derivative (ints, bools, keys)."""

    value: Any


def relax(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """relaxed(phase, *drawn): `function` with every route taken at once.

    Args:
      function: a traceable function; its results are floats.
      *arguments: pytrees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      A function of a float scalar, which draws the mixtures, and of trees like the arguments. Where an argument is no
      float (ints, bools, keys), all of its values count, and what stands in `drawn` is not looked at.
    """
    program = read_program(function, *arguments)
    structures: list[Any] = [jax.tree.structure(argument) for argument in arguments]

    def relaxed(phase, *drawn):
        leaves = [leaf for s, tree in zip(structures, drawn, strict=True) for leaf in s.flatten_up_to(tree)]
        avals = program.avals[: len(leaves)]
        varying = [Varying(leaf if is_float(aval) else None) for leaf, aval in zip(leaves, avals, strict=True)]
        results = _interpret(program, varying, Shares(phase, np.random.default_rng(0)))
        return program.structure.unflatten([r.value if isinstance(r, Varying) else r for r in results])

    return relaxed


def _interpret(program: FlatProgram, arguments: Sequence[Any], shares: Shares) -> list[Any]:
    """Run the operations on values that are `Varying`, or plain: not dependent on the arguments of `relax`."""
    values = dict(enumerate(arguments))
    for operation in program.operations:
        if operation.outputs:  # otherwise an effect, such as a print
            operands = [value_of(slot, values) for slot in operation.inputs]
            values.update(zip(operation.outputs, _apply(operation, operands, shares), strict=True))
    return [value_of(slot, values) for slot in program.outputs]


def _apply(operation: Operation, operands: Sequence[Any], shares: Shares) -> Sequence[Any]:
    if not any(isinstance(operand, Varying) for operand in operands):
        return operation.run(*operands)
    if not any(map(is_float, result_avals(operation))):
        return [Varying(None)] * len(operation.outputs)
    if operation.name in WITH_PROGRAMS:
        return WITH_PROGRAMS[operation.name](operation, operands, shares)
    return _apply_rule(mixed, operation, operands, shares)


def _apply_rule(rule, operation, operands, shares):
    avals = operand_avals(operation)
    values = [o.value if isinstance(o, Varying) else bounded(o, a) for o, a in zip(operands, avals, strict=True)]
    results = zip(rule(operation, values, shares), result_avals(operation), strict=True)
    return [Varying(result.astype(aval.dtype) if is_float(aval) else None) for result, aval in results]


def _vary(values: Sequence[Any], avals: Sequence[Any]) -> list[Varying]:
    """As if all of them varied."""
    plain = lambda value, aval: Varying(bounded(value, aval) if is_float(aval) else None)
    return [v if isinstance(v, Varying) else plain(v, aval) for v, aval in zip(values, avals, strict=True)]


# Operations with programs inside: (operation, operands, shares) -> results.


def _read_inner(program: Any) -> FlatProgram:
    closed = program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())
    return read_program(jaxpr_as_fun(closed), *[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals])


def _open(operation, operands, shares):
    return _interpret(_read_inner(operation.equation.params["jaxpr"]), operands, shares)


def _scan(operation, operands, shares):
    params = operation.equation.params
    body = _read_inner(params["jaxpr"])
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    varies = [isinstance(operand, Varying) for operand in operands]
    while True:  # until no more of the carry varies
        found = depends(body, [slot for slot, one in enumerate(varies) if one])
        new = [isinstance(slot, int) and found[slot] for slot in body.outputs[: last - first]]
        carried = [a or b for a, b in zip(varies[first:last], new, strict=True)]
        if carried == varies[first:last]:
            break
        varies[first:last] = carried

    def lift(carry):
        avals = body.avals[first:last]
        plain = [
            value if isinstance(value, Varying) else typed(value, a) for value, a in zip(carry, avals, strict=True)
        ]
        return [v if one else p for v, p, one in zip(_vary(carry, avals), plain, carried, strict=True)]

    def step(carry, scanned):
        phase, xs = scanned
        results = _interpret(body, [*operands[:first], *carry, *xs], shares.within(phase))
        return lift(results[: last - first]), results[last - first :]

    phases = jnp.asarray(shares.generator.uniform(1, 2) * np.arange(params["length"]), shares.phase.dtype)
    xs = (phases, operands[last:])
    carry, ys = jax.lax.scan(step, lift(operands[first:last]), xs, params["length"], params["reverse"])
    return [*carry, *ys]


def _cond(operation, operands, shares):
    index, *operands = operands
    branches = [_read_inner(branch) for branch in operation.equation.params["branches"]]
    avals = result_avals(operation)
    take = lambda branch, operands: _vary(_interpret(branch, operands, shares), avals)
    if not isinstance(index, Varying):
        return jax.lax.switch(index, [functools.partial(take, branch) for branch in branches], operands)
    taken = zip(*[take(branch, operands) for branch in branches], strict=True)
    return [
        Varying(shares.mix([one.value for one in each], aval) if is_float(aval) else None)
        for each, aval in zip(taken, avals, strict=True)
    ]


def _custom(operation, operands, shares):
    """A function with its own derivative rule: any slopes, entry by entry if function and rule are elementwise."""
    avals = result_avals(operation)
    if not _is_elementwise(operation, [isinstance(operand, Varying) for operand in operands]):
        return _apply_rule(depend_on_all, operation, operands, shares)
    results = _vary(_interpret(_read_inner(operation.equation.params["call_jaxpr"]), operands, shares), avals)
    floats = [operand.value for operand in operands if isinstance(operand, Varying) and operand.value is not None]
    slopes = lambda: sum(shares.like(x) * x for x in floats) / 2
    return [Varying(jax.lax.stop_gradient(result.value) + slopes()) for result in results]


def _is_elementwise(operation: Operation, varies: Sequence[bool]) -> bool:
    """Whether value and pullback are elementwise in the operands that vary, all of one shape."""
    avals, results = operand_avals(operation), result_avals(operation)
    places = [i for i, aval in enumerate(avals) if varies[i] and is_float(aval)]

    def pull(operands, cotangents):
        def call(*floats):
            chosen = dict(zip(places, floats, strict=True))
            return operation.run(*[chosen.get(i, operand) for i, operand in enumerate(operands)])

        value, pulled = jax.vjp(call, *[operands[i] for i in places])
        return value, pulled(cotangents)

    try:
        program = read_program(pull, avals, results)
        return _keeps_entries(program, [*varies, *[True] * len(results)], results[0].shape)
    except Exception:  # it has no reverse rule, or cannot be read
        return False


def _keeps_entries(program: FlatProgram, varies: Sequence[bool], shape: tuple[int, ...]) -> bool:
    """Whether all that is done with the arguments that vary is elementwise on arrays of this shape."""
    found = depends(program, [slot for slot, one in enumerate(varies) if one])
    for operation in program.operations:
        if not reads_any(operation, found):
            continue
        touched = [slot for slot in (*operation.inputs, *operation.outputs) if isinstance(slot, int) and found[slot]]
        if any(program.avals[slot].shape != shape for slot in touched):
            return False
        if operation.name in CUSTOM:  # one that is not differentiated
            inner = _read_inner(operation.equation.params["call_jaxpr"])
            if not _keeps_entries(inner, [isinstance(s, int) and found[s] for s in operation.inputs], shape):
                return False
        elif operation.name not in ELEMENTWISE:
            return False
    return True


WITH_PROGRAMS: dict[str, Callable[[Operation, Sequence[Any], Shares], Sequence[Any]]] = {
    **dict.fromkeys(("checkpoint", "remat2"), _open),  # one primitive, as it is called from release to release
    **dict.fromkeys(CUSTOM, _custom),
    "optimization_barrier": lambda operation, operands, shares: operands,
    "scan": _scan,
    "cond": _cond,
}
