"""One step with its value kept and its derivative changed on purpose: what a slip of the pen computes.

`trace` reads a step's jaxpr and finds where slips happen; `evaluate` runs it with coefficients there:

    site     y = φ(a), any elementwise nonlinearity:  dy = (direct φ'(a) + identity + lagged φ'|_{y = h_{t−1}}) da
    carry    the previous state alone, where it meets anything else:  its derivative times `carry`; behind a matrix,
             `turned` of it reads the matrix transposed, gate by gate
    product  A·B of a parameter's A and a state's B:  A's cotangent reads B(h_{t−1}) + shifted (B(other) − B(h_{t−1}))

Coefficients (1, 0, 0), (1, 0), 0 are the true derivative; direct = 0 freezes a gate, and identity = 1 beside it
forgets φ'.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbptt.program import Constant, Operation, bind, read_program

_AFFINE = frozenset(("add", "sub", "neg", "mul", "div", "convert_element_type", "copy", "add_any"))
_NONLINEAR = (
    frozenset(("tanh", "logistic", "exp", "exp2", "log", "log1p", "expm1", "sin", "cos", "tan", "sqrt", "rsqrt"))
    | frozenset(("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "cbrt", "integer_pow", "square"))
    | frozenset(("pow", "abs", "sign", "max", "min", "erf", "erfc", "erf_inv", "lgamma", "digamma", "clamp"))
    | frozenset(("select_n", "gt", "lt", "ge", "le", "eq", "ne"))
)
_BILINEAR = frozenset(("mul", "dot_general"))
_MEETING = _BILINEAR | {"add", "sub", "add_any"}
_SLOPES = {"tanh": lambda y: (1 - y) * (1 + y), "logistic": lambda y: y * (1 - y)}  # φ' by φ's own value


class Site(NamedTuple):
    """y = φ(a): slots of y and a, and the name of φ's last primitive."""

    output: int
    argument: int
    name: str


class Program(NamedTuple):
    """A step as a flat list of operations on numbered slots; the first slots are params, state and x."""

    operations: tuple[Operation, ...]
    outputs: tuple  # slots or Constants
    num_slots: int
    structure: Any  # of the new state
    sites: tuple[Site, ...]  # one per nonlinearity, then other readings of the same ones
    num_primary: int  # how many of `sites` are the first readings
    carries: tuple[tuple[int, int], ...]  # (operation, operand): reads the previous state alone
    products: tuple[tuple[int, int], ...]  # (operation, operand): the state's side B of A·B
    shifting: tuple[bool, ...]  # per slot: follows the state linearly, so that `other` has its say
    lag: int | None  # slot of the state, if it is one leaf


class Coefficients(NamedTuple):
    direct: jax.Array  # [sites]
    identity: jax.Array  # [sites]
    lagged: jax.Array  # [sites]
    carry: jax.Array  # [carries]
    turned: jax.Array  # [carries]
    shifted: jax.Array  # [products]


def neutral(program: Program, dtype: Any = np.float64) -> Coefficients:
    """The coefficients of the true derivative."""
    ones, zeros = np.ones(len(program.sites), dtype), np.zeros(len(program.sites), dtype)
    carries, products = np.ones(len(program.carries), dtype), np.zeros(len(program.products), dtype)
    return Coefficients(ones, zeros, zeros, carries, 0 * carries, products)


def trace(step: Any, params: Any, state: Any, x: Any) -> Program:
    """Read (params, state, x) -> state as a Program."""
    operations, outputs, shapes, counts, structure = read_program(step, params, state, x)
    num_slots = len(shapes)

    of_params = np.arange(num_slots) < counts[0]
    of_state = (np.arange(num_slots) >= counts[0]) & (np.arange(num_slots) < counts[0] + counts[1])
    of_any = np.arange(num_slots) < sum(counts)
    of_inputs = of_any & ~of_params & ~of_state
    for operation in operations:
        read = [slot for slot in operation.inputs if isinstance(slot, int)]
        for slot in operation.outputs:
            of_params[slot], of_state[slot] = any(of_params[read]), any(of_state[read])
            of_any[slot], of_inputs[slot] = any(of_any[read]), any(of_inputs[read])

    sites, num_primary = _find_sites(operations, outputs, shapes, of_any)
    carries, products = [], []
    shifting = [bool(of_state[slot]) for slot in range(sum(counts))] + [False] * (num_slots - sum(counts))
    for position, operation in enumerate(operations):
        name, inputs = operation.equation.primitive.name, operation.inputs
        for slot in operation.outputs:
            linear = name not in _NONLINEAR and name != "custom_jvp_call"
            shifting[slot] = any(isinstance(s, int) and shifting[s] for s in inputs) and (linear or not of_params[slot])
        if name not in _MEETING or not all(isinstance(slot, int) for slot in inputs):
            continue
        for side, other in ((0, 1), (1, 0)):
            a, b = inputs[other], inputs[side]
            if of_state[b] and not of_params[b] and not of_inputs[b] and (of_params[a] or of_inputs[a]):
                carries.append((position, side))
            if (
                name in _BILINEAR
                and of_params[a]
                and of_state[b]
                and shifting[b]
                and not (of_state[a] and of_params[b])
            ):
                products.append((position, side))
    return Program(
        operations,
        outputs,
        num_slots,
        structure,
        tuple(sites),
        num_primary,
        tuple(carries),
        tuple(products),
        tuple(shifting),
        counts[0] if counts[1] == 1 else None,
    )


def evaluate(program: Program, coefficients: Coefficients, params: Any, state: Any, x: Any, other: Any) -> Any:
    """The step's value, exactly, with the derivative the coefficients describe; `other` is the wrong state, h_t."""
    leaves = jax.tree.leaves((params, state, x))
    shifted = [jax.lax.stop_gradient(leaf) for leaf in jax.tree.leaves((params, other, x))]
    values = leaves + [None] * (program.num_slots - len(leaves))
    seconds = shifted + [None] * (program.num_slots - len(leaves))
    sites = {}
    for number, site in enumerate(program.sites):
        sites.setdefault(site.output, []).append((number, site))

    def read(slot, table):
        return slot.value if isinstance(slot, Constant) else table[slot]

    for position, operation in enumerate(program.operations):
        inputs = [read(slot, values) for slot in operation.inputs]
        extras = []
        for number, (where, side) in enumerate(program.carries):
            if where == position:
                weight = turn(operation.equation, inputs[1 - side], side)
                if weight is not None:
                    pair = [None, None]
                    pair[1 - side] = jax.lax.stop_gradient(weight - inputs[1 - side])
                    pair[side] = inputs[side] - jax.lax.stop_gradient(inputs[side])
                    (extra,) = bind(operation.equation, pair)
                    extras.append(coefficients.turned[number].astype(extra.dtype) * extra)
                inputs[side] = _with_slope(inputs[side], [(coefficients.carry[number], inputs[side])])
        results = bind(operation.equation, inputs)
        results = [sum(extras, results[0])] if extras else results
        for number, (where, side) in enumerate(program.products):
            if where == position:
                weight = inputs[1 - side]
                moved = jax.lax.stop_gradient(seconds[operation.inputs[side]] - inputs[side])
                pair = [None, None]
                pair[side], pair[1 - side] = moved, weight - jax.lax.stop_gradient(weight)
                (extra,) = bind(operation.equation, pair)
                results = [results[0] + coefficients.shifted[number].astype(extra.dtype) * extra]
        for slot, result in zip(operation.outputs, results, strict=True):
            for number, site in sites.get(slot, ()):
                argument = values[site.argument]
                terms = [(coefficients.direct[number], result), (coefficients.identity[number], argument)]
                if program.lag is not None and site.name in _SLOPES and argument.shape == values[program.lag].shape:
                    slope = jax.lax.stop_gradient(_SLOPES[site.name](values[program.lag]))
                    terms.append((coefficients.lagged[number] * slope, argument))
                result = _with_slope(result, terms)
            values[slot] = result
        if any(program.shifting[slot] for slot in operation.outputs):
            moved = bind(operation.equation, [read(slot, seconds) for slot in operation.inputs])
        else:
            moved = [jax.lax.stop_gradient(values[slot]) for slot in operation.outputs]
        for slot, result in zip(operation.outputs, moved, strict=True):
            seconds[slot] = jax.lax.stop_gradient(result)
    return jax.tree.unflatten(program.structure, [read(slot, values) for slot in program.outputs])


def turn(equation: Any, weight: Any, side: int) -> Any:
    """A matrix of square blocks [G·N, N] or [N, G·N], N the contracted size, with each block transposed; else None."""
    if equation.primitive.name != "dot_general" or weight.ndim != 2:
        return None
    (contracted, batched) = equation.params["dimension_numbers"]
    if batched[0] or len(contracted[0]) != 1:
        return None
    axis = contracted[1 - side][0]
    rows, columns = weight.shape
    if axis == 1 and rows % columns == 0:
        return weight.reshape(-1, columns, columns).swapaxes(1, 2).reshape(rows, columns)
    if axis == 0 and columns % rows == 0:
        return weight.reshape(rows, -1, rows).swapaxes(0, 2).reshape(rows, columns)
    return None


def _with_slope(value, terms):
    """The value of `value` with the derivative Σ weight · d(term)."""
    total = jax.lax.stop_gradient(value)
    for weight, term in terms:
        total = total + weight.astype(term.dtype) * (term - jax.lax.stop_gradient(term))
    return total


def _find_sites(operations, outputs, shapes, of_any):
    """(sites, number of first readings). Of an elementwise function of one slot a, however written, only what leaves it
    counts: tanh(a), but also 1/(1+exp(−a)) as a whole. Read second: from a further back, or with the scaling after it.
    """
    root, depth, made = {}, {}, {}  # per slot: a; how many nonlinear operations since a; the last of them (slot)
    for operation in operations:
        read = sorted({slot for slot in operation.inputs if isinstance(slot, int) and of_any[slot]})
        roots = {root.get(slot, slot) for slot in read}
        name = operation.equation.primitive.name
        out = operation.outputs[0]
        if len(roots) != 1 or len(operation.outputs) != 1 or not _elementwise(operation.equation):
            continue
        (a,) = roots
        if shapes[out] != shapes[a]:
            continue
        inverse = name == "div" and not isinstance(operation.inputs[1], Constant)
        variable = sum(isinstance(slot, int) and bool(of_any[slot]) for slot in operation.inputs)
        bends = name not in _AFFINE or inverse or (name == "mul" and variable > 1)
        root[out] = a
        depth[out] = sum(depth.get(slot, 0) for slot in read) + bends
        made[out] = (out, read[0], name) if bends else next((made[slot] for slot in read if slot in made), None)
        if len(read) > 1:  # such as a·σ(a): one nonlinearity
            made[out] = (out, a, name)
    leaves = {slot for slot in outputs if isinstance(slot, int)}
    for operation in operations:
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
    return first + second, len(first)


def _elementwise(equation):
    name = equation.primitive.name
    if name in ("custom_jvp_call", "jit", "pjit"):
        inner = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
        return all(_elementwise(e) for e in inner.jaxpr.eqns)
    return name in _AFFINE or name in _NONLINEAR
