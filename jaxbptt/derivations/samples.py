"""Random points at which a derivation is checked, and how much rounding may change the result there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.models.model import Model, read
from jaxbptt.trajectories import shapes_of_one_step
from jaxbptt.types import Inputs, Key, Params, Recurrence

LENGTH = 6  # steps, where inputs are drawn
DRAWS = 4  # of perturbed arguments, which show what rounding may do


class Stream(NamedTuple):
    """A source of random numbers of its own: splitting a key costs a compilation."""

    key: Key
    number: int


def draw_instance(cell: Recurrence, key: Key, params: Params, inputs: Inputs) -> tuple[Any, Any]:
    """(params, inputs), drawn where not given."""
    if params is None:
        try:
            params = (cell.init or _validation.no_init)(key)
        except ValueError as error:
            raise ValueError(f"params: got None, expected params (they cannot be drawn: {error})") from error
        noise = normal_like(Stream(key, 1), params)
        add = lambda leaf, noise: jnp.asarray(np.asarray(leaf) + np.asarray(noise) * np.asarray(0.3, leaf.dtype))
        params = jax.tree.map(add, params, noise)
    params = _validation.as_arrays("params", params)
    dtype = _validation.require_params(params)
    if inputs is None:
        if cell.num_inputs is None:
            raise ValueError("inputs: got None, expected inputs with leading T (this cell's num_inputs is None)")
        inputs = _normal(_generator(Stream(key, 2)), (LENGTH, cell.num_inputs), dtype)
    return params, inputs


def draw_targets(model: Model, key: Key, params: Params, inputs: Inputs, length: int) -> Any:
    """y_1 … y_T: standard normal like the outputs, or classes, whichever the loss takes; else ValueError."""

    def first_output(params, x):
        state = model.initial_state(params)
        return read(model, params, state, x, state)

    output = jax.eval_shape(first_output, params, shapes_of_one_step(inputs))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((length, *leaf.shape), leaf.dtype), output)
    draws = [normal_like(Stream(key, 3), like)]
    if isinstance(output, jax.ShapeDtypeStruct) and output.ndim == 1:
        draws.append(jax.random.randint(key, (length,), 0, output.shape[0]))
    for targets in draws:
        try:
            if jax.eval_shape(model.loss, output, jax.tree.map(lambda leaf: leaf[0], targets)).shape == ():
                return targets
        except (TypeError, ValueError, IndexError, AttributeError):
            continue  # the loss takes another kind of target
    raise ValueError("targets: got None, expected targets (the loss takes neither arrays like the output nor classes)")


def normal_like(stream: Stream, tree: Any) -> Any:
    """Standard normal leaves of the shapes and dtypes of `tree`."""
    generator = _generator(stream)
    return jax.tree.map(lambda leaf: _normal(generator, leaf.shape, leaf.dtype), tree)


def perturb(tree: Any, stream: Stream) -> Any:
    """Leading axis: the tree as it is, then every float times 1 + δ·normal, `DRAWS` for δ = 8 eps and for δ = √eps."""
    generator = _generator(stream)

    def draw(leaf):
        leaf = np.asarray(leaf) if _validation.is_float(leaf) else jnp.asarray(leaf)
        if not _validation.is_float(leaf):
            return jnp.broadcast_to(leaf, (1 + 2 * DRAWS, *leaf.shape))
        epsilon = float(jnp.finfo(leaf.dtype).eps)
        sizes = np.repeat([0, 8 * epsilon, epsilon**0.5], [1, DRAWS, DRAWS]).reshape(-1, *[1] * leaf.ndim)
        noise = generator.standard_normal((len(sizes), *leaf.shape))
        return jnp.asarray((leaf * (1 + sizes * noise)).astype(leaf.dtype))

    return jax.tree.map(draw, tree)


def _generator(stream: Stream) -> np.random.Generator:
    """NumPy's: nothing to compile for each shape."""
    return np.random.default_rng([*np.asarray(jax.random.key_data(stream.key)).ravel().tolist(), stream.number])


def _normal(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.asarray(generator.standard_normal(shape).astype(dtype))


def responses(values: np.ndarray, epsilon: float) -> np.ndarray:
    """[S] from values [1 + 2 DRAWS, S, ...]: what the rounding of the arguments does."""
    moved = np.abs(values[1:] - values[:1])
    moved = np.max(moved.reshape(*moved.shape[:2], -1), axis=2, initial=0)  # [2 DRAWS, S]
    near, far = np.max(moved[:DRAWS], axis=0), np.max(moved[DRAWS:], axis=0)
    return np.maximum(near * 8, far * 64 * epsilon**0.5) + np.finfo(np.float64).tiny


def tolerances(values: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    """[S] from values [1 + 2 DRAWS, S, ...] and scale [S]: the rounding of the sums and of the arguments."""
    return epsilon * (200 * scale + np.max(scale, initial=0)) + responses(values, epsilon)


def epsilon_of(params: Params) -> float:
    """The relative spacing of floats of the params' dtype."""
    return float(jnp.finfo(jax.tree.leaves(params)[0].dtype).eps)
