"""Singular values, errors and directions of a chain at every record, by whatever way suits the chain."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.spectra.products import graded, rounding
from jaxbptt.spectra.products.graded import Factors
from jaxbptt.spectra.products.jacobi import graded_svd_in_parts
from jaxbptt.spectra.products.matrices import Matrices
from jaxbptt.spectra.products.monomial import is_monomial, monomial_svd
from jaxbptt.spectra.products.parallel import prefix_factors
from jaxbptt.types import ProductMethod

SUSPECT = 2e-3  # relative error of one direction by its condition, above which it is suspicious
REVERSED = 2 / 3  # eps^REVERSED: the same by reversals, of which a pass forwards or a join sees only the traces
TOGETHER = 1 / 6  # eps^TOGETHER: the same for a reversal and a condition together, which amplify each other


class Decomposition(NamedTuple):
    """P = left diag(e^log_sigma) rightᵀ at R records, in any order."""

    log_sigma: jax.Array  # [R, N]
    rest: jax.Array  # [R, N] ln σ − log_sigma, lost in rounding it
    error: jax.Array  # [R, N] nats, of log_sigma
    left: jax.Array  # [R, N, N], or [R, N, 0] without directions
    right: jax.Array  # [R, N, N], or [R, N, 0]


def decompose_records(
    chain: Matrices, every: int, method: ProductMethod, *, directions: bool, errors: bool
) -> Decomposition:
    """J_t … J_1 at t = every, 2 every, … and T. Without `errors`, they are inf for suspicious values, else 0.

    With errors, and in parallel, all J_t are assembled.
    """

    def exactly():
        found = monomial_svd(chain, every)
        left, right = (side if directions else side[..., :0] for side in (found.left, found.right))
        return Decomposition(found.log_sigma, found.rest, found.error, left, right)

    def in_factors():
        if errors:
            return _certify(chain.assemble(), every, directions)
        factors = prefix_factors(chain.assemble(), every) if method == "parallel" else _scan_factors(chain, every)
        return trust(factors)

    monomial = is_monomial(chain)
    if _validation.is_concrete(monomial):  # only the branch that is taken is compiled
        return exactly() if monomial else in_factors()
    return jax.lax.cond(monomial, exactly, in_factors)


def _scan_factors(chain, every):
    """The factors at every record, [R, ...], by one scan."""
    length = len(chain)
    kept = lambda factors: factors._replace(q=factors.q[..., :0], log_lead=factors.log_lead[..., :0])

    def body(carry, step):
        factors, records = carry
        index, at = step
        factors = graded.multiply(chain.form(at), factors)
        # Each record is overwritten until its last step.
        put = lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, index // every, 0)
        records = jax.tree.map(put, records, kept(factors))
        return (factors, records), None

    factors, count = graded.identity(chain.size, chain.dtype), -(-length // every)
    records = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), kept(factors))
    return jax.lax.scan(body, (factors, records), (jnp.arange(length), chain.steps))[0][1]


def _find_suspicious(factors: Factors) -> jax.Array:
    """Of every value, in falling order, whether rounding may have changed it too much, as far as a pass forwards can
    tell. Not a bound: it knows the condition of each direction by itself, and how far one that fell behind caught up.

    A direction that caught up has mixed with others: then no value is sure. One that a nearly singular step left to
    rounding spoils what is smaller.
    """
    epsilon = jnp.finfo(factors.t.dtype).eps
    reversal, condition = jnp.exp(factors.log_error).astype(epsilon.dtype), epsilon * jnp.sqrt(factors.condition)
    uncertain = ~(condition < SUSPECT)
    mixed = ~(reversal < epsilon**REVERSED)
    mixed = mixed | (~uncertain & ~(reversal * condition / epsilon < epsilon**TOGETHER))
    order = jnp.argsort(factors.log_scale + factors.log_carry, descending=True)
    return jnp.any(mixed) | (jnp.cumsum(uncertain[order]) > 0)


def trust(factors: Factors) -> Decomposition:
    """The values alone. One record after the other, through one program."""

    def visit(factors):
        left, large, rest, right = graded_svd_in_parts(
            factors.log_scale, factors.log_carry, factors.t, directions=False
        )
        suspicious = _find_suspicious(factors) & (large > -jnp.inf)
        error = jnp.where(suspicious, jnp.inf, jnp.zeros_like(rest))
        return Decomposition(*graded.add_compensated(large, jnp.zeros_like(rest), rest), error, left, right)

    return jax.lax.map(visit, factors)


def _certify(chain, every, directions):
    """Values with their errors and, on demand, directions."""
    length, size, _ = chain.shape
    stops = jnp.minimum(every * jnp.arange(1, -(-length // every) + 1), length)
    first = graded.identity(size, chain.dtype)
    factors, tape = rounding.record_steps(chain, stops - 1, first)

    def visit(at):
        stop, factors = at
        left, large, rest, right = graded_svd_in_parts(factors.log_scale, factors.log_carry, factors.t)
        correction, error = rounding.assess(chain, tape, stop, factors.log_error, right, large + rest)
        left, right = factors.q @ left, first.q @ right
        if not directions:
            left, right = left[:, :0], right[:, :0]
        log_sigma, rest = graded.add_compensated(large, jnp.zeros_like(rest), rest + correction)
        return Decomposition(log_sigma, rest, error, left, right)

    return jax.lax.map(visit, (stops, factors))
