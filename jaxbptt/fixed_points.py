"""Fixed and slow points of a cell at a constant input, h = f(h, x, θ), and the eigenvalues of its Jacobian there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float

from jaxbptt import _validation
from jaxbptt.partials import step_partials, vjp
from jaxbptt.types import Input, Optimizer, Params, Recurrence, Scalar, State

__all__ = ["FixedPoints", "UniquePoints", "find_fixed_points", "merge_points"]

LEARNING_RATE = 0.03  # of the default optimizer, at its first step
ROUNDING = 100  # a residual of this many eps per entry of the state counts as zero
OPERATION = 4  # eps: of what one evaluation of f or of its Jacobian is rounded, per root of N
STUCK = 1e12  # damping at which polishing gives up: steps below a millionth of the state's size no longer help


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


class UniquePoints(NamedTuple):
    """R different points out of K: fixed before slow ones, each kind by decreasing multiplicity.

    Points that no candidate leads to are not among them. Where candidates are drawn independently, the share that found
    a point alone, `(multiplicity == 1).sum() / K`, estimates how often one more would find a new one (Good, 1953).

    Attributes:
      found: FixedPoints, leading axis R.
      multiplicity: [R], number of candidates merged into the point; they add up to K.
      rows: [R], the point's row among the K that were merged.
      blurred: [R], whether a merged point lies farther off than the errors of both: a fixed point of its own.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, fixed_points
      >>> cell = cells.from_step(lambda w, h, x: jnp.tanh(w * h + x), jnp.zeros_like)
      >>> states, x = jnp.array([0.1, 0.7, 0.8, 0.9]), jnp.array(0.0)
      >>> found = fixed_points.find_fixed_points(cell, jnp.array(2.0), states, x, num_steps=0)
      >>> unique = fixed_points.merge_points(found)
      >>> [round(float(h), 3) for h in unique.found.points], unique.multiplicity.tolist()
      ([0.958, 0.0], [3, 1])
    """

    found: FixedPoints
    multiplicity: np.ndarray
    rows: np.ndarray
    blurred: np.ndarray


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
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected an optax GradientTransformation")
    if (
        tolerance is not None
        and _validation.is_concrete(tolerance)
        and not (np.ndim(tolerance) == 0 and tolerance >= 0)
    ):
        raise ValueError(f"tolerance: got {tolerance}, expected a scalar ≥ 0")

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
    tolerance = _tolerance(optimised) if tolerance is None else jnp.full(len(start), tolerance, start.dtype)

    def finish(candidate):
        h, tolerance = candidate
        h = _polish(residual, jacobian, h, tolerance, polish_steps)
        r, at = residual(h), jacobian(h)
        error, moved = _distance_left(jacobian, h, r, at)
        eigenvalues, eigenvalue_error = _eigenvalues(at, moved)
        return h, _speed(r), eigenvalues, error, eigenvalue_error

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


def merge_points(found: FixedPoints, *, distance: float = 1e-3) -> UniquePoints:
    """Merge the points within `distance` of a slower one; the slowest of each group represents it.

    The slowest point of all takes every point within `distance` of it, the slowest of the remaining points does the
    same, and so on. On a line of fixed points that leaves about one per `distance`. Runs in NumPy, not under jit.

    Args:
      found: from `find_fixed_points`, outside jit.
      distance: Euclidean distance between flattened states, ≥ 0.

    Returns:
      UniquePoints.

    Raises:
      TypeError: traced points.
      ValueError: points that are not finite; a distance that is not a number ≥ 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, fixed_points
      >>> cell = cells.from_step(lambda w, h, x: jnp.tanh(w * h + x), jnp.zeros_like)
      >>> states, x = jnp.array([-0.8, 0.1, 0.7, 0.8]), jnp.array(0.0)
      >>> found = fixed_points.find_fixed_points(cell, jnp.array(2.0), states, x, num_steps=0)
      >>> [len(fixed_points.merge_points(found, distance=distance).multiplicity) for distance in (1e-3, 1.0, 10.0)]
      [3, 2, 1]
    """
    if not all(_validation.is_concrete(leaf) for leaf in jax.tree.leaves(found)):
        raise TypeError("found: got traced arrays, expected concrete ones (call merge_points outside jit)")
    _validation.require_finite_candidates("found.points", found.points)
    if not (np.ndim(distance) == 0 and distance >= 0):
        raise ValueError(f"distance: got {distance}, expected a number ≥ 0")
    flat = np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(found.points)], axis=1)
    speed, error, left = np.asarray(found.speed), np.asarray(found.error), np.ones(len(flat), bool)
    slowest, counts, blurred = [], [], []
    for i in np.argsort(speed, kind="stable"):
        if left[i]:
            apart = np.linalg.norm(flat - flat[i], axis=1)
            near = left & (apart <= distance)
            left &= ~near
            slowest.append(i)
            counts.append(near.sum())
            blurred.append((apart > error + error[i])[near].any())
    rows, multiplicity = np.array(slowest), np.array(counts)
    order = np.lexsort((rows, -multiplicity, ~np.asarray(found.is_fixed)[rows]))
    rows, multiplicity = rows[order], multiplicity[order]
    return UniquePoints(jax.tree.map(lambda leaf: leaf[rows], found), multiplicity, rows, np.array(blurred)[order])


def _default_optimizer(num_steps):
    import optax  # only here: `import jaxbptt` stays light

    return optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))


def _minimise(residual, start, optimizer, num_steps):
    """The slowest of the states that the optimizer visits from `start`, `start` included."""
    value = lambda h: _speed(residual(h))

    def slower(h, q, best):
        better = q < best[1]
        return jnp.where(better, h, best[0]), jnp.where(better, q, best[1])

    def body(carry, _):
        h, optimizer_state, best = carry
        r, pull = vjp(residual, h)
        best, gradient = slower(h, _speed(r), best), pull(r)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, h)
        return (h + updates.astype(h.dtype), optimizer_state, best), None

    with jax.numpy_dtype_promotion("standard"):
        optimizer_state = optimizer.init(start)
    carry = (start, optimizer_state, (start, value(start)))
    (h, _, best), _ = jax.lax.scan(body, carry, None, length=num_steps)
    return slower(h, value(h), best)[0]


def _polish(residual, jacobian, h, tolerance, max_steps):
    """Damped Newton steps until a fixed point no longer improves or a slow point no longer moves."""

    def unfinished(state):
        _, r, damping, accepted, count = state
        settled = (_speed(r) <= tolerance) & ~accepted
        return (count < max_steps) & ~settled & (damping < STUCK) & jnp.any(r != 0)

    def step(state):
        h, r, damping, _, count = state
        a = jacobian(h) - jnp.eye(len(h), dtype=h.dtype)
        mu = damping * jnp.sum(r * r) / jnp.maximum(1, jnp.mean(h * h))
        # By QR of A over √μ I: AᵀA would square the condition number.
        q, upper = jnp.linalg.qr(jnp.concatenate((a, jnp.sqrt(mu) * jnp.eye(len(h), dtype=h.dtype))))
        trial = h - jax.scipy.linalg.solve_triangular(upper, r @ q[: len(h)])
        trial_r = residual(trial)
        accepted = _speed(trial_r) < _speed(r)
        damping = jnp.where(accepted, jnp.maximum(1, damping / 3), damping * 10)
        return jnp.where(accepted, trial, h), jnp.where(accepted, trial_r, r), damping, accepted, count + 1

    state = (h, residual(h), jnp.ones((), h.dtype), jnp.asarray(True), 0)
    return jax.lax.while_loop(unfinished, step, state)[0]


def _distance_left(jacobian, h, r, at):
    """(bound on the distance to an exact fixed point, how much J changes on the way), (inf, 0) where nothing is known.

    Newton's method converges from h if A changes by less than half of σ_min over twice its first step (Kantorovich).
    The change is looked at along the direction in which A is weakest and along the Newton step.
    """
    eps = jnp.finfo(h.dtype).eps
    u, sigma, vt = jnp.linalg.svd(at - jnp.eye(len(h), dtype=h.dtype))
    rounding = OPERATION * eps * jnp.sqrt(len(h) + jnp.sum(h * h))
    floor = OPERATION * eps * (1 + jnp.linalg.norm(at))
    weakest = jnp.maximum(sigma[-1] - floor, 0)
    first = (jnp.linalg.norm(r) + rounding) / jnp.where(weakest > 0, weakest, 1)
    step = vt.T @ ((u.T @ r) / jnp.maximum(sigma, floor))
    changes = [jnp.linalg.norm(jacobian(h + 2 * d) - at) for d in (first * vt[-1], -first * vt[-1], -step)]
    moved = jnp.max(jnp.stack(changes))
    certain = (weakest > 0) & (moved < weakest / 2)
    return jnp.where(certain, 2 * first, jnp.inf), jnp.where(certain, moved, 0)


def _eigenvalues(at, moved):
    """Eigenvalues by decreasing modulus; for each its own condition number times the change and rounding of the matrix.

    Where that reaches halfway to the next eigenvalue it is no longer known which moves where, only that none moves by
    more than the condition number of all eigenvectors allows (Bauer & Fike, 1960).
    """
    eigenvalues, vectors = jnp.linalg.eig(at)
    condition = jnp.linalg.norm(jnp.linalg.inv(vectors), axis=1)  # the columns have length 1
    change = moved + OPERATION * jnp.finfo(at.dtype).eps * jnp.linalg.norm(at)
    gaps = jnp.abs(eigenvalues[:, None] - eigenvalues[None, :]) + jnp.diag(jnp.full(len(at), jnp.inf, at.dtype))
    together = jnp.linalg.norm(condition) * jnp.sqrt(jnp.asarray(len(at), at.dtype)) * change
    error = jnp.where(condition * change < jnp.min(gaps, axis=1) / 2, condition * change, together)
    error = jnp.where(jnp.isfinite(error), error, jnp.inf)
    order = jnp.argsort(jnp.abs(eigenvalues), descending=True, stable=True)
    return eigenvalues[order], error[order]


def _speed(r):
    return jnp.sum(r * r, axis=-1) / 2


def _tolerance(h):
    """½ N (ROUNDING eps)² max(1, mean h²): what rounding in h and f leaves of the speed, with a margin."""
    per_entry = (ROUNDING * jnp.finfo(h.dtype).eps) ** 2 * jnp.maximum(1, jnp.mean(h * h, axis=-1))
    return h.shape[-1] * per_entry / 2
