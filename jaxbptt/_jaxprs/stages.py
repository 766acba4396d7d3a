"""A step in stages, read from its own program, so that a sequence can share the work.

fixed     values that depend on θ alone: computed once
drive     values that read the input, but not the state: computed for all steps at once
affine    a = A(θ) v + what the two above add to it: products with weights, those of one vector v side by side
rest      whatever else reads the state: v from (h_{t−1}, the a before it), and h_t
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt._jaxprs.program import FlatProgram, Operation, Slot, depends, read_program, reads_any, value_of
from jaxbptt.types import Input, Params, State, Step

ADDED = {"add", "add_any", "sub"}
RESHAPED = {"reshape", "squeeze", "broadcast_in_dim", "transpose", "copy", "convert_element_type"}
PARTED = {"split", "slice"}
SLOPES: dict[str, Any] = {  # of functions whose derivative is known from their value s: they are not computed twice
    "logistic": lambda s: s * (1 - s),
    "tanh": lambda s: (1 - s) * (1 + s),
    "exp": lambda s: s,
}


class Affine(NamedTuple):
    """Products of weights with one vector v, and what is added to their results on the way to the rest."""

    vector: Slot  # v
    products: tuple[int, ...]  # operations, the weights on one side in all of them
    after: tuple[int, ...]  # the operations from their results to the cuts
    cuts: tuple[int, ...]  # slots: a, where the rest reads it
    kept: tuple[int, ...]  # slots: a, or σ(a), tanh a, exp a where the rest reads that alone
    bends: tuple[str | None, ...]  # which of these
    depth: int  # how many products lie between h_{t−1} and v, one after the other


class StagedStep(NamedTuple):
    """A step's program and the stages of its operations and slots."""

    program: FlatProgram
    fixed: tuple[int, ...]  # operations that read θ alone
    drive: tuple[int, ...]  # operations that read the input, but not the state
    first: frozenset[int]  # those of the drive that are a product with the weight in front
    loop: tuple[int, ...]  # operations that read the state
    affine: tuple[Affine, ...]
    shared: tuple[int, ...]  # slots of θ alone that drive or loop read
    driven: tuple[int, ...]  # slots of the drive, or of the input itself, that the loop reads
    read: tuple[int, ...]  # those of them that the rest reads
    held: tuple[int, ...]  # those of the shared that the rest reads
    kept: tuple[int, ...]  # of all groups
    of_params: frozenset[int]  # slots with a derivative by θ; to ask for another may be more than its operation has
    batched: bool = False  # whether states and inputs have a leading axis B more than this step takes


def read_stages(step: Step, params: Params, state: State, x: Input) -> StagedStep:
    """The stages of `step`."""
    program = read_program(step, params, state, x)
    first, second, third = program.counts
    of_data = depends(program, range(first, first + second + third))
    of_state = depends(program, range(first, first + second))
    of_params = depends(program, range(first))
    stages: dict[str, list[int]] = {"fixed": [], "drive": [], "loop": []}
    for position, operation in enumerate(program.operations):
        of = "loop" if reads_any(operation, of_state) else "drive" if reads_any(operation, of_data) else "fixed"
        stages[of].append(position)
    reading = [slot for each in ("drive", "loop") for at in stages[each] for slot in program.operations[at].inputs]
    shared = [slot for slot in (*reading, *program.outputs) if isinstance(slot, int) and not of_data[slot]]
    by_loop = [slot for at in stages["loop"] for slot in program.operations[at].inputs]
    driven = [slot for slot in (*by_loop, *program.outputs) if isinstance(slot, int) and of_data[slot]]
    affine = _find_affine(program, stages["loop"], of_data, of_state)
    within = {at for group in affine for at in (*group.products, *group.after)}
    by_rest = {slot for at in stages["loop"] if at not in within for slot in _slots(program.operations[at].inputs)}
    by_rest |= set(_slots(program.outputs))
    driven = [slot for slot in dict.fromkeys(driven) if not of_state[slot]]
    return StagedStep(
        program=program,
        fixed=tuple(stages["fixed"]),
        drive=tuple(stages["drive"]),
        first=frozenset(at for at in stages["drive"] if _side_of_weight(program.operations[at], of_data) == 0),
        loop=tuple(stages["loop"]),
        affine=affine,
        shared=tuple(dict.fromkeys(shared)),
        driven=tuple(driven),
        read=tuple(slot for slot in driven if slot in by_rest),
        held=tuple(slot for slot in dict.fromkeys(shared) if slot in by_rest),
        kept=tuple(slot for group in affine for slot in group.kept),
        of_params=frozenset(slot for slot, does in enumerate(of_params) if does and is_inexact(program, slot)),
    )


def _slots(operands: Sequence[Slot]) -> list[int]:
    return [slot for slot in operands if isinstance(slot, int)]


def _find_affine(program, loop, of_data, of_state):
    """Products grouped by v, each followed to where the rest reads it."""
    readers: dict[Slot, list[int]] = {}
    for position in loop:
        for slot in program.operations[position].inputs:
            if isinstance(slot, int):
                readers.setdefault(slot, []).append(position)
    for slot in program.outputs:
        if isinstance(slot, int):
            readers.setdefault(slot, []).append(-1)  # nothing may be added to it

    def follow(slot):
        """(the slots where the rest reads this one, the operations on the way)."""
        read_by = readers.get(slot, [])
        operations = [program.operations[at] for at in read_by if at >= 0]
        if len(read_by) == 1 and operations:
            (operation,) = operations
            others = [other for other in operation.inputs if other != slot]
            free = all(not isinstance(other, int) or not of_state[other] for other in others)
            if operation.name in ADDED and len(others) == 1 and free:
                cuts, after = follow(operation.outputs[0])
                return cuts, [read_by[0], *after]
        names = {operation.name for operation in operations}
        parted = names <= PARTED  # the rest reads parts of it: each is kept by itself
        made = [each for operation in operations for each in operation.outputs]
        movable = parted or (len(read_by) == 1 and names <= RESHAPED and all(is_inexact(program, at) for at in made))
        if len(operations) == len(read_by) > 0 and movable:
            ends = [follow(each) for each in made]
            if parted or any(after for _, after in ends):  # something is added behind it
                return [cut for cuts, _ in ends for cut in cuts], [*read_by, *(at for _, after in ends for at in after)]
        return [slot], []

    groups: dict[Any, list[int]] = {}
    for position in loop:
        operation = program.operations[position]
        side = _side_of_weight(operation, of_data)
        if side is not None and is_inexact(program, operation.outputs[0]):
            parameters, kind = operation.equation.params, None
            if _takes_matrix(program, operation, side):
                names = ("dimension_numbers", "preferred_element_type", "precision")
                kind = tuple(str(parameters[name]) for name in names)
            groups.setdefault((operation.inputs[1 - side], side, kind or position), []).append(position)
    found = []
    for (vector, *_), products in groups.items():
        ends = [follow(program.operations[at].outputs[0]) for at in products]
        after = tuple(sorted({at for _, operations in ends for at in operations}))
        cuts = tuple(cut for cuts, _ in ends for cut in cuts)
        bent = [_bent(program, readers.get(cut, [])) for cut in cuts]
        kept = tuple(
            cut if operation is None else operation.outputs[0] for cut, operation in zip(cuts, bent, strict=True)
        )
        bends = tuple(None if one is None else one.name for one in bent)
        found.append(Affine(vector, tuple(products), after, cuts, kept, bends, depth=0))
    return _with_depths(program, loop, found)


def _bent(program: FlatProgram, read_by: Sequence[int]) -> Operation | None:
    """The only operation that reads a slot, if its derivative is known from its value."""
    operation = program.operations[read_by[0]] if len(read_by) == 1 and read_by[0] >= 0 else None
    return operation if operation is not None and operation.name in SLOPES else None


def _with_depths(program, loop, groups):
    """The groups with their depths, in the order of the program."""
    made = {at: i for i, group in enumerate(groups) for at in (*group.products, *group.after)}
    depths = [0] * len(program.avals)
    for position in loop:
        operation = program.operations[position]
        depth = max((depths[slot] for slot in operation.inputs if isinstance(slot, int)), default=0)
        for slot in operation.outputs:
            depths[slot] = depth + (position in made and position in groups[made[position]].products)
    return tuple(group._replace(depth=depths[group.vector]) for group in groups)


def _side_of_weight(operation: Operation, of_data: Sequence[bool]) -> int | None:
    """Which operand of a matrix product depends on θ alone; None: both or neither, or it is no such product."""
    if operation.name != "dot_general":
        return None
    (contracted, _), (batched, _) = operation.equation.params["dimension_numbers"]
    if batched or not contracted:
        return None
    fixed = [side for side, slot in enumerate(operation.inputs) if not isinstance(slot, int) or not of_data[slot]]
    return fixed[0] if len(fixed) == 1 else None


def _takes_matrix(program, operation, side):
    """Whether the weight is a matrix, contracted along one axis, of the dtype of v and of the result."""
    weight, vector, result = (_aval(program, slot) for slot in (*operation.inputs, operation.outputs[0]))
    contracted = operation.equation.params["dimension_numbers"][0][side]
    dtypes = {weight.dtype, vector.dtype, result.dtype}
    return len((weight, vector)[side].shape) == 2 and len(contracted) == 1 and len(dtypes) == 1


def is_inexact(program: FlatProgram, slot: int) -> bool:
    """Whether a slot holds floats or complex numbers, which have derivatives."""
    return bool(jnp.issubdtype(program.avals[slot].dtype, jnp.inexact))


def _aval(program, slot):
    return program.avals[slot] if isinstance(slot, int) else jnp.asarray(slot.value)


def execute(
    program: FlatProgram, positions: Sequence[int], values: dict[int, Any], first: frozenset[int] = frozenset()
) -> None:
    """Run these operations on `values`, slot -> value, and put their results there; `first`: products W v."""
    for position in positions:
        operation = program.operations[position]
        operands = [value_of(slot, values) for slot in operation.inputs]
        if position in first:
            weight, vector = operands
            results = [multiply(weight, vector, 0, operation.equation.params)]
        else:
            results = operation.run(*operands)
        values.update(zip(operation.outputs, results, strict=True))


def needed_for(
    program: FlatProgram, positions: Sequence[int], targets: Sequence[Slot], given: Sequence[int]
) -> list[int]:
    """Those of `positions` that lead from the slots `given` to the targets."""
    missing = {slot for slot in targets if isinstance(slot, int)} - set(given)
    chosen = []
    for position in reversed(positions):
        operation = program.operations[position]
        if missing & set(operation.outputs):
            chosen.append(position)
            missing |= {slot for slot in operation.inputs if isinstance(slot, int)} - set(given)
    return chosen[::-1]


class Product(NamedTuple):
    """The products of a group as one: their weights are on one side, contracted alike."""

    weights: tuple[Slot, ...]
    results: tuple[int, ...]  # slots
    side: int  # of the weights
    axes: tuple[int, int]  # contracted: of the weights, of v (from the end)
    axis: int  # of a result: the weights' own (from the end)
    sizes: tuple[int, ...]  # of each result along it
    is_matrix: bool  # whether the weights are matrices, contracted along one axis, and all of one dtype
    vector: jax.ShapeDtypeStruct
    parameters: dict[str, Any]

    def join(self, weights: Sequence[jax.Array]) -> jax.Array:
        """One weight for all products."""
        return weights[0] if len(weights) == 1 else jnp.concatenate(weights, axis=1 - self.axes[0])

    def part_weights(self, joined: jax.Array) -> list[jax.Array]:
        """The reverse of `join`."""
        return _part(joined, self.sizes, 1 - self.axes[0])

    def run(self, weight: jax.Array, vector: jax.Array) -> jax.Array:
        """All products."""
        return multiply(weight, vector, self.side, self.parameters)

    def join_results(self, results: Sequence[jax.Array]) -> jax.Array:
        """What `run` gives, from the result of each product, at one step or many."""
        return results[0] if len(results) == 1 else jnp.concatenate(results, axis=self.axis)

    def part(self, joined: jax.Array) -> list[jax.Array]:
        """The result of each product."""
        return _part(joined, self.sizes, self.axis)


def multiply(weight: jax.Array, vector: jax.Array, side: int, parameters: dict[str, Any]) -> jax.Array:
    """A product as in the program, v first: over many steps W v comes out transposed, and is slow for it."""
    if side == 1:
        return jax.lax.dot_general(vector, weight, **parameters)
    ((contracted, of_vector), batched), precision = parameters["dimension_numbers"], parameters["precision"]
    turned = {
        **parameters,
        "dimension_numbers": ((of_vector, contracted), batched),
        "precision": precision[::-1] if isinstance(precision, tuple) else precision,
    }
    result = jax.lax.dot_general(vector, weight, **turned)
    kept = len(weight.shape) - len(contracted)  # axes of the result that are the weight's
    return jnp.moveaxis(result, range(-kept, 0), range(kept))


def _part(joined, sizes, axis):
    return [joined] if len(sizes) == 1 else jnp.split(joined, list(itertools.accumulate(sizes))[:-1], axis=axis)


def product_of(program: FlatProgram, group: Affine) -> Product:
    """The products of a group."""
    operations = [program.operations[at] for at in group.products]
    side = 0 if operations[0].inputs[1] == group.vector else 1
    parameters = operations[0].equation.params
    contracted = parameters["dimension_numbers"][0]
    results = [program.avals[each.outputs[0]] for each in operations]
    vector = _aval(program, group.vector)
    axis = 0 if side == 0 else max(0, len(results[0].shape) - 1)
    return Product(
        weights=tuple(each.inputs[side] for each in operations),
        results=tuple(each.outputs[0] for each in operations),
        side=side,
        axes=(contracted[side][0], contracted[1 - side][0] - len(vector.shape)),
        axis=axis - len(results[0].shape),
        sizes=tuple(each.shape[axis] if each.shape else 1 for each in results),
        is_matrix=_takes_matrix(program, operations[0], side),
        vector=vector,
        parameters=parameters,
    )
