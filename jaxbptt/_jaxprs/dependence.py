"""What a program's results depend on."""

from collections.abc import Callable
from typing import Any

import jax

from jaxbptt.types import Params


def leaves_read(function: Callable[..., Any], params: Params, *rest: Any) -> tuple[bool, ...]:
    """Per leaf of `params`: whether the numbers of function(params, *rest) depend on it."""
    jaxpr = jax.make_jaxpr(function)(params, *rest).jaxpr
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    return tuple(id(variable) in needed for variable in jaxpr.invars[: len(jax.tree.leaves(params))])
