"""Where slips can happen in a step: its nonlinearities here, the rest in `joins` and `gates`.

site     y = φ(a), any elementwise nonlinearity
"""

from collections import ChainMap
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxbptt._jaxprs.gates import Factor, Rows, Value, find_factors, find_rows, find_values
from jaxbptt._jaxprs.joins import (
    Reset,
    Use,
    find_carries_and_products,
    find_dependence,
    find_resets,
    find_uses,
)
from jaxbptt._jaxprs.program import Constant, FlatProgram, Operation, read_program, reads_any, value_of
from jaxbptt.types import Input, Params, State, Step

AFFINE = frozenset(("add", "sub", "neg", "mul", "div", "convert_element_type", "copy", "add_any"))
NONLINEAR = (
    frozenset(("tanh", "logistic", "exp", "exp2", "log", "log1p", "expm1", "sin", "cos", "tan", "sqrt", "rsqrt"))
    | frozenset(("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "cbrt", "integer_pow", "square"))
    | frozenset(("pow", "abs", "sign", "max", "min", "erf", "erfc", "erf_inv", "lgamma", "digamma", "clamp"))
    | frozenset(("select_n", "gt", "lt", "ge", "le", "eq", "ne", "log2", "one_minus_square"))
)


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
    uses: tuple[Use, ...] = ()
    resets: tuple[Reset, ...] = ()
    rows: tuple[Rows | None, ...] = ()  # per site: the slice of a stacked weight that its argument is made of
    values: tuple[Value, ...] = ()  # of the gates
    factors: tuple[Factor, ...] = ()

    @property
    def operations(self) -> tuple[Operation, ...]:
        """In order; none where the program could not be read."""
        return () if self.flat is None else self.flat.operations


def find_sites(step: Step, params: Params, state: State, x: Input) -> StepProgram:
    """Read the program of (params, state, x) -> state, and find where slips can happen in it."""
    try:
        program = read_program(step, params, state, x)
    except Exception:  # a program may be unreadable for unforeseen reasons
        return StepProgram(step, None)
    of = find_dependence(program)
    of_any = [any(each) for each in zip(of.params, of.state, of.inputs, strict=True)]
    floating = [jnp.issubdtype(aval.dtype, jnp.floating) for aval in program.avals]
    readings = _nonlinearities(program, of_any)
    first, second = ([s for s in sites if floating[s.output] and floating[s.argument]] for sites in readings)
    sites = (*first, *second)
    shifting = _following(program, of.params)
    carries, products = find_carries_and_products(program, of, floating, shifting)
    values = find_values(program, of_any, [site.output for site in first])
    return StepProgram(
        step,
        program,
        sites,
        len(first),
        carries,
        products,
        tuple(shifting),
        lag=program.counts[0] if program.counts[1] == 1 else None,
        uses=find_uses(program, of, floating),
        resets=find_resets(program, of, floating),
        rows=tuple(find_rows(program, of, [site.argument for site in sites], {site.output for site in first})),
        values=values,
        factors=find_factors(program, of_any, values),
    )


def replay(program: StepProgram, site: Site, values: Any, argument: jax.Array) -> jax.Array:
    """φ(argument) by the site's own operations; `values` holds every slot at φ's true argument."""
    operations = program.operations
    made = {slot: position for position, operation in enumerate(operations) for slot in operation.outputs}
    needed, positions = [site.output], set()
    while needed:
        slot = needed.pop()
        if slot != site.argument and slot in made and made[slot] not in positions:
            positions.add(made[slot])
            needed += [slot for slot in operations[made[slot]].inputs if isinstance(slot, int)]
    again = {site.argument: argument}
    either = ChainMap(again, values)
    for position in sorted(positions):
        operation = operations[position]
        if any(slot in again for slot in operation.inputs if isinstance(slot, int)):
            results = operation.run(*[value_of(slot, either) for slot in operation.inputs])
            again.update(zip(operation.outputs, results, strict=True))
    return again[site.output]


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
