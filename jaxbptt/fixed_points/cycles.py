"""Cycles of a cell, h_{j+1} = f(h_j, x_{j+1}, θ) with h_p = h_0, at a held or periodic input, and multipliers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float, Int

from jaxbptt import _validation
from jaxbptt.fixed_points.newton import OPERATION, bound_distance, find_eigenvalues, polish, speed_of, tolerance_of
from jaxbptt.partials import step_partials
from jaxbptt.types import Inputs, Params, Recurrence, Scalar, State, States


class Cycles(NamedTuple):
    """The result from each of K candidates; rows in the candidates' order. An orbit is h_0 … h_{p−1}.

    Attributes:
      states: pytree [K, p, ...] like the state: the orbits.
      speed: [K], ½ Σ_j ‖f(h_j, x_{j+1}, θ) − h_{j+1}‖², h_p = h_0.
      is_cycle: [K], speed ≤ tolerance: closed up to rounding.
      period: [K], the least number of steps after which the orbit repeats, a divisor of p; 0 where it is no cycle.
      multipliers: [K, N] complex, eigenvalues of dh_p/dh_0 over all p steps, by decreasing modulus; < 1: it attracts.
      distance: [K], ‖h_0 − candidate‖.
      error: [K], distance of the whole orbit to an exact one; inf: there may be none, or many.
      multiplier_error: [K, N], of `multipliers`, by `error` and rounding; inf: nothing known.
      input_period: [], least number of steps after which the input repeats: orbits shifted by so many are one.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, fixed_points
      >>> cell = cells.from_step(lambda r, h, x: r * h * (1 - h), jnp.zeros_like)
      >>> found = fixed_points.find_cycles(cell, jnp.array(3.2), jnp.array([0.5, 0.7]), jnp.zeros((1, 0)), period=2)
      >>> found.states.shape, found.period.tolist(), [round(float(m.real), 2) for m in found.multipliers[:, 0]]
      ((2, 2), [2, 1], [0.16, 1.44])
    """

    states: States
    speed: Float[Array, " orbits"]
    is_cycle: Bool[Array, " orbits"]
    period: Int[Array, " orbits"]
    multipliers: Complex[Array, "orbits state"]
    distance: Float[Array, " orbits"]
    error: Float[Array, " orbits"]
    multiplier_error: Float[Array, "orbits state"]
    input_period: Int[Array, ""]


def find_cycles(
    cell: Recurrence,
    params: Params,
    states: State,
    inputs: Inputs,
    *,
    period: int,
    polish_steps: int = 200,
    tolerance: float | Scalar | None = None,
) -> Cycles:
    """Newton's method on all p states of an orbit at once, from the p states that follow each candidate.

    An orbit z = (h_0 … h_{p−1}) is a fixed point of F(z)_{j+1} = f(h_j, x_{j+1}, θ), F(z)_0 = f(h_{p−1}, x_p, θ): the
    damped steps, the tolerance and the errors are those of `find_fixed_points` for F (multiple shooting). Newton's
    method on f∘…∘f instead would work with dh_p/dh_0, which grows like e^(λ p): its basins shrink as fast, and its
    residual rounds to eps e^(λ p). Here only the jump from the last state to the first one is left to close, spread
    over p steps. Cost: a QR [2pN, pN] a step; cells of any N and p up to pN of some hundreds.

    Args:
      cell: Cell or Model.
      params: θ, float leaves of one dtype.
      states: candidates for h_0, pytree [K, ...] like the state. Visited states work best.
      inputs: x_1 … x_m, [m, M] or a pytree, repeated; m divides p. m = 1: a held input.
      period: p, static. Orbits of the periods that divide it are found as well, and `period` tells them apart.
      polish_steps: static, ≥ 0.
      tolerance: on the speed, a scalar ≥ 0; None: ½ pN (100 eps)² max(1, mean h²).

    Returns:
      Cycles of the dtype of the states. Under jit, NaN throughout (is_cycle False) if params, inputs or states are not
      finite. Not differentiable in reverse mode. Eigenvalues need a backend with `jnp.linalg.eig` (no TPU).

      Two orbits closer than twice `error` are one (no other exact one is that near), by which `period` is told;
      where `error` is inf, half the digits decide. `multiplier_error` is absolute: a multiplier far below the norm of
      dh_p/dh_0 has no digits.

    Raises:
      TypeError: a cell without its functions; a leaf that is no array; params, states or inputs of another dtype; a
        count that is no int.
      ValueError: structures or shapes that do not fit the cell; inputs whose length does not divide the period; a
        count out of range; a tolerance that is no scalar ≥ 0; outside jit, NaN or inf, also in the steps from a
        candidate.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, fixed_points
      >>> cell = cells.from_step(lambda r, h, x: r * h * (1 - h), jnp.zeros_like)
      >>> starts = jnp.linspace(0.1, 0.9, 9)
      >>> found = fixed_points.find_cycles(cell, jnp.array(3.83), starts, jnp.zeros((1, 0)), period=3)
      >>> unique = fixed_points.merge_cycles(found).found
      >>> sorted((int(n), bool(abs(m[0]) < 1)) for n, m in zip(unique.period, unique.multipliers))  # one is stable
      [(1, False), (3, False), (3, True)]

    Reference: Stoer & Bulirsch (2002), Introduction to Numerical Analysis, §7.3.5 (multiple shooting); Sussillo & Barak
    (2013), Neural Computation 25; the damping: Yamashita & Fukushima (2001), Computing 15.
    """
    _validation.require_functions("cell", cell, ("initial_state", "step"))
    params, states = _validation.as_arrays("params", params), _validation.as_arrays("states", states)
    inputs = _validation.as_arrays("inputs", inputs)
    dtype = _validation.require_params(params)
    _validation.require_like_init(params, cell.init)
    length = _validation.require_inputs(inputs, cell.num_inputs, dtype)
    own = _validation.require_initial_state(cell.initial_state, params, dtype)
    _validation.require_candidates("states", states, own)
    _validation.require_step(cell.step, params, own, jax.tree.map(lambda leaf: leaf[0], inputs))
    _validation.require_size("period", period)
    _validation.require_size("polish_steps", polish_steps, least=0)
    if period % length:
        raise ValueError(f"inputs: got {length} steps, expected a number that divides the period {period}")
    if tolerance is not None:
        _validation.require_scalar("tolerance", tolerance, "a scalar ≥ 0", 0)

    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), own))
    size, partials = flat.size, step_partials(cell)
    xs = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * (period // length)), inputs)
    step = lambda h, x: ravel_pytree(cell.step(params, unravel(h), x))[0]
    orbit_of = lambda z: z.reshape(period, size)
    residual = lambda z: jnp.roll(jax.vmap(step)(orbit_of(z), xs), 1, axis=0).ravel() - z
    factors = lambda z: jax.vmap(lambda h, x: partials.jacobian(params, unravel(h), x))(orbit_of(z), xs)

    def jacobian(z):
        after = (np.arange(period) + 1) % period
        blocks = jnp.zeros((period, period, size, size), z.dtype).at[after, np.arange(period)].set(factors(z))
        return jnp.swapaxes(blocks, 1, 2).reshape(period * size, period * size)

    def follow(h):
        rest = jax.lax.scan(lambda h, x: (step(h, x),) * 2, h, jax.tree.map(lambda leaf: leaf[:-1], xs))[1]
        return jnp.concatenate((h[None], rest)).ravel()

    candidates = jax.vmap(lambda state: ravel_pytree(state)[0])(states)
    start = jax.vmap(follow)(candidates)
    _validation.require_finite_candidates("the steps from states", jnp.hstack((start, jax.vmap(residual)(start))))
    tolerance = tolerance_of(start) if tolerance is None else jnp.full(len(start), tolerance, start.dtype)

    def finish(candidate):
        z, tolerance = candidate
        z = polish(residual, jacobian, z, tolerance, polish_steps)
        r = residual(z)
        error, moved = bound_distance(jacobian, z, r, jacobian(z))
        multipliers, multiplier_error = find_eigenvalues(*_around(factors(z), moved))
        return z, speed_of(r), multipliers, error, multiplier_error

    found = jax.lax.map(finish, (start, tolerance))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((params, inputs, states))]))
    z, speed, multipliers, error, multiplier_error = (jnp.where(finite, array, jnp.nan) for array in found)
    orbits, is_cycle = jax.vmap(orbit_of)(z), speed <= tolerance
    return Cycles(
        states=jax.vmap(jax.vmap(unravel))(orbits),
        speed=speed,
        is_cycle=is_cycle,
        period=jnp.where(is_cycle, _least_period(orbits, error, xs), 0),
        multipliers=multipliers,
        distance=jnp.linalg.norm(orbits[:, 0] - candidates, axis=1),
        error=error,
        multiplier_error=multiplier_error,
        input_period=_repeats_after(inputs),
    )


def _around(factors, moved):
    """(J_p … J_1, how far it may be off): each factor by `moved` and by the rounding of a product."""
    one = jnp.eye(factors.shape[1], dtype=factors.dtype)
    after = lambda total, factor: (factor @ total, total)
    product, before = jax.lax.scan(after, one, factors)  # J_{j−1} … J_1 at each j
    _, behind = jax.lax.scan(lambda total, factor: (total @ factor, total), one, factors, reverse=True)
    norms = [jax.vmap(jnp.linalg.norm)(each) for each in (behind, factors, before)]
    own = moved + OPERATION * jnp.finfo(one.dtype).eps * norms[1]
    return product, jnp.sum(norms[0] * own * norms[2])


def _least_period(orbits, error, xs):
    """[K] least d by which the orbits [K, p, N] and their inputs [p, ...] may be shifted, a divisor of p."""
    count, period, size = orbits.shape
    scale = jnp.sqrt(jnp.maximum(1, jnp.mean(orbits * orbits, axis=(1, 2))) * (period * size))
    allowed = jnp.where(jnp.isfinite(error), 2 * error, float(jnp.finfo(orbits.dtype).eps) ** 0.5 * scale)
    least = jnp.full(count, period)
    for d in reversed(_divisors(period)):
        apart = jnp.linalg.norm((jnp.roll(orbits, -d, axis=1) - orbits).reshape(count, -1), axis=1)
        least = jnp.where((apart <= allowed) & _is_same_after(xs, d), d, least)
    return least


def _repeats_after(inputs):
    """[] least divisor of m after which x_1 … x_m repeat, bit for bit."""
    length = jax.tree.leaves(inputs)[0].shape[0]
    least = jnp.asarray(length)
    for d in reversed(_divisors(length)):
        least = jnp.where(_is_same_after(inputs, d), d, least)
    return least


def _is_same_after(xs, shift):
    same = [jnp.all(leaf == jnp.roll(leaf, -shift, axis=0)) for leaf in jax.tree.leaves(xs)]
    return jnp.all(jnp.stack(same))


def _divisors(number):
    """All but the number itself, increasing."""
    return [d for d in range(1, number) if number % d == 0]
