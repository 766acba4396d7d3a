"""What an estimate of the gradient is worth: bias with its error, spread, cosine, what it keeps of a lag, its price."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.gradients import bptt
from jaxbptt.gradients.forward import run_forward
from jaxbptt.operations import Operations, count_operations
from jaxbptt.truncation import weighted_gradient

AT_ONCE = 32  # keys side by side


class Quality(NamedTuple):
    """An estimate ĝ of one leaf's gradient g (or of all of it) over K keys; scalars. NaN where g = 0."""

    projection: jax.Array  # mean of ⟨ĝ, g⟩ / ‖g‖²; 1 for an unbiased estimate
    standard_error: jax.Array  # of that mean; 0 for K = 1
    z_score: jax.Array  # (projection − 1) / standard_error; NaN for K = 1
    bias: jax.Array  # ‖mean ĝ − g‖ / ‖g‖; about spread / √K for an unbiased estimate
    spread: jax.Array  # √(E ‖ĝ − mean ĝ‖²) / ‖g‖, from the K keys; 0 for K = 1
    cosine: jax.Array  # mean of ⟨ĝ, g⟩ / (‖ĝ‖ ‖g‖)

    def interval(self) -> tuple[jax.Array, jax.Array]:
        """The 95 % interval of projection − 1, the relative bias along g (normal; K ≥ 30 or so)."""
        half = 1.96 * self.standard_error
        return self.projection - 1 - half, self.projection - 1 + half


class Assessment(NamedTuple):
    whole: Quality  # of all of θ as one vector
    by_leaf: Any  # shaped like params, a Quality in the place of each leaf
    by_lag: jax.Array | None  # [R] share of each lag's part of g that the mean estimate keeps; None unless asked for


def assess(
    model: Any,
    estimator: Any,
    params: Any,
    inputs: Any,
    targets: Any,
    *,
    keys: jax.Array | None = None,
    initial: Any = None,
    lags: int | None = None,
) -> Assessment:
    """Compare an estimator of dC/dθ with the exact gradient, over many keys if it is random.

    Args:
      model: f, g, L and the reduction.
      estimator: (model, params, inputs, targets, *, initial) -> (loss, grads), with `key` too when keys are given:
        `truncation.windowed` and its like with their options bound, or `online.run` with its rule bound.
      params, inputs, targets, initial: as of `gradients.bptt`, which gives g.
      keys: [K] typed keys, for a random estimator.
      lags: R, static: also fit mean ĝ = Σ_ℓ a_ℓ g_ℓ + rest by least squares, g_ℓ the part of g with t − k = ℓ < R, all
        further lags as one more part; a_ℓ is 1 for a lag that is kept, 0 for one that is not, and unsettled for parts
        that are (nearly) multiples of each other. O(R) double sums: for short sequences.

    Returns:
      Assessment of the dtype of params.

    Raises:
      TypeError, ValueError: as `bptt` and the estimator; keys no vector of typed keys; lags outside 1 … T.
    """
    if keys is not None and (not jnp.issubdtype(jnp.result_type(keys), jax.dtypes.prng_key) or jnp.ndim(keys) != 1):
        raise TypeError(f"keys: got {jnp.result_type(keys)}{list(jnp.shape(keys))}, expected typed keys [K]")
    _, exact = bptt(model, params, inputs, targets, initial=initial)

    def estimate(key):
        options = {} if key is None else {"key": key}
        return estimator(model, params, inputs, targets, initial=initial, **options)[1]

    def measure(grads):
        """Per leaf ⟨ĝ, g⟩, ‖ĝ‖²."""
        return jax.tree.map(lambda a, b: jnp.stack((jnp.vdot(a, b), jnp.vdot(a, a))), grads, exact)

    if keys is None:
        mean = estimate(None)
        products = jax.tree.map(lambda leaf: leaf[None], measure(mean))
    else:
        batch = max(size for size in range(1, min(AT_ONCE, len(keys)) + 1) if len(keys) % size == 0)

        def visit(total, keys):
            grads = jax.vmap(estimate)(keys)
            total = jax.tree.map(lambda old, new: old + jnp.sum(new, axis=0), total, grads)
            return total, jax.vmap(measure)(grads)

        zero = jax.tree.map(jnp.zeros_like, exact)
        total, products = jax.lax.scan(visit, zero, keys.reshape(-1, batch))
        mean = jax.tree.map(lambda leaf: leaf / len(keys), total)
        products = jax.tree.map(lambda leaf: leaf.reshape(len(keys), 2), products)

    norms = jax.tree.map(lambda leaf: jnp.vdot(leaf, leaf), exact)
    errors = jax.tree.map(lambda a, b: jnp.vdot(a - b, a - b), mean, exact)
    means = jax.tree.map(lambda leaf: jnp.vdot(leaf, leaf), mean)
    add = lambda tree: sum(jax.tree.leaves(tree)[1:], jax.tree.leaves(tree)[0])  # noqa: E731
    whole = _quality(*map(add, (products, norms, errors, means)))
    by_leaf = jax.tree.map(_quality, products, norms, errors, means)
    by_lag = None if lags is None else _kept_of_lags(model, params, inputs, targets, initial, mean, lags)
    return Assessment(whole, by_leaf, by_lag)


def cost_per_step(estimator: Any, model: Any, params: Any, inputs: Any, targets: Any, *, key: Any = None) -> Operations:
    """`count_operations` of one whole estimate, divided by T.

    Args:
      estimator, model, params, inputs, targets: as of `assess`.
      key: for a random estimator.

    Returns:
      Operations per step (rounded down).
    """
    length = checks.require_time_axis("inputs", inputs)
    options = {} if key is None else {"key": key}
    count = count_operations(
        lambda params, inputs, targets: estimator(model, params, inputs, targets, initial=None, **options),
        params,
        inputs,
        targets,
    )
    return Operations(count.flops // length, count.bytes // length, count.exact)


def alignment(gradients: Any) -> jax.Array:
    """The cosine between every two gradients of a collection.

    Args:
      gradients: a sequence, or a dict in its own order, of pytrees of one structure.

    Returns:
      [K, K], 1 on the diagonal; NaN for a zero gradient.

    Raises:
      ValueError: pytrees of different structure or shapes; none at all.
    """
    trees = list(gradients.values()) if isinstance(gradients, dict) else list(gradients)
    if not trees:
        raise ValueError("gradients: got none, expected at least one pytree")
    for tree in trees[1:]:
        checks.require_same("gradients", tree, jax.eval_shape(lambda: trees[0]), dtypes=False)
    rows = jnp.stack([ravel_pytree(tree)[0] for tree in trees])
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def _quality(products, norm, error, mean):
    """From ⟨ĝ, g⟩ and ‖ĝ‖² per key [K, 2], ‖g‖², ‖mean ĝ − g‖², ‖mean ĝ‖²."""
    count = len(products)
    projections = products[:, 0] / norm
    average = jnp.mean(projections)
    variance = jnp.sum((projections - average) ** 2) / max(count - 1, 1)
    standard_error = jnp.sqrt(variance / count)
    z_score = (average - 1) / standard_error if count > 1 else jnp.full_like(average, jnp.nan)
    spread = jnp.sqrt(jnp.maximum(jnp.mean(products[:, 1]) - mean, 0) * (count / max(count - 1, 1)) / norm)
    spread = spread if count > 1 else jnp.zeros_like(spread)
    cosine = jnp.mean(products[:, 0] / jnp.sqrt(products[:, 1] * norm))
    return Quality(average, standard_error, z_score, jnp.sqrt(error / norm), spread, cosine)


def _kept_of_lags(model, params, inputs, targets, initial, mean, lags):
    length = checks.require_time_axis("inputs", inputs)
    checks.require_size("lags", lags, most=length)
    direct = run_forward(model, params, inputs, targets, initial)[3]
    steps = jnp.arange(length)
    lag = steps[:, None] - steps[None, :]
    dtype = checks.require_params(params)

    def part(chosen):
        """The gradient of the chosen terms alone; h_0's stand with those of step 1."""
        weights = jnp.concatenate((chosen[:, :1], chosen), axis=1).astype(dtype)
        grads = weighted_gradient(model, params, inputs, targets, weights, initial=initial)[1]
        return ravel_pytree(jax.tree.map(jnp.subtract, grads, direct))[0]

    parts = jax.lax.map(lambda wanted: part(lag == wanted), jnp.arange(lags))
    columns = jnp.concatenate((parts, part(lag >= lags)[None]))
    norms = jnp.linalg.norm(columns, axis=1)
    scale = jnp.where(norms > 0, norms, 1)
    target = ravel_pytree(jax.tree.map(jnp.subtract, mean, direct))[0]
    return (jnp.linalg.lstsq((columns / scale[:, None]).T, target)[0] / scale)[:lags]
