"""Sums, logs and differences of products of float32 numbers with about a hundred times less rounding, in float32.

A number is held as a sum of two; nothing needs float64, which JAX leaves out by default.

References: Dekker (1971), Numer. Math. 18; Ozaki et al. (2012), Numer. Algorithms 59 (products of slices).
"""

import math

import jax
import jax.numpy as jnp

LN_2 = 0.693145751953125, 1.42860677e-6  # the first part has so few digits that any exponent times it is exact


def difference_of_products(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    """A B − C D where the two are almost equal.

    The leading ⌊(24 − log2 n)/2⌋ bits of each row of A and each column of B are multiplied and summed without rounding;
    what is left is that much smaller, and so is its rounding.
    """
    (first, first_rest), (second, second_rest) = _product(a, b), _product(c, d)
    return (first - second) + (first_rest - second_rest)


def _product(a, b):
    scale = _power_above(jnp.max(jnp.abs(b), axis=1))  # rows of B, columns of A of like size: those of R are graded
    a, b = a * scale[None, :], b / scale[:, None]
    bits = (24 - math.ceil(math.log2(a.shape[1]))) // 2
    a_high, b_high = _leading(a, bits, 1), _leading(b, bits, 0)
    multiply = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return multiply(a_high, b_high), multiply(a_high, b - b_high) + multiply(a - a_high, b)


def _leading(x, bits, axis):
    """x rounded to a multiple of 2^−bits of a power of two above its largest entry along an axis."""
    unit = _power_above(jnp.max(jnp.abs(x), axis=axis, keepdims=True)) * 2.0**-bits
    return jnp.round(x / unit) * unit


def _power_above(x):
    """A power of two above x, far from the ends of the range."""
    return jnp.ldexp(jnp.ones_like(x), jnp.clip(jnp.frexp(x)[1], -80, 80))


def log_in_parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """ln x of float32 x as (head, tail), to about 5e-9; (−inf, 0) at 0."""
    mantissa, exponent = jnp.frexp(x)
    low = mantissa < 0.5**0.5
    f = jnp.where(low, 2 * mantissa, mantissa) - 1  # exact
    exponent = (exponent - low.astype(exponent.dtype)).astype(x.dtype)
    # ln(1 + f) = f − (f²/2 − s (f²/2 + R)), s = f/(2 + f), R = Σ 2 s^2k/(2k + 1)
    s, half = f / (2 + f), 0.5 * f * f
    square = s * s
    series = square * (2 / 3 + square * (2 / 5 + square * (2 / 7 + square * (2 / 9 + square * 2 / 11))))
    small = s * (half + series) - half
    large = exponent * LN_2[0]
    total = large + f
    back = total - large
    tail = ((large - (total - back)) + (f - back)) + (exponent * LN_2[1] + small)
    head = total + tail
    tail = tail - (head - total)
    zero = x == 0
    return jnp.where(zero, -jnp.inf, head), jnp.where(zero, 0, tail)


def log_modulus_in_parts(re: jax.Array, im: jax.Array) -> tuple[jax.Array, jax.Array]:
    """ln|re + i im| of float32 as (head, tail), to about 5e-9; (−inf, 0) at 0.

    ln √(a² + b²) = ln m + (a² + b² − m²)/(2 m²) with m the rounded root: the difference is summed from exact products
    of leading parts of 12 bits, and of what they leave.
    """
    largest = jnp.maximum(jnp.abs(re), jnp.abs(im))
    exponent = jnp.where(largest > 0, jnp.frexp(largest)[1], 0)
    a, b = (jnp.ldexp(jnp.abs(part), -exponent) for part in (re, im))
    # The barrier keeps one m for all that follows: computed twice, it may be rounded in two ways.
    m = jax.lax.optimization_barrier(jnp.sqrt(a * a + b * b))
    high = [jnp.round(part * 2.0**11) * 2.0**-11 for part in (a, b, m)]
    low = [part - leading for part, leading in zip((a, b, m), high, strict=True)]
    difference = (high[0] ** 2 - high[2] ** 2) + high[1] ** 2
    difference += 2 * (high[0] * low[0] + high[1] * low[1] - high[2] * low[2])
    difference += low[0] ** 2 + low[1] ** 2 - low[2] ** 2
    head, tail = log_in_parts(jnp.ldexp(m, exponent))
    return head, tail + jnp.where(m > 0, difference / (2 * jnp.where(m > 0, m, 1) ** 2), 0)
