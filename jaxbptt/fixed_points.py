"""Fixed and slow points of a cell at a held input, h = f(h, x, θ), and the eigenvalues of its Jacobian there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import checks

LEARNING_RATE = 0.03  # of the default optimizer, at its first step
ROUNDING = 100  # a residual of this many eps per entry of the state is called zero
STUCK = 1e12  # damping at which polishing gives up: steps below a millionth of the state's size no longer help


class FixedPoints(NamedTuple):
    """What each of K candidates came to; rows in the candidates' order."""

    points: Any  # h*, pytree [K, ...] like the state
    speed: jax.Array  # [K] q(h*) = ½‖f(h*, x, θ) − h*‖²
    is_fixed: jax.Array  # [K] bool, q(h*) ≤ tolerance; the others are slow points at best
    eigenvalues: jax.Array  # [K, N] complex, of ∂⁺f/∂⁺h at h*, by decreasing modulus
    distance: jax.Array  # [K] ‖h* − candidate‖
    polish_distance: jax.Array  # [K] how much of it polishing did: ‖h* − where the optimizer ended‖


class UniquePoints(NamedTuple):
    """R different points out of K: fixed before slow, each kind by decreasing multiplicity."""

    found: FixedPoints  # leading axis R
    multiplicity: np.ndarray  # [R] candidates that came to it, adding up to K
    index: np.ndarray  # [R] its row in what was merged


def find_fixed_points(
    cell: Any,
    params: Any,
    x: Any,
    states: Any,
    *,
    optimizer: Any = None,
    num_steps: int = 1000,
    polish_steps: int = 200,
    tolerance: Any = None,
) -> FixedPoints:
    """Minimise q(h) = ½‖f(h, x, θ) − h‖² from every candidate: q = 0 at a fixed point, small where the state is slow.

    First `num_steps` of the optimizer, each candidate by itself, of which the slowest state visited counts; then up to
    `polish_steps` damped Newton steps on r(h) = f(h, x, θ) − h = 0,

        d = −(AᵀA + μI)⁻¹ Aᵀ r,   A = ∂⁺f/∂⁺h − I,   μ = ν ‖r‖² / max(1, mean h²),   ν ≥ 1,

    each taken only if the speed falls (ν then falls threefold, else it grows tenfold). So q never ends above where it
    began, no polishing step is longer than ½ √max(1, mean h²), and a local minimum of q stays where it is.

    Args:
      cell: Cell or Model.
      params: θ, float leaves of one dtype.
      x: the held input of one step, [M] or a pytree.
      states: candidates, pytree [K, ...] like the state: visited states, as `trajectory.states`, work best.
      optimizer: an optax GradientTransformation; None: adam, its learning rate from 0.03 to 0 on a cosine.
      num_steps: static, ≥ 0.
      polish_steps: static, ≥ 0.
      tolerance: on q, a scalar ≥ 0; None: ½ N (100 eps)² max(1, mean h*²).

    Returns:
      FixedPoints of the dtype of the states. Under jit, NaN throughout (is_fixed False) if params, x or states are not
      finite. Not differentiable in reverse mode. Eigenvalues need a backend with `jnp.linalg.eigvals` (no TPU).

    Raises:
      TypeError, ValueError: an argument not as stated; outside jit, NaN or inf, also in the step from a candidate.

    Reference: Sussillo & Barak (2013), Neural Computation 25; the damping: Yamashita & Fukushima (2001), Computing 15.
    """
    dtype = checks.require_params(params)
    checks.require_like_init(params, cell.init)
    checks.require_input(x, cell.num_inputs, dtype)
    own = jax.eval_shape(cell.initial_state, params)
    checks.require_candidates("states", states, own)
    checks.require_same("step's new state", jax.eval_shape(cell.step, params, own, x), own)
    checks.require_size("num_steps", num_steps, least=0)
    checks.require_size("polish_steps", polish_steps, least=0)
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected an optax GradientTransformation")
    if tolerance is not None and checks.is_concrete(tolerance) and not (np.ndim(tolerance) == 0 and tolerance >= 0):
        raise ValueError(f"tolerance: got {tolerance}, expected a scalar ≥ 0")

    unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), own))[1]
    start = jax.vmap(lambda state: ravel_pytree(state)[0])(states)
    residual = lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0] - h  # noqa: E731
    jacobian = _state_jacobian(cell, params, x, unravel)
    checks.require_finite_candidates("the step from states", jax.vmap(residual)(start))

    optimised = start
    if num_steps:
        optimizer = _default_optimizer(num_steps) if optimizer is None else optimizer
        optimised = jax.vmap(lambda h: _minimise(residual, h, optimizer, num_steps))(start)
    tolerance = _tolerance(optimised) if tolerance is None else jnp.full(len(start), tolerance, start.dtype)

    def finish(candidate):
        h, tolerance = candidate
        h = _polish(residual, jacobian, h, tolerance, polish_steps)
        eigenvalues = jnp.linalg.eigvals(jacobian(h))
        return h, _speed(residual(h)), eigenvalues[jnp.argsort(jnp.abs(eigenvalues), descending=True, stable=True)]

    points, speed, eigenvalues = jax.lax.map(finish, (optimised, tolerance))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((params, x, states))]))
    points, speed, eigenvalues = (jnp.where(finite, array, jnp.nan) for array in (points, speed, eigenvalues))
    return FixedPoints(
        points=jax.vmap(unravel)(points),
        speed=speed,
        is_fixed=speed <= tolerance,
        eigenvalues=eigenvalues,
        distance=jnp.linalg.norm(points - start, axis=1),
        polish_distance=jnp.linalg.norm(points - optimised, axis=1),
    )


def unique(found: FixedPoints, *, distance: float = 1e-3) -> UniquePoints:
    """Merge the points within `distance` of a slower one; the slowest of each group stands for it.

    The slowest point of all takes every point within `distance` of it, the slowest of those left takes its own, and so
    on. On a line of fixed points that leaves one about every `distance`. Eager, in NumPy.

    Args:
      found: from `find_fixed_points`, outside jit.
      distance: Euclidean, between flattened states, ≥ 0.

    Returns:
      UniquePoints.

    Raises:
      TypeError, ValueError: traced or non-finite points; a distance that is no number ≥ 0.
    """
    if not all(checks.is_concrete(leaf) for leaf in jax.tree.leaves(found)):
        raise TypeError("found: got traced arrays, expected concrete ones (call unique outside jit)")
    checks.require_finite_candidates("found.points", found.points)
    if not (np.ndim(distance) == 0 and distance >= 0):
        raise ValueError(f"distance: got {distance}, expected a number ≥ 0")
    flat = np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(found.points)], axis=1)
    speed, left = np.asarray(found.speed), np.ones(len(flat), bool)
    index, multiplicity = [], []
    for i in np.argsort(speed, kind="stable"):
        if left[i]:
            near = left & (np.linalg.norm(flat - flat[i], axis=1) <= distance)
            left &= ~near
            index.append(i)
            multiplicity.append(near.sum())
    index, multiplicity = np.array(index), np.array(multiplicity)
    order = np.lexsort((index, -multiplicity, ~np.asarray(found.is_fixed)[index]))
    index, multiplicity = index[order], multiplicity[order]
    return UniquePoints(jax.tree.map(lambda leaf: leaf[index], found), multiplicity, index)


def _state_jacobian(cell, params, x, unravel):
    """h [N] -> ∂⁺f/∂⁺h [N, N]: the closed form if the cell has one."""
    if cell.derivation is not None:
        return lambda h: cell.derivation.state_jacobian(params, unravel(h), x)
    return jax.jacfwd(lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0])


def _default_optimizer(num_steps):
    import optax  # only here: `import jaxbptt` stays light

    return optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))


def _minimise(residual, start, optimizer, num_steps):
    """The slowest of the states that the optimizer visits from `start`, itself included."""
    value = lambda h: _speed(residual(h))  # noqa: E731

    def slower(h, q, best):
        better = q < best[1]
        return jnp.where(better, h, best[0]), jnp.where(better, q, best[1])

    def body(carry, _):
        h, optimizer_state, best = carry
        q, gradient = jax.value_and_grad(value)(h)
        best = slower(h, q, best)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, h)
        return (h + updates.astype(h.dtype), optimizer_state, best), None

    with jax.numpy_dtype_promotion("standard"):
        optimizer_state = optimizer.init(start)
    carry = (start, optimizer_state, (start, value(start)))
    (h, _, best), _ = jax.lax.scan(body, carry, None, length=num_steps)
    return slower(h, value(h), best)[0]


def _polish(residual, jacobian, h, tolerance, max_steps):
    """Damped Newton steps until a fixed point no longer improves, or a slow point lies still."""

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


def _speed(r):
    return jnp.sum(r * r, axis=-1) / 2


def _tolerance(h):
    """½ N (ROUNDING eps)² max(1, mean h²): what rounding in h and f leaves of the speed, with room."""
    per_entry = (ROUNDING * jnp.finfo(h.dtype).eps) ** 2 * jnp.maximum(1, jnp.mean(h * h, axis=-1))
    return h.shape[-1] * per_entry / 2
