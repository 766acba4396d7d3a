"""Where a step is not differentiable at the numbers it visits: every framework then makes a choice of its own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from jaxbptt._jaxprs.joins import Dependence, find_dependence
from jaxbptt._jaxprs.program import Constant, FlatProgram, Operation, read_program, value_of

COMPARISONS = frozenset(("gt", "ge", "lt", "le", "eq", "ne"))
AT_EQUAL = COMPARISONS | {"max", "min"}  # where both operands are equal
AT_ZERO = frozenset(("abs", "sign", "sqrt", "cbrt"))
OPENED = frozenset(("custom_jvp_call",))  # such as relu; its own rule may be smooth where the operations in it are not
BESIDE = 1e-4  # how far from a kink the slopes on its two sides are compared


class Place(NamedTuple):
    name: str  # of the operation
    position: int


class Kinks(NamedTuple):
    """A program and the operations in it that may be visited at a kink."""

    program: FlatProgram
    places: tuple[Place, ...]


def find_kinks(
    function: Callable[..., Any], params: Any, state: Any, x: Any, *, of_input: bool = False
) -> Kinks | None:
    """The places of function(params, state, x) that matter to a derivative in params or state; None: there are none.

    of_input: the derivative in x matters too.
    """
    try:
        program = read_program(function, params, state, x)
    except Exception:  # a program may be unreadable for unforeseen reasons
        return None
    of, live = find_dependence(program), _live(program)
    places = []
    for position, operation in enumerate(program.operations):
        varies = _varies(program, operation, of, of_input and operation.name not in COMPARISONS)
        if varies and any(live[slot] for slot in operation.outputs) and _may_bend(program, operation):
            places.append(Place(_name(program, operation), position))
    return Kinks(program, tuple(places)) if places else None


def count_visits(kinks: Kinks, *arguments: Any) -> jax.Array:
    """How many entries of each place are at a kink, [places]."""
    values: dict[int, Any] = dict(enumerate(jax.tree.leaves(arguments)))
    counts = {}
    wanted = {place.position for place in kinks.places}
    for position, operation in enumerate(kinks.program.operations):
        inputs = [value_of(slot, values) for slot in operation.inputs]
        values.update(zip(operation.outputs, operation.run(*inputs), strict=True))
        if position in wanted:
            counts[position] = jnp.sum(_at_kink(kinks.program, operation, inputs), dtype=jnp.int32)
    return jnp.stack([counts[place.position] for place in kinks.places])


def _name(program: FlatProgram, operation: Operation) -> str:
    inner = _inner(program, operation) if operation.name in OPENED else None
    if inner is not None:
        return next(_name(inner, each) for each in inner.operations if _may_bend(inner, each))
    return "where (its comparison)" if operation.name in COMPARISONS else operation.name


def _live(program: FlatProgram) -> list[bool]:
    """Per slot: whether the result's derivative, or the choice of a branch, comes from it."""
    live = [False] * len(program.avals)
    for slot in program.outputs:
        if isinstance(slot, int):
            live[slot] = True
    for operation in reversed(program.operations):
        if operation.name != "stop_gradient" and any(live[slot] for slot in operation.outputs):
            for slot in operation.inputs:
                if isinstance(slot, int):
                    live[slot] = True
    return live


def _varies(program: FlatProgram, operation: Operation, of: Dependence, of_input: bool) -> bool:
    slots = [slot for slot in operation.inputs if isinstance(slot, int)]
    floating = [slot for slot in slots if jnp.issubdtype(program.avals[slot].dtype, jnp.floating)]
    return any(of.params[slot] or of.state[slot] or (of_input and of.inputs[slot]) for slot in floating)


def _may_bend(program: FlatProgram, operation: Operation) -> bool:
    if operation.name in OPENED:
        inner = _inner(program, operation)
        return inner is not None and any(_may_bend(inner, each) for each in inner.operations)
    if operation.name in AT_EQUAL:
        return operation.inputs[0] != operation.inputs[1] if isinstance(operation.inputs[0], int) else True
    if operation.name == "pow":
        power = operation.inputs[1]
        return isinstance(power, Constant) and float(power.value) < 1
    return operation.name in AT_ZERO or operation.name in ("clamp", "reduce_max", "reduce_min")


def _inner(program: FlatProgram, operation: Operation) -> FlatProgram | None:
    """The program inside a function of one array with a rule of its own."""
    closed = operation.equation.params.get("call_jaxpr")
    slots = [slot for slot in operation.inputs if isinstance(slot, int)]
    if closed is None or len(operation.inputs) != 1 or len(slots) != 1 or len(operation.outputs) != 1:
        return None
    if program.avals[slots[0]].shape != program.avals[operation.outputs[0]].shape:
        return None
    return read_program(jaxpr_as_fun(closed), program.avals[slots[0]])


def _at_kink(program: FlatProgram, operation: Operation, inputs: Sequence[Any]) -> Any:
    """Which entries are at a kink."""
    name, first = operation.name, inputs[0]
    if name in OPENED:
        return _at_kink_inside(_inner(program, operation), first) & _slopes_differ(operation, first)
    if name in AT_EQUAL:
        return first == inputs[1]
    if name == "clamp":
        return (inputs[1] == first) | (inputs[1] == inputs[2])
    if name in ("reduce_max", "reduce_min"):
        axes = operation.equation.params["axes"]
        (extreme,) = operation.run(first)
        ties = first == jnp.expand_dims(extreme, axes)
        return ties & (jnp.sum(ties, axis=axes, keepdims=True) > 1)
    return first == 0


def _at_kink_inside(program: FlatProgram | None, argument: jax.Array) -> jax.Array:
    """Which entries are at a kink of an operation of the function."""
    values, found = {0: argument}, jnp.zeros(argument.shape, bool)
    for operation in program.operations if program is not None else ():
        inputs = [value_of(slot, values) for slot in operation.inputs]
        values.update(zip(operation.outputs, operation.run(*inputs), strict=True))
        if program is not None and _may_bend(program, operation):
            at_kink = _at_kink(program, operation, inputs)
            found |= at_kink if at_kink.shape == found.shape else jnp.any(at_kink)
    return found


def _slopes_differ(operation: Operation, argument: jax.Array) -> jax.Array:
    """Whether the slopes just left and just right of an entry differ, and so not by curvature, from that in between."""

    def slope(at):
        return jax.jvp(lambda entry: operation.run(entry)[0], (at,), (jnp.ones_like(at),))[1]

    beside = jnp.asarray(BESIDE, argument.dtype)
    return jnp.abs(slope(argument + beside) - slope(argument - beside)) > 1e-2
