"""Random numbers at which a derivation is judged, and how far rounding may move the result there."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import checks

LENGTH = 6  # steps, where inputs are drawn
DRAWS = 4  # of perturbed arguments, for what rounding may do


def draw_instance(cell: Any, keys: jax.Array, params: Any, inputs: Any) -> tuple[Any, Any]:
    """(params, inputs), drawn where not given."""
    if params is None:
        try:
            params = cell.init(keys[0])
        except ValueError as error:
            raise ValueError(f"params: got None, expected params (they cannot be drawn: {error})") from error
        noise = normal_like(keys[1], params)
        params = jax.tree.map(lambda leaf, noise: leaf + noise * jnp.asarray(0.3, leaf.dtype), params, noise)
    dtype = checks.require_params(params)
    if inputs is None:
        if cell.num_inputs is None:
            raise ValueError("inputs: got None, expected inputs with leading T (this cell's num_inputs is None)")
        inputs = jax.random.normal(jax.random.fold_in(keys[1], 1), (LENGTH, cell.num_inputs), dtype)
    return params, inputs


def draw_targets(model: Any, key: jax.Array, params: Any, length: int) -> Any:
    """y_1 … y_T: standard normal like the outputs, or classes, whichever the loss takes; else ValueError."""
    output = jax.eval_shape(lambda params: model.readout(params, model.initial_state(params)), params)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((length, *leaf.shape), leaf.dtype), output)
    draws = [lambda: normal_like(key, like)]
    if isinstance(output, jax.ShapeDtypeStruct) and output.ndim == 1:
        draws.append(lambda: jax.random.randint(key, (length,), 0, output.shape[0]))
    for draw in draws:
        one = jax.eval_shape(lambda draw=draw: jax.tree.map(lambda leaf: leaf[0], draw()))
        try:
            if jax.eval_shape(model.loss, output, one).shape == ():
                return draw()
        except (TypeError, ValueError, IndexError, AttributeError):
            continue  # the loss takes another kind of target
    raise ValueError("targets: got None, expected targets (the loss takes neither arrays like the output nor classes)")


def normal_like(key: jax.Array, tree: Any) -> Any:
    """Standard normal leaves of the shapes and dtypes of `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    return structure.unflatten(
        [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys[: len(leaves)], leaves, strict=True)]
    )


def perturb(tree: Any, key: jax.Array) -> Any:
    """Leading axis: as it is, then every float scaled by 1 + δ·normal, δ = 8 eps, then √eps, `DRAWS` of both."""
    leaves, structure = jax.tree.flatten(tree)

    def draw(leaf, key):
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.broadcast_to(leaf, (1 + 2 * DRAWS, *leaf.shape))
        epsilon = float(jnp.finfo(leaf.dtype).eps)
        sizes = np.repeat([0, 8 * epsilon, epsilon**0.5], [1, DRAWS, DRAWS])
        noise = jax.random.normal(key, (len(sizes), *leaf.shape), leaf.dtype)
        return leaf[None] * (1 + jnp.asarray(sizes, leaf.dtype).reshape(-1, *[1] * leaf.ndim) * noise)

    keys = jax.random.split(key, max(len(leaves), 1))
    return structure.unflatten([draw(leaf, k) for leaf, k in zip(leaves, keys[: len(leaves)], strict=True)])


def tolerances(values: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    """[S] from values [1 + 2 DRAWS, S, ...] and scale [S]: rounding, of the sums and of the arguments."""
    moved = np.abs(values[1:] - values[:1])
    moved = np.max(moved.reshape(*moved.shape[:2], -1), axis=2, initial=0)  # [2 DRAWS, S]
    near, far = np.max(moved[:DRAWS], axis=0), np.max(moved[DRAWS:], axis=0)
    response = np.maximum(near * 8, far * 64 * epsilon**0.5)
    return 200 * epsilon * scale + response + np.finfo(np.float64).tiny


def epsilon_of(params: Any) -> float:
    """The relative spacing of floats of the params' dtype."""
    return float(jnp.finfo(jax.tree.leaves(params)[0].dtype).eps)
