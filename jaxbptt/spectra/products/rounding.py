"""How much rounding has changed each singular value of a product, from the factors of its steps.

A step is A Q' = Q R up to a rounding E of the size of eps |A|, row by row. With x the left direction of value i pulled
back to after the step, and y its right direction carried to before it, σ_i ∝ xᵀ A y, and E changes ln σ_i by

    xᵀ E y / xᵀ A y        at most eps κ,     κ = ‖diag(α) x‖ ‖y‖ / |xᵀ A y|,   α_j the size of row j of A

In the coordinates of the factors, x = Q a and y = Q c, one passes back in time by a' = Rᵀ a and c' = R⁻¹ c, which keeps
every component's relative accuracy, and xᵀ A y = a · c. Rounding of T' = B T changes ln σ_i by at most eps τ,
τ² = Σ_j (z_j ρ_j)² with z = T⁻ᵀ v and ρ_j the size of row j of |B||T|. Roundings of different steps add as random
numbers do, but for a part δ that all steps have in common, 0.1, or 1 where the same steps return and are rounded alike
(float32's correction removes it):

    e_i = 2 eps √Σ κ² + δ eps Σ κ + 2 eps √Σ τ² + eps (√t + |ln σ_i|)

Reference: first-order perturbation of a singular value: Stewart & Sun (1990), Matrix Perturbation Theory, IV.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.spectra.products import graded
from jaxbptt.spectra.products.graded import Factors, Pass
from jaxbptt.spectra.products.two_parts import difference_of_products

FACTOR = 2.0  # of eps κ and eps τ
DRIFT, REPEATED = 0.1, 1.0  # of eps κ: what all steps have in common; where steps return after at most LONGEST others
LONGEST = 8
LEFT, SECOND_ORDER = 0.03, 30.0  # shares of eps κ that a correction leaves
REACH = 2.0  # in errors: how far values may be apart and still be taken for one another
CONTAMINATED = 1e-2  # a share of another direction above which first order says nothing


class Tape(NamedTuple):
    """Every step of a product: the factors after it, and its last QR step."""

    q: jax.Array  # [T, N, N]
    log_scale: jax.Array  # [T, N] ℓ
    t: jax.Array  # [T, N, N]
    split: jax.Array  # [T] whether J was split, so that this was its second QR step
    step: Pass


class _Directions(NamedTuple):
    """a, c of every value at one time, max|a| = max|c| = 1, and Σ κ², Σ τ² of the steps after it."""

    a: jax.Array  # [values, N]
    c: jax.Array  # [values, N]
    overlap: jax.Array  # [values] a · c
    log_a: jax.Array  # [values] D⁻¹ z = e^log_a a
    log_c: jax.Array  # [values] D T v = e^log_c c
    far: jax.Array  # [values, N] z where a is too small to give it
    any_far: jax.Array  # [] whether there are such
    refreshed: jax.Array  # [N] ℓ when a and c were last completed
    condition: jax.Array  # [values] Σ κ²
    drift: jax.Array  # [values] Σ κ
    assembly: jax.Array  # [values] Σ τ²
    change: jax.Array  # [values] Σ xᵀ E y / xᵀ A y


def record_steps(chain: jax.Array, ends: jax.Array, first: Factors) -> tuple[Factors, Tape]:
    """The factors after the steps `ends`, from 0, of a chain that starts from `first`, each leaf [R, ...], and the tape
    of all steps."""

    def body(factors, jacobian):
        new, last = graded.multiply_and_tell(jacobian, factors)
        small = new._replace(q=new.q[:, :0], log_lead=new.log_lead[:, :0], t=new.t[:, :0])
        return new, (small, _entry(new, graded.find_split(jacobian)[0], last))

    _, (factors, tape) = jax.lax.scan(body, first, chain)
    return jax.tree.map(lambda leaf: leaf[ends], factors._replace(q=tape.q, t=tape.t)), tape


def _entry(after, split, step):
    return Tape(after.q, after.log_scale + after.log_carry, after.t, split, step)


def assess(
    chain: jax.Array, tape: Tape, stop: jax.Array, log_error: jax.Array, right: jax.Array, log_sigma: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What to add to the values of J_stop … J_1, and then their errors e_i: [N] each, in nats.

    Args:
      chain: [T, N, N].
      tape: of the chain.
      stop: a number of steps, 1 … T, may be traced.
      log_error: [N] of the factors after them, in their order.
      right: V [N, N] of diag(e^ℓ) T = U Σ Vᵀ.
      log_sigma: [N].

    Returns:
      (correction, 0 in float64; error, inf where nothing is known and 0 where a value is −inf).
    """
    first = graded.identity(chain.shape[1], chain.dtype)
    begun = begin(jax.tree.map(lambda leaf: leaf[stop - 1], tape), log_error, right, log_sigma)
    state = pass_back(chain, tape, first, stop, right, begun.directions)
    return conclude(begun, state, stop, is_periodic(chain[:, 0]))


class Begun(NamedTuple):
    """What the last step alone tells."""

    directions: _Directions
    mixed: jax.Array  # [values] relative error by reversals of the direction that a value mostly is
    right: jax.Array  # V [N, N]
    log_sigma: jax.Array  # [values]


def begin(last: Tape, log_error: jax.Array, right: jax.Array, log_sigma: jax.Array) -> Begun:
    """After the last step, of which `last` is the tape's entry."""
    directions = _start(last, right, log_sigma)
    mixed = jnp.exp(log_error).astype(right.dtype)[jnp.argmax(jnp.abs(directions.a), axis=1)]
    return Begun(directions, mixed, right, log_sigma)


def pass_back(
    chain: jax.Array, tape: Tape, first: Factors, stop: jax.Array, right: jax.Array, state: _Directions
) -> _Directions:
    """Through steps `stop` … 1 of a chain or a span of one that starts from the factors `first`."""

    def visit(count, state):
        step = stop - 1 - count

        def before(name):
            earlier = getattr(tape, name)[jnp.maximum(step - 1, 0)]
            return jnp.where(step > 0, earlier, start[name])

        return _step_back(chain[step], before, jax.tree.map(lambda leaf: leaf[step], tape), right, state)

    start = {"q": first.q, "log_scale": first.log_scale + first.log_carry, "t": first.t}
    return jax.lax.fori_loop(0, stop, visit, state)


def conclude(begun: Begun, state: _Directions, stop: jax.Array, periodic: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(correction, error) as of `assess`, where `state` has passed all `stop` steps back."""
    _, mixed, right, log_sigma = begun
    change = state.change
    if graded.is_corrected(right):
        change = change - _defect(graded.identity(len(right), right.dtype).q, right.T)
    epsilon = jnp.finfo(right.dtype).eps
    grown, assembled = (FACTOR * epsilon * jnp.sqrt(part) for part in (state.condition, state.assembly))
    if graded.is_corrected(right):
        grown = grown * jnp.minimum(1, LEFT + SECOND_ORDER * grown)
    else:
        grown = grown + jnp.where(periodic, REPEATED, DRIFT) * epsilon * state.drift
    error = grown + assembled + epsilon * jnp.sqrt(stop.astype(right.dtype))
    known = jnp.isfinite(log_sigma)
    error = error + epsilon * jnp.abs(jnp.where(known, log_sigma, 0))
    error = jnp.where(mixed > CONTAMINATED, jnp.maximum(mixed, error), error)
    error = jnp.where(jnp.isfinite(error), error, jnp.inf)
    error = jnp.where(log_sigma == -jnp.inf, 0, share_errors(log_sigma, error))
    return jnp.where(known & (error < 1), change, 0), error


def is_periodic(row: jax.Array) -> jax.Array:
    """Whether most of [T, N], the first row or another mark of every step, are those of one a few steps before."""
    again = [jnp.mean(jnp.all(row[p:] == row[:-p], axis=1)) for p in range(1, min(LONGEST, len(row) - 1) + 1)]
    return jnp.any(jnp.stack(again) > 0.5) if again else jnp.asarray(False)


def _start(last, right, log_sigma):
    """a = c = u after the last step, each component to its own relative accuracy.

    u_k = e^(ℓ_k − ln σ) (T v)_k = e^(ln σ − ℓ_k) (T⁻ᵀ v)_k: the first is accurate where ℓ_k < ln σ, the second where
    ℓ_k > ln σ.
    """
    lost = log_sigma == -jnp.inf
    log_sigma = jnp.where(lost, 0, log_sigma)
    gap = last.log_scale[None, :] - log_sigma[:, None]
    forward, backward = (last.t @ right).T, jnp.linalg.solve(last.t.T, right).T
    u = jnp.where(lost[:, None], 0, jnp.exp(-jnp.abs(gap)) * jnp.where(gap < 0, forward, backward))
    nothing, largest = jnp.zeros_like(log_sigma), _largest(u)
    far = jnp.where(gap > -_underflow(gap), backward, 0)
    near = jnp.where(gap > -_underflow(gap), 0, jnp.exp(jnp.minimum(gap, -_underflow(gap))) * u)
    assembly = (near * near + far * far) @ jnp.sum(last.t * last.t, axis=1)
    change = _defect(last.q, u) if graded.is_corrected(u) else nothing
    u, shift = u / largest[:, None], jnp.log(largest)
    return _Directions(
        a=u,
        c=u,
        overlap=jnp.sum(u * u, axis=1),
        log_a=shift - log_sigma,
        log_c=shift + log_sigma,
        far=far,
        any_far=jnp.any(far != 0),
        refreshed=last.log_scale,
        condition=nothing,
        drift=nothing,
        assembly=assembly,
        change=change,
    )


def _largest(vectors):
    """[values] max|entry|, 1 for a zero vector."""
    largest = jnp.max(jnp.abs(vectors), axis=1)
    return jnp.where(largest > 0, largest, 1)


def _defect(q, vectors):
    """uᵀ (QᵀQ − I) u / 2 of every row u: what the rounding of Q to a not quite orthogonal matrix does to a length."""
    identity = jnp.eye(len(q), dtype=q.dtype)
    return 0.5 * jnp.sum((vectors @ difference_of_products(q.T, q, identity, identity)) * vectors, axis=1)


def _underflow(like):
    """ln of half the range below 1."""
    return 0.5 * float(np.log(jnp.finfo(like.dtype).tiny))


def _step_back(jacobian, before, after, right, state):
    """One step back in time, through both its QR steps where J was split; before(name): a factor before the step."""
    log_before = before("log_scale")

    def one(state):
        return _pass_back(log_before, lambda: before("t"), after, right, state)

    def two(state):
        """The first QR step, of diag(d) Q, was not kept."""
        nothing, single = jnp.zeros_like(log_before), jnp.zeros(jacobian.shape, jnp.float32)
        factors = Factors(before("q"), log_before, nothing, before("t"), single, single[0], nothing)
        factors, first = graded.absorb_columns(graded.find_split(jacobian)[1], factors)
        state = _pass_back(factors.log_scale, lambda: factors.t, after, right, state)
        return _pass_back(log_before, lambda: before("t"), _entry(factors, after.split, first), right, state)

    return jax.lax.cond(after.split, two, one, state)


def _pass_back(log_before, t_before, after, right, state):
    """Through one QR step, A Q' = Q R: adds its κ² and τ²."""
    step, underflow = after.step, _underflow(state.a)
    x = state.a @ after.q.T
    assembly = state.assembly + _squared_assembly(after, state)
    a = state.a @ step.r
    c = jax.lax.linalg.triangular_solve(step.r, state.c, left_side=False, lower=False, transpose_a=True)
    lost, back = after.log_scale == -jnp.inf, step.place
    moved = log_before - state.refreshed[back]
    moved = jnp.where(jnp.isfinite(moved), moved, 0)
    stale = jnp.any(lost) | (jnp.max(moved) - jnp.min(moved) > -0.5 * underflow)

    def change_order(a, c, far, refreshed):
        """The coordinates as they were before the step, complete if they are stale."""
        complete = lambda a, c, *_: _complete(log_before, t_before(), lost[back], right, state, a, c)
        as_it_is = lambda *sides: (*sides, state.any_far)
        return jax.lax.cond(stale, complete, as_it_is, a[:, back], c[:, back], far[:, back], refreshed[back])

    usual = ~stale & jnp.all(back == jnp.arange(len(back)))
    sides = a, c, state.far, state.refreshed
    a, c, far, refreshed, any_far = jax.lax.cond(usual, lambda *same: (*same, state.any_far), change_order, *sides)
    change = state.change
    if graded.is_corrected(x):
        change = change + jnp.sum(x * (c @ step.residual[:, back].T), axis=1) / state.overlap
    a_largest, c_largest = _largest(a), _largest(c)
    a, c = a / a_largest[:, None], c / c_largest[:, None]
    scale = jnp.max(step.rows)
    left = jnp.sum((x * (step.rows / scale)[None, :]) ** 2, axis=1)
    kappa = jnp.abs(scale * c_largest / state.overlap) * jnp.sqrt(left * jnp.sum(c * c, axis=1))
    overlap = state.overlap / a_largest / c_largest
    return _Directions(
        a=a,
        c=c,
        overlap=jax.lax.cond(stale, lambda: jnp.sum(a * c, axis=1), lambda: overlap),
        log_a=state.log_a + jnp.log(a_largest),
        log_c=state.log_c + jnp.log(c_largest),
        far=far,
        any_far=any_far,
        refreshed=refreshed,
        condition=state.condition + kappa * kappa,
        drift=state.drift + kappa,
        assembly=assembly,
        change=change,
    )


def _squared_assembly(after, state):
    """τ² = Σ_j (z_j ρ_j)², z = e^(ℓ + log_a) a."""
    log_scale = jnp.where(after.log_scale == -jnp.inf, 0, after.log_scale)
    top, bottom, limit = jnp.max(log_scale), jnp.min(log_scale), -0.25 * _underflow(log_scale)

    def directly():
        z = state.a * jnp.exp(jnp.minimum(after.log_scale[None, :] + state.log_a[:, None], 4 * limit)) + state.far
        return (z * z) @ (after.step.assembled**2)

    def in_parts():
        weights = jnp.where(after.log_scale == -jnp.inf, 0, jnp.exp(log_scale - bottom) * after.step.assembled)
        return jnp.exp(bottom + state.log_a) ** 2 * jnp.sum((state.a * weights[None, :]) ** 2, axis=1)

    return jax.lax.cond((top - bottom < limit) & ~state.any_far, in_parts, directly)


def _complete(log_scale, t, lost, right, state, a, c):
    """Components of a and c that are too small for floats come from z = T⁻ᵀ v and w = T v, as do those that no later
    step knows because it lost their direction."""
    underflow = _underflow(a)
    log_a = -log_scale[None, :] - state.log_a[:, None]
    log_c = log_scale[None, :] - state.log_c[:, None]
    z, w = jnp.linalg.solve(t.T, right).T, (t @ right).T
    tiny_a, tiny_c = log_a < underflow, (log_c < underflow) | lost[None, :]
    a = jnp.where(tiny_a, z * jnp.exp(jnp.minimum(log_a, 0)), a)
    c = jnp.where(tiny_c, w * jnp.exp(jnp.minimum(log_c, -underflow)), c)
    return a, c, jnp.where(tiny_a, z, 0), log_scale, jnp.any(tiny_a)


def share_errors(log_sigma: jax.Array, error: jax.Array) -> jax.Array:
    """Values that overlap within their errors share the largest: which of them is which is not known.

    A relative error of 1 or more reaches down to zero, and up by its log only.
    """
    value = jnp.where(jnp.isfinite(log_sigma), log_sigma, -jnp.inf)
    top, bottom = value + jnp.log1p(REACH * error), value + jnp.log1p(-jnp.minimum(REACH * error, 1))
    overlap = (bottom[:, None] <= top[None, :]) & (bottom[None, :] <= top[:, None])
    return jnp.maximum(error, jnp.max(jnp.where(overlap, error[None, :], 0), axis=1))
