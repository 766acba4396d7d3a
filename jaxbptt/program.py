"""A step's own program as a flat list of operations on numbered slots, to be read, changed and run again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal


class Constant(NamedTuple):
    value: Any


class Operation(NamedTuple):
    equation: Any  # of a jaxpr
    inputs: tuple  # slots (int) or Constants
    outputs: tuple[int, ...]


class FlatProgram(NamedTuple):
    """The first slots are the leaves of the arguments, in order."""

    operations: tuple[Operation, ...]
    outputs: tuple  # slots or Constants
    shapes: tuple[tuple[int, ...], ...]  # per slot
    counts: tuple[int, ...]  # leaves of each argument
    structure: Any  # of the result


def read_program(function: Callable[..., Any], *arguments: Any) -> FlatProgram:
    """`function` at arguments like these, calls of jitted functions opened."""
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    leaves = [jax.tree.leaves(tree) for tree in arguments]
    counts = tuple(len(part) for part in leaves)
    operations: list[Operation] = []
    shapes = [jnp.shape(leaf) for part in leaves for leaf in part]
    outputs = _inline(closed.jaxpr, closed.consts, list(range(sum(counts))), operations, shapes)
    return FlatProgram(tuple(operations), tuple(outputs), tuple(shapes), counts, jax.tree.structure(out_shape))


def bind(equation: Any, inputs: Any) -> list[Any]:
    """The results of one operation."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, options = bound if isinstance(bound, tuple) else ((), bound)  # the pair came before JAX 0.10
    results = equation.primitive.bind(*functions, *inputs, **options)
    return list(results) if equation.primitive.multiple_results else [results]


def _inline(jaxpr, consts, arguments, operations, shapes):
    """Append the equations of `jaxpr` to `operations`, calls of jitted functions opened; return its outputs."""
    slots = dict(zip(jaxpr.invars, arguments, strict=True))
    slots.update({variable: Constant(value) for variable, value in zip(jaxpr.constvars, consts, strict=True)})

    def find(variable):
        return Constant(variable.val) if isinstance(variable, Literal) else slots[variable]

    for equation in jaxpr.eqns:
        inputs = [find(variable) for variable in equation.invars]
        inner = equation.params.get("jaxpr")
        if equation.primitive.name in ("jit", "pjit", "closed_call") and isinstance(inner, ClosedJaxpr):
            results = _inline(inner.jaxpr, inner.consts, inputs, operations, shapes)
            slots.update(zip(equation.outvars, results, strict=True))
            continue
        outputs = tuple(range(len(shapes), len(shapes) + len(equation.outvars)))
        shapes.extend(tuple(variable.aval.shape) for variable in equation.outvars)
        slots.update(zip(equation.outvars, outputs, strict=True))
        operations.append(Operation(equation, tuple(inputs), outputs))
    return [find(variable) for variable in jaxpr.outvars]
