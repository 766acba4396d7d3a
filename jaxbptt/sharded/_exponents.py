"""Exponents of one long chain over several devices: each makes the QRs of its own steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.partials import step_partials
from jaxbptt.sharded._place import UNROLL_METHODS, find_start, place
from jaxbptt.sharded._spans import Axis, cut, on_devices, relay, require_shares, scan_devices, select, take_axis
from jaxbptt.spectra.exponents import require_options, tell
from jaxbptt.spectra.frame_errors import Rounding, error_of_sums, most_mixed, no_rounding
from jaxbptt.spectra.frames import initial_frame, unfinished_turning
from jaxbptt.spectra.products import graded
from jaxbptt.spectra.products.graded import Factors, add_compensated
from jaxbptt.spectra.products.parallel import join
from jaxbptt.spectra.qr_step import Block, Chain, Options, fresh, multiply, orthogonalise
from jaxbptt.spectra.singular_values import require_precise
from jaxbptt.spectra.statistics import LyapunovExponents, Sums, summarise
from jaxbptt.trajectories import take_call
from jaxbptt.trajectories._calls import start_of
from jaxbptt.types import Inputs, Params, ProductMethod, Recurrence, State

JOINED = 1e2  # eps², variance of the directions of a frame that comes out of a join, at least


def lyapunov_exponents(
    jacobians: Float[Array, "time state state"],
    *,
    mesh: Mesh,
    time: str = "time",
    k: int | None = None,
    warm_up: int | None = None,
    blocks: int = 32,
    method: ProductMethod = "auto",
) -> LyapunovExponents:
    """λ_i = 1/T' Σ_t ln r_ii(t) as `spectra.lyapunov_exponents` with interval=1, each device its own steps' QRs.

    Every span starts from the frame Q that one device would have there. "sequential": Q is relayed with what rounding
    did to it, D − 1 hops of N K + 2K² + K numbers, K = min(k + 1, N), and the QRs of D − 1 spans are made one after the
    other before those of all at once. "parallel": every span is factored first, 2 T/D dependent steps in all, and the
    factors of the spans are joined as in `log_singular_values`; the frame is what they make of Q_0. Then sums of at
    most 4,096 K numbers. Memory of a device: 1/D of the chain.

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float.
      mesh, time: as in `bptt`.
      k, warm_up, blocks: as in `spectra.lyapunov_exponents`. Parts of the state that no J_t couples are not told apart.
      method: "sequential", "parallel", or "auto": parallel for more than two devices.

    Returns:
      LyapunovExponents, the same on every device.

    Raises:
      TypeError, ValueError: as `spectra.lyapunov_exponents` and `bptt`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import sharded
      >>> mesh = jax.make_mesh((jax.device_count(),), ("time",))
      >>> chain = jnp.tile(jnp.array([[2.0, 1.0], [0.0, 0.5]]), (50 * jax.device_count(), 1, 1))
      >>> print(jnp.exp(sharded.lyapunov_exponents(chain, mesh=mesh).exponents).round(3))  # the eigenvalues of J
      [2.  0.5]

    Reference: Benettin et al. (1980), Meccanica 15; Stewart (1997), ETNA 5.
    """
    jacobians = _validation.take_jacobians(jacobians)
    require_precise(jacobians)
    length, size, _ = jacobians.shape
    axis = take_axis(mesh, time, "time")
    require_shares("jacobians", "T", length, axis)
    _validation.require_choice("method", method, UNROLL_METHODS)
    options = require_options(k, warm_up, 1, blocks, length, size)

    def on_one(chain):
        own = Chain(lambda state, jacobian: (state, jacobian), (), chain, None, chain.dtype, length, size)
        return _scan_span(own, options, axis, method)

    sums = on_devices(on_one, mesh, (cut(0, time),), PartitionSpec())(jacobians)
    return _judge(sums, options, length, size)


def stream_exponents(
    cell: Recurrence,
    params: Params,
    inputs: Inputs,
    *,
    mesh: Mesh,
    time: str = "time",
    initial: State | None = None,
    k: int | None = None,
    warm_up: int | None = None,
    blocks: int = 32,
    method: ProductMethod = "auto",
) -> LyapunovExponents:
    """`lyapunov_exponents` of the cell's own trajectory, each J_t computed when it is needed: memory O(N²) at any T.

    First every device finds the state that its span starts from, as in `unroll`.

    Args:
      cell: Cell or Model of one sequence.
      params: θ.
      inputs: as in `trajectories.unroll`; [T, 0] for an autonomous cell.
      mesh, time: as in `bptt`.
      initial: h_0.
      k, warm_up, blocks, method: as in `lyapunov_exponents`.

    Returns:
      LyapunovExponents, the same on every device.

    Raises:
      TypeError, ValueError: as `unroll` and `lyapunov_exponents`; a batched model.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, sharded
      >>> henon = lambda b, h, x: jnp.stack([1 - 1.4 * h[0] ** 2 + h[1], b * h[0]])  # |det J| = b at every step
      >>> cell = cells.from_step(henon, lambda b: jnp.zeros(2), num_inputs=0)
      >>> mesh = jax.make_mesh((jax.device_count(),), ("time",))
      >>> found = sharded.stream_exponents(cell, jnp.array(0.3), jnp.zeros((500 * jax.device_count(), 0)), mesh=mesh)
      >>> bool(found.exponents[0] > 0), round(float(jnp.exp(found.exponents.sum())), 3)
      (True, 0.3)
    """
    params, inputs, initial, length = take_call(cell, params, inputs, initial)
    if (batch := getattr(cell, "batch", None)) is not None:
        raise ValueError(f"cell: got a batch of {batch}, expected a model of one sequence")
    at = place(cell, mesh, time, None, length)
    _validation.require_choice("method", method, UNROLL_METHODS)
    first = start_of(cell, params, initial)
    flat = ravel_pytree(first)[0]
    require_precise(flat)
    options = require_options(k, warm_up, 1, blocks, length, flat.size)
    partials = step_partials(cell)

    def on_one(params, first, inputs):
        skip = lambda state: jax.lax.scan(lambda state, x: (cell.step(params, state, x), None), state, inputs)[0]
        state, agrees = find_start(at, params, first, inputs, at.shape(params, first, inputs), "auto", skip)
        known = agrees(skip(state))
        state = jax.tree.map(lambda leaf: jnp.where(known, leaf, jnp.nan), state)
        advance = lambda state, x: partials.value_and_jacobian(params, state, x)
        own = Chain(advance, state, inputs, None, flat.dtype, length, flat.size)
        return _scan_span(own, options, at.time, method)

    sums = on_devices(on_one, mesh, (PartitionSpec(), at.states, at.data), PartitionSpec())(params, first, inputs)
    return _judge(sums, options, length, flat.size)


class _Frame(NamedTuple):
    """The directions that a QR scan carries."""

    q: jax.Array  # [N, K]
    rounding: Rounding


class _Found(NamedTuple):
    """Of all spans together."""

    total: jax.Array  # [blocks + 1, K] Σ ln r_ii by block of time, the last for the warm-up
    series: jax.Array  # [samples, K]
    rounding: Rounding
    bad_step: jax.Array  # [] first t whose numbers are not finite, 0: none


def _scan_span(chain: Chain, options: Options, axis: Axis, method: ProductMethod) -> _Found:
    """The QRs of this device's steps of a chain of `chain.length` in all, from the frame that they start from."""
    dtype, size = chain.dtype, chain.size
    count = jax.tree.leaves(chain.steps)[0].shape[0]
    times = axis.index() * count + jnp.arange(count)
    q_0 = initial_frame(size, options.width, None, dtype)
    samples, each = options.samples(chain.length)

    def one(carried, step):
        """(state and frame after a step; ln r_ii; whether J_t is finite)."""
        (state, frame), (t, x) = carried, step
        state, jacobian = chain.advance(state, x)
        columns = jnp.max(jnp.abs(jacobian), axis=0)
        zeros, nothing = jnp.zeros_like(frame.q[0]), jnp.zeros_like(t)
        block = Block(frame.q, frame.rounding, frame.q, *fresh(frame.q), zeros, frame.rounding, nothing, nothing)
        block = multiply(chain, options, t, jacobian, columns, block)
        q, log_pivots, rounding = orthogonalise(chain, options, t, block.m, block.added, block.running)
        return (state, _Frame(q, rounding)), block.log_pending + log_pivots, jnp.isfinite(jnp.max(columns))

    def count_up(carry, step):
        carried, total, rest, series, bad_step = carry
        t, _ = step
        carried, growth, finite = one(carried, step)
        slot = options.slot(chain.length, t)
        new, left = add_compensated(total[slot], rest[slot], growth)
        sample = jnp.where(t < options.warm_up, samples, (t - options.warm_up) // each)
        bad_step = jnp.where((bad_step == 0) & ~finite, t + 1, bad_step)
        return (
            carried,
            total.at[slot].set(new),
            rest.at[slot].set(left),
            series.at[sample].add(growth),
            bad_step,
        ), None

    steps = times, chain.steps
    if method == "sequential" or (method == "auto" and axis.size <= 2):
        body = lambda carried, step: (one(carried, step)[0], None)
        run = lambda frame: jax.lax.scan(body, (chain.state, frame), steps)[0][1]
        start = relay(run, _Frame(q_0, no_rounding(options.width)), axis)
    else:
        start = _join_frames(chain, options, q_0, axis)

    zeros = jnp.zeros((options.blocks + 1, options.width), dtype)
    nothing = zeros, zeros, jnp.zeros((samples + 1, options.width), dtype), jnp.zeros_like(times[0])
    ((_, last), total, rest, series, bad_step), _ = jax.lax.scan(count_up, ((chain.state, start), *nothing), steps)
    squares = last.rounding.squares - start.rounding.squares  # of this span alone
    worst = jax.lax.pmax(last.rounding.worst, axis.name)
    rounding = Rounding(worst, worst, jax.lax.psum(squares, axis.name))
    first_bad = jax.lax.pmin(jnp.where(bad_step == 0, chain.length + 1, bad_step), axis.name)
    total, series = jax.lax.psum((total + rest, series[:-1]), axis.name)
    return _Found(total, series, rounding, jnp.where(first_bad > chain.length, 0, first_bad))


def _join_frames(chain: Chain, options: Options, q_0: jax.Array, axis: Axis) -> _Frame:
    """The frame that this device's span starts from, out of the factors of all spans before it."""

    def factor(carry, x):
        state, factors = carry
        state, jacobian = chain.advance(state, x)
        return (state, graded.multiply(jacobian, factors)), None

    first = graded.identity(chain.size, chain.dtype)
    (_, last), _ = jax.lax.scan(factor, (chain.state, first), chain.steps)
    _, before = scan_devices(lambda a, b: join(a, b, first.q), last, axis)
    started, fresh_start = axis.index() > 0, no_rounding(options.width)
    q = _frame_after(select(started, before, first), first.q.T @ q_0)
    off = jnp.exp(2 * jnp.max(before.log_error)) / float(jnp.finfo(chain.dtype).eps) ** 2
    off = jnp.clip(off, JOINED, most_mixed(chain.dtype)).astype(jnp.float32)
    mixed = jnp.tril(jnp.broadcast_to(off, (options.width,) * 2), -1)
    return select(started, _Frame(q, fresh_start._replace(mixed=mixed)), _Frame(q_0, fresh_start))


def _judge(found: _Found, options: Options, length: int, size: int) -> LyapunovExponents:
    if _validation.is_concrete(found.bad_step) and found.bad_step > 0:
        raise ValueError(f"jacobians: got NaN or inf, expected finite numbers; first at step t = {found.bad_step}")
    dtype, counted = found.total.dtype, length - options.warm_up
    kept = options.width if options.width == size else min(options.k, options.width)
    samples, each = options.samples(length)
    sampled = np.minimum(each, counted - each * np.arange(samples))
    start = found.total[-1]
    sums = Sums(
        local=found.total[:-1, :kept],
        series=found.series[:, :kept],
        sampled=jnp.broadcast_to(jnp.asarray(sampled, dtype)[:, None], (samples, kept)),
        samples=jnp.full(kept, samples),
        rounding=error_of_sums(found.rounding, jnp.asarray(counted), dtype)[:kept],
        turning=unfinished_turning(start, start + jnp.sum(found.total[:-1], axis=0), None)[:kept],
        interval_error=jnp.zeros(kept, dtype),
    )
    one = jnp.ones((), dtype)
    return tell(summarise(sums, options.lengths(length), one, size, options.k, found.bad_step == 0))


def _frame_after(factors: Factors, frame: jax.Array) -> jax.Array:
    """Q [N, K] of the QR of P Q_0 frame, P Q_0 = Q diag(e^ℓ) T.

    T frame is eliminated, with pivots chosen by their size in diag(e^ℓ) T frame: the scales are never multiplied out.
    """
    scale, x = factors.log_scale + factors.log_carry, factors.t @ frame
    least = jnp.finfo(x.dtype).min

    def eliminate(k, state):
        x, lower, free = state
        column = jax.lax.dynamic_index_in_dim(x, k, axis=1, keepdims=False)
        weight = jnp.where(free, jnp.maximum(jnp.log(jnp.abs(column)) + scale, least), -jnp.inf)
        p = jnp.argmax(weight)
        alive = weight[p] > least  # else all that is left is lost exactly, and any direction will do
        pivot = jnp.where(alive, column[p], 1)
        ratio = jnp.where(alive & free & (jnp.arange(len(x)) != p), column / pivot, 0)
        down = jnp.where(ratio != 0, ratio * jnp.exp(jnp.where(ratio != 0, scale - scale[p], 0)), 0)
        lower = lower.at[:, k].set(down.at[p].set(1))
        return x - jnp.outer(ratio, x[p]), lower, free.at[p].set(False)

    start = x, jnp.zeros_like(x), jnp.ones(len(x), bool)
    _, lower, _ = jax.lax.fori_loop(0, x.shape[1], eliminate, start)
    return factors.q @ jnp.linalg.qr(lower)[0]
