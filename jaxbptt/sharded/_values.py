"""Singular values of one long chain over several devices, each with the Jacobians of its own steps."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.sharded._place import UNROLL_METHODS
from jaxbptt.sharded._spans import Axis, cut, on_devices, relay, require_shares, scan_devices, take_axis
from jaxbptt.spectra.products import graded
from jaxbptt.spectra.products.graded import Factors
from jaxbptt.spectra.products.parallel import join
from jaxbptt.spectra.products.records import trust
from jaxbptt.spectra.singular_values import LIMIT, require_precise, warn_of_unknown
from jaxbptt.types import ProductMethod


def log_singular_values(
    jacobians: Float[Array, "time state state"],
    *,
    mesh: Mesh,
    time: str = "time",
    every: int | None = None,
    method: ProductMethod = "auto",
) -> Float[Array, "records state"]:
    """ln σ_i(dh_t/dh_0), i = 1 … N, as `spectra.log_singular_values`, each device with the J_t of its own steps.

    "parallel": every span is factored by itself, T/D dependent QR steps; the factors are joined by the graded rule in
    ⌈log₂ D⌉ + 1 hops of 3N² + 4N numbers, and errors are carried along: where a join is uncertain, so are all values of
    that record. "sequential": the factors are relayed in D − 1 hops, all T steps one after the other, with the values
    of one device's QRs (a chain of scaled permutations, which one device knows exactly without, is not told apart).
    "auto": parallel, and again sequentially where that leaves a value unknown. Memory of a device: 1/D of the chain,
    3N² + 4N numbers for each record in it, and all R N values.

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float; cut over the devices or not.
      mesh, time: as in `bptt`.
      every: k, static: record at t = k, 2k, … and T; None: at T only.
      method: "parallel", "sequential" or "auto".

    Returns:
      [R, N] in nats, descending; NaN where the test forwards of `spectra.log_singular_values` (without `errors`) finds
      that rounding may have changed a value by more than 0.01: values that a second look there would confirm, too.

    Raises:
      TypeError: jacobians that are no array of float32 or float64; an `every` that is no static int; no mesh.
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

        found = relayed() if method == "sequential" else joined()
        if method == "auto":
            unknown = jax.lax.psum(jnp.sum(found[2] > LIMIT), axis.name)  # on all devices alike: they relay together
            found = jax.lax.cond(unknown > 0, relayed, lambda: found)
        log_sigma, _, error = found
        finite = jax.lax.pmin(jnp.all(jnp.isfinite(chain)).astype(int), axis.name) > 0
        both = jax.lax.all_gather(jnp.stack((log_sigma, error)), axis.name)  # [D, 2, slots, N]
        return both[devices, :, slot], finite

    both, finite = on_devices(on_one, mesh, (cut(0, time),), PartitionSpec())(jacobians)
    log_sigma, error = both[:, 0], both[:, 1]
    order = jnp.argsort(log_sigma, axis=1, descending=True)
    log_sigma, error = (jnp.take_along_axis(field, order, axis=1) for field in (log_sigma, error))
    known = finite & (error <= LIMIT)
    warn_of_unknown(known, finite, 0, every, length)
    return jnp.where(known, log_sigma, jnp.nan)


def _join_before(last: Factors, kept: Factors, first: Factors, axis: Axis) -> Factors:
    """The factors from step 1 on, of those from the span's first step on."""
    _, before = scan_devices(lambda a, b: join(a, b, first.q), last, axis)
    join_one = lambda one: jax.lax.cond(axis.index() > 0, lambda: join(before, one, first.q), lambda: one)
    return jax.lax.map(join_one, kept)
