"""Argument checks. Each error is one line that names the argument, what came and what was expected."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def require_params(params: Any) -> np.dtype | None:
    """Raise unless every leaf is a float array of one dtype and finite; return that dtype (None without leaves)."""
    dtype = None
    for name, leaf in _named_leaves("params", params):
        _require_float(name, leaf)
        if dtype is not None and leaf.dtype != dtype:
            raise TypeError(f"{name}: got {leaf.dtype}, expected {dtype} like the other params")
        dtype = leaf.dtype
        if is_concrete(leaf) and not np.all(np.isfinite(leaf)):
            raise ValueError(f"{name}: got NaN or inf, expected finite numbers")
    return dtype


def no_init(key: Any) -> Any:
    """The `init` of a cell or model that was made without one: it raises."""
    raise ValueError("init: this cell was made without one; pass init= to from_step, or bring your own params")


def require_like_init(params: Any, init: Any) -> None:
    """Raise unless params have the structure and shapes that `init` draws, or there is no `init`."""
    if init is None or init is no_init:
        return
    try:
        expected = jax.eval_shape(init, jax.random.key(0))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"init: got one that cannot be traced ({reason}), expected a pure function") from error
    require_same("params", params, expected, dtypes=False)


def require_inputs(inputs: Any, num_inputs: int | None, dtype: np.dtype | None) -> int:
    """Raise unless inputs are leaves [T, ...] (one float array [T, M] when M is known), T ≥ 1, finite; return T."""
    if num_inputs is not None:
        shape = getattr(inputs, "shape", None)
        if shape is None:
            raise TypeError(f"inputs: got {type(inputs).__name__}, expected an array [T, {num_inputs}]")
        if len(shape) != 2 or shape[1] != num_inputs:
            raise ValueError(
                f"inputs: got shape {list(shape)}, expected [T, {num_inputs}] (one sequence; vmap a batch)"
            )
        _require_float("inputs", inputs)
        if dtype is not None and inputs.dtype != dtype:
            raise TypeError(f"inputs: got {inputs.dtype}, expected {dtype} like params")
    return require_time_axis("inputs", inputs)


def require_time_axis(name: str, tree: Any, length: int | None = None) -> int:
    """Raise unless every leaf is [T, ...] with one T ≥ 1 (`length` when given) and finite; return T."""
    leaves = _named_leaves(name, tree)
    if not leaves:
        raise ValueError(f"{name}: got no arrays, expected leaves with a leading time axis (they give T)")
    for leaf_name, leaf in leaves:
        if not getattr(leaf, "shape", ()):
            raise ValueError(
                f"{leaf_name}: got a scalar or {type(leaf).__name__}, expected an array with leading time axis"
            )
    num_steps = int(leaves[0][1].shape[0] if length is None else length)
    for leaf_name, leaf in leaves:
        if leaf.shape[0] != num_steps:
            raise ValueError(f"{leaf_name}: got {leaf.shape[0]} steps, expected {num_steps}")
    if num_steps == 0:
        raise ValueError(f"{name}: got T = 0 steps, expected at least one")
    require_finite_steps(name, tree)
    return num_steps


def require_batch(name: str, tree: Any, size: int) -> None:
    """Raise unless every leaf has a leading axis of `size` sequences."""
    for leaf_name, leaf in _named_leaves(name, tree):
        if jnp.ndim(leaf) == 0 or leaf.shape[0] != size:
            raise ValueError(
                f"{leaf_name}: got shape {list(jnp.shape(leaf))} at one step, expected {size} sequences first"
            )


def require_state(name: str, state: Any, expected: Any) -> None:
    """Raise unless `state` has the structure, shapes and dtypes of `expected`, floats throughout."""
    require_same(name, state, expected)
    for leaf_name, leaf in _named_leaves(name, state):
        _require_float(leaf_name, leaf)
        if is_concrete(leaf) and not np.all(np.isfinite(leaf)):
            raise ValueError(f"{leaf_name}: got NaN or inf, expected finite numbers")


def require_same(name: str, tree: Any, expected: Any, *, dtypes: bool = True) -> None:
    """Raise unless structure and shapes (and dtypes) agree leaf by leaf."""
    _require_structure(name, tree, expected)
    for (leaf_name, leaf), target in zip(_named_leaves(name, tree), jax.tree.leaves(expected), strict=True):
        if jnp.shape(leaf) != target.shape:
            raise ValueError(f"{leaf_name}: got shape {list(jnp.shape(leaf))}, expected {list(target.shape)}")
        if dtypes and getattr(leaf, "dtype", None) != target.dtype:
            raise TypeError(f"{leaf_name}: got {getattr(leaf, 'dtype', type(leaf).__name__)}, expected {target.dtype}")


def require_input(x: Any, num_inputs: int | None, dtype: np.dtype | None) -> None:
    """Raise unless x is a finite input of one step; when M is known, a float array [M] of the dtype of params."""
    if num_inputs is not None:
        shape = getattr(x, "shape", None)
        if shape is None:
            raise TypeError(f"x: got {type(x).__name__}, expected an array [{num_inputs}]")
        if shape != (num_inputs,):
            raise ValueError(f"x: got shape {list(shape)}, expected [{num_inputs}] (the input of one step)")
        _require_float("x", x)
        if dtype is not None and x.dtype != dtype:
            raise TypeError(f"x: got {x.dtype}, expected {dtype} like params")
    require_finite("x", x)


def require_candidates(name: str, states: Any, expected: Any) -> None:
    """Raise unless `states` is K ≥ 1 states like `expected` along a leading axis, floats and finite."""
    _require_structure(name, states, expected)
    count = None
    for (leaf_name, leaf), target in zip(_named_leaves(name, states), jax.tree.leaves(expected), strict=True):
        _require_float(leaf_name, leaf)
        if not leaf.ndim or leaf.shape[1:] != target.shape or count not in (None, leaf.shape[0]):
            sizes = ("K" if count is None else count, *target.shape)
            raise ValueError(f"{leaf_name}: got shape {list(leaf.shape)}, expected [{', '.join(map(str, sizes))}]")
        if leaf.dtype != target.dtype:
            raise TypeError(f"{leaf_name}: got {leaf.dtype}, expected {target.dtype}")
        count = leaf.shape[0]
    if not count:
        raise ValueError(f"{name}: got K = 0 candidates, expected at least one")
    require_finite_candidates(name, states)


def require_finite_candidates(name: str, tree: Any) -> None:
    """Raise, naming the first bad row, if a concrete float leaf [K, ...] holds NaN or inf; tracers pass."""
    for leaf_name, leaf in _named_leaves(name, tree):
        if is_concrete(leaf):
            finite = np.isfinite(np.asarray(leaf)).reshape(leaf.shape[0], -1).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"{leaf_name}: got NaN or inf, expected finite numbers; first in row {finite.argmin()}"
                )


def require_step(step: Any, params: Any, state: Any, inputs: Any) -> None:
    """Raise unless one step keeps the structure, shapes and dtypes of the state."""
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
    require_same("step's new state", jax.eval_shape(step, params, state, x), jax.eval_shape(lambda s: s, state))


def require_trajectory(cell: Any, params: Any, trajectory: Any) -> int:
    """Raise unless params and trajectory belong together; return T."""
    require_params(params)
    length = require_time_axis("trajectory.states", trajectory.states)
    require_time_axis("trajectory.inputs", trajectory.inputs, length)
    require_state("trajectory.initial", trajectory.initial, jax.eval_shape(cell.initial_state, params))
    return length


def require_jacobians(jacobians: Any) -> None:
    """Raise unless jacobians are a float array [T, N, N] with T, N ≥ 1 and finite."""
    shape = getattr(jacobians, "shape", None)
    if shape is None:
        raise TypeError(f"jacobians: got {type(jacobians).__name__}, expected an array [T, N, N]")
    if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
        raise ValueError(f"jacobians: got shape {list(shape)}, expected [T, N, N] with T, N ≥ 1")
    _require_float("jacobians", jacobians)
    require_finite_steps("jacobians", jacobians)


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
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def require_size(name: str, size: Any, *, least: int = 1, most: int | None = None) -> None:
    """Raise unless `size` is an int (not a bool) of at least `least`, at most `most`."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name}: got {type(size).__name__}, expected an int")
    if size < least:
        raise ValueError(f"{name}: got {size}, expected at least {least}")
    if most is not None and size > most:
        raise ValueError(f"{name}: got {size}, expected at most {most}")


def require_array(name: str, array: Any, shape: Sequence[int | str], kind: Any = jnp.floating) -> None:
    """Raise unless `array` has a dtype of this kind and this shape (a letter: any size ≥ 1), and is finite."""
    if not hasattr(array, "dtype"):
        raise TypeError(f"{name}: got {type(array).__name__}, expected an array")
    if not jnp.issubdtype(array.dtype, kind):
        raise TypeError(f"{name}: got {array.dtype}, expected {'bool' if kind is jnp.bool_ else 'a real float dtype'}")
    got = array.shape
    if len(got) != len(shape) or any(n != m if isinstance(m, int) else n < 1 for n, m in zip(got, shape, strict=True)):
        raise ValueError(f"{name}: got shape {list(got)}, expected [{', '.join(map(str, shape))}]")
    if is_concrete(array) and not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: got NaN or inf, expected finite numbers")


def require_probability(name: str, value: Any, length: int | None = None) -> jax.Array:
    """Raise unless `value` is in (0, 1], a scalar or (with `length`) [T]; return floats, NaN if traced and outside."""
    real = jnp.issubdtype(value.dtype, jnp.floating) if hasattr(value, "dtype") else isinstance(value, int | float)
    if not real or (length is None and jnp.shape(value)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number in (0, 1]")
    if length is not None and jnp.shape(value) not in ((), (length,)):
        raise ValueError(f"{name}: got shape {list(jnp.shape(value))}, expected a scalar or [{length}]")
    if is_concrete(value) and not np.all((np.asarray(value) > 0) & (np.asarray(value) <= 1)):
        raise ValueError(f"{name}: got {value}, expected {'a number' if jnp.ndim(value) == 0 else 'numbers'} in (0, 1]")
    value = jnp.asarray(value, jnp.result_type(value if hasattr(value, "dtype") else float))
    return jnp.where((value > 0) & (value <= 1), value, jnp.nan)


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


def require_finite(name: str, tree: Any) -> None:
    """Raise if a concrete float leaf holds NaN or inf; tracers pass."""
    for leaf_name, leaf in _named_leaves(name, tree):
        if is_concrete(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not np.all(np.isfinite(leaf)):
            raise ValueError(f"{leaf_name}: got NaN or inf, expected finite numbers")


def require_finite_steps(name: str, tree: Any) -> None:
    """Raise, naming the first bad step, if a concrete float leaf [T, ...] holds NaN or inf; tracers pass."""
    for leaf_name, leaf in _named_leaves(name, tree):
        if is_concrete(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite = np.isfinite(np.asarray(leaf)).reshape(leaf.shape[0], -1).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"{leaf_name}: got NaN or inf, expected finite numbers; first at step t = {finite.argmin() + 1}"
                )


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a real float, so that it has a derivative."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def is_concrete(leaf: Any) -> bool:
    """Whether a leaf holds numbers: it is no tracer (as under jit, vmap or grad) and no bare shape."""
    return not isinstance(leaf, Tracer | jax.ShapeDtypeStruct)


def leaf_name(prefix: str, path: Any) -> str:
    """The name of a leaf, such as `params.cell.w_hh`."""
    return ".".join(filter(None, (prefix, jax.tree_util.keystr(path, simple=True, separator="."))))


def _named_leaves(name, tree):
    return [(leaf_name(name, path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _require_structure(name, tree, expected):
    got: Any = jax.tree.structure(tree)
    structure: Any = jax.tree.structure(expected)
    if got != structure:
        raise ValueError(f"{name}: got structure {_describe(got)}, expected {_describe(structure)}")


def _require_float(name, leaf):
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        raise TypeError(f"{name}: got {type(leaf).__name__}, expected an array")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: got {dtype}, expected a real float dtype")


def _describe(structure):
    return str(structure).removeprefix("PyTreeDef(").removesuffix(")")
