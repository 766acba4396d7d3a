"""How many operations a function takes, counted in its own program, loops included."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FREE = {"reshape", "broadcast_in_dim", "squeeze", "convert_element_type", "copy", "stop_gradient", "split"}
# Entries that only change their place: bytes, no flops.
MOVES = {
    "concatenate",
    "dynamic_slice",
    "dynamic_update_slice",
    "gather",
    "pad",
    "rev",
    "scatter",
    "slice",
    "transpose",
}


class Operations(NamedTuple):
    """The operations of one call.

    Attributes:
      flops: a product of [a, b] and [b, c] counts 2abc, an elementwise operation on floats 1 per entry; entries
        that are moved, and integers (indices, bits of random numbers), count 0.
      bytes: read and written if every operation reads its arguments and writes its result: an upper bound.
      exact: False if a loop of unknown length was counted once.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import assessment, gradients, models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> cost = assessment.cost_per_step(model, gradients.bptt, jnp.array(2.0), jnp.ones(5), jnp.zeros(5))
      >>> cost.exact, 4 < cost.flops < 40  # a few for each step
      (True, True)
    """

    flops: int
    bytes: int
    exact: bool


def count_operations(function: Any, *arguments: Any) -> Operations:
    """Σ over the operations of the traced program: a scan's body times its length, the dearer branch of a `cond`.

    Args:
      function: a traceable function of arrays.
      arguments: pytrees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      Operations. LAPACK calls (QR, SVD, eigenvalues) count as one operation per entry, which is far too little.
    """
    return _of_program(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_program(program):
    flops, moved, exact = 0, 0, True
    for equation in program.eqns:
        name, inner = equation.primitive.name, list(_inner_programs(equation))
        if inner:
            counts = [_of_program(one) for one in inner]
            pick = max if name == "cond" else sum
            times = equation.params["length"] if name == "scan" else 1
            flops += times * pick(count.flops for count in counts)
            moved += times * pick(count.bytes for count in counts)
            exact &= name != "while" and all(count.exact for count in counts)
        else:
            flops += _flops(equation)
            moved += 0 if name in FREE else sum(map(_size_in_bytes, (*equation.invars, *equation.outvars)))
    return Operations(flops, moved, exact)


def _inner_programs(equation):
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            program = getattr(item, "jaxpr", item)
            if hasattr(program, "eqns"):
                yield program


def _flops(equation):
    name, variables = equation.primitive.name, (*equation.invars, *equation.outvars)
    if name in FREE | MOVES or not any(jnp.issubdtype(variable.aval.dtype, jnp.inexact) for variable in variables):
        return 0
    size = sum(math.prod(variable.aval.shape) for variable in equation.outvars)
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return size


def _size_in_bytes(variable):
    dtype = getattr(variable.aval, "dtype", None)
    itemsize = dtype.itemsize if isinstance(dtype, np.dtype) else 0  # keys are not counted
    return math.prod(getattr(variable.aval, "shape", ())) * itemsize
