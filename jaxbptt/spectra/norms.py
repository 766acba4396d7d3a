"""Norms of dh_t/dh_k for all pairs k ≤ t: one matrix product per step for a block of k, each with its own scale.

Each product is carried as 2^E Z with ‖Z‖ near 1 and E an integer, so that its scale is exact at any magnitude. It loses
what any assembled product loses: digits where a chain undoes its own expansion, and parts below Z's smallest float,
which matter only if later steps remove the rest. How many follows from the norms of all pairs themselves: rounding of
step s, eps ‖J_s‖ ‖dh_{s−1}/dh_k‖, is carried to t by dh_t/dh_s.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.jacobians.blocks import BlockJacobians, BorderedJacobians
from jaxbptt.jacobians.products import Jacobians
from jaxbptt.jacobians.structured import STRUCTURED, require_one_chain
from jaxbptt.spectra.products.graded import generic_orthogonal
from jaxbptt.spectra.products.matrices import Matrices, as_matrices
from jaxbptt.spectra.products.monomial import is_monomial
from jaxbptt.spectra.singular_values import LIMIT
from jaxbptt.spectra.structured_norms import Tables, border_pairs, diagonal_pairs, join_pairs, monomial_pairs
from jaxbptt.types import Scalar

BLOCK_BYTES = 2**20  # the products of one block; with their successors they stay in cache
LARGEST = 10.0  # ln of an error that says that nothing is known
FACTOR = 2.0  # of unit κ, as in `products.rounding`
LEAST_ITERATIONS = 2  # with fewer, a direction that was the third largest and becomes the first in one step is missed
DEPENDENT = 1e-3  # part of a vector left by projection: below it, and always at N = 1, the direction is rounding noise


class PairNorms(NamedTuple):
    """ln‖dh_t/dh_k‖ at [t, k], t and k from 0; −inf for k > t and for a zero product; NaN where error exceeds 0.01.

    Attributes:
      log_frobenius: [T+1, T+1], nats; ½ ln N at t = k.
      log_spectral: [T+1, T+1], nats; 0 at t = k; None without `spectral`.
      residual: [T+1, T+1], ‖PᵀPv − σ²v‖/σ²; |σ_i²/σ² − 1| ≤ it for some σ_i; None without `spectral`.
      error: [T+1, T+1], nats, of log_frobenius by rounding; of log_spectral ‖·‖_F/‖·‖₂ times it.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> chain = jnp.tile(jnp.array([[3.0, 0.0], [0.0, 4.0]]), (3, 1, 1))
      >>> found = spectra.pair_norms(chain)
      >>> norms = found.log_spectral[2, 1], found.log_frobenius[2, 1], found.log_spectral[3, 1]
      >>> [round(float(jnp.exp(norm)), 3) for norm in norms]  # of diag(3, 4), then of its square
      [4.0, 5.0, 16.0]
    """

    log_frobenius: Float[Array, "rows columns"]
    log_spectral: Float[Array, "rows columns"] | None
    residual: Float[Array, "rows columns"] | None
    error: Float[Array, "rows columns"]


def pair_norms(
    jacobians: Jacobians,
    *,
    spectral: bool = True,
    tolerance: float | Scalar = 1e-3,
    max_iterations: int = 200,
) -> PairNorms:
    """ln‖dh_t/dh_k‖_F and ln‖dh_t/dh_k‖₂ for all 0 ≤ k ≤ t ≤ T, dh_t/dh_k = J_t … J_{k+1}.

    The products cost N³T² flops (an eighth more at most for blocks of k); memory is the chain and 2 or 6 T² numbers.
    Not differentiable in reverse mode. The spectral norm is a lower bound by power iteration with PᵀP on two vectors,
    started from those of the pair (t − 1, k), 16N² flops per iteration. The second vector finds a direction that
    overtakes the first. The residual bounds the distance to some singular value. This is certainly the largest where
    log_spectral exceeds log_frobenius − ½ ln 2 by more than the residual, elsewhere only in generic cases.

    In twelve families of hard chains (56,000 pairs in either dtype, N ≤ 8, T ≤ 60) rounding never did more than 1.5
    times `error` to log_frobenius. Where it exceeds 0.01 nats, as in chains that undo their own expansion, the norms
    are NaN. log_spectral was that of a smaller singular value, by up to 0.2 nats and with a small residual, for 8 pairs
    of blocks that grow in turns, and for 1 other; in small GRUs for 1 pair in 2,400. Diagonals and scaled permutations
    are sums of logs.

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float; or from `structured_jacobians`: the blocks' norms are joined, those of
        diagonals and bordered chains are sums of logs (T² N flops), and one J_t at a time is assembled.
      spectral: static; False leaves out the power iteration.
      tolerance: every pair is iterated to a residual of at most this.
      max_iterations: static, per pair; a pair that needs more shows it by its residual.

    Returns:
      PairNorms of the dtype of jacobians. Under jit, NaN throughout if any Jacobian is not finite.

    Raises:
      TypeError: jacobians that are no array of float32 or float64; a max_iterations that is no int.
      ValueError: jacobians that are not [T, N, N]; a tolerance ≤ 0; max_iterations below 1; outside jit, NaN or inf,
        with its first step.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> chain = jnp.array([2.0, 3.0, 4.0])[:, None, None] * jnp.array([[0.0, -1.0], [1.0, 0.0]])[None]  # turns by 90°
      >>> print(jnp.exp(spectra.pair_norms(chain).log_spectral).round())  # row t, column k
      [[ 1.  0.  0.  0.]
       [ 2.  1.  0.  0.]
       [ 6.  3.  1.  0.]
       [24. 12.  4.  1.]]

    Reference: Parlett (1998), The Symmetric Eigenvalue Problem, §4.5 (residual bounds); S4.7 (the product).
    """
    require_one_chain(jacobians)
    if not isinstance(jacobians, STRUCTURED):
        jacobians = _validation.take_jacobians(jacobians)
    if jacobians.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"jacobians: got {jacobians.dtype}, expected float32 or float64")
    _validation.require_size("max_iterations", max_iterations)
    if _validation.is_concrete(tolerance) and not tolerance > 0:
        raise ValueError(f"tolerance: got {tolerance}, expected a positive number")
    least = jnp.asarray(tolerance, jacobians.dtype)
    log_frobenius, log_spectral, residual, error = _pairs_of(jacobians, spectral, least, max_iterations)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(jacobians)]))
    known = lambda table: jnp.where((error <= LIMIT) & finite, table, jnp.nan)
    told = jnp.where(finite, error, jnp.nan)
    if not spectral:
        return PairNorms(known(log_frobenius), None, None, told)
    return PairNorms(known(log_frobenius), known(log_spectral), jnp.where(finite, residual, jnp.nan), told)


def _pairs_of(jacobians: Any, spectral: bool, least: jax.Array, max_iterations: int) -> Tables:
    """By whatever way suits the chain; nothing is NaN for its error yet."""
    if isinstance(jacobians, BorderedJacobians):
        return border_pairs(jacobians)
    if not isinstance(jacobians, BlockJacobians):
        return _pairs_of_chain(as_matrices(jacobians), spectral, least, max_iterations)
    entries = jacobians.diagonal()
    if entries is not None:
        return diagonal_pairs(entries, len(jacobians), jacobians.size // entries.shape[1])
    blocks = jacobians.matrices()
    blocks = jnp.broadcast_to(blocks, (len(jacobians), *blocks.shape[1:]))
    of_one = lambda block: _pairs_of_chain(as_matrices(block), spectral, least, max_iterations)
    # One after the other: side by side, every pair would be iterated as often as the slowest of all blocks.
    tables = jax.lax.map(of_one, blocks.swapaxes(0, 1))
    return join_pairs(tables, jacobians.size // (blocks.shape[1] * blocks.shape[2]))


def _pairs_of_chain(chain: Matrices, spectral: bool, least: jax.Array, max_iterations: int) -> Tables:
    exactly = lambda: monomial_pairs(chain)
    by_products = lambda: _pairs_of_matrices(chain, spectral, least, max_iterations)
    monomial = is_monomial(chain)
    if _validation.is_concrete(monomial):  # only the branch that is taken is compiled
        return exactly() if monomial else by_products()
    return jax.lax.cond(monomial, exactly, by_products)


def _pairs_of_matrices(chain: Matrices, spectral: bool, least: jax.Array, max_iterations: int) -> Tables:
    """Without `spectral`, log_frobenius in place of log_spectral."""
    length, size, dtype = len(chain), chain.size, chain.dtype
    width = max(1, min(BLOCK_BYTES // (size * size * dtype.itemsize), -(-length // 8)))

    def scale_and_norm(step):
        matrix = chain.form(step)
        scale = _exponent(jnp.max(jnp.abs(matrix)))
        return scale, jnp.log(jnp.linalg.norm(matrix * _power_of_two(-scale, dtype)))

    scales, log_of_scaled = jax.lax.map(scale_and_norm, chain.steps)
    at = lambda t: chain.at(t) * _power_of_two(-scales[t], dtype)
    identity = jnp.broadcast_to(jnp.eye(size, dtype=dtype), (width, size, size))
    start = jnp.asarray(generic_orthogonal(max(size, 2))[:2, :size], dtype)

    def columns(first):
        """Entries [t, k] for k = first … first + width − 1, as rows t = 0 … T."""
        k = first + jnp.arange(width)

        def body(t, carry):
            z, exponent, vectors, tables = carry
            moved = (z.reshape(-1, size) @ at(t - 1).T).reshape(z.shape)  # Z holds Pᵀ: one product for all k
            shift = _product_exponent(moved)
            waiting = k >= t
            z = jnp.where(waiting[:, None, None], identity, moved * _power_of_two(-shift, dtype)[:, None, None])
            exponent = jnp.where(waiting, 0, exponent + shift + scales[t - 1])
            log_scale = exponent.astype(dtype) * jnp.log(jnp.asarray(2, dtype))
            rows = [log_scale + jnp.log(_square_sum(z)) / 2]
            if spectral:
                square, residual, vectors = _largest(z, vectors, waiting, least, max_iterations)
                rows += [log_scale + jnp.log(square) / 2, residual]
            return z, exponent, vectors, tuple(table.at[t].set(row) for table, row in zip(tables, rows, strict=True))

        vectors = jnp.broadcast_to(start, (width, 2, size))
        tables = (jnp.zeros((length + 1, width), dtype),) * (3 if spectral else 1)
        carry = identity, jnp.zeros(width, scales.dtype), vectors, tables
        return jax.lax.fori_loop(first + 1, length + 1, body, carry)[3]

    blocks = jax.lax.map(columns, jnp.arange(0, length + 1, width))
    t = jnp.arange(length + 1)

    def assemble(blocks, diagonal, above):
        table = jnp.moveaxis(blocks, 0, 1).reshape(length + 1, -1)[:, : length + 1]
        return jnp.where(t[:, None] > t[None, :], table, jnp.where(t[:, None] == t[None, :], diagonal, above))

    half_log_size = jnp.log(jnp.asarray(size, dtype)) / 2
    log_frobenius = assemble(blocks[0], half_log_size, -jnp.inf)
    log_steps = scales.astype(dtype) * jnp.log(jnp.asarray(2, dtype)) + log_of_scaled
    error = _rounding(log_frobenius, log_steps, jnp.asarray(jnp.finfo(dtype).eps, dtype))
    if not spectral:
        return log_frobenius, log_frobenius, jnp.zeros_like(log_frobenius), error
    return log_frobenius, assemble(blocks[1], 0, -jnp.inf), assemble(blocks[2], 0, 0), error


def _rounding(log_frobenius, log_steps, unit):
    """[T+1, T+1] of ln‖P(t, k)‖: 2 unit √Σ_s (‖P(t, s)‖ ‖J_s‖ ‖P(s−1, k)‖ / ‖P(t, k)‖)², by its largest term."""
    dtype, count = log_frobenius.dtype, len(log_frobenius)
    index = jnp.arange(count)
    lag = index[:, None] - index[None, :]
    after = jnp.where(lag == 0, 0, log_frobenius)  # ‖I‖₂ = 1
    before = after[:-1] + log_steps[:, None]
    largest = jax.lax.map(lambda row: jnp.max(row[1:, None] + before, axis=0), after)
    finite = jnp.isfinite(log_frobenius)
    gap = jnp.where(finite & (largest > -jnp.inf), largest - log_frobenius, -jnp.inf)
    terms = jnp.sqrt(jnp.maximum(lag, 0).astype(dtype))
    own = jnp.finfo(dtype).eps * (terms + jnp.abs(jnp.where(finite, log_frobenius, 0)))
    error = FACTOR * terms * jnp.exp(jnp.minimum(gap + jnp.log(unit.astype(dtype)), LARGEST)) + own
    return jnp.where(jnp.isnan(log_frobenius), jnp.nan, error)


def _largest(z, vectors, waiting, tolerance, max_iterations):
    """(σ_1², residual, orthonormal vectors to start from next) of each Zᵀ: subspace iteration in two dimensions."""
    fresh = jnp.asarray(generic_orthogonal(max(z.shape[1], 2), seed=1)[0, : z.shape[1]], z.dtype)
    # A generic vector is added: started exactly at a singular vector, it would never see another direction.
    vectors = _orthonormal(vectors[:, 0], vectors[:, 1] + fresh[None, :])

    def iterate(state):
        vectors, _, _, count = state
        image = vectors @ z
        pulled = image @ z.swapaxes(1, 2)
        gram = image @ image.swapaxes(1, 2)
        a, b, c = gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
        angle = jnp.arctan2(2 * b, a - c) / 2
        cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
        first, second = cos * vectors[:, 0] + sin * vectors[:, 1], cos * pulled[:, 1] - sin * pulled[:, 0]
        mapped = cos * pulled[:, 0] + sin * pulled[:, 1]
        square = jnp.sum((cos * image[:, 0] + sin * image[:, 1]) ** 2, axis=1)
        error = jnp.linalg.norm(mapped - square[:, None] * first, axis=1)
        residual = jnp.where(square > 0, error / jnp.where(square > 0, square, 1), 0)
        return _orthonormal(mapped, second), square, residual, count + 1

    def unfinished(state):
        _, _, residual, count = state
        more = jnp.any((residual > tolerance) & ~waiting) | (count < LEAST_ITERATIONS)
        return more & (count < max_iterations)

    nothing = jnp.full_like(vectors[:, 0, 0], jnp.inf)
    vectors, square, residual, _ = jax.lax.while_loop(unfinished, iterate, (vectors, nothing, nothing, 0))
    return square, residual, vectors


def _orthonormal(first, second):
    """[K, 2, N] from two [K, N]; a vector that vanishes, or depends on the first, becomes zero."""
    first = _unit(first)
    before = jnp.linalg.norm(second, axis=1, keepdims=True)
    for _ in range(2):  # once leaves eps/DEPENDENT of the first in the second
        second = second - jnp.sum(first * second, axis=1, keepdims=True) * first
    independent = jnp.linalg.norm(second, axis=1, keepdims=True) > DEPENDENT * before
    return jnp.stack((first, jnp.where(independent, _unit(second), 0)), axis=1)


def _unit(vector):
    norm = jnp.linalg.norm(vector, axis=1, keepdims=True)
    return vector / jnp.where(norm > 0, norm, 1)


def _product_exponent(z):
    """[K] integers e with ‖Z‖ 2^−e near 1, by the sum of squares if none underflows, else by the largest entry."""
    total = _square_sum(z)
    safe = jnp.finfo(z.dtype).tiny ** 0.5
    by_entry = lambda: _exponent(jnp.max(jnp.abs(z), axis=(1, 2)))
    return jax.lax.cond(jnp.any(total < safe), by_entry, lambda: _exponent(jnp.sqrt(total)))


def _square_sum(z):
    # The barrier keeps the two sums apart: the first, over rows, is done in vector registers.
    return jnp.sum(jax.lax.optimization_barrier(jnp.sum(z * z, axis=1)), axis=1)


def _exponent(magnitude):
    """e with magnitude 2^−e in [½, 1), kept where 2^e and 2^−e are normal floats; 0 for 0."""
    limits = jnp.finfo(magnitude.dtype)
    return jnp.clip(jnp.frexp(magnitude)[1], limits.minexp + 2, limits.maxexp - 2)


def _power_of_two(exponent, dtype):
    return jnp.ldexp(jnp.ones(exponent.shape, dtype), exponent)
