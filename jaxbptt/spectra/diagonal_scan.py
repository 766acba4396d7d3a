"""Exponents of a chain of diagonals, or of bordered Jacobians: the means of ln|entry|, without any QR."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.spectra.products.diagonal import LogSums, add_log, empty_sums
from jaxbptt.spectra.qr_step import Options
from jaxbptt.spectra.statistics import LyapunovExponents, Sums, summarise


class AdvanceEntries(Protocol):
    def __call__(self, state: Any, step: Any, /) -> tuple[Any, jax.Array]:
        """(what the next call starts from, the entries [n] on the diagonal of J_t)."""
        ...


class DiagonalChain(NamedTuple):
    """T diagonals, stored or computed when they are needed."""

    advance: AdvanceEntries
    state: Any  # what the first step starts from
    steps: Any  # pytree [T, ...], what `advance` reads at each step
    length: int  # T
    copies: int | tuple[int, ...]  # how often every entry, or each of them, occurs


def repeat_diagonal(entries: jax.Array, length: int, copies: int, options: Options) -> LyapunovExponents:
    """The exponents ln|entry| of `length` equal steps."""
    log, dtype = jnp.log(jnp.abs(entries)), jnp.finfo(entries.dtype).dtype
    lengths = options.lengths(length)
    steps = jnp.asarray(lengths, dtype)[:, None]
    nothing = jnp.zeros_like(log)
    sums = Sums(
        local=steps * log[None, :],
        series=steps * log[None, :],
        sampled=jnp.broadcast_to(steps, (len(lengths), len(log))),
        samples=jnp.full(len(log), len(lengths)),
        rounding=jnp.finfo(dtype).eps * jnp.where(jnp.isfinite(log), jnp.abs(log), 0) * (length - options.warm_up),
        turning=nothing,
        interval_error=nothing,
    )
    usable = jnp.all(jnp.isfinite(entries))
    found = summarise(sums, lengths, jnp.ones((), dtype), len(log) * copies, options.k, usable, copies)
    return found._replace(standard_error=jnp.where(jnp.isnan(found.exponents), jnp.nan, 0))


def scan_diagonal(chain: DiagonalChain, options: Options) -> LyapunovExponents:
    """The exponents, by one scan over the chain. Memory: 4,096 samples of every entry."""
    shape = jax.eval_shape(lambda: chain.advance(chain.state, jax.tree.map(lambda leaf: leaf[0], chain.steps))[1])
    size, dtype = shape.shape[0], jnp.finfo(shape.dtype).dtype
    samples, each = options.samples(chain.length)

    def body(carry, step):
        state, sums, series, bad_step = carry
        t, x = step
        state, entries = chain.advance(state, x)
        bad_step = jnp.where((bad_step == 0) & ~jnp.all(jnp.isfinite(entries)), t + 1, bad_step)
        slot = options.slot(chain.length, t)
        one = jax.tree.map(lambda leaf: leaf[slot], sums)
        new = add_log(one, entries)
        sums = jax.tree.map(lambda all_, new: all_.at[slot].set(new), sums, new)
        place = jnp.where(t >= options.warm_up, (t - options.warm_up) // each, samples)
        return (state, sums, series.at[place].add(jnp.log(jnp.abs(entries))), bad_step), None

    sums = jax.tree.map(lambda leaf: jnp.zeros((options.blocks + 1, size), leaf.dtype), empty_sums(size, dtype))
    carry = chain.state, sums, jnp.zeros((samples + 1, size), dtype), jnp.asarray(0)
    (_, sums, series, bad_step), _ = jax.lax.scan(body, carry, (jnp.arange(chain.length), chain.steps))
    if _validation.is_concrete(bad_step) and bad_step > 0:
        raise ValueError(f"jacobians: got NaN or inf, expected finite numbers; first at step t = {bad_step}")
    found = _sums(sums, series, chain.length - options.warm_up, each)
    counts = chain.copies if isinstance(chain.copies, tuple) else (chain.copies,) * size
    one = jnp.ones((), dtype)
    return summarise(found, options.lengths(chain.length), one, sum(counts), options.k, bad_step == 0, chain.copies)


def _sums(sums: LogSums, series: jax.Array, counted: int, each: int) -> Sums:
    size, samples, dtype = series.shape[1], len(series) - 1, series.dtype
    steps = jnp.minimum(each, counted - each * jnp.arange(samples)).astype(dtype)
    nothing = jnp.zeros(size, dtype)
    return Sums(
        local=(sums.total + sums.carry)[:-1],
        series=series[:-1],
        sampled=jnp.broadcast_to(steps[:, None], (samples, size)),
        samples=jnp.full(size, samples),
        rounding=jnp.sum(sums.rounding[:-1], axis=0),
        turning=nothing,
        interval_error=nothing,
    )
