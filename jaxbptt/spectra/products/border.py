"""Products of [[scale · I, column], [0, corner]]: they keep that form, [[F I, u], [0, S]], F and S products of scalars.

All singular values but two are F. The two are those of [[F, ‖u‖], [0, S]]. All three numbers are kept in logs, and of u
its direction, so that nothing leaves the float range.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt.cells.factored import length_of
from jaxbptt.cells.structure import Border
from jaxbptt.spectra.products.diagonal import LogSums, add_log, empty_sums, finish_sums

FACTOR = 4.0  # of eps for every step: two products, one sum, one norm


class BorderProduct(NamedTuple):
    """dh_t/dh_k for some k side by side."""

    scale: LogSums  # [K] ln F
    corner: LogSums  # [K] ln|S|
    sign: jax.Array  # [K] of F
    direction: jax.Array  # [K, N − 1] u / ‖u‖
    length: LogSums  # [K] ln‖u‖
    sign_of_corner: jax.Array  # [K]
    rounding: jax.Array  # [K] relative error of u, by cancellation in its sums


def identity(count: int, size: int, dtype: jnp.dtype) -> BorderProduct:
    """`count` identities [N, N]."""
    zeros, ones = jnp.zeros(count, dtype), jnp.ones(count, dtype)
    none = empty_sums(count, dtype)
    nothing = none._replace(total=zeros - jnp.inf)
    return BorderProduct(none, none, ones, jnp.zeros((count, size - 1), dtype), nothing, ones, zeros)


def multiply(step: Border, product: BorderProduct) -> BorderProduct:
    """J_t · product:  F' = scale F,  u' = scale u + column S,  S' = corner S."""
    length = length_of(step.column, (0,))
    kept, added = add_log(product.length, jnp.abs(step.scale)), add_log(product.corner, length)
    log_old, log_new = kept.total + kept.carry, added.total + added.carry
    log_unit = jnp.maximum(log_old, log_new)
    log_unit = jnp.where(log_unit > -jnp.inf, log_unit, 0)
    larger = jax.tree.map(lambda old, new: jnp.where(log_old >= log_new, old, new), kept, added)
    old, new = jnp.exp(log_old - log_unit), jnp.exp(log_new - log_unit)
    column = step.column / jnp.where(length > 0, length, 1)
    total = (old * jnp.sign(step.scale))[:, None] * product.direction
    total = total + (new * product.sign_of_corner)[:, None] * column[None, :]
    size = length_of(total, (1,))
    eps = jnp.finfo(total.dtype).eps
    of_terms = (old * product.rounding + eps * (old + new)) / jnp.where(size > 0, size, 1)
    return BorderProduct(
        scale=add_log(product.scale, jnp.abs(step.scale)),
        corner=add_log(product.corner, jnp.abs(step.corner)),
        sign=product.sign * jnp.sign(step.scale),
        direction=total / jnp.where(size > 0, size, 1)[:, None],
        length=add_log(larger, size),
        sign_of_corner=product.sign_of_corner * jnp.sign(step.corner),
        rounding=jnp.where(size > 0, of_terms, 0),
    )


class BorderValues(NamedTuple):
    """The singular values of K products: one N − 2 times, and two of their own."""

    log_scale: jax.Array  # [K] ln|F|
    log_first: jax.Array  # [K] of [[F, ‖u‖], [0, S]], the larger
    log_second: jax.Array  # [K]
    error: jax.Array  # [K] nats, of each


def values_of(product: BorderProduct) -> BorderValues:
    """σ_1 = ½ (√((F+S)² + u²) + √((F−S)² + u²)),  σ_2 = F S / σ_1, in logs."""
    log_scale, _, of_scale = finish_sums(product.scale)
    log_corner, _, of_corner = finish_sums(product.corner)
    log_length, _, of_length = finish_sums(product.length)
    largest = jnp.maximum(jnp.maximum(log_scale, log_corner), log_length)
    unit = jnp.where(largest > -jnp.inf, largest, 0)
    scale, corner, side = (jnp.exp(log - unit) for log in (log_scale, log_corner, log_length))
    first = (jnp.hypot(scale + corner, side) + jnp.hypot(scale - corner, side)) / 2
    log_first = unit + jnp.log(first)
    both = log_scale + log_corner
    log_second = jnp.where(both > -jnp.inf, both - log_first, -jnp.inf)
    eps = jnp.finfo(log_scale.dtype).eps
    size = jnp.where(jnp.isfinite(both), jnp.abs(both), 0) + jnp.where(jnp.isfinite(log_first), jnp.abs(log_first), 0)
    error = of_scale + of_corner + of_length + product.rounding + eps * (FACTOR + size)
    return BorderValues(log_scale, log_first, log_second, error)


def border_values(steps: Border, length: int, every: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(ln σ, rest, error), each [R, N], at t = every, 2 every, … and T."""
    size = steps.column.shape[1] + 1
    count = -(-length // every)
    start = identity(1, size, steps.column.dtype)
    none = jax.tree.map(lambda leaf: jnp.zeros(count, leaf.dtype), values_of(start))

    def body(carry, step):
        product, records = carry
        index, at = step
        product = multiply(at, product)
        put = lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one[0], index // every, 0)
        return (product, jax.tree.map(put, records, values_of(product))), None

    (_, found), _ = jax.lax.scan(body, (start, none), (jnp.arange(length), steps))
    many = jnp.broadcast_to(found.log_scale[:, None], (count, size - 2))
    log_sigma = jnp.concatenate((many, found.log_first[:, None], found.log_second[:, None]), axis=1)
    error = jnp.where(log_sigma > -jnp.inf, found.error[:, None], 0)
    return log_sigma, jnp.zeros_like(log_sigma), error
