"""Options: sizes, choices, spans, probabilities, keys."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt._validation.leaves import is_concrete


def require_span(start: Any, stop: Any, length: int) -> tuple[int, int]:
    """Raise unless start and stop (None: T) are static ints with 0 ≤ start ≤ stop ≤ T; return them."""
    stop = length if stop is None else stop
    for name, step in (("start", start), ("stop", stop)):
        if isinstance(step, bool) or not hasattr(step, "__index__") or not is_concrete(step):
            raise TypeError(f"{name}: got {type(step).__name__}, expected a static int")
        if not 0 <= operator.index(step) <= length:
            raise ValueError(f"{name}: got {step}, expected 0 … T = {length}")
    if start > stop:
        raise ValueError(f"start: got {start} > stop = {stop}, expected start ≤ stop")
    return operator.index(start), operator.index(stop)


def require_type(name: str, value: Any, kind: type, expected: str) -> None:
    """Raise unless `value` is of this type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}")


def require_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise unless `value` is one of `choices`, of which none is an array."""
    if isinstance(value, jax.Array | np.ndarray):
        kind = f"an array of shape {list(value.shape)}" if is_concrete(value) else "a traced array"
        raise TypeError(f"{name}: got {kind}, expected one of {', '.join(map(repr, choices))}")
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def require_optimizer(optimizer: Any) -> None:
    """Raise unless `optimizer` has the two functions of an optax GradientTransformation."""
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected an optax GradientTransformation")


def require_size(name: str, size: Any, *, least: int = 1, most: int | None = None) -> None:
    """Raise unless `size` is an int (not a bool) of at least `least`, at most `most`."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name}: got {type(size).__name__}, expected an int")
    if size < least:
        raise ValueError(f"{name}: got {size}, expected at least {least}")
    if most is not None and size > most:
        raise ValueError(f"{name}: got {size}, expected at most {most}")


def require_probability(name: str, value: Any, length: int | None = None) -> jax.Array:
    """Raise unless `value` is in (0, 1], a scalar or (with `length`) [T]; return floats, NaN if traced and outside."""
    real = jnp.issubdtype(value.dtype, jnp.floating) if hasattr(value, "dtype") else isinstance(value, int | float)
    if not real or isinstance(value, bool) or (length is None and jnp.shape(value)):
        others = "" if length is None else f" or an array [{length}]"
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number in (0, 1]{others}")
    if length is not None and jnp.shape(value) not in ((), (length,)):
        raise ValueError(f"{name}: got shape {list(jnp.shape(value))}, expected a scalar or [{length}]")
    if is_concrete(value) and not np.all((np.asarray(value) > 0) & (np.asarray(value) <= 1)):
        raise ValueError(f"{name}: got {value}, expected {'a number' if jnp.ndim(value) == 0 else 'numbers'} in (0, 1]")
    value = jnp.asarray(value, jnp.result_type(value if hasattr(value, "dtype") else float))
    return jnp.where((value > 0) & (value <= 1), value, jnp.nan)


def require_number(name: str, value: Any, expected: str = "a number") -> None:
    """Raise unless `value` is an int or float (not a bool) that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}")
    if not -float("inf") < value < float("inf"):
        raise ValueError(f"{name}: got {value}, expected a finite number")


def require_scalar(name: str, value: Any, expected: str, least: float = -np.inf) -> None:
    """Raise unless `value` is a real scalar ≥ `least`, an array of none or a number; one that is traced passes."""
    if isinstance(value, bool) or not (hasattr(value, "dtype") or isinstance(value, int | float)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}")
    if np.ndim(value) or not jnp.issubdtype(jnp.result_type(value), jnp.number) or jnp.iscomplexobj(value):
        raise ValueError(f"{name}: got {value}, expected {expected}")
    if is_concrete(value) and not value >= least:
        raise ValueError(f"{name}: got {value}, expected {expected}")


def require_above(name: str, value: Any, least: float) -> None:
    """Raise unless `value` is a finite int or float > `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
    if not least < value < float("inf"):
        raise ValueError(f"{name}: got {value}, expected a finite number above {least}")


def require_key(key: Any) -> None:
    """Raise unless `key` is a single typed key, as `jax.random.key` makes."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key: got {type(key).__name__}, expected a typed key from jax.random.key")
    if key.shape:
        raise ValueError(f"key: got an array of keys of shape {key.shape}, expected one key")
