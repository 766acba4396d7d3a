"""One step with its value kept and its derivative changed on purpose: what a slip in a derivation computes.

`evaluate` runs a `StepProgram` with coefficients where slips happen; those of the true derivative in brackets:

    site     y = φ(a), any elementwise nonlinearity:  dy = (direct φ'(a) + identity + lagged φ'|_{y = h_{t−1}}
             + activated φ'(y) + squared (1−y)² + Σ_j borrowed_j φ_j'(a_j)) da                  (1, 0, 0, 0, 0, 0)
    carry    the previous state alone, where it is joined with anything else:  its derivative times `carry`; after a
             matrix W, W + turned (Wᵀ − W) takes the place of W, gate by gate                                (1, 0)
    product  A·B of a parameter's A and a state's B:  A's cotangent reads B + shifted (B(other) − B)                 (0)
    factor   A ⊙ B, B a gate's value:  A's cotangent is multiplied by B + Σ_j swapped_j (V_j − B), V_j other values  (0)
    use      one of several of a parameter:  its derivative times `uses`                                       (1)
    reset    `across` times the derivative of the state that does not pass is added                               (0)

direct = 0 freezes a gate; direct = 0 with identity = 1 forgets φ'. A coefficient that is a NumPy array of its true
value adds nothing to the program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt._jaxprs.joins import Reset, turned
from jaxbptt._jaxprs.program import Operation, value_of
from jaxbptt._jaxprs.sites import Site, StepProgram, replay
from jaxbptt.types import ArrayLike, Input, Params, State

_SLOPES = {"tanh": lambda y: (1 - y) * (1 + y), "logistic": lambda y: y * (1 - y)}  # φ' by φ's own value


class Coefficients(NamedTuple):
    direct: ArrayLike  # [sites]
    identity: ArrayLike  # [sites]
    lagged: ArrayLike  # [sites]
    activated: ArrayLike  # [sites]
    squared: ArrayLike  # [sites]
    borrowed: ArrayLike  # [sites, sites]
    carry: ArrayLike  # [carries]
    turned: ArrayLike  # [carries]
    shifted: ArrayLike  # [products]
    swapped: ArrayLike  # [factors, values]
    uses: ArrayLike  # [uses]
    across: ArrayLike  # [resets]


def neutral(program: StepProgram, like: Any) -> Coefficients:
    """The coefficients of the true derivative, in NumPy, in the dtype of the leaves of `like`."""
    sites, carries = len(program.sites), len(program.carries)
    ones, zeros = (lambda *shape: as_dtype(np.ones(shape), like)), (lambda *shape: as_dtype(np.zeros(shape), like))
    return Coefficients(
        direct=ones(sites),
        identity=zeros(sites),
        lagged=zeros(sites),
        activated=zeros(sites),
        squared=zeros(sites),
        borrowed=zeros(sites, sites),
        carry=ones(carries),
        turned=zeros(carries),
        shifted=zeros(len(program.products)),
        swapped=zeros(len(program.factors), len(program.values)),
        uses=ones(len(program.uses)),
        across=zeros(len(program.resets)),
    )


def without_slopes(program: StepProgram, like: Any, direct: float) -> Coefficients:
    """direct φ' + 1 for every φ'."""
    true = neutral(program, like)
    direct_of, identity = true.direct.copy(), true.identity.copy()
    direct_of[: program.num_primary], identity[: program.num_primary] = direct, 1
    return true._replace(direct=direct_of, identity=identity)


def as_dtype(array: np.ndarray, like: Any) -> np.ndarray:
    """The array in the dtype of the leaves of `like`."""
    return np.asarray(array, jax.tree.leaves(like)[0].dtype)


def evaluate(
    program: StepProgram, coefficients: Coefficients, params: Params, state: State, x: Input, other: State
) -> State:
    """The step's value, exactly, with the derivative the coefficients describe; `other` is the wrong state, h_t."""
    flat = program.flat
    if flat is None:
        return program.step(params, state, x)
    leaves = jax.tree.leaves((params, state, x))
    values = dict(enumerate(leaves))
    fixed = _run_fixed(program, leaves) if _needs_fixed(coefficients) else {}
    shifted = _differs(coefficients.shifted)
    seconds = _run_fixed(program, jax.tree.leaves((params, other, x)), elsewhere=fixed) if shifted else {}
    for position, operation in enumerate(flat.operations):
        if not operation.outputs:  # an effect, such as jax.debug.print
            continue
        inputs = [value_of(slot, values) for slot in operation.inputs]
        extras = _change_operands(program, coefficients, position, inputs, fixed, seconds)
        results = operation.run(*inputs)
        values.update(zip(operation.outputs, [sum(extras, results[0])] if extras else results, strict=True))
        for number, site in enumerate(program.sites):
            if site.output in operation.outputs:
                values[site.output] = _at_site(program, coefficients, number, values, fixed)
    return jax.tree.unflatten(flat.structure, [value_of(slot, values) for slot in flat.outputs])


def _run_fixed(program: StepProgram, leaves: list[Any], elsewhere: dict | None = None) -> dict:
    """Every slot's value, without derivatives; what does not follow the state is taken from `elsewhere`, if given."""
    values = {slot: jax.lax.stop_gradient(leaf) for slot, leaf in enumerate(leaves)}
    for operation in program.operations:
        if not operation.outputs:
            continue
        if elsewhere is not None and not any(program.shifting[slot] for slot in operation.outputs):
            values.update({slot: elsewhere[slot] for slot in operation.outputs})
            continue
        results = operation.run(*[value_of(slot, values) for slot in operation.inputs])
        values.update(zip(operation.outputs, map(jax.lax.stop_gradient, results), strict=True))
    return values


def _change_operands(
    program: StepProgram, coefficients: Coefficients, position: int, inputs: list[Any], fixed: dict, seconds: dict
) -> list[jax.Array]:
    """Change the derivatives of an operation's `inputs` in place; return zeros with the derivatives to be added."""
    operation = program.operations[position]
    extras = []
    for number, (where, side) in enumerate(program.carries):
        if where == position:
            if _differs(coefficients.turned):
                extras += _turned_extra(operation, inputs, side, coefficients.turned[number])
            if _differs(coefficients.carry, 1):
                inputs[side] = _with_slope(inputs[side], [(coefficients.carry[number], inputs[side])])
    for number, use in enumerate(program.uses):
        if use.position == position and _differs(coefficients.uses, 1):
            inputs[use.side] = _with_slope(inputs[use.side], [(coefficients.uses[number], inputs[use.side])])
    for number, (where, side) in enumerate(program.products):
        if where == position and _differs(coefficients.shifted):
            moved = value_of(operation.inputs[side], seconds) - inputs[side]
            extras.append(_factor_extra(operation, inputs, side, moved, coefficients.shifted[number]))
    for number, factor in enumerate(program.factors):
        if factor.position == position and _differs(coefficients.swapped):
            own = fixed[program.values[factor.value].slot]
            for place, value in enumerate(program.values):
                if fixed[value.slot].shape == own.shape and place != factor.value:
                    moved, weight = fixed[value.slot] - own, coefficients.swapped[number, place]
                    extras.append(_factor_extra(operation, inputs, factor.side, moved, weight))
    for number, reset in enumerate(program.resets):
        if reset.position == position and _differs(coefficients.across):
            extras.append(_reset_extra(operation, inputs, reset, coefficients.across[number]))
    return extras


def _turned_extra(operation: Operation, inputs: list[Any], side: int, coefficient: Any) -> list[jax.Array]:
    """Zero, with the derivative in the state that the transposed weight adds; [] where no weight can be transposed."""
    weight = turned(operation, inputs[1 - side], side)
    if weight is None:
        return []
    pair = [jax.lax.stop_gradient(weight - inputs[1 - side])] * 2
    pair[side] = _zero(inputs[side])
    (extra,) = operation.run(*pair)
    return [coefficient.astype(extra.dtype) * extra]


def _factor_extra(operation: Operation, inputs: list[Any], side: int, moved: Any, coefficient: Any) -> jax.Array:
    """Zero, with the derivative that a change of the factor on `side` adds in the other."""
    pair = [_zero(inputs[1 - side])] * 2
    pair[side] = jax.lax.stop_gradient(moved)
    (extra,) = operation.run(*pair)
    return coefficient.astype(extra.dtype) * extra


def _reset_extra(operation: Operation, inputs: list[Any], reset: Reset, coefficient: Any) -> jax.Array:
    """Zero, with the derivative in the state where it does not pass."""
    mask, extra = inputs[reset.mask], jnp.zeros_like(inputs[reset.sides[0]])
    for side in reset.sides:
        passes = mask.astype(jnp.int32) == side - 1 if operation.name == "select_n" else mask != 0
        extra += jnp.where(passes, jnp.zeros_like(extra), _zero(inputs[side]))
    return coefficient.astype(extra.dtype) * extra


def _at_site(program: StepProgram, coefficients: Coefficients, number: int, values: dict, fixed: dict) -> jax.Array:
    """The value of a site's slot with the slope its coefficients give it."""
    site = program.sites[number]
    result, argument, terms = values[site.output], values[site.argument], []
    if _differs(coefficients.direct, 1) or _differs(coefficients.identity):
        terms = [(coefficients.direct[number], result), (coefficients.identity[number], argument)]
    slopes = []
    old = None if program.lag is None else values[program.lag]
    if _differs(coefficients.lagged) and old is not None and old.shape == argument.shape and site.name in _SLOPES:
        slopes.append((coefficients.lagged[number], _SLOPES[site.name](old)))
    if _differs(coefficients.activated):
        slopes.append((coefficients.activated[number], _slope(program, site, fixed, fixed[site.output])))
    if _differs(coefficients.squared) and site.name == "tanh":
        slopes.append((coefficients.squared[number], (1 - fixed[site.output]) ** 2))
    if _differs(coefficients.borrowed):
        for other, lender in enumerate(program.sites[: program.num_primary]):
            if lender.name == site.name and other != number and fixed[lender.output].shape == argument.shape:
                borrowed = _slope(program, lender, fixed, fixed[lender.argument])
                slopes.append((coefficients.borrowed[number, other], borrowed))
    terms += [(weight * jax.lax.stop_gradient(slope), argument) for weight, slope in slopes]
    return _with_slope(result, terms) if terms else result


def _slope(program: StepProgram, site: Site, fixed: dict, argument: jax.Array) -> jax.Array:
    """φ'(argument) of a site; zero where it is not finite."""
    function = lambda argument: replay(program, site, fixed, argument)
    slope = jax.jvp(function, (argument,), (jnp.ones_like(argument),))[1]
    return jnp.where(jnp.isfinite(slope), slope, jnp.zeros_like(slope))


def _with_slope(value, terms):
    """The value of `value` with the derivative Σ weight · d(term)."""
    total = jax.lax.stop_gradient(value)
    for weight, term in terms:
        total = total + weight.astype(term.dtype) * _zero(term)
    return total


def _zero(value):
    """Zero, with the derivative of `value`; without one where that is infinite, such as log 0."""
    finite = jnp.where(jnp.isfinite(value), value, jnp.zeros_like(value))
    return finite - jax.lax.stop_gradient(finite)


def _differs(coefficient: Any, true: float = 0) -> bool:
    """Whether a coefficient may differ from its true value: known only of NumPy arrays."""
    return not isinstance(coefficient, np.ndarray) or bool(np.any(coefficient != true))


def _needs_fixed(coefficients: Coefficients) -> bool:
    reading = coefficients.activated, coefficients.squared, coefficients.borrowed, coefficients.swapped
    return any(map(_differs, (*reading, coefficients.shifted)))
