"""Gates in a step's program: which rows of a stacked weight a nonlinearity reads, and the products of gates' values.

factor   one operand B of a product A ⊙ B, where B is the value of a gate: A's cotangent is multiplied by it
value    the value of a gate: what a nonlinearity gives, or an affine function of it alone, such as 1 − z
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from jaxbptt._jaxprs.joins import Dependence, position_of
from jaxbptt._jaxprs.program import FlatProgram, Operation

PASSING = frozenset(("add", "sub", "neg", "mul", "add_any", "convert_element_type", "copy", "reshape", "squeeze"))
PASSING |= {"broadcast_in_dim", "transpose", "dot_general"}
AFFINE_IN_ONE = frozenset(("add", "sub", "neg", "mul", "convert_element_type", "copy"))


class Rows(NamedTuple):
    """Entries start … stop − 1 of an axis of `total`, and the leaf of params that is stacked along it."""

    start: int
    stop: int
    total: int
    leaf: int | None


class Value(NamedTuple):
    slot: int
    site: int  # whose value it is, or comes from
    complement: bool  # 1 − that value
    itself: bool  # that value


class Factor(NamedTuple):
    position: int  # of the product
    side: int  # of the operand B
    value: int  # B's place among the values


def find_rows(program: FlatProgram, of: Dependence, arguments: Sequence[int], stops: set[int]) -> list[Rows | None]:
    """Per argument of a nonlinearity: the one slice it is made of, looked for back to `stops`; None: not one."""
    made = position_of(program)
    recurrent: set[int] = set()
    for operation in program.operations:
        if operation.name == "dot_general":
            pair = [slot for slot in operation.inputs if isinstance(slot, int)]
            for a, b in itertools.permutations(pair, 2):
                if of.of_params_alone(a) and of.state[b]:
                    recurrent |= of.leaves[a]

    def look(argument):
        found, seen, queue = set(), set(), [argument]
        while queue:
            slot = queue.pop()
            if slot in seen or slot not in made or (slot in stops and slot != argument):
                continue
            seen.add(slot)
            operation = program.operations[made[slot]]
            cut = _cut(program, operation, slot)
            if cut is not None:
                stacked = [leaf for leaf in of.leaves[slot] if cut[2] in program.avals[leaf].shape]
                stacked.sort(key=lambda leaf: (leaf not in recurrent, leaf))
                found.add((*cut, stacked[0] if stacked else None))
            elif operation.name in PASSING:
                queue += [slot for slot in operation.inputs if isinstance(slot, int)]
        if len({cut[:3] for cut in found}) != 1:
            return None
        return Rows(*min(found, key=lambda cut: (cut[3] not in recurrent, str(cut[3]))))

    return [look(argument) for argument in arguments]


def find_values(program: FlatProgram, of_any: Sequence[bool], outputs: Sequence[int]) -> tuple[Value, ...]:
    """The gates' values, sites' outputs first."""
    values = {slot: Value(slot, site, False, True) for site, slot in enumerate(outputs)}
    for operation in program.operations:
        variable = [slot for slot in operation.inputs if isinstance(slot, int) and of_any[slot]]
        if operation.name not in AFFINE_IN_ONE or len(variable) != 1 or variable[0] not in values:
            continue
        source, (out,) = values[variable[0]], operation.outputs
        if program.avals[out].shape == program.avals[source.slot].shape:
            complement = operation.name == "sub" and operation.inputs[1] == variable[0] and source.itself
            values.setdefault(out, Value(out, source.site, complement, False))
    return tuple(values.values())


def find_factors(program: FlatProgram, of_any: Sequence[bool], values: Sequence[Value]) -> tuple[Factor, ...]:
    """Every gate's value that is a factor of something else that varies."""
    numbers = {value.slot: number for number, value in enumerate(values)}
    found = []
    for position, operation in enumerate(program.operations):
        slots = [slot for slot in operation.inputs if isinstance(slot, int) and of_any[slot]]
        if operation.name == "mul" and len(slots) == 2 and slots[0] != slots[1]:
            found += [Factor(position, side, numbers[slot]) for side, slot in enumerate(slots) if slot in numbers]
    return tuple(found)


def _cut(program: FlatProgram, operation: Operation, slot: int) -> tuple[int, int, int] | None:
    """(start, stop, total) of a slice along one axis."""
    source = operation.inputs[0] if operation.inputs else None
    if not isinstance(source, int):
        return None
    shape, params = program.avals[source].shape, operation.equation.params
    if operation.name == "split":
        ends = list(itertools.accumulate(map(int, params["sizes"]), initial=0))
        number = operation.outputs.index(slot)
        return ends[number], ends[number + 1], shape[params["axis"]]
    if operation.name == "slice" and params["strides"] is None:
        cuts = [
            tuple(map(int, cut)) for cut in zip(params["start_indices"], params["limit_indices"], shape, strict=True)
        ]
        cut = [(int(a), int(b), size) for a, b, size in cuts if (a, b) != (0, size)]
        return cut[0] if len(cut) == 1 else None
    return None
