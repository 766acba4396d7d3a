"""How far the adjoint can be carried forward in time: δ_{t+1} = J_{t+1}⁻ᵀ (δ_t − ∂l_t), and where rounding wins.

Here the recursion is written plainly, so that what it computes is seen beyond the horizon, too; beside it stands what
the toolkit gives, and what the spectrum predicts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells, gradients, models, spectra
from jaxbptt.jacobians import step_jacobians
from jaxbptt.trajectories import unroll

DECAYS = (0.9, 0.99, 0.999)
FLOATS = ("float32", "float64")
SEEDS = 12
WITHIN = 3.0  # nats between the median over seeds and the prediction
SHOWN = 400  # points of a curve
SIZE, NETS, GAIN, DRIVE = 6, 3, 1.0, 0.3  # the nets: tanh, N, how many, gain of W_hh (orthogonal), size of the inputs
LONG, SPECTRUM = 160, 3000  # steps of the nets' sequences, and of those that give their exponents
SCALAR = models.make_model(lambda p, h, x: p * h, lambda p: jnp.zeros((), p.dtype), lambda p, h: h, lambda o, y: o * y)


class Scalar(NamedTuple):
    """h' = λ h with losses y_t h_t, y_t normal, in one float. S shown steps."""

    decay: np.ndarray  # [] λ
    predicted: np.ndarray  # [] ln(u/√(1−λ²))/ln λ
    steps: np.ndarray  # [S] t
    error: np.ndarray  # [S] |error of δ_t| by the stationary size 1/√(1−λ²), median over seeds
    lost: np.ndarray  # [seeds] the first t where it is 1
    horizon: np.ndarray  # [seeds] of propagate_errors
    length: np.ndarray  # [] T
    end_horizon: np.ndarray  # [seeds] of propagate_errors where the loss stands at T alone; T + 1: never lost
    end_error: np.ndarray  # [] of its δ_t, relative, largest over t and seeds


class Nets(NamedTuple):
    """tanh nets in one float, a start of δ_1. B nets."""

    predicted: np.ndarray  # [B] of error_horizon
    lost: np.ndarray  # [B] the first t ("backward") or T ("warm-up") at which the error is as large as δ
    horizon: np.ndarray  # [B] of propagate_errors ("backward"); NaN for a warm-up, which has one for each T


def unit_roundoff(dtype: str) -> float:
    """u = 2⁻²⁴, 2⁻⁵³."""
    return float(np.finfo(dtype).eps) / 2


def predict_scalar(decay: float, dtype: str) -> float:
    """ln(u/√(1−λ²))/ln λ."""
    return float(np.log(unit_roundoff(dtype) / np.sqrt(1 - decay**2)) / np.log(decay))


def measure_scalar(decay: float, dtype: str, seed: int) -> Scalar:
    """All seeds of one λ in one float; truth in extended precision."""
    predicted = predict_scalar(decay, dtype)
    length = int(predicted + 6 / -np.log(decay))
    own = np.dtype(dtype).type
    draws = [np.random.default_rng((seed, number)).normal(size=length) for number in range(SEEDS)]
    targets = np.stack(draws).astype(own)
    last = np.where(np.arange(length) == length - 1, targets, own(0))
    rounded, inputs = jnp.asarray(own(decay)), jnp.zeros((length, 0), dtype)
    right = _backward_sums(own(decay), targets)

    @jax.jit
    def carry(decay, first, targets):
        """δ_2 … δ_T; λ is an argument, for XLA multiplies by a rounded 1/λ in place of dividing by a constant."""

        def body(adjoint, target):
            adjoint = (adjoint - target) / decay
            return adjoint, adjoint

        return jax.lax.scan(body, first, targets)[1]

    computed = np.concatenate((right[:1].astype(own), carry(rounded, right[0].astype(own), targets.T[:-1])))
    error = np.abs(computed.astype(right.dtype) - right) * np.sqrt(1 - np.longdouble(decay) ** 2)
    propagate = jax.jit(jax.vmap(lambda target: gradients.propagate_errors(SCALAR, rounded, inputs, target)))
    found, at_end = propagate(jnp.asarray(targets)), propagate(jnp.asarray(last))
    ends = _backward_sums(own(decay), last)
    off = np.abs(np.asarray(at_end.adjoints)[..., 0].T - ends) / np.abs(ends)
    steps = np.unique(np.geomspace(1, length, SHOWN).astype(int))
    return Scalar(
        decay=np.array(decay),
        predicted=np.array(predicted),
        steps=steps,
        error=np.median(error, axis=1)[steps - 1].astype(float),
        lost=_first(error >= 1),
        horizon=np.asarray(found.horizon),
        length=np.array(length),
        end_horizon=np.asarray(at_end.horizon),
        end_error=np.array(float(np.max(off))),
    )


def _backward_sums(decay, targets):
    """δ_t = y_t + λ δ_{t+1} in extended precision, [T, seeds]."""
    adjoints, total = np.zeros(targets.T.shape, np.longdouble), np.zeros(len(targets), np.longdouble)
    for t in reversed(range(len(adjoints))):
        total = total * decay + targets[:, t]
        adjoints[t] = total
    return adjoints


def _first(reached):
    """The first t (from 1) at which it is true, of [T, ...]; T + 1 where it never is."""
    return np.where(reached.any(axis=0), np.argmax(reached, axis=0), len(reached)) + 1


def measure_nets(seed: int) -> dict[str, Nets]:
    """Every start and float of nets that read noise: "start, float"."""
    model = models.sequence_model(cells.elman(1, SIZE, recurrent=cells.orthogonal(GAIN)), 1)

    def prepare(key):
        """(the arguments, all exponents, J_1 … J_T, ∂l_1 … ∂l_T)."""
        params = model.init(key)
        inputs, targets = DRIVE * jax.random.normal(jax.random.fold_in(key, 1), (2, SPECTRUM, 1))
        exponents = spectra.stream_exponents(model, params, inputs)
        data = params, inputs[:LONG], targets[:LONG]
        trajectory = unroll(model, *data[:2])
        loss = lambda state, target: model.loss(model.readout(params, state), target)
        local = jax.vmap(jax.grad(loss))(trajectory.states, data[2])
        return data, exponents, step_jacobians(model, params, trajectory), local

    keys = jax.random.split(jax.random.key(seed), NETS)
    each = lambda function, rows: jax.jit(lambda rows: jax.lax.map(function, rows))(rows)
    data, exponents, jacobians, local = each(prepare, keys)
    cast = lambda tree, dtype: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
    results = {}
    for dtype in FLOATS:
        horizon = each(lambda data: gradients.propagate_errors(model, *data).horizon, cast(data, dtype))
        lost = each(lambda chain: _losses(*chain), cast((jacobians, local), dtype))
        for start, when in zip(("backward", "warm-up"), lost, strict=True):
            predicted = [
                spectra.error_horizon(jax.tree.map(lambda leaf, b=b: leaf[b], exponents), dtype, start=start).steps
                for b in range(NETS)
            ]
            known = np.asarray(horizon, float) if start == "backward" else np.full(NETS, np.nan)
            results[f"{start}, {dtype}"] = Nets(np.array(predicted, float), np.asarray(when), known)
    return results


def _losses(jacobians, local):
    """(the first t at which δ_t from an exact δ_1 is off by its own size, the first T of which a warm-up pass loses δ).

    A sequence that ends at T < LONG: J_t = I and ∂l_t = 0 from then on, so that all T share one program.
    """
    wide = lambda array: array.astype(jnp.float64)
    identity = jnp.eye(SIZE, dtype=jacobians.dtype)

    def is_right(jacobians, local, first, right, length):
        """Whether the error of each δ_t is below the root mean square of ‖δ‖, [T]."""
        error = jnp.linalg.norm(wide(_carry(jacobians, local, first)) - right, axis=1)
        return error < jnp.sqrt(jnp.sum(right**2) / length)

    def warm_up(length):
        inside = jnp.arange(LONG) < length
        chain = jnp.where(inside[:, None, None], jacobians, identity[None])
        losses = jnp.where(inside[:, None], local, jnp.zeros_like(local))
        end = _carry(chain, losses, jnp.zeros_like(losses[0]))[-1] - losses[-1]  # 0, had δ_1 been right
        product = jax.lax.scan(lambda done, jacobian: (jacobian @ done, None), identity, chain[1:])[0]
        right = is_right(chain, losses, product.T @ -end, _pull_back(wide(chain), wide(losses)), wide(length))
        return jnp.all(right | ~inside)

    first_wrong = lambda right: jnp.where(jnp.all(right), LONG, jnp.argmin(right)) + 1
    truth = _pull_back(wide(jacobians), wide(local))
    backward = is_right(jacobians, local, truth[0].astype(local.dtype), truth, float(LONG))
    return first_wrong(backward), first_wrong(jax.lax.map(warm_up, jnp.arange(1, LONG + 1)))


def _pull_back(jacobians, local):
    """δ_t = ∂l_t + J_{t+1}ᵀ δ_{t+1}, [T, N]."""

    def body(adjoint, step):
        jacobian, loss = step
        adjoint = loss + jacobian.T @ adjoint
        return adjoint, adjoint

    last, before = local[-1], jax.lax.scan(body, local[-1], (jacobians[1:], local[:-1]), reverse=True)[1]
    return jnp.concatenate((before, last[None]))


def _carry(jacobians, local, first):
    """δ_{t+1} = J_{t+1}⁻ᵀ (δ_t − ∂l_t) from δ_1, [T, N]."""

    def body(adjoint, step):
        jacobian, loss = step
        adjoint = jnp.linalg.solve(jacobian.T, adjoint - loss)
        return adjoint, adjoint

    return jnp.concatenate((first[None], jax.lax.scan(body, first, (jacobians[1:], local[:-1]))[1]))
