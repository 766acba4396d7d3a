"""An output read from the new carry: (carry, output) of a step as (output of carry, x and params)."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxbptt._jaxprs.program import REMATERIALISED, FlatProgram, Operation, Slot, read_program, value_of
from jaxbptt.types import Input, Output, Params, Reads, State


class OutputReader(NamedTuple):
    """What an output is computed from once the new carry is known, and how."""

    reads: Reads
    run: Callable[[Params, State, Input, State | None], Output]  # (params, h_t, x_t, h_{t−1}) -> o_t


def read_output(apply: Callable[..., Any], params: Params, carry: State, x: Input) -> OutputReader:
    """The output of apply(params, carry, x) -> (carry, output) from the new carry, x and params where possible.

    The program is cut where the new carry is known: at its own values, and through operations that only rearrange them
    (reshapes, transposes, concatenations). What is left reads h_{t−1} only if the output truly needs it. A program that
    cannot be read is run whole.
    """
    try:
        program = read_program(apply, params, carry, x, opened=REMATERIALISED)
        form = _cut(program)
    except Exception:  # a program may be unreadable for unforeseen reasons
        return OutputReader("state, x, previous", lambda params, state, x, previous: apply(params, previous, x)[1])
    structure = jax.tree.structure(jax.eval_shape(apply, params, carry, x)[1])

    def run(params, state, x, previous):
        values: dict[int, Any] = dict(enumerate(jax.tree.leaves(params)))
        first, second = program.counts[0], sum(program.counts[:2])
        if previous is not None:
            values.update(enumerate(jax.tree.leaves(previous), start=first))
        values.update(enumerate(jax.tree.leaves(x), start=second))
        known = jax.tree.leaves(state)
        values.update({slot: recover(known) for slot, recover in form.known.items()})
        for operation in form.operations:
            results = operation.run(*[value_of(slot, values) for slot in operation.inputs])
            values.update(zip(operation.outputs, results, strict=True))
        return jax.tree.unflatten(structure, [value_of(slot, values) for slot in form.outputs])

    return OutputReader(form.reads, run)


class _Cut(NamedTuple):
    operations: list[Operation]  # in order
    outputs: list[Slot]
    known: dict[int, Callable[[list[Any]], Any]]  # slots of the new carry, from its leaves
    reads: Reads


def _cut(program: FlatProgram) -> _Cut:
    size = program.counts[1]
    carry, outputs = program.outputs[:size], program.outputs[size:]
    known = _recover(program, carry)
    made = {slot: operation for operation in program.operations for slot in operation.outputs}
    needed, todo, cuts = set(), [slot for slot in outputs if isinstance(slot, int)], set()
    inputs: set[int] = set()
    while todo:
        slot = todo.pop()
        if slot in known:
            cuts.add(slot)
        elif slot not in made:
            inputs.add(slot)
        elif id(made[slot]) not in needed:
            needed.add(id(made[slot]))
            todo += [each for each in made[slot].inputs if isinstance(each, int)]
    first, second = program.counts[0], sum(program.counts[:2])
    reads: Reads = "state"
    if any(slot >= first for slot in inputs):
        reads = "state, x, previous" if any(first <= slot < second for slot in inputs) else "state, x"
    operations = [operation for operation in program.operations if id(operation) in needed]
    return _Cut(operations, list(outputs), {slot: known[slot] for slot in cuts}, reads)


def _recover(program, carry):
    """{slot: (leaves of the new carry) -> its value}, for the carry's own slots and those it rearranges."""
    known: dict[int, Callable[[list[Any]], Any]] = {}
    for number, slot in enumerate(carry):
        if isinstance(slot, int):
            known.setdefault(slot, operator.itemgetter(number))
    for operation in reversed(program.operations):
        slot = operation.outputs[0] if operation.outputs else None
        if slot not in known:
            continue
        for each, undo in _inverses(program, operation):
            if isinstance(each, int):
                known.setdefault(each, _after(known[slot], undo))
    return known


def _after(first, second):
    return lambda leaves: second(first(leaves))


def _inverses(program, operation):
    """(operand, result -> operand) of an operation that only rearranges its operands."""
    parameters, name = operation.equation.params, operation.name
    shapes = [variable.aval.shape for variable in operation.equation.invars]
    dtypes = {variable.aval.dtype for variable in operation.equation.invars}
    out = program.avals[operation.outputs[0]]
    if name == "concatenate":
        axis, start = parameters["dimension"], 0
        for each, shape in zip(operation.inputs, shapes, strict=True):
            stop = start + shape[axis]
            yield each, functools.partial(jax.lax.slice_in_dim, start_index=start, limit_index=stop, axis=axis)
            start = stop
    elif name == "stack":  # a primitive of newer JAX
        take = functools.partial(jax.lax.index_in_dim, axis=parameters["axis"], keepdims=False)
        for index, each in enumerate(operation.inputs):
            yield each, functools.partial(take, index=index)
    elif name == "transpose":
        order = parameters["permutation"]
        back = tuple(order.index(axis) for axis in range(len(order)))
        yield operation.inputs[0], functools.partial(jax.lax.transpose, permutation=back)
    elif name in ("reshape", "squeeze", "expand_dims", "copy", "broadcast_in_dim", "convert_element_type"):
        same_size = jax.ShapeDtypeStruct(shapes[0], out.dtype).size == out.size
        if same_size and dtypes == {out.dtype} and _in_order(operation):
            yield operation.inputs[0], functools.partial(jax.lax.reshape, new_sizes=shapes[0])


def _in_order(operation):
    dimensions = operation.equation.params.get("broadcast_dimensions", ())
    return list(dimensions) == sorted(dimensions)
