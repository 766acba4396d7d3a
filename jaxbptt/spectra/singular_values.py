"""All log singular values of dh_t/dh_k = J_t … J_{k+1}, their errors and their directions, at any length and magnitude.

An assembled product loses its small singular values after ln(1/eps)/(λ_1 − λ_N) steps. Here the product is carried as

    J_t … J_{k+1} = Q diag(e^ℓ) T Q_0ᵀ        Q, Q_0 orthogonal, ℓ in logs, T well conditioned

by one or two Householder QR steps per Jacobian. Only diag(e^ℓ) T is decomposed, row by row in logs, so that nothing
leaves the float range and every value keeps its own relative accuracy. What rounding has done to a value all along the
chain follows from the stored factors (`products.rounding`): no value is given without that error or a test of it.

References: Stewart (1997), ETNA 5 (graded products); Demmel et al. (1999), LAA 299, and Drmač & Veselić (2008), SIMAX
29 (one-sided Jacobi); Bauer (2020), SciPost Phys. Core 2 (the U·D·T form and its column order).
"""

import warnings
from typing import Any, Literal, NamedTuple, get_args, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxbptt import _validation
from jaxbptt.jacobians.blocks import BlockJacobians, BorderedJacobians
from jaxbptt.jacobians.structured import STRUCTURED, Structured, StructuredJacobians, require_one_chain
from jaxbptt.spectra.products.border import border_values
from jaxbptt.spectra.products.diagonal import diagonal_values
from jaxbptt.spectra.products.matrices import as_matrices
from jaxbptt.spectra.products.records import Decomposition, decompose_records
from jaxbptt.spectra.products.rounding import share_errors
from jaxbptt.types import ArrayLike, ProductMethod

LIMIT = 1e-2  # nats, 1 % of σ: a value that may be further off says more about rounding than about the chain
UNASKED = 2**28  # bytes of a chain up to which errors are computed unasked where they are needed: three times as many
METHODS = get_args(ProductMethod)

Chain = Float[ArrayLike, "time state state"] | Float[ArrayLike, "time batch entries entries"] | Structured


class SingularValues(NamedTuple):
    """ln σ_i(dh_t/dh_start) at each of R records, with their errors.

    Attributes:
      log_sigma: [R, N], nats, descending; NaN where error exceeds 0.01.
      error: [R, N], nats; inf where nothing is known, 0 where σ is exactly zero.
      resolved: [R, N], False where rounding alone may have made σ what it is: it may be zero.
      rest: [R, N], ln σ − log_sigma as far as known: what rounding the log to its dtype left out.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> chain = jnp.tile(jnp.diag(jnp.array([0.5, 0.0])), (2, 1, 1))
      >>> found = spectra.log_singular_values(chain, errors=True)
      >>> [round(float(v), 3) for v in found.log_sigma[0]], float(found.error[0, 1])  # 2 ln 0.5; a zero that is certain
      ([-1.386, -inf], 0.0)
    """

    log_sigma: Float[Array, "records state"]
    error: Float[Array, "records state"]
    resolved: Bool[Array, "records state"]
    rest: Float[Array, "records state"]


class LogSVD(NamedTuple):
    """dh_t/dh_start = left diag(e^log_sigma) rightᵀ at each of R records.

    Attributes:
      log_sigma: [R, N], nats, descending; NaN where error exceeds 0.01.
      left: [R, N, N], columns: directions at t.
      right: [R, N, N], columns: directions at `start`.
      error: [R, N], nats; inf where nothing is known, 0 where σ is exactly zero.
      resolved: [R, N], False where rounding alone may have made σ what it is: it may be zero.
      rest: [R, N], as in SingularValues.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> found = spectra.singular_decomposition(jnp.tile(jnp.array([[2.0, 1.0], [1.0, 2.0]]), (2, 1, 1)))
      >>> product = found.left[0] @ jnp.diag(jnp.exp(found.log_sigma[0])) @ found.right[0].T
      >>> product.round().tolist()  # J_2 J_1
      [[5.0, 4.0], [4.0, 5.0]]
    """

    log_sigma: Float[Array, "records state"]
    left: Float[Array, "records state columns"]
    right: Float[Array, "records state columns"]
    error: Float[Array, "records state"]
    resolved: Bool[Array, "records state"]
    rest: Float[Array, "records state"]


@overload
def log_singular_values(
    jacobians: Chain,
    *,
    every: int | None = None,
    start: int = 0,
    stop: int | None = None,
    method: ProductMethod = "auto",
    errors: Literal[False] = False,
) -> Float[Array, "records state"]: ...


@overload
def log_singular_values(
    jacobians: Chain,
    *,
    every: int | None = None,
    start: int = 0,
    stop: int | None = None,
    method: ProductMethod = "auto",
    errors: Literal[True],
) -> SingularValues: ...


def log_singular_values(
    jacobians: Chain,
    *,
    every: int | None = None,
    start: int = 0,
    stop: int | None = None,
    method: ProductMethod = "auto",
    errors: bool = False,
) -> Float[Array, "records state"] | SingularValues:
    """ln σ_i(dh_t/dh_start), i = 1 … N, dh_t/dh_start = J_t … J_{start+1}.

    One `lax.scan` over time, about 5N³ flops per step, then a Jacobi SVD per record. A value is −inf only where zero
    rows or columns of a Jacobian remove a direction. One that rounding may have changed by more than 0.01 nats is NaN,
    with a warning outside jit: in a chain that undoes its own expansion (A³⁰ then A⁻³⁰), behind a step that is singular
    up to rounding, or where float32 does not suffice. Chains of diagonal matrices and scaled permutations are sums of
    logs, with no such loss. Not differentiable in reverse mode (see `log_growth`).

    With `errors`, every value carries its own. Of 46,000 given for ten families of hard chains, N ≤ 8 and T ≤ 60, one
    was off by more than three times it (7 times). Without, a cheap test forwards marks what may be off. Outside jit a
    chain of up to 256 MiB with such values is decomposed again with errors; under jit they are NaN, also those that the
    second look would have confirmed. The test is no bound: of the same values 1 in 22,000 (float64) and 23 in 18,000
    (float32) passed it and were off by more than 0.01 nats.

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float; [T, B, n, n], the blocks of a block-diagonal chain of N = B·n, from
        `batch_jacobians`; or from `structured_jacobians`: blocks are decomposed apart, each value counts as often as it
        has copies, diagonals and bordered chains are sums of logs, and one J_t at a time is assembled.
      every: k, static: record at t = start + k, start + 2k, … and at stop; None: at stop only.
      start, stop: static ints, 0 ≤ start < stop ≤ T; stop None: T.
      method: "sequential", "parallel" (blocks of about √(steps) factored side by side and joined by a logarithmic scan:
        several times the work), or "auto": parallel except on a CPU. Errors are always computed sequentially.
      errors: static: also return an error of every value, from a pass back through all stored factors (3TN² numbers)
        for each record. In float32 the same pass corrects the values to first order.

    Returns:
      [R, N] in nats, descending, R = ⌈(stop − start)/k⌉ (1 for None), of the dtype of jacobians; with `errors`,
      SingularValues. Under jit, NaN throughout if any Jacobian is not finite.

    Raises:
      TypeError: jacobians that are no array of float32 or float64; an `every`, start or stop that is no static int;
        errors that is no bool.
      ValueError: jacobians of another shape; an `every` below 1; a span that is empty or out of range; an unknown
        method; outside jit, NaN or inf, with its first step.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> chain = jnp.tile(jnp.array([[0.3, 0.4], [0.02, -0.015]]), (400, 1, 1))  # σ = 0.5, 0.025
      >>> log_sigma = spectra.log_singular_values(chain, every=200)  # of dh_200/dh_0 and dh_400/dh_0
      >>> log_sigma.shape, [round(float(v)) for v in log_sigma.sum(axis=1)]  # t ln|det J|: e^−1753 is no float
      ((2, 2), [-876, -1753])
    """
    found = _decompose(jacobians, every, start, stop, method, directions=False, errors=errors)
    return found[0] if errors else found[0].log_sigma


def singular_decomposition(
    jacobians: Chain,
    *,
    every: int | None = None,
    start: int = 0,
    stop: int | None = None,
    method: ProductMethod = "auto",
) -> LogSVD:
    """dh_t/dh_start = left diag(e^log_sigma) rightᵀ: `log_singular_values` with errors and directions.

    A change of h_start along right[:, i] becomes a change of h_t along left[:, i], scaled by e^log_sigma[i]. Directions
    of values closer than δ in log are determined only to about eps/δ.

    Args:
      jacobians, every, start, stop, method: as in `log_singular_values`; blocks with copies are assembled.

    Returns:
      LogSVD; left and right are orthogonal to rounding, also where a value is −inf or NaN. Blocks are side by side.

    Raises:
      TypeError, ValueError: as `log_singular_values`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> chain = jnp.array([[[0.0, 3.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]]])  # J_2 J_1 = [[0, 6], [1, 0]]
      >>> found = spectra.singular_decomposition(chain)
      >>> print(jnp.exp(found.log_sigma[0]).round())
      [6. 1.]
      >>> jnp.abs(found.right[0, :, 0]).tolist(), jnp.abs(found.left[0, :, 0]).tolist()  # from entry 2 to entry 1
      ([0.0, 1.0], [1.0, 0.0])
    """
    values, left, right = _decompose(jacobians, every, start, stop, method, directions=True, errors=True)
    return LogSVD(values.log_sigma, left, right, values.error, values.resolved, values.rest)


def _decompose(
    jacobians: Any,
    every: int | None,
    start: int,
    stop: int | None,
    method: ProductMethod,
    directions: bool,
    errors: bool,
) -> tuple[SingularValues, jax.Array, jax.Array]:
    require_one_chain(jacobians)
    if directions and isinstance(jacobians, BlockJacobians | BorderedJacobians):
        jacobians = jacobians.assemble()
    jacobians = _take_chain(jacobians)
    _validation.require_choice("method", method, METHODS)
    _validation.require_type("errors", errors, bool, "a bool")
    start, stop = _validation.require_span(start, stop, len(jacobians))
    if start == stop:
        raise ValueError(f"start: got {start} = stop, expected start < stop")
    if every is not None:
        _validation.require_size("every", every)
    every = stop - start if every is None else min(every, stop - start)
    if method == "auto":
        method = "sequential" if jax.default_backend() == "cpu" else "parallel"
    chain = jacobians.span(start, stop) if isinstance(jacobians, STRUCTURED) else jnp.asarray(jacobians)[start:stop]
    found = _decompose_chain(chain, every, method, directions, errors)
    looks_twice = not errors and _size_in_bytes(chain) <= UNASKED and _validation.is_concrete(found.error)
    if looks_twice and jnp.any(found.error > LIMIT):
        found = _decompose_chain(chain, every, method, directions, errors=True)
    order = jnp.argsort(found.log_sigma, axis=1, descending=True)
    log_sigma, rest, error = (jnp.take_along_axis(field, order, axis=1) for field in found[:3])
    left, right = (
        jnp.take_along_axis(side, order[:, None, :], axis=2) if directions else side
        for side in (found.left, found.right)
    )
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(chain)]))
    error = jnp.where(finite, error, jnp.inf)
    known = error <= LIMIT
    warn_of_unknown(known, finite, start, every, stop)
    left, right = (jnp.where(finite, side, jnp.nan) for side in (left, right))
    log_sigma, rest = (jnp.where(known, part, jnp.nan) for part in (log_sigma, rest))
    return SingularValues(log_sigma, error, error < 1, rest), left, right


def _decompose_chain(chain, every, method, directions, errors):
    if isinstance(chain, StructuredJacobians):
        return decompose_records(as_matrices(chain), every, method, directions=directions, errors=errors)
    if not isinstance(chain, BlockJacobians | BorderedJacobians):
        return _decompose_blocks(chain, every, method, directions, errors)
    if isinstance(chain, BorderedJacobians):
        found = border_values(chain.steps, len(chain), every)
    elif (entries := chain.diagonal()) is not None:
        found = diagonal_values(entries, len(chain), every)
    else:
        blocks = chain.matrices()
        blocks = jnp.broadcast_to(blocks, (len(chain), *blocks.shape[1:]))
        of_blocks = _decompose_blocks(blocks, every, method, directions=False, errors=errors)
        found = of_blocks.log_sigma, of_blocks.rest, of_blocks.error
    # The blocks' values, as often as they have copies.
    log_sigma, rest, error = (jnp.repeat(field, chain.size // field.shape[1], axis=1) for field in found)
    nothing = jnp.zeros((*log_sigma.shape, 0), log_sigma.dtype)
    return Decomposition(log_sigma, rest, error, nothing, nothing)


def _decompose_blocks(chain, every, method, directions, errors):
    decompose = lambda chain: decompose_records(as_matrices(chain), every, method, directions=directions, errors=errors)
    # One block after the other: side by side, every choice would compute all its branches.
    return decompose(chain) if chain.ndim == 3 else _join(jax.lax.map(decompose, chain.swapaxes(0, 1)))


def _size_in_bytes(chain):
    """Of all that is decomposed: an array, or what one would take."""
    if isinstance(chain, StructuredJacobians):
        return len(chain) * chain.size**2 * chain.dtype.itemsize
    if isinstance(chain, BlockJacobians):
        return len(chain) * jax.eval_shape(chain.matrices).size * chain.dtype.itemsize
    return getattr(chain, "nbytes", 0)


def _take_chain(jacobians):
    """[T, N, N], [T, B, n, n] or a structured chain, checked."""
    if isinstance(jacobians, STRUCTURED):
        require_precise(jacobians)
        return jacobians
    if len(np.shape(jacobians)) == 4:
        jacobians = _validation.as_arrays("jacobians", jacobians)
        shape = list(jacobians.shape)
        if shape[2] != shape[3] or 0 in shape:
            raise ValueError(f"jacobians: got shape {shape}, expected [T, N, N] or [T, B, n, n] with T, N, B, n ≥ 1")
        _validation.require_finite_steps("jacobians", jacobians)
    else:
        jacobians = _validation.take_jacobians(jacobians)
    require_precise(jacobians)
    return jacobians


def require_precise(jacobians):
    if jacobians.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"jacobians: got {jacobians.dtype}, expected float32 or float64")


def _join(blocks):
    """The union of the values of B blocks, [B, R, n] each, as those of one chain: [R, B·n]."""
    count, records, size, width = blocks.left.shape
    log_sigma, rest, error = (field.swapaxes(0, 1).reshape(records, -1) for field in blocks[:3])

    def embed(side):
        """[R, B·n, B·width], a block each on the diagonal."""
        apart = jnp.eye(count, dtype=side.dtype)[None, :, None, :, None] * side.swapaxes(0, 1)[:, :, :, None, :]
        return apart.reshape(records, count * size, count * width)

    # A value that is not known in one block leaves open how many of another block's are larger.
    error = jnp.where(log_sigma == -jnp.inf, 0, jax.vmap(share_errors)(log_sigma, error))
    return Decomposition(log_sigma, rest, error, embed(blocks.left), embed(blocks.right))


def warn_of_unknown(known, finite, start, every, stop):
    """Outside jit, warn which record is the first with values that are not known."""
    if not (_validation.is_concrete(known) and _validation.is_concrete(finite)):
        return
    bad = ~np.asarray(known)
    if bad.any():
        record = int(bad.any(axis=1).argmax())
        message = (
            f"jacobians: {bad[record].sum()} of {bad.shape[1]} values at t = {min(start + (record + 1) * every, stop)}"
            f" are NaN, because rounding along the chain may have changed them by more than {LIMIT} nats"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=4)
