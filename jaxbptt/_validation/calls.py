"""What a recurrence is called with: its functions, params, states, inputs and trajectories.

One rule for numbers everywhere: NaN and inf are refused, but −inf is allowed in h_0, and in the states where h_0 has it
(recurrences in log space start from log 0).
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt._validation.leaves import (
    as_arrays,
    is_concrete,
    is_float,
    named_leaves,
    require_finite,
    require_finite_candidates,
    require_finite_steps,
    require_float,
    require_same,
    require_structure,
)

WAYS = {
    "cell": "a Cell (cells.from_step(step, initial_state) makes one) or a Model",
    "model": "a Model (models.make_model(step, initial_state, readout, loss) makes one)",
}


def require_functions(name: str, thing: Any, fields: tuple[str, ...]) -> None:
    """Raise unless a cell or model has these functions; `name` is "cell" or "model"."""
    kind = type(thing).__name__
    if not all(hasattr(thing, field) for field in (*fields, "init", "derivation", "num_inputs")):
        raise TypeError(f"{name}: got {kind}, expected {WAYS[name]}")
    for field in fields:
        if not callable(getattr(thing, field)):
            got = type(getattr(thing, field)).__name__
            raise TypeError(f"{name}.{field}: got {got}, expected a function")


def require_params(params: Any) -> np.dtype | None:
    """Raise unless every leaf is a float array of one dtype and finite; return that dtype (None without leaves)."""
    dtype = None
    for name, leaf in named_leaves("params", params):
        require_float(name, leaf, " (close over what is not trained)")
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
        require_float("inputs", inputs)
        if dtype is not None and inputs.dtype != dtype:
            raise TypeError(f"inputs: got {inputs.dtype}, expected {dtype} like params")
    return require_time_axis("inputs", inputs)


def require_time_axis(name: str, tree: Any, length: int | None = None, *, finite: bool = True) -> int:
    """Raise unless every leaf is [T, ...] with one T ≥ 1 (`length` when given) and finite; return T."""
    leaves = named_leaves(name, tree)
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
    if finite:
        require_finite_steps(name, tree)
    return num_steps


def require_batch(name: str, tree: Any, size: int) -> None:
    """Raise unless every leaf has a leading axis of `size` sequences."""
    for leaf_name, leaf in named_leaves(name, tree):
        if jnp.ndim(leaf) == 0 or leaf.shape[0] != size:
            raise ValueError(
                f"{leaf_name}: got shape {list(jnp.shape(leaf))} at one step, expected {size} sequences first"
                " (inputs and targets are [T, B, ...], time before batch)"
            )


def require_state(name: str, state: Any, expected: Any) -> None:
    """Raise unless `state` has the structure, shapes and dtypes of `expected`: floats, finite or −inf."""
    require_same(name, state, expected)
    for leaf_name, leaf in named_leaves(name, state):
        require_float(leaf_name, leaf, _state_hint(leaf))
        if is_concrete(leaf) and not np.all(np.isfinite(leaf) | np.isneginf(leaf)):
            raise ValueError(f"{leaf_name}: got NaN or inf, expected finite numbers")


def require_initial_state(initial_state: Callable[[Any], Any], params: Any, dtype: np.dtype | None) -> Any:
    """The shapes of initial_state(params); raise unless they are floats of the dtype of params."""
    own = trace("initial_state", initial_state, params)
    require_state("initial_state(params)", own, own)
    if not jax.tree.leaves(own):
        raise ValueError("initial_state(params): got no arrays, expected a state of at least one")
    for leaf_name, leaf in named_leaves("initial_state(params)", own):
        if dtype is not None and leaf.dtype != dtype:
            raise TypeError(f"{leaf_name}: got {leaf.dtype}, expected {dtype} like params (cast one of them)")
    return own


def require_states(states: Any, initial: Any, name: str = "states") -> None:
    """Raise, naming the first bad step, if states h_1 … h_T hold NaN or inf (−inf only where h_0 has it)."""
    if all(map(is_concrete, jax.tree.leaves((states, initial)))):
        require_finite_steps(name, states, jax.tree.map(lambda leaf: np.isneginf(np.asarray(leaf)), initial))


def require_input(x: Any, num_inputs: int | None, dtype: np.dtype | None) -> None:
    """Raise unless x is a finite input of one step; when M is known, a float array [M] of the dtype of params."""
    if num_inputs is not None:
        shape = getattr(x, "shape", None)
        if shape is None:
            raise TypeError(f"x: got {type(x).__name__}, expected an array [{num_inputs}]")
        if shape != (num_inputs,):
            raise ValueError(f"x: got shape {list(shape)}, expected [{num_inputs}] (the input of one step)")
        require_float("x", x)
        if dtype is not None and x.dtype != dtype:
            raise TypeError(f"x: got {x.dtype}, expected {dtype} like params")
    require_finite("x", x)


def require_candidates(name: str, states: Any, expected: Any) -> None:
    """Raise unless `states` is K ≥ 1 states like `expected` along a leading axis, floats and finite."""
    require_structure(name, states, expected)
    count = None
    for (leaf_name, leaf), target in zip(named_leaves(name, states), jax.tree.leaves(expected), strict=True):
        require_float(leaf_name, leaf)
        if not leaf.ndim or leaf.shape[1:] != target.shape or count not in (None, leaf.shape[0]):
            sizes = ("K" if count is None else count, *target.shape)
            raise ValueError(f"{leaf_name}: got shape {list(leaf.shape)}, expected [{', '.join(map(str, sizes))}]")
        if leaf.dtype != target.dtype:
            raise TypeError(f"{leaf_name}: got {leaf.dtype}, expected {target.dtype}")
        count = leaf.shape[0]
    if not count:
        raise ValueError(f"{name}: got K = 0 candidates, expected at least one")
    require_finite_candidates(name, states)


def require_step(step: Any, params: Any, state: Any, x: Any) -> None:
    """Raise unless one step from shapes like these keeps the structure, shapes and dtypes of the state."""
    new = trace("step", step, params, state, x)
    is_pair = isinstance(new, tuple) and len(new) == 2 and not hasattr(new, "_fields")
    structures: list[Any] = [jax.tree.structure(tree) for tree in (new, state)]
    try:
        require_same("step's new state", new, state)
    except ValueError as error:
        if is_pair and structures[0] != structures[1]:
            way = "lambda params, state, x: step(params, state, x)[0]"
            raise ValueError(f"{error} (a step that returns (carry, output): pass {way})") from error
        raise
    except TypeError as error:
        kinds = f"params {_dtypes(params)}, inputs {_dtypes(x)}"
        raise TypeError(f"{error} like h_0 ({kinds}: cast them to one dtype)") from error


def require_loss(read: Any, loss: Any, params: Any, state: Any, x: Any, target: Any) -> None:
    """Raise unless readout and loss, at shapes like these, give a real scalar."""
    output = trace("readout", read, params, state, x, state)
    require_scalar("loss", trace("loss", loss, output, target), " (sum over the outputs)")


def require_penalty(penalty: Any, params: Any) -> None:
    """Raise unless a penalty on params, if there is one, is a real scalar."""
    if penalty is not None:
        require_scalar("penalty", trace("penalty", penalty, params))


def require_scalar(name: str, value: Any, hint: str = "") -> None:
    """Raise unless `value`, an array or its shape, is a real scalar."""
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or leaves[0] is not value:
        raise TypeError(f"{name}: got {type(value).__name__}, expected a scalar")
    if value.shape:
        raise ValueError(f"{name}: got shape {list(value.shape)}, expected a scalar{hint}")
    require_float(name, value)


def require_trajectory(cell: Any, params: Any, trajectory: Any) -> int:
    """Raise unless params and trajectory belong together; return T."""
    length = require_time_axis("trajectory.states", trajectory.states, finite=False)
    require_time_axis("trajectory.inputs", trajectory.inputs, length)
    require_state("trajectory.initial", trajectory.initial, jax.eval_shape(cell.initial_state, params))
    require_states(trajectory.states, trajectory.initial, "trajectory.states")
    return length


def take_jacobians(jacobians: Any) -> Any:
    """`jacobians` as a JAX array; raise unless they are floats [T, N, N] with T, N ≥ 1 and finite."""
    shape = getattr(jacobians, "shape", None)
    if shape is None:
        way = " (its .assemble() gives one)" if hasattr(jacobians, "assemble") else ""
        raise TypeError(f"jacobians: got {type(jacobians).__name__}, expected an array [T, N, N]{way}")
    if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
        raise ValueError(f"jacobians: got shape {list(shape)}, expected [T, N, N] with T, N ≥ 1")
    require_float("jacobians", jacobians)
    require_finite_steps("jacobians", jacobians)
    return as_arrays("jacobians", jacobians)


def is_ours(error: Exception) -> bool:
    """Whether an error names its argument already, as ours do."""
    return re.match(r"[\w.\[\]()' ]+: got ", str(error)) is not None


def trace(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result's shapes; whatever the function raises as one line that names it."""
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if is_ours(error):
            raise
        kind = next((one for one in (TypeError, AttributeError, IndexError) if isinstance(error, one)), ValueError)
        raise kind(f"{name}: raised {type(error).__name__} where it was traced: {reason}") from error


def _state_hint(leaf):
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or is_float(leaf):
        return ""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return " (keep real and imaginary parts as two leaves)"
    return " (counters, flags and keys: compute them beforehand and pass them as inputs)"


def _dtypes(tree):
    return "/".join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)})) or "without leaves"
