"""Whether two functions run the same program."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

OPAQUE = ("custom_", "callback")


def key_of_program(parts: Hashable, function: Callable[..., Any], *arguments: Any) -> Hashable:
    """Equal for functions that run the same program at arguments like these; None: it cannot be told.

    parts: what `function` is made of: told apart as well where the program's text does not say all, as with rules of
      the user's own and callbacks.
    """
    try:
        closed = jax.make_jaxpr(function)(*arguments)
        text = str(closed.jaxpr)
        constants = tuple((np.asarray(each).tobytes(), str(each.dtype)) for each in closed.consts)
    except Exception:  # a program may be unreadable for unforeseen reasons
        return None
    return (text, constants, parts if any(word in text for word in OPAQUE) else None)


def uses_custom_vjp(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether somewhere in the program a pullback is the user's own, and so may be anything; True where unreadable."""
    try:
        return _has_custom_vjp(jax.make_jaxpr(function)(*arguments).jaxpr)
    except Exception:
        return True


def _has_custom_vjp(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("custom_vjp"):
            return True
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns") and _has_custom_vjp(inner):
                    return True
    return False
