"""One operation of a program, with a random mixture of all it can decide in place of what it decides by its numbers.

Each rule gets an operation, the values of its operands and shares, and returns the results. The values are drawn
numbers, constants, or None: an operand without a derivative (ints, bools, keys) that may be anything.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt._jaxprs.program import Operation

LARGEST = 1e4  # of a constant: −1e30 in a mask would drown the rest of its mixture
FUNCTIONS = (  # smooth, entry by entry
    frozenset(("add", "sub", "neg", "mul", "div", "add_any", "pow", "integer_pow", "square", "sqrt", "rsqrt", "cbrt"))
    | frozenset(("exp", "exp2", "log", "expm1", "log1p", "tanh", "logistic", "sin", "cos", "tan", "sinh", "cosh"))
    | frozenset(("asin", "acos", "atan", "atan2", "asinh", "acosh", "atanh", "erf", "erfc", "erf_inv", "lgamma"))
    | frozenset(("digamma", "real", "imag", "complex", "conj", "convert_element_type", "reduce_precision", "copy"))
    | frozenset(("stop_gradient", "name", "device_put", "sharding_constraint"))
)
SMOOTH = (  # of arrays, mostly linear
    frozenset(("dot_general", "conv_general_dilated", "reduce_sum", "reduce_prod", "cumsum", "cumprod", "cumlogsumexp"))
    | frozenset(("reshape", "transpose", "squeeze", "broadcast_in_dim", "concatenate", "stack", "pad", "rev", "slice"))
    | frozenset(("split", "unstack", "tile", "fft", "reduce_window_sum", "triangular_solve", "cholesky"))
)
STEPWISE = frozenset(("floor", "ceil", "round", "sign"))
DECISIONS = (  # entry by entry
    frozenset(("select_n", "max", "min", "clamp", "abs", "rem", "is_finite", "eq", "ne", "lt", "le", "gt", "ge"))
    | frozenset(("and", "or", "not", "xor"))
)
ELEMENTWISE = FUNCTIONS | STEPWISE | DECISIONS


class Shares(NamedTuple):
    """Random numbers: others at each call and at each phase."""

    phase: Any  # float scalar, another one at each point and in each iteration of a loop
    generator: np.random.Generator

    def within(self, iteration: Any) -> "Shares":
        """Those of one iteration, a float scalar."""
        return self._replace(phase=self.phase + iteration)

    def like(self, aval: Any) -> jax.Array:
        """Numbers in (1, 2) of this shape and dtype: what any mask, count or factor may be."""
        angles = jnp.asarray(self.generator.uniform(0, 2 * np.pi, aval.shape), self.phase.dtype)
        return (1.5 + 0.5 * jnp.cos(angles + self.phase)).astype(aval.dtype)

    def mix(self, values: Sequence[Any], aval: Any) -> jax.Array:
        """Any of these values in each entry: Σ_i s_i values_i with random s_i > 0, Σ_i s_i = 1."""
        shares = jnp.stack([self.like(aval) for _ in values])
        stacked = jnp.stack([jnp.broadcast_to(value, aval.shape) for value in values])
        return jnp.sum(shares * stacked, axis=0) / jnp.sum(shares, axis=0)

    def spread(self, value: Any, axes: Sequence[int]) -> jax.Array:
        """Any entry at any place of these axes: a mixture of all of them, times another number at each place."""
        if not axes:
            return value
        shares = self.like(value)
        mixture = jnp.sum(shares * value, tuple(axes), keepdims=True) / jnp.sum(shares, tuple(axes), keepdims=True)
        return self.like(value) * jnp.broadcast_to(mixture, value.shape)


def mixed(operation: Operation, values: Sequence[Any], shares: Shares) -> list[Any]:
    """The results of an operation, of which one at least is a float; None for the others."""
    return RULES.get(operation.name, depend_on_all)(operation, values, shares)


def depend_on_all(operation: Operation, values: Sequence[Any], shares: Shares) -> list[Any]:
    """What is not known in detail: any value in each entry, and a slope in every entry of every float operand."""
    total = jnp.ones_like(shares.phase)
    for value, aval in zip(values, operand_avals(operation), strict=True):
        if value is not None and is_float(aval):
            mean = jnp.sum(shares.like(aval) * value) / max(value.size, 1)
            total += (jnp.real(mean) + jnp.imag(mean)).astype(total.dtype)
    return [shares.like(a) * total.astype(a.dtype) if is_float(a) else None for a in result_avals(operation)]


def bounded(constant: Any, aval: Any) -> Any:
    """A constant of a program, floats finite and not large: what is not zero may be any number."""
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        return constant
    finite = jnp.nan_to_num(typed(constant, aval), nan=1.0, posinf=LARGEST, neginf=-LARGEST)
    return jnp.clip(finite, -LARGEST, LARGEST)


def typed(constant: Any, aval: Any) -> Any:
    """As an array: a literal of a program may be a bare Python number."""
    return constant if isinstance(constant, jax.Array) else jnp.asarray(constant, aval.dtype)


def is_float(aval: Any) -> bool:
    """Whether it has a derivative."""
    return jnp.issubdtype(aval.dtype, jnp.inexact)


def operand_avals(operation: Operation) -> list[jax.ShapeDtypeStruct]:
    """Shape and dtype of each operand."""
    return _avals(operation.equation.invars)


def result_avals(operation: Operation) -> list[jax.ShapeDtypeStruct]:
    """Shape and dtype of each result."""
    return _avals(operation.equation.outvars)


def _avals(variables: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in variables]


def _squash(x):
    """x near zero, within (−4, 4) everywhere; its slope falls as 1/|x| only, which never rounds to zero."""
    slow = jnp.asinh(x)
    return slow / (1 + jnp.abs(slow) / 4)


SATURATING = ("exp", "exp2", "expm1", "tanh", "logistic", "erf", "erfc", "sinh", "cosh")
INSIDE: dict[str, Callable[[Any], Any]] = {  # onto a range where a function is defined and has slopes in floats
    **dict.fromkeys(SATURATING, _squash),
    **dict.fromkeys(("log", "log1p", "sqrt", "rsqrt", "lgamma", "digamma", "pow"), jnp.abs),
    **dict.fromkeys(("asin", "acos", "atanh", "erf_inv"), lambda x: _squash(x) / 4),
    "acosh": lambda x: 1 + jnp.abs(x),
}


def _smooth(operation, values, shares):
    if any(value is None for value in values):
        return depend_on_all(operation, values, shares)
    inside = INSIDE.get(operation.name)
    if inside is not None and jnp.issubdtype(values[0].dtype, jnp.floating):
        values = [inside(values[0]), *values[1:]]
    return operation.run(*values)


def _convert(operation, values, shares):
    return operation.run(*values) if values[0] is not None else [shares.like(result_avals(operation)[0])]


def _select(operation, values, shares):
    which, *cases = values
    return operation.run(*values) if which is not None else _mix(operation, cases, shares)


def _mix(operation, values, shares):
    return [shares.mix(values, result_avals(operation)[0])]


def _absolute(operation, values, shares):
    (result,) = operation.run(*values)
    return [shares.like(result) * result]  # the slope is not ±1: x + |x| depends on x


def _step(operation, values, shares):
    """A step function has no slope and may have any value, except at zero."""
    numbers = shares.like(values[0])
    return [jnp.where(values[0] == 0, jnp.zeros_like(numbers), numbers)]


def _remainder(operation, values, shares):
    return [values[0] + shares.like(result_avals(operation)[0]) * values[1]]  # x − n y, n any number


def _extremum(operation, values, shares):
    axes = operation.equation.params["axes"]
    return [jnp.mean(shares.spread(values[0], axes), axes)]


def _cumulative(operation, values, shares):
    return [shares.spread(values[0], (operation.equation.params["axis"],))]


def _sort(operation, values, shares):
    axis = operation.equation.params["dimension"]
    avals = operand_avals(operation)
    return [shares.spread(v, (axis,)) if is_float(a) else None for v, a in zip(values, avals, strict=True)]


def _top(operation, values, shares):
    params = operation.equation.params
    axis = params.get("axis", -1) % values[0].ndim
    return [jax.lax.slice_in_dim(shares.spread(values[0], (axis,)), 0, params["k"], axis=axis), None]


def _first(operation, position):
    """The operand at this position, which is an index, as zeros: always a valid one."""
    aval = operand_avals(operation)[position]
    return np.zeros(aval.shape, aval.dtype)


def _gather(operation, values, shares):
    operand, indices = values
    if indices is not None:
        return operation.run(*values)
    params = operation.equation.params
    sizes = params["slice_sizes"]
    axes = [axis for axis in params["dimension_numbers"].start_index_map if sizes[axis] < operand.shape[axis]]
    (taken,) = operation.run(shares.spread(operand, axes), _first(operation, 1))
    return [shares.like(taken) * taken]


def _dynamic_slice(operation, values, shares):
    operand, *starts = values
    sizes = operation.equation.params["slice_sizes"]
    axes = [i for i, start in enumerate(starts) if start is None and sizes[i] < operand.shape[i]]
    starts = [_first(operation, i + 1) if start is None else start for i, start in enumerate(starts)]
    return operation.run(shares.spread(operand, axes), *starts)


def _dynamic_update_slice(operation, values, shares):
    operand, update, *starts = values
    if all(start is not None for start in starts):
        return operation.run(*values)
    axes = [i for i, start in enumerate(starts) if start is None and update.shape[i] < operand.shape[i]]
    starts = [_first(operation, i + 2) if start is None else start for i, start in enumerate(starts)]
    (landed,) = operation.run(jnp.zeros_like(operand), update, *starts)
    return [shares.mix([operand, shares.spread(landed, axes)], operand)]


def _scatter(operation, values, shares):
    operand, indices, updates = values
    params = operation.equation.params
    if operation.name == "scatter" and params["update_jaxpr"] is not None:  # .at[].apply(function)
        return depend_on_all(operation, values, shares)
    if indices is not None and operation.name not in ("scatter-min", "scatter-max"):
        return operation.run(*values)
    dimensions = params["dimension_numbers"]
    axes: list[int] = []
    if indices is None:
        indices = _first(operation, 1)
        absent = (*dimensions.inserted_window_dims, *dimensions.operand_batching_dims)
        present = [axis for axis in range(operand.ndim) if axis not in absent]
        sizes = {axis: updates.shape[i] for axis, i in zip(present, dimensions.update_window_dims, strict=True)}
        axes = [axis for axis in dimensions.scatter_dims_to_operand_dims if sizes.get(axis, 1) < operand.shape[axis]]
    updates = shares.like(updates) * updates
    landed = jax.lax.scatter_add(jnp.zeros_like(operand), indices, updates, dimensions, mode=params["mode"])
    return [shares.mix([operand, shares.spread(landed, axes)], operand)]


RULES: dict[str, Callable[[Operation, Sequence[Any], Shares], list[Any]]] = {
    **dict.fromkeys(FUNCTIONS | SMOOTH, _smooth),
    **dict.fromkeys(("convert_element_type", "bitcast_convert_type"), _convert),
    **dict.fromkeys(STEPWISE, _step),
    **dict.fromkeys(("max", "min", "clamp"), _mix),
    **dict.fromkeys(("reduce_max", "reduce_min"), _extremum),
    **dict.fromkeys(("cummax", "cummin"), _cumulative),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"), _scatter),
    "select_n": _select,
    "abs": _absolute,
    "rem": _remainder,
    "sort": _sort,
    "top_k": _top,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
}
