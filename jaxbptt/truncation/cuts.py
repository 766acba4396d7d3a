"""Random cuts of the chain of steps: link t leads from h_{t−1} to h_t, t = 1 … T."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxbptt import _validation
from jaxbptt.types import ArrayLike, Key

Keep: TypeAlias = float | Float[ArrayLike, ""] | Float[ArrayLike, " time"]  # π, the probability that a link is kept


def draw_cuts(key: Key, num_steps: int, keep: Keep) -> Bool[Array, " time"]:
    """Cut every link independently, link t with probability 1 − π_t.

    Args:
      key: typed key.
      num_steps: T ≥ 1, static.
      keep: π, in (0, 1], scalar or [T].

    Returns:
      [T] booleans, True where link t = 1 … T is cut.

    Raises:
      TypeError: a key that is no typed key; a num_steps that is no int; a keep that is no number or array of real
        floats.
      ValueError: several keys; num_steps below 1; a keep of another shape or, outside jit, outside (0, 1].

    Example:
      >>> import jax
      >>> from jaxbptt import truncation
      >>> cuts = truncation.draw_cuts(jax.random.key(0), 1000, keep=0.9)
      >>> cuts.shape, bool(70 < cuts.sum() < 130)
      ((1000,), True)
    """
    _validation.require_key(key)
    _validation.require_size("num_steps", num_steps)
    keep = _validation.require_probability("keep", keep, num_steps)
    return ~jax.random.bernoulli(key, keep, (num_steps,))


def renewal_cuts(
    key: Key, num_steps: int, *, mean_length: float, exponent: float
) -> tuple[Bool[Array, " time"], Float[Array, " time"]]:
    """Cuts whose probability falls with the age of the window: 1 − π_t = (α − 1) / ((α − 2) ℓ_0 + δ_t).

    δ_t is the number of steps since the last cut (h_0 counts as a cut). The mean length of a window is exactly ℓ_0, and
    P(longer than n) falls as n^{−(α−1)}: the weight of a kept term grows as a power of its lag, not exponentially.

    Args:
      key: typed key.
      num_steps: T ≥ 1, static.
      mean_length: ℓ_0 > 1, steps.
      exponent: α > 2.

    Returns:
      (cuts [T] booleans, π [T] of the default float dtype, the probabilities to keep a link in this draw).

    Raises:
      TypeError: a key that is no typed key; a num_steps that is no int; a mean_length or exponent that is no number.
      ValueError: several keys; num_steps below 1; mean_length ≤ 1; exponent ≤ 2.

    Example:
      >>> import jax
      >>> from jaxbptt import truncation
      >>> cuts, keep = truncation.renewal_cuts(jax.random.key(0), 10_000, mean_length=10.0, exponent=6.0)
      >>> bool(900 < cuts.sum() < 1100)  # a cut every ten steps
      True
      >>> bool(keep[0] == keep.min())  # 36/41 for a window of age 1, more for an older one
      True

    Reference: Tallec & Ollivier (2017), arXiv:1705.08209.
    """
    _validation.require_key(key)
    _validation.require_size("num_steps", num_steps)
    hazard = _hazard(mean_length, exponent)

    def body(age, draw):
        chance = hazard(age)
        cut = draw < chance
        return jnp.where(cut, 1, age + 1), (cut, 1 - chance)

    return jax.lax.scan(body, jnp.asarray(1), jax.random.uniform(key, (num_steps,)))[1]


def renewal_keep(cuts: Bool[ArrayLike, " time"], *, mean_length: float, exponent: float) -> Float[Array, " time"]:
    """π_t of `renewal_cuts`, given the cuts before t. A pattern has probability Π_t (1 − π_t where cut, else π_t).

    Args:
      cuts: [T] booleans.
      mean_length: ℓ_0 > 1, steps.
      exponent: α > 2.

    Returns:
      π [T], default float dtype.

    Raises:
      TypeError: cuts that are no array of bools; a mean_length or exponent that is no number.
      ValueError: cuts that are not [T]; mean_length ≤ 1; exponent ≤ 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import truncation
      >>> cuts = jnp.array([False, False, True, False])
      >>> keep = truncation.renewal_keep(cuts, mean_length=4.0, exponent=3.0)  # 1 − 2/(4 + δ), δ = 1, 2, 3, 1
      >>> [round(float(p), 3) for p in keep]
      [0.6, 0.667, 0.714, 0.6]

    Reference: Tallec & Ollivier (2017), arXiv:1705.08209.
    """
    _validation.require_array("cuts", cuts, ("T",), jnp.bool_)
    hazard = _hazard(mean_length, exponent)
    body = lambda age, cut: (jnp.where(cut, 1, age + 1), 1 - hazard(age))
    return jax.lax.scan(body, jnp.asarray(1), cuts)[1]


def _hazard(mean_length: float, exponent: float) -> Callable[[jax.Array], jax.Array]:
    """Age of the window -> probability of a cut; below 1 from age 1 on, because ℓ_0 > 1."""
    _validation.require_above("mean_length", mean_length, 1)
    _validation.require_above("exponent", exponent, 2)
    return lambda age: (exponent - 1) / ((exponent - 2) * mean_length + age.astype(jnp.result_type(float)))
