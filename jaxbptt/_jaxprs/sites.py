"""Where slips can happen in a step: the nonlinearities, the state's own paths and the products in its program.

site     y = φ(a), any elementwise nonlinearity
carry    the previous state alone, where it is joined with anything else
product  A·B of a parameter's A and a state's B
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxbptt._jaxprs.program import (
    Constant,
    FlatProgram,
    Operation,
    depends,
    read_program,
    reads_any,
)
from jaxbptt.types import Input, Params, State, Step

AFFINE = frozenset(("add", "sub", "neg", "mul", "div", "convert_element_type", "copy", "add_any"))
NONLINEAR = (
    frozenset(("tanh", "logistic", "exp", "exp2", "log", "log1p", "expm1", "sin", "cos", "tan", "sqrt", "rsqrt"))
    | frozenset(("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "cbrt", "integer_pow", "square"))
    | frozenset(("pow", "abs", "sign", "max", "min", "erf", "erfc", "erf_inv", "lgamma", "digamma", "clamp"))
    | frozenset(("select_n", "gt", "lt", "ge", "le", "eq", "ne", "log2", "one_minus_square"))
)
BILINEAR = frozenset(("mul", "dot_general"))
MEETING = BILINEAR | {"add", "sub", "add_any"}


class Site(NamedTuple):
    """y = φ(a): slots of y and a, and the name of φ's last primitive."""

    output: int
    argument: int
    name: str


class StepProgram(NamedTuple):
    """A step's program, whose first slots are params, state and x, and where slips can happen in it."""

    step: Step
    flat: FlatProgram | None  # None: it could not be read, and no slip is looked for in it
    sites: tuple[Site, ...] = ()  # one per nonlinearity, then other readings of them
    num_primary: int = 0  # how many of `sites` are the first readings
    carries: tuple[tuple[int, int], ...] = ()  # (operation, operand): reads the previous state alone
    products: tuple[tuple[int, int], ...] = ()  # (operation, operand): the state's side B of A·B
    shifting: tuple[bool, ...] = ()  # per slot: follows the state (see `_following`): evaluated at `other` too
    lag: int | None = None  # slot of the state, if it is one leaf


def find_sites(step: Step, params: Params, state: State, x: Input) -> StepProgram:
    """Read the program of (params, state, x) -> state, and find where slips can happen in it."""
    try:
        program = read_program(step, params, state, x)
    except Exception:  # a program may be unreadable for unforeseen reasons
        return StepProgram(step, None)
    of_params, of_state, of_inputs = _dependences(program)
    floating = [jnp.issubdtype(aval.dtype, jnp.floating) for aval in program.avals]
    readings = _nonlinearities(program, [any(of) for of in zip(of_params, of_state, of_inputs, strict=True)])
    first, second = ([s for s in sites if floating[s.output] and floating[s.argument]] for sites in readings)
    shifting = _following(program, of_params)
    carries, products = [], []
    for position, operation in enumerate(program.operations):
        slots = [slot for slot in operation.inputs if isinstance(slot, int)]
        if operation.name not in MEETING or len(slots) < 2 or not all(floating[slot] for slot in slots):
            continue
        for side, other in ((0, 1), (1, 0)):
            a, b = slots[other], slots[side]
            if of_state[b] and not of_params[b] and not of_inputs[b] and (of_params[a] or of_inputs[a]):
                carries.append((position, side))
            bilinear = operation.name in BILINEAR and not (of_state[a] and of_params[b])
            if bilinear and of_params[a] and of_state[b] and shifting[b]:
                products.append((position, side))
    return StepProgram(
        step,
        program,
        (*first, *second),
        len(first),
        tuple(carries),
        tuple(products),
        tuple(shifting),
        lag=program.counts[0] if program.counts[1] == 1 else None,
    )


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


def _dependences(program: FlatProgram) -> tuple[list[bool], list[bool], list[bool]]:
    """Per slot: whether it comes from params, from the state, from the input."""
    ends = list(itertools.accumulate(program.counts, initial=0))
    of_params, of_state, of_inputs = (depends(program, range(a, b)) for a, b in itertools.pairwise(ends))
    return of_params, of_state, of_inputs


def _following(program: FlatProgram, of_params: Sequence[bool]) -> list[bool]:
    """Per slot: whether it follows the state, without a nonlinearity that reads params."""
    first, stop = program.counts[0], sum(program.counts[:2])
    following = [first <= slot < stop for slot in range(len(program.avals))]
    for operation in program.operations:
        linear = operation.name not in NONLINEAR and operation.name != "custom_jvp_call"
        reads = reads_any(operation, following)
        for slot in operation.outputs:
            following[slot] = reads and (linear or not of_params[slot])
    return following


def _nonlinearities(program: FlatProgram, of_any: Sequence[bool]) -> tuple[list[Site], list[Site]]:
    """(first readings, second readings). An elementwise function of one slot a counts once, however it is written:
    tanh(a), and 1/(1+exp(−a)) as a whole. Second readings start at an earlier a, or include the scaling after it.
    """
    root: dict[int, int] = {}
    depth: dict[int, int] = {}
    made: dict[int, Any] = {}  # per slot: a; how many nonlinear operations since a; the last of them (slot)
    for operation in program.operations:
        if len(operation.outputs) != 1:
            continue
        read = sorted({slot for slot in operation.inputs if isinstance(slot, int) and of_any[slot]})
        roots = {root.get(slot, slot) for slot in read}
        name = operation.name
        out = operation.outputs[0]
        if len(roots) != 1 or not _elementwise(operation.equation):
            continue
        (a,) = roots
        if program.avals[out].shape != program.avals[a].shape:
            continue
        inverse = name == "div" and not isinstance(operation.inputs[1], Constant)
        variable = sum(isinstance(slot, int) and bool(of_any[slot]) for slot in operation.inputs)
        bends = name not in AFFINE or inverse or (name == "mul" and variable > 1)
        root[out] = a
        depth[out] = sum(depth.get(slot, 0) for slot in read) + bends
        made[out] = (out, read[0], name) if bends else next((made[slot] for slot in read if slot in made), None)
        if len(read) > 1:  # such as a·σ(a): one nonlinearity
            made[out] = (out, a, name)
    leaves = {slot for slot in program.outputs if isinstance(slot, int)}
    for operation in program.operations:
        for slot in operation.inputs:
            if isinstance(slot, int) and any(
                root.get(out) is None or root[out] != root.get(slot) for out in operation.outputs
            ):
                leaves.add(slot)
    first, second = [], []
    for slot in sorted(leaves & root.keys()):
        if not depth[slot]:
            continue
        bend, argument, name = made[slot]
        whole = Site(bend, root[slot], name)
        single = depth[slot] == 1 and argument != root[slot]
        first.append(Site(bend, argument, name) if single else whole)
        second += [whole, Site(slot, root[slot], name)]
    first = list(dict.fromkeys(first))
    exits = leaves & root.keys()
    second = [
        s
        for s in dict.fromkeys(second)
        if s not in first and not (made[s.output][0] != s.output and made[s.output][0] in exits)
    ]
    return first, second


def _elementwise(equation: JaxprEqn) -> bool:
    name = equation.primitive.name
    if name in ("custom_jvp_call", "jit", "pjit"):
        inner: Any = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
        return all(_elementwise(e) for e in inner.jaxpr.eqns)
    return name in AFFINE or name in NONLINEAR
