"""A step's own program as a flat list of operations on numbered slots, to be read, changed and run again."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

CALLS = frozenset(("jit", "pjit", "closed_call"))  # functions that are opened
REMATERIALISED = CALLS | {"checkpoint", "remat", "remat2"}  # and those that are computed again in reverse mode


class Constant(NamedTuple):
    value: Any


Slot = int | Constant


class Operation(NamedTuple):
    equation: JaxprEqn
    inputs: tuple[Slot, ...]
    outputs: tuple[int, ...]
    run: Callable[..., list[Any]]  # its results, from its inputs

    @property
    def name(self) -> str:
        """The name of its primitive."""
        return self.equation.primitive.name


class FlatProgram(NamedTuple):
    """The first slots are the leaves of the arguments, in order."""

    operations: tuple[Operation, ...]
    outputs: tuple[Slot, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]  # shape and dtype, per slot
    counts: tuple[int, ...]  # leaves of each argument
    structure: Any  # of the result


class Unreadable(NamedTuple):
    """A program that could not be read, or not be run in parts: the caller takes the plain way."""

    reason: str


def read_program(function: Callable[..., Any], *arguments: Any, opened: frozenset[str] = CALLS) -> FlatProgram:
    """The program of `function` at arguments like these, with calls of jitted functions opened."""
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    leaves = [jax.tree.leaves(tree) for tree in arguments]
    counts = tuple(len(part) for part in leaves)
    operations: list[Operation] = []
    avals = [_struct(variable.aval) for variable in closed.jaxpr.invars]
    outputs = _inline(closed.jaxpr, closed.consts, list(range(sum(counts))), operations, avals, opened)
    return FlatProgram(tuple(operations), tuple(outputs), tuple(avals), counts, jax.tree.structure(out_shape))


def depends(program: FlatProgram, on: Sequence[int]) -> list[bool]:
    """Per slot: whether it is one of these or computed from them."""
    found = [False] * len(program.avals)
    for slot in on:
        found[slot] = True
    for operation in program.operations:
        read = reads_any(operation, found)
        for slot in operation.outputs:
            found[slot] = read
    return found


def reads_any(operation: Operation, slots: Sequence[bool]) -> bool:
    """Whether one of its operands is among the slots that are marked."""
    return any(slots[slot] for slot in operation.inputs if isinstance(slot, int))


def value_of(slot: Slot, values: Any) -> Any:
    """The value in a slot."""
    return slot.value if isinstance(slot, Constant) else values[slot]


def _inline(
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[Slot],
    operations: list[Operation],
    avals: list[jax.ShapeDtypeStruct],
    opened: frozenset[str],
) -> list[Slot]:
    """Append the equations of `jaxpr` to `operations`, with the calls `opened` opened; return its outputs."""
    slots: dict[Var, Slot] = dict(zip(jaxpr.invars, arguments, strict=True))
    slots.update({variable: Constant(value) for variable, value in zip(jaxpr.constvars, consts, strict=True)})

    def find(variable):
        return Constant(variable.val) if isinstance(variable, Literal) else slots[variable]

    for equation in jaxpr.eqns:
        inputs = [find(variable) for variable in equation.invars]
        inner: Any = equation.params.get("jaxpr")
        if equation.primitive.name in opened and inner is not None:
            body, inner_consts = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
            results = _inline(body, inner_consts, inputs, operations, avals, opened)
            slots.update(zip(equation.outvars, results, strict=True))
            continue
        outputs = tuple(range(len(avals), len(avals) + len(equation.outvars)))
        avals.extend(_struct(variable.aval) for variable in equation.outvars)
        slots.update(zip(equation.outvars, outputs, strict=True))
        operations.append(Operation(equation, tuple(inputs), outputs, _as_function(equation)))
    return [find(variable) for variable in jaxpr.outvars]


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _as_function(equation: JaxprEqn) -> Callable[..., list[Any]]:
    """One equation as a function of its operands, which are separate even where two of them are one variable."""
    avals = [variable.aval for variable in equation.invars]
    program = jax.make_jaxpr(lambda *operands: operands)(*avals).jaxpr
    moved = equation.replace(invars=program.invars)
    program = program.replace(outvars=list(equation.outvars), eqns=[moved], effects=equation.effects)
    run = jaxpr_as_fun(ClosedJaxpr(program, []))
    return lambda *operands: list(run(*operands))
