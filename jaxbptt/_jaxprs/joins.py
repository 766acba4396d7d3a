"""Where a step joins what it reads: the state's own paths, products, uses of a parameter, resets.

carry    the previous state alone, where it is joined with anything else
product  A·B of a parameter's A and a state's B
use      a parameter alone, where it is joined with state or input; listed only where a leaf has several
reset    the state, where the input alone says whether it passes: where(reset, h_0, h), or (1 − reset) ⊙ h
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax

from jaxbptt._jaxprs.program import FlatProgram, Operation

BILINEAR = frozenset(("mul", "dot_general"))
MEETING = BILINEAR | {"add", "sub", "add_any"}


class Dependence(NamedTuple):
    """Per slot: whether it comes from params, from the state, from the input; and from which leaves of params."""

    params: Sequence[bool]
    state: Sequence[bool]
    inputs: Sequence[bool]
    leaves: Sequence[frozenset[int]]

    def of_params_alone(self, slot: int) -> bool:
        """Whether it is computed from params and nothing else."""
        return self.params[slot] and not self.state[slot] and not self.inputs[slot]


class Use(NamedTuple):
    """One of several places where a leaf of params is read."""

    position: int  # of the operation
    side: int  # of the operand
    leaf: int
    number: int  # from 1
    of: int  # how many there are


class Reset(NamedTuple):
    """The state passes where the mask selects it (select_n), or where the mask is not zero (a product)."""

    position: int
    mask: int  # the mask's operand
    sides: tuple[int, ...]  # operands that hold the state


def find_dependence(program: FlatProgram) -> Dependence:
    """What every slot comes from."""
    num_params, num_states, _ = program.counts
    reads: list[frozenset[int]] = [frozenset((slot,)) for slot in range(sum(program.counts))]
    reads += [frozenset()] * (len(program.avals) - len(reads))
    for operation in program.operations:
        read = frozenset().union(*(reads[slot] for slot in operation.inputs if isinstance(slot, int)))
        for slot in operation.outputs:
            reads[slot] = read
    stop = num_params + num_states
    return Dependence(
        [any(leaf < num_params for leaf in read) for read in reads],
        [any(num_params <= leaf < stop for leaf in read) for read in reads],
        [any(leaf >= stop for leaf in read) for read in reads],
        [frozenset(leaf for leaf in read if leaf < num_params) for read in reads],
    )


def find_carries_and_products(
    program: FlatProgram, of: Dependence, floating: Sequence[bool], shifting: Sequence[bool]
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """(operation, operand) of every carry and of every product."""
    carries, products = [], []
    for position, operation in enumerate(program.operations):
        slots = [slot for slot in operation.inputs if isinstance(slot, int)]
        if operation.name not in MEETING or len(slots) < 2 or not all(floating[slot] for slot in slots):
            continue
        for side, other in ((0, 1), (1, 0)):
            a, b = slots[other], slots[side]
            if of.state[b] and not of.params[b] and not of.inputs[b] and (of.params[a] or of.inputs[a]):
                carries.append((position, side))
            bilinear = operation.name in BILINEAR and not (of.state[a] and of.params[b])
            if bilinear and of.params[a] and of.state[b] and shifting[b]:
                products.append((position, side))
    return tuple(carries), tuple(products)


def find_uses(program: FlatProgram, of: Dependence, floating: Sequence[bool]) -> tuple[Use, ...]:
    """Every use of a leaf that is used more than once."""
    places: dict[int, list[tuple[int, int]]] = {}
    for position, operation in enumerate(program.operations):
        if not any(of.state[slot] or of.inputs[slot] for slot in operation.outputs):
            continue
        for side, slot in enumerate(operation.inputs):
            if isinstance(slot, int) and floating[slot] and of.of_params_alone(slot):
                for leaf in of.leaves[slot]:
                    places.setdefault(leaf, []).append((position, side))
    several = {leaf: each for leaf, each in sorted(places.items()) if len(each) > 1}
    return tuple(Use(*at, leaf, k + 1, len(each)) for leaf, each in several.items() for k, at in enumerate(each))


def find_resets(program: FlatProgram, of: Dependence, floating: Sequence[bool]) -> tuple[Reset, ...]:
    """Every place where the input alone says whether the state passes."""

    def is_mask(slot):
        return isinstance(slot, int) and of.inputs[slot] and not of.state[slot] and not of.params[slot]

    def has_state(slot):
        return isinstance(slot, int) and of.state[slot] and floating[slot]

    def is_state(slot):
        return has_state(slot) and not of.params[slot] and not of.inputs[slot]

    resets = []
    for position, operation in enumerate(program.operations):
        slots = operation.inputs
        if operation.name == "select_n" and is_mask(slots[0]):
            sides = tuple(side for side in range(1, len(slots)) if has_state(slots[side]))
            if 0 < len(sides) < len(slots) - 1:
                resets.append(Reset(position, 0, sides))
        elif operation.name == "mul":
            masks = [(side, 1 - side) for side in (0, 1) if is_state(slots[side]) and is_mask(slots[1 - side])]
            resets += [Reset(position, mask, (side,)) for side, mask in masks]
    return tuple(resets)


def turned(operation: Operation, weight: jax.Array, side: int) -> jax.Array | None:
    """The weight of a product whose state is on `side`, with each square block transposed; None if it has none.

    Blocks: [G·N, N] or [N, G·N], N the contracted size.
    """
    if operation.name != "dot_general" or weight.ndim != 2:
        return None
    (contracted, batched) = operation.equation.params["dimension_numbers"]
    if batched[0] or len(contracted[0]) != 1:
        return None
    axis = contracted[1 - side][0]
    rows, columns = weight.shape
    if axis == 1 and rows % columns == 0:
        return weight.reshape(-1, columns, columns).swapaxes(1, 2).reshape(rows, columns)
    if axis == 0 and columns % rows == 0:
        return weight.reshape(rows, -1, rows).swapaxes(0, 2).reshape(rows, columns)
    return None


def position_of(program: FlatProgram) -> dict[int, int]:
    """slot -> the position of the operation that computes it."""
    return dict(
        itertools.chain.from_iterable(
            ((slot, position) for slot in operation.outputs) for position, operation in enumerate(program.operations)
        )
    )
