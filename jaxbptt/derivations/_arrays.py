"""Arrays of NumPy, JAX and PyTorch behind one face. PyTorch is not imported: a tensor is told by what it has."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDE = np.longdouble  # every number of a comparison is held in it


def to_numpy(array: Any) -> np.ndarray:
    """A copy of its numbers."""
    if is_torch(array):
        array = array.detach().cpu()
        if _name_of(array) == "bfloat16":  # not among NumPy's own
            return array.float().numpy().astype(jnp.bfloat16)
        array = array.numpy()
    if hasattr(array, "__dlpack__") and not hasattr(array, "__array__"):
        array = np.from_dlpack(array)
    return np.array(array)


def floats_of(array: Any) -> np.ndarray | None:
    """A copy of its numbers in its own dtype; None unless they are real floats."""
    if array is None or is_key(array):
        return None
    numbers = to_numpy(array)
    return numbers if jnp.issubdtype(numbers.dtype, jnp.floating) else None


def like(array: Any, numbers: np.ndarray) -> Any:
    """An array of the same kind that holds `numbers`, in their dtype wherever that kind has it."""
    if isinstance(array, jax.Array):
        return jnp.asarray(numbers)
    if is_torch(array):
        array = array.detach()
        if numbers.dtype == np.float64 and _name_of(array) != "float64":
            array = array.double()
        return array.new_tensor(numbers.astype(np.float32) if numbers.dtype == jnp.bfloat16 else numbers)
    return numbers if isinstance(array, np.ndarray) else numbers[()]


def is_torch(array: Any) -> bool:
    """Whether it is a PyTorch tensor."""
    return hasattr(array, "detach") and hasattr(array, "new_tensor")


def is_key(array: Any) -> bool:
    """Whether it holds typed keys of JAX."""
    return isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def is_mutable(array: Any) -> bool:
    """Whether a function can change it in place."""
    return isinstance(array, np.ndarray) or is_torch(array)


def epsilon_of(dtype: Any) -> float:
    """The relative spacing of its floats."""
    return float(jnp.finfo(dtype).eps)


def require_array(name: str, array: Any) -> None:
    """Raise unless it is an array of NumPy, JAX or PyTorch of real, finite numbers."""
    if not (isinstance(array, np.ndarray | np.generic | jax.Array) or is_torch(array)):
        raise TypeError(f"{name}: got {type(array).__name__}, expected an array of NumPy, JAX or PyTorch")
    if isinstance(array, jax.core.Tracer):
        raise TypeError(f"{name}: got a traced value, expected numbers (check outside of jit)")
    if "complex" in _name_of(array):
        got = _name_of(array)
        raise TypeError(f"{name}: got {got}, expected a real dtype (real and imaginary part as two arguments)")
    numbers = floats_of(array)
    if numbers is not None and not np.all(np.isfinite(numbers)):
        raise ValueError(f"{name}: got NaN or inf, expected finite numbers")


def _name_of(array):
    return str(array.dtype).removeprefix("torch.")
