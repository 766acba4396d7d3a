"""How good a gradient estimator is: bias with its error, spread, cosine, what it keeps of each lag, and its cost."""

import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt._jaxprs.operations import Operations, count_operations
from jaxbptt.gradients.backpropagation import bptt
from jaxbptt.gradients.forward import run_forward, take_problem
from jaxbptt.models.model import Model
from jaxbptt.spectra.statistics import student_quantile
from jaxbptt.truncation.weights import weighted_gradient
from jaxbptt.types import Estimator, Inputs, Integer, Key, Params, Scalar, State, Targets

__all__ = ["Assessment", "Operations", "Quality", "alignment", "assess", "cost_per_step"]

AT_ONCE = 32  # keys evaluated side by side
SAME = 10  # in eps of the mean: estimates that differ by less are taken for one drawn several times


class Quality(NamedTuple):
    """The quality of an estimate ĝ of the gradient g, of one leaf or of all, over K keys; scalars, NaN where g = 0.

    Attributes:
      projection: mean of ⟨ĝ, g⟩ / ‖g‖²; 1 for an unbiased estimate.
      standard_error: of that mean; NaN for one key or if all keys gave the same, 0 without keys.
      z_score: (projection − 1) / standard_error: if unbiased and nearly normal, Student's t with K − 1 degrees.
      bias: ‖mean ĝ − g‖ / ‖g‖; about spread / √K for an unbiased estimate.
      spread: √(E ‖ĝ − mean ĝ‖²) / ‖g‖, from the K keys; NaN for one key, 0 without keys.
      cosine: mean of ⟨ĝ, g⟩ / (‖ĝ‖ ‖g‖).
      num_keys: K; 0 without keys.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from jaxbptt import assessment, models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # dC/dw = 114
      >>> estimator, keys = functools.partial(truncation.randomised, keep=0.8), jax.random.split(jax.random.key(0), 100)
      >>> low, high = assessment.assess(model, estimator, w, inputs, targets, keys=keys).whole.interval(0.95)
      >>> bool(low < 0 < high)  # no bias along the gradient that 100 draws could show
      True
    """

    projection: Scalar
    standard_error: Scalar
    z_score: Scalar
    bias: Scalar
    spread: Scalar
    cosine: Scalar
    num_keys: Integer

    def interval(self, level: float = 0.95) -> tuple[Scalar, Scalar]:
        """The confidence interval of projection − 1, the relative bias along g, by Student's t.

        Exact if ⟨ĝ, g⟩ is normal. Shares of 20,000 intervals at 95 % that held the truth, K = 3 / 10 / 30 / 100: UORO
        .93 / .93 / .94 / .95; KF-RTRL the same; random truncation with π = .6 .93 / .95 / .95 / .95. Estimates whose
        rare values carry much of the mean look better than they are, since K keys may hold none of them: random
        truncation with π = .3 over 40 steps (kurtosis 10⁴) .93 / .89 / .84 / .81. Where most draws coincide (π = .9
        over 12 steps, no cut in 3 of 10): .85 / .89 / .93 / .95.

        Args:
          level: in 0 … 1, the probability that an interval holds the truth.

        Returns:
          (lower end, upper end); NaN for one key or if all keys gave the same, of no width without keys.

        Raises:
          ValueError: level not in 0 … 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level: got {level}, expected a number between 0 and 1")
        degrees_of_freedom = jnp.maximum(self.num_keys - 1, 1).astype(self.projection.dtype)
        quantile = student_quantile(level, degrees_of_freedom)
        half = jnp.where(self.num_keys == 0, 0, quantile * self.standard_error)
        return self.projection - 1 - half, self.projection - 1 + half


class Assessment(NamedTuple):
    """An estimator against the exact gradient: as a whole, by leaf and by lag.

    Attributes:
      whole: Quality of all of θ as one vector.
      by_leaf: shaped like params, with a Quality in place of each leaf.
      by_lag: [R], share of each lag's part of g that the mean estimate keeps; None without num_lags.

    Example:
      >>> import functools, jax.numpy as jnp
      >>> from jaxbptt import assessment, models, truncation
      >>> step, start, readout = lambda p, h, x: p["w"] * h + x, lambda p: jnp.zeros(()), lambda p, h: p["v"] * h
      >>> model = models.make_model(step, start, readout, models.squared_error)
      >>> estimator = functools.partial(truncation.lag, num_lags=1)
      >>> params = {"v": jnp.array(1.0), "w": jnp.array(2.0)}
      >>> found = assessment.assess(model, estimator, params, jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4))
      >>> {leaf: round(float(quality.bias), 3) for leaf, quality in found.by_leaf.items()}  # the readout is not cut
      {'v': 0.0, 'w': 0.632}
    """

    whole: Quality
    by_leaf: Params
    by_lag: Float[Array, " lags"] | None


def assess(
    model: Model,
    estimator: Estimator,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    keys: Key | None = None,
    initial: State | None = None,
    num_lags: int | None = None,
) -> Assessment:
    """Compare an estimator of dC/dθ with the exact gradient, over many keys if it is random.

    Args:
      model: f, g, L and the reduction.
      estimator: (model, params, inputs, targets, *, initial) -> (loss, grads); with keys it also takes `key`. For
        example `truncation.windowed` with its options bound, or `online.run` with its rule bound.
      params, inputs, targets, initial: as in `gradients.bptt`, which gives g.
      keys: [K] typed keys, for a random estimator.
      num_lags: R, static: also fit mean ĝ = Σ_ℓ a_ℓ g_ℓ + rest by least squares, where g_ℓ is the part of g with
        t − k = ℓ < R and all further lags are one more part. a_ℓ is 1 for a lag that is kept, 0 for one that is not,
        and undetermined where parts are (nearly) multiples of each other. O(R) double sums: for short sequences.

    Returns:
      Assessment of the dtype of params.

    Raises:
      TypeError, ValueError: as `gradients.bptt` and the estimator.
      TypeError: keys that are not a vector of typed keys; a num_lags that is no int.
      ValueError: a num_lags outside 1 … T.

    Example:
      >>> import functools, jax.numpy as jnp
      >>> from jaxbptt import assessment, models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # dC/dw = 114
      >>> found = assessment.assess(model, functools.partial(truncation.lag, num_lags=1), w, inputs, targets)
      >>> round(float(found.whole.projection), 3), round(float(found.whole.bias), 3)  # 42/114, and what is left to 1
      (0.368, 0.632)
    """
    if keys is not None and (not jnp.issubdtype(jnp.result_type(keys), jax.dtypes.prng_key) or jnp.ndim(keys) != 1):
        raise TypeError(f"keys: got {jnp.result_type(keys)}{list(jnp.shape(keys))}, expected typed keys [K]")
    params, inputs, targets, initial, _ = take_problem(model, params, inputs, targets, initial)
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
    add = lambda tree: sum(jax.tree.leaves(tree)[1:], jax.tree.leaves(tree)[0])
    judge = functools.partial(_quality, 0 if keys is None else len(keys))
    whole = judge(*map(add, (products, norms, errors, means)))
    by_leaf = jax.tree.map(judge, products, norms, errors, means)
    by_lag = None if num_lags is None else _kept_of_lags(model, params, inputs, targets, initial, mean, num_lags)
    return Assessment(whole, by_leaf, by_lag)


def cost_per_step(
    model: Model, estimator: Estimator, params: Params, inputs: Inputs, targets: Targets, *, key: Key | None = None
) -> Operations:
    """The operations of one whole estimate, counted in its traced program, divided by T.

    Args:
      model, estimator, params, inputs, targets: as in `assess`.
      key: typed key, for a random estimator.

    Returns:
      Operations(flops, bytes, exact), per step, rounded down.

    Raises:
      TypeError, ValueError: model and estimator in the wrong order; as the estimator.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import assessment, gradients, models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> arguments = jnp.array(2.0), jnp.ones(50), jnp.zeros(50)
      >>> cost = lambda route: assessment.cost_per_step(model, route, *arguments)
      >>> cost(gradients.double_sum).flops > 8 * cost(gradients.bptt).flops  # T²/2 terms against T pullbacks
      True
    """
    _validation.require_type("model", model, Model, "a Model: cost_per_step(model, estimator, params, …)")
    params, inputs, targets, _, length = take_problem(model, params, inputs, targets)
    options = {} if key is None else {"key": key}
    count = count_operations(
        lambda params, inputs, targets: estimator(model, params, inputs, targets, initial=None, **options),
        params,
        inputs,
        targets,
    )
    return Operations(count.flops // length, count.bytes // length, count.exact)


def alignment(gradients: Mapping[str, Params] | Iterable[Params]) -> Float[Array, "gradients gradients"]:
    """The cosine between every two gradients of a collection.

    Args:
      gradients: K pytrees of one structure, or a mapping with such values, taken in its order.

    Returns:
      [K, K], 1 on the diagonal; NaN for a zero gradient.

    Raises:
      ValueError: pytrees of different structure or shapes; none at all.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import assessment
      >>> gradients = {"exact": jnp.array([1.0, 0.0]), "double": jnp.array([2.0, 0.0]), "other": jnp.array([0.0, 1.0])}
      >>> assessment.alignment(gradients).tolist()
      [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    trees = list(gradients.values()) if isinstance(gradients, Mapping) else list(gradients)
    trees = [_validation.as_arrays("gradients", tree) for tree in trees]
    if not trees:
        raise ValueError("gradients: got none, expected at least one pytree")
    for tree in trees[1:]:
        _validation.require_same("gradients", tree, jax.eval_shape(lambda: trees[0]), dtypes=False)
    rows = jnp.stack([ravel_pytree(tree)[0] for tree in trees])
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def _quality(num_keys, products, norm, error, mean):
    """From K, 0 without keys, ⟨ĝ, g⟩ and ‖ĝ‖² per key [K, 2], ‖g‖², ‖mean ĝ − g‖², ‖mean ĝ‖²."""
    projections = products[:, 0] / norm
    average = jnp.mean(projections)
    several = num_keys > 1
    fixed = jnp.full_like(average, jnp.nan if num_keys else 0)  # of one estimate: no spread only if nothing is drawn
    off = projections - average
    different = jnp.max(jnp.abs(off)) > SAME * jnp.finfo(average.dtype).eps * jnp.abs(average)
    variance = jnp.sum(off**2) / max(num_keys - 1, 1)
    standard_error = jnp.where(different, jnp.sqrt(variance / max(num_keys, 1)), jnp.nan) if several else fixed
    z_score = jnp.where(standard_error > 0, (average - 1) / standard_error, jnp.nan)
    spread = jnp.sqrt(jnp.maximum(jnp.mean(products[:, 1]) - mean, 0) * (num_keys / max(num_keys - 1, 1)) / norm)
    spread = spread if several else fixed
    cosine = jnp.mean(products[:, 0] / jnp.sqrt(products[:, 1] * norm))
    bias = jnp.sqrt(error / norm)
    return Quality(average, standard_error, z_score, bias, spread, cosine, jnp.asarray(num_keys))


def _kept_of_lags(model, params, inputs, targets, initial, mean, num_lags):
    length = jax.tree.leaves(inputs)[0].shape[0]
    _validation.require_size("num_lags", num_lags, most=length)
    direct = run_forward(model, params, inputs, targets, initial).direct
    steps = jnp.arange(length)
    lag = steps[:, None] - steps[None, :]
    dtype = _validation.require_params(params)

    def part(chosen):
        """The gradient of the chosen terms alone; the terms of h_0 count with those of step 1."""
        weights = jnp.concatenate((chosen[:, :1], chosen), axis=1).astype(dtype)
        grads = weighted_gradient(model, params, inputs, targets, weights, initial=initial)[1]
        return ravel_pytree(jax.tree.map(jnp.subtract, grads, direct))[0]

    parts = jax.lax.map(lambda wanted: part(lag == wanted), jnp.arange(num_lags))
    columns = jnp.concatenate((parts, part(lag >= num_lags)[None]))
    norms = jnp.linalg.norm(columns, axis=1)
    scale = jnp.where(norms > 0, norms, 1)
    target = ravel_pytree(jax.tree.map(jnp.subtract, mean, direct))[0]
    return (jnp.linalg.lstsq((columns / scale[:, None]).T, target)[0] / scale)[:num_lags]
