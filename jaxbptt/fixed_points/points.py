"""Fixed and slow points of a cell at a constant input, h = f(h, x, θ), and the eigenvalues of its Jacobian there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float

from jaxbptt import _validation
from jaxbptt.fixed_points.newton import bound_distance, find_eigenvalues, polish, speed_of, tolerance_of
from jaxbptt.partials import step_partials, vjp
from jaxbptt.types import Input, Optimizer, Params, Recurrence, Scalar, State

LEARNING_RATE = 0.03  # of the default optimizer, at its first step


class FixedPoints(NamedTuple):
    """The result from each of K candidates; rows in the candidates' order.

    Attributes:
      points: h*, pytree [K, ...] like the state.
      speed: [K], q(h*) = ½‖f(h*, x, θ) − h*‖².
      is_fixed: [K], q(h*) ≤ tolerance: fixed up to rounding; the others are slow points at best.
      eigenvalues: [K, N] complex, of ∂⁺f/∂⁺h at h*, by decreasing modulus.
      distance: [K], ‖h* − candidate‖.
      polish_distance: [K], ‖h* − the optimizer's result‖, how much of it the polishing did.
      error: [K], distance to a point with f(h) = h exactly; inf: there may be none, or many.
      eigenvalue_error: [K, N], of `eigenvalues`, by `error` and rounding; inf: nothing known.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, fixed_points
      >>> cell = cells.from_step(lambda w, h, x: jnp.tanh(w * h + x), jnp.zeros_like)
      >>> states, x = jnp.array([0.1, 0.9]), jnp.array(0.0)
      >>> found = fixed_points.find_fixed_points(cell, jnp.array(0.5), states, x, num_steps=0)
      >>> found.is_fixed.tolist(), found.eigenvalues.shape  # K candidates of N entries
      ([True, True], (2, 1))
      >>> [round(float(d), 3) for d in found.distance]  # from each to the fixed point at 0
      [0.1, 0.9]
    """

    points: State
    speed: Float[Array, " points"]
    is_fixed: Bool[Array, " points"]
    eigenvalues: Complex[Array, "points state"]
    distance: Float[Array, " points"]
    polish_distance: Float[Array, " points"]
    error: Float[Array, " points"]
    eigenvalue_error: Float[Array, "points state"]


def find_fixed_points(
    cell: Recurrence,
    params: Params,
    states: State,
    x: Input,
    *,
    optimizer: Optimizer | None = None,
    num_steps: int = 1000,
    polish_steps: int = 200,
    tolerance: float | Scalar | None = None,
) -> FixedPoints:
    """Minimise q(h) = ½‖f(h, x, θ) − h‖² from every candidate: q = 0 at a fixed point, small at a slow point.

    The optimizer takes `num_steps` steps from each candidate by itself; of the states it visits, the one with the least
    q counts. Up to `polish_steps` damped Newton steps on r(h) = f(h, x, θ) − h = 0 follow,

        d = −(AᵀA + μI)⁻¹ Aᵀ r,   A = ∂⁺f/∂⁺h − I,   μ = ν ‖r‖² / max(1, mean h²),   ν ≥ 1,

    each taken only if q decreases (ν is then divided by 3, else multiplied by 10). So q never ends above its initial
    value, no polishing step is longer than ½ √max(1, mean h²), and a local minimum of q stays where it is.

    Args:
      cell: Cell or Model.
      params: θ, float leaves of one dtype.
      states: candidates, pytree [K, ...] like the state. Visited states, such as `trajectory.states`, work best.
      x: the constant input of one step, [M] or a pytree.
      optimizer: an optax GradientTransformation; None: Adam, its learning rate from 0.03 to 0 on a cosine.
      num_steps: static, ≥ 0.
      polish_steps: static, ≥ 0.
      tolerance: on q, a scalar ≥ 0; None: ½ N (100 eps)² max(1, mean h²), h as polishing begins.

    Returns:
      FixedPoints of the dtype of the states. Under jit, NaN throughout (is_fixed False) if params, x or states are not
      finite. Not differentiable in reverse mode. Eigenvalues need a backend with `jnp.linalg.eig` (no TPU).

      `is_fixed` alone cannot tell a fixed point from the ghost of two that have just met: rounding hides a gap of
      100 eps between h and f(h). `error` can: it is twice the Newton step that may be left, (‖r‖ + rounding)/σ_min(A),
      where A changes little over that distance. It is inf where A is singular up to rounding or changes as much as
      σ_min(A): on a line of fixed points, at a bifurcation, at slow points. An eigenvalue's error is its condition
      number times what rounding and `error` do to ∂⁺f/∂⁺h; where `error` is inf, it is that at h* itself.

    Raises:
      TypeError: a cell without its functions; a leaf that is no array; params, states or x of another dtype; a count
        that is no int; an optimizer without init and update.
      ValueError: structures or shapes that do not fit the cell; a count below 0; a tolerance that is no scalar ≥ 0;
        outside jit, NaN or inf, also in the step from a candidate.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, fixed_points
      >>> cell = cells.from_step(lambda w, h, x: jnp.tanh(w * h + x), jnp.zeros_like)
      >>> states, x = jnp.array([-0.8, 0.1, 0.8]), jnp.array(0.0)
      >>> found = fixed_points.find_fixed_points(cell, jnp.array(2.0), states, x, num_steps=0)  # Newton steps alone
      >>> [round(float(h), 3) for h in found.points], (jnp.abs(found.eigenvalues[:, 0]) < 1).tolist()  # two are stable
      ([-0.958, 0.0, 0.958], [True, False, True])

    Reference: Sussillo & Barak (2013), Neural Computation 25; the damping: Yamashita & Fukushima (2001), Computing 15.
    """
    _validation.require_functions("cell", cell, ("initial_state", "step"))
    params, states = _validation.as_arrays("params", params), _validation.as_arrays("states", states)
    x = _validation.as_arrays("x", x)
    dtype = _validation.require_params(params)
    _validation.require_like_init(params, cell.init)
    _validation.require_input(x, cell.num_inputs, dtype)
    own = _validation.require_initial_state(cell.initial_state, params, dtype)
    _validation.require_candidates("states", states, own)
    _validation.require_step(cell.step, params, own, x)
    _validation.require_size("num_steps", num_steps, least=0)
    _validation.require_size("polish_steps", polish_steps, least=0)
    if optimizer is not None:
        _validation.require_optimizer(optimizer)
    if tolerance is not None:
        _validation.require_scalar("tolerance", tolerance, "a scalar ≥ 0", 0)

    unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), own))[1]
    start = jax.vmap(lambda state: ravel_pytree(state)[0])(states)
    residual = lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0] - h
    partials = step_partials(cell)
    jacobian = lambda h: partials.jacobian(params, unravel(h), x)
    _validation.require_finite_candidates("the step from states", jax.vmap(residual)(start))

    optimised = start
    if num_steps:
        optimizer = _default_optimizer(num_steps) if optimizer is None else optimizer
        optimised = jax.vmap(lambda h: _minimise(residual, h, optimizer, num_steps))(start)
    tolerance = tolerance_of(optimised) if tolerance is None else jnp.full(len(start), tolerance, start.dtype)

    def finish(candidate):
        h, tolerance = candidate
        h = polish(residual, jacobian, h, tolerance, polish_steps)
        r, at = residual(h), jacobian(h)
        error, moved = bound_distance(jacobian, h, r, at)
        eigenvalues, eigenvalue_error = find_eigenvalues(at, moved)
        return h, speed_of(r), eigenvalues, error, eigenvalue_error

    found = jax.lax.map(finish, (optimised, tolerance))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((params, x, states))]))
    points, speed, eigenvalues, error, eigenvalue_error = (jnp.where(finite, array, jnp.nan) for array in found)
    return FixedPoints(
        points=jax.vmap(unravel)(points),
        speed=speed,
        is_fixed=speed <= tolerance,
        eigenvalues=eigenvalues,
        distance=jnp.linalg.norm(points - start, axis=1),
        polish_distance=jnp.linalg.norm(points - optimised, axis=1),
        error=error,
        eigenvalue_error=eigenvalue_error,
    )


def _default_optimizer(num_steps):
    import optax  # only here: `import jaxbptt` stays light

    return optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))


def _minimise(residual, start, optimizer, num_steps):
    """The slowest of the states that the optimizer visits from `start`, `start` included."""
    value = lambda h: speed_of(residual(h))

    def slower(h, q, best):
        better = q < best[1]
        return jnp.where(better, h, best[0]), jnp.where(better, q, best[1])

    def body(carry, _):
        h, optimizer_state, best = carry
        r, pull = vjp(residual, h)
        best, gradient = slower(h, speed_of(r), best), pull(r)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, h)
        return (h + updates.astype(h.dtype), optimizer_state, best), None

    with jax.numpy_dtype_promotion("standard"):
        optimizer_state = optimizer.init(start)
    carry = (start, optimizer_state, (start, value(start)))
    (h, _, best), _ = jax.lax.scan(body, carry, None, length=num_steps)
    return slower(h, value(h), best)[0]
