"""Singular values of one long chain over several devices, each with the Jacobians of its own steps."""

from typing import Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.sharded._place import UNROLL_METHODS
from jaxbptt.sharded._spans import Axis, cut, on_devices, relay, require_shares, scan_devices, select, take_axis
from jaxbptt.spectra.products import graded, rounding
from jaxbptt.spectra.products.graded import Factors
from jaxbptt.spectra.products.jacobi import graded_svd_in_parts
from jaxbptt.spectra.products.parallel import join
from jaxbptt.spectra.products.records import trust
from jaxbptt.spectra.singular_values import LIMIT, SingularValues, require_precise, warn_of_unknown
from jaxbptt.types import ProductMethod


@overload
def log_singular_values(
    jacobians: Float[Array, "time state state"],
    *,
    mesh: Mesh,
    time: str = "time",
    every: int | None = None,
    method: ProductMethod = "auto",
    errors: Literal[False] = False,
) -> Float[Array, "records state"]: ...


@overload
def log_singular_values(
    jacobians: Float[Array, "time state state"],
    *,
    mesh: Mesh,
    time: str = "time",
    every: int | None = None,
    method: ProductMethod = "auto",
    errors: Literal[True],
) -> SingularValues: ...


def log_singular_values(
    jacobians: Float[Array, "time state state"],
    *,
    mesh: Mesh,
    time: str = "time",
    every: int | None = None,
    method: ProductMethod = "auto",
    errors: bool = False,
) -> Float[Array, "records state"] | SingularValues:
    """ln σ_i(dh_t/dh_0), i = 1 … N, as `spectra.log_singular_values`, each device with the J_t of its own steps.

    "parallel": every span is factored by itself, T/D dependent QR steps; the factors are joined by the graded rule in
    ⌈log₂ D⌉ + 1 hops of 3N² + 4N numbers, and errors are carried along: where a join is uncertain, so are all values of
    that record. "sequential": the factors are relayed in D − 1 hops, all T steps one after the other, with the values
    of one device's QRs (a chain of scaled permutations, which one device knows exactly without, is not told apart).
    "auto": parallel, and again sequentially where that leaves a value unknown. Memory of a device: 1/D of the chain,
    3N² + 4N numbers for each record in it, and all R N values.

    With `errors`, always sequentially: the factors are relayed forwards, and the pass back through all stored ones from
    the last device to the first: for each record D − 1 hops of 3N² + 8N numbers and 2N² + 8N summed over the devices;
    T numbers are gathered once. As many steps one after the other as on one device, R T at most, with 1/D of its memory
    (3N² T/D numbers).

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float; cut over the devices or not.
      mesh, time: as in `bptt`.
      every: k, static: record at t = k, 2k, … and T; None: at T only.
      method: "parallel", "sequential" or "auto".
      errors: static: also return an error of every value, as in `spectra.log_singular_values`.

    Returns:
      [R, N] in nats, descending; NaN where the test forwards of `spectra.log_singular_values` (without `errors`) finds
      that rounding may have changed a value by more than 0.01: values that a second look there would confirm, too. With
      `errors`, SingularValues, NaN where the error exceeds 0.01.

    Raises:
      TypeError: jacobians that are no array of float32 or float64; an `every` that is no static int; errors that is
        no bool; no mesh.
      ValueError: jacobians of another shape; an unknown method; T that is no multiple of the devices; outside jit, NaN
        or inf, with its first step.
      RuntimeWarning: outside jit, values that are NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import sharded
      >>> mesh = jax.make_mesh((jax.device_count(),), ("time",))
      >>> chain = jnp.tile(jnp.array([[0.3, 0.4], [0.02, -0.015]]), (400 * jax.device_count(), 1, 1))  # σ = 0.5, 0.025
      >>> log_sigma = sharded.log_singular_values(chain, mesh=mesh)
      >>> round(float(log_sigma.sum()) / len(chain), 3)  # ln|det J|
      -4.382

    Reference: Stewart (1997), ETNA 5; Hillis & Steele (1986), Comm. ACM 29.
    """
    jacobians = _validation.take_jacobians(jacobians)
    require_precise(jacobians)
    length, size, _ = jacobians.shape
    axis = take_axis(mesh, time, "time")
    steps = require_shares("jacobians", "T", length, axis)
    _validation.require_choice("method", method, UNROLL_METHODS)
    _validation.require_type("errors", errors, bool, "a bool")
    if every is not None:
        _validation.require_size("every", every)
    every = length if every is None else min(every, length)
    records = -(-length // every)
    # A span holds parts of this many records at most; slot j of device d is that of record d·steps // every + j.
    slots = steps // every if steps % every == 0 else 1 if every % steps == 0 else -(-steps // every) + 1
    # A record that ends behind the span is filled, too; the device of its last step counts.
    stops = np.minimum(every * np.arange(1, records + 1), length)
    devices = (stops - 1) // steps
    slot = np.arange(records) - devices * steps // every

    def on_one(chain):
        index = axis.index() * steps + jnp.arange(steps)
        at = index // every - axis.index() * steps // every

        def run(factors):
            return jax.lax.scan(lambda factors, jacobian: (graded.multiply(jacobian, factors), None), factors, chain)[0]

        def record(factors):
            def body(carry, step):
                factors, kept = carry
                at, jacobian = step
                factors = graded.multiply(jacobian, factors)
                put = lambda every, one: jax.lax.dynamic_update_index_in_dim(every, one, at, 0)
                return (factors, jax.tree.map(put, kept, factors)), None

            kept = jax.tree.map(lambda leaf: jnp.zeros((slots, *leaf.shape), leaf.dtype), factors)
            return jax.lax.scan(body, (factors, kept), (at, chain))[0]

        first = graded.identity(size, chain.dtype)

        def relayed():
            return trust(record(relay(run, first, axis))[1])[:3]

        def joined():
            last, kept = record(first)
            return trust(_join_before(last, kept, first, axis))[:3]

        finite = jax.lax.pmin(jnp.all(jnp.isfinite(chain)).astype(int), axis.name) > 0
        if errors:
            return _certify(chain, relay(run, first, axis), stops, slots, axis), finite
        found = relayed() if method == "sequential" else joined()
        if method == "auto":
            unknown = jax.lax.psum(jnp.sum(found[2] > LIMIT), axis.name)  # on all devices alike: they relay together
            found = jax.lax.cond(unknown > 0, relayed, lambda: found)
        fields = jax.lax.all_gather(jnp.stack(found), axis.name)  # [D, 3, slots, N]
        return fields[devices, :, slot], finite

    fields, finite = on_devices(on_one, mesh, (cut(0, time),), PartitionSpec())(jacobians)
    order = jnp.argsort(fields[:, 0], axis=1, descending=True)
    log_sigma, rest, error = (jnp.take_along_axis(fields[:, i], order, axis=1) for i in range(3))
    error = jnp.where(finite, error, jnp.inf)
    known = error <= LIMIT
    warn_of_unknown(known, finite, 0, every, length)
    log_sigma, rest = (jnp.where(known, part, jnp.nan) for part in (log_sigma, rest))
    return SingularValues(log_sigma, error, error < 1, rest) if errors else log_sigma


def _join_before(last: Factors, kept: Factors, first: Factors, axis: Axis) -> Factors:
    """The factors from step 1 on, of those from the span's first step on."""
    _, before = scan_devices(lambda a, b: join(a, b, first.q), last, axis)
    join_one = lambda one: jax.lax.cond(axis.index() > 0, lambda: join(before, one, first.q), lambda: one)
    return jax.lax.map(join_one, kept)


def _certify(chain: jax.Array, start: Factors, stops: np.ndarray, slots: int, axis: Axis) -> jax.Array:
    """[R, 3, N] on every device: values, rests and errors at t = `stops` of a chain of whose span the steps are `chain`
    and whose factors before it are `start`."""
    steps, offset = len(chain), axis.index() * len(chain)
    every = int(stops[0])
    # The records in this span, as many as any has; what is beyond it is never asked for.
    numbers = offset // every + jnp.arange(slots)
    kept, tape = rounding.record_steps(chain, jnp.clip(every * (numbers + 1), None, stops[-1]) - 1 - offset, start)
    periodic = rounding.is_periodic(jax.lax.all_gather(_marks(chain), axis.name, tiled=True))

    def from_one(value, here):
        """What the one device has for which `here` holds."""
        nothing = jax.tree.map(jnp.zeros_like, value)
        return jax.lax.psum(select(here, value, nothing), axis.name)

    def visit(at):
        record, stop = at
        here = axis.index() == (stop - 1) // steps
        of_record, of_last = jax.tree.map(lambda leaf: leaf[record - offset // every], kept), stop - 1 - offset
        last = jax.tree.map(lambda leaf: leaf[of_last], tape)
        factors, last = from_one((of_record, last), here)
        _, large, rest, right = graded_svd_in_parts(factors.log_scale, factors.log_carry, factors.t)
        begun = rounding.begin(last, factors.log_error, right, large + rest)
        stop_here = jnp.clip(stop - offset, 0, steps)
        pass_back = lambda state: rounding.pass_back(chain, tape, start, stop_here, right, state)
        state = relay(pass_back, begun.directions, axis, reverse=True)
        state = from_one(jax.lax.cond(axis.index() == 0, pass_back, lambda same: same, state), axis.index() == 0)
        correction, error = rounding.conclude(begun, state, stop, periodic)
        log_sigma, rest = graded.add_compensated(large, jnp.zeros_like(rest), rest + correction)
        return jnp.stack((log_sigma, rest, error))

    return jax.lax.map(visit, (jnp.arange(len(stops)), jnp.asarray(stops)))


def _marks(chain):
    """[T, 1], equal where the first rows are, and else mostly different."""
    bits = jax.lax.bitcast_convert_type(chain[:, 0], jnp.uint32).reshape(len(chain), -1)
    weights = 2 * jnp.arange(bits.shape[1], dtype=jnp.uint32) * jnp.uint32(1_327_217_885) + jnp.uint32(1)
    return jnp.sum(bits * weights[None, :], axis=1, keepdims=True, dtype=jnp.uint32)
