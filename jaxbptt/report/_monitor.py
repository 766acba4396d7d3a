"""Numbers about the gradient through time for a training loop: scalars that a logger can plot beside the loss.

One forward scan carries the state and one tangent, one reverse scan a few cotangents side by side: the adjoint λ of the
whole loss, those of a few single losses, and the tangent's image on its way back, which completes one power iteration.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt.cells.factored import join_norms, length_of
from jaxbptt.cells.factored import norms as leaf_norms
from jaxbptt.gradients.adjoint import add_initial
from jaxbptt.gradients.backpropagation import bptt
from jaxbptt.gradients.diagnosis import require_finite_result
from jaxbptt.gradients.forward import Problem, add_penalty, read_out, take_problem
from jaxbptt.jacobians.structured import moving_jacobians
from jaxbptt.models._batched import single_of
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.report._walk import Walk, plan_walk
from jaxbptt.spectra.singular_values import log_singular_values
from jaxbptt.trajectories import Trajectory
from jaxbptt.types import Inputs, Params, Scalar, State, States, Targets

LONGEST = 16  # steps between normalisations, which cost as much as a step of a small net
BLOCKS = 8  # of steps, at least: the error of an exponent comes from the spread between them
CONFIDENCE = 0.99
CAUTION = 8.0  # times an angle that a single pair of vectors shows
REACHES = (50, 90)  # percent


class Flow(NamedTuple):
    """What the two scans over one sequence found."""

    trajectory: Trajectory
    losses: jax.Array  # [T]
    grads: Params
    profile: jax.Array  # [T] summed norms of the sampled terms by lag
    growth: jax.Array  # [blocks] nats, of a tangent carried forward
    log_sigma: Scalar
    error: Scalar  # of log_sigma, nats


def monitor(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    samples: int = 2,
    clip: float | None = None,
    spectrum: bool = False,
) -> dict[str, jax.Array]:
    """Scalars about the gradient through time, for any logger: pure, so that it may be jitted, scanned and vmapped.

      loss                       C
      gradient_norm              ‖dC/dθ‖; gradient_norm/<leaf>: that of each leaf. Exact
      reach_50, reach_90         steps: the least lag t − k within which 50, 90 % of the summed norms of the terms
                                 (∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t lie, over `samples` evenly spaced losses t, the
                                 last among them. An estimate; with samples ≥ T it is `gradient_terms(…).reach`
      lambda_1                   nats per step: the growth of one random tangent, an estimate of the largest Lyapunov
                                 exponent; the first tenth of the steps, in which it turns, is not counted
      lambda_1_error             nats per step: its standard error, from the spread between blocks of steps
      log_sigma_max              nats: ln σ_1(dh_T/dh_0) by one power iteration, ln‖Pᵀ u‖ with u = P v/‖P v‖: a lower
                                 bound but for rounding
      log_sigma_max_error        nats: how far σ_1 may lie above. The tangent of the angle between Pᵀ u and Pᵀ ∂C/∂h_T,
                                 which is small where both have turned to the first direction; or, where that is less,
                                 Dixon's bound, which a random v exceeds in 1 of 100 draws
      clipped_share              with `clip`: 1 − min(1, clip/‖dC/dθ‖), what clipping by the global norm takes away
      log_sigma_min, log_condition   with `spectrum`: nats, ln σ_N and ln σ_1/σ_N of dh_T/dh_0 from all its singular
                                 values; NaN where rounding does not tell them. N³T work and N²T memory

    Of 6,000 random Elman, LSTM and GRU chains of 1 to 40 steps (N of 7 to 12, float64), 0.5 % had a σ_1 beyond the
    error, at most 1.8 % of one cell and length; its factor was chosen on the same chains.

    All but `spectrum` takes two scans of T steps. Of a batched model (`models.batched`), loss and norms are the
    batch's; the rest is of its first sequence where the model knows that of one (`single`), else of all B as one state.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0, as in `gradients.bptt`.
      samples: static int ≥ 1: losses whose terms are followed back. Each costs a row in the reverse scan.
      clip: the largest global norm that the optimiser lets through.
      spectrum: whether to add what needs every singular value.

    Returns:
      {name: scalar of the dtype of params}. A reach is NaN where the gradient is zero or not finite.

    Raises:
      TypeError, ValueError: as `gradients.bptt`.
      TypeError: samples that is no int; a clip that is no number.
      ValueError: samples below 1; a clip that is not above 0.

    Example:
      >>> import jax.numpy as jnp, jaxbptt
      >>> from jaxbptt import models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> numbers = jaxbptt.monitor(model, jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4), samples=4)
      >>> [round(float(numbers[name]), 3) for name in ("loss", "gradient_norm", "reach_90", "lambda_1")]
      [42.5, 114.0, 2.0, 0.693]

    Reference: Dixon (1983), SIAM J. Numer. Anal. 20 (the bound); Benettin et al. (1980), Meccanica 15.
    """
    _validation.require_size("samples", samples)
    if clip is not None:
        _validation.require_above("clip", clip, 0)
    problem = take_problem(model, params, inputs, targets, initial)
    one = single_of(model)
    if one is None:
        flow, one = _follow(model, problem, samples), model
        loss, grads = add_penalty(model, problem.params, jnp.sum(flow.losses), flow.grads)
        require_finite_result(model, problem, flow.losses, grads)
    else:
        loss, grads = bptt(model, *problem[:3], initial=problem.initial)
        flow = _follow(one, _first_sequence(problem), samples)
    norms = {
        _validation.leaf_name("", path): norm_of(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
    }
    whole = norm_of(grads)
    numbers = {"loss": loss, "gradient_norm": whole}
    numbers |= {f"gradient_norm/{name}": norm for name, norm in norms.items()}
    cumulative = jnp.cumsum(flow.profile)
    known = (cumulative[-1] > 0) & jnp.isfinite(cumulative[-1])
    for percent in REACHES:
        lag = jnp.argmax(cumulative >= percent / 100 * cumulative[-1]).astype(cumulative.dtype)
        numbers[f"reach_{percent}"] = jnp.where(known, lag, jnp.nan)
    exponent, error = _mean_growth(flow.growth, problem.length)
    numbers |= {"lambda_1": exponent, "lambda_1_error": error}
    numbers |= {"log_sigma_max": flow.log_sigma, "log_sigma_max_error": flow.error}
    if clip is not None:
        numbers["clipped_share"] = jnp.maximum(1 - clip / jnp.maximum(whole, clip), 0)
    if spectrum:
        log_sigma = log_singular_values(moving_jacobians(one, problem.params, flow.trajectory))[-1]
        numbers |= {"log_sigma_min": log_sigma[-1], "log_condition": log_sigma[0] - log_sigma[-1]}
    return numbers


def norm_of(tree: Any) -> Scalar:
    """‖·‖ of all leaves as one vector."""
    return join_norms([length_of(leaf, tuple(range(leaf.ndim))) for leaf in jax.tree.leaves(tree)])


def _follow(model: Model, problem: Problem, samples: int) -> Flow:
    """The two scans."""
    params, inputs, targets, initial, length = problem
    samples = min(samples, length)
    start = jax.tree.map(jnp.asarray, model.initial_state(params) if initial is None else initial)
    walk = plan_walk(step_partials(model), params, start, inputs)
    flat, unravel = ravel_pytree(start)
    drawn = np.random.default_rng(0).standard_normal(flat.size)  # drawn by JAX, it would cost as much as some steps
    first = unravel(jnp.asarray(drawn / np.linalg.norm(drawn), flat.dtype))

    def advance(carry, drive):
        state, tangent, kept = walk.advance(carry[0], carry[1], drive)
        return (state, tangent), (state, kept)

    def shorten(carry):
        state, tangent = carry
        tangent, grown = _normalise(tangent)
        return (state, tangent), grown

    drives = walk.drives(inputs)
    (_, image), (states, kept), growth = _scan_in_blocks(advance, shorten, (start, first), drives, length)
    trajectory = Trajectory(start, inputs, states)
    losses, local, direct, early = read_out(model, params, trajectory, targets, length)
    residuals = walk.residuals(trajectory, kept)
    rows, before, back = _pull_back(walk, residuals, local, early, image, samples)
    grads = walk.total(residuals, trajectory, jax.tree.map(lambda leaf: leaf[:, 0], rows))
    grads = jax.tree.map(jnp.add, direct, grads)
    if initial is None:
        grads = add_initial(model, params, grads, jax.tree.map(lambda leaf: leaf[0], before))
    profile = _profile(walk, residuals, trajectory, jax.tree.map(lambda leaf: leaf[:, 1:], rows))
    of_last, right = (jax.tree.map(lambda leaf, i=i: leaf[i], before) for i in (-2, -1))
    error = _error_of_sigma(jnp.sum(growth), back, first, right, of_last, length)
    return Flow(trajectory, losses, grads, profile, growth, back, error)


def _pull_back(
    walk: Walk, residuals: Any, local: States, early: States | None, image: State, samples: int
) -> tuple[Any, Any, Scalar]:
    """(rows before each step [T, 1 + samples, ...]: λ, the sampled losses', the last one's; what is left of all at
    h_0; ln‖Pᵀ image‖). The last loss' row and the image are normalised on their way."""
    length = len(jax.tree.leaves(local)[0])
    enters = np.zeros((length, samples + 2), bool)
    enters[:, 0] = True
    enters[_sampled(length, samples)[:-1], np.arange(1, samples)] = True
    last, log_size = _normalise(jax.tree.map(lambda leaf: leaf[-1], local))

    def enter(rows, local, weights):
        return jax.tree.map(lambda row, leaf: row + weights.reshape(-1, *[1] * leaf.ndim) * leaf[None], rows, local)

    def body(rows, step):
        at, local, early, enters, weight = step
        rows = enter(rows, local, enters)
        pulled = jax.vmap(lambda row: walk.pull(at, row))(rows)
        pulled = pulled if early is None else enter(pulled, early, enters.at[-2].set(weight))
        return pulled, jax.tree.map(lambda leaf: leaf[:-1], rows)

    def shorten(rows):
        carried, grown = jax.vmap(_normalise)(jax.tree.map(lambda leaf: leaf[-2:], rows))
        return jax.tree.map(lambda leaf, new: jnp.concatenate((leaf[:-2], new)), rows, carried), grown

    rows = jax.tree.map(
        lambda one, other: jnp.concatenate((jnp.zeros((samples, *one.shape), one.dtype), one[None], other[None])),
        last,
        image,
    )
    weights = jnp.zeros(length, log_size.dtype).at[-1].set(jnp.exp(-log_size))  # the last row stands at length 1
    steps = residuals, local, early, jnp.asarray(enters, log_size.dtype), weights
    before, rows, grown = _scan_in_blocks(body, shorten, rows, steps, length, reverse=True)
    later = jnp.cumsum(grown[::-1, 0])[::-1] - grown[:, 0]  # in the blocks after each
    scale = jnp.exp(log_size + jnp.repeat(later, _block_lengths(length), total_repeat_length=length))
    of_last = lambda leaf: leaf.at[:, -1].multiply(scale.reshape(-1, *[1] * (leaf.ndim - 2)))
    return jax.tree.map(of_last, rows), before, jnp.sum(grown[:, 1])


def _profile(walk: Walk, residuals: Any, trajectory: Trajectory, rows: Any) -> jax.Array:
    """[T], the norms of the sampled losses' terms, summed by lag."""

    def norms(at, state, x, rows):
        return join_norms(leaf_norms(jax.vmap(lambda row: walk.terms(at, state, x, row))(rows)))

    steps = residuals, trajectory.previous, trajectory.inputs, rows
    # Without factors a term is as large as θ: one step's at a time.
    each = jax.vmap(norms)(*steps) if walk.at_once else jax.lax.map(lambda at: norms(*at), steps)
    length, samples = each.shape
    by_lag = [
        jnp.pad(each[: t + 1, i][::-1], (0, length - 1 - t)) for i, t in enumerate(_sampled(length, samples).tolist())
    ]
    return sum(by_lag[1:], by_lag[0])


def _sampled(length: int, samples: int) -> np.ndarray:
    """The steps, from 0, whose losses are followed: evenly spaced, the last among them."""
    return length - 1 - (np.arange(samples) * length // samples)[::-1]


def _error_of_sigma(out: Scalar, back: Scalar, first: State, right: State, of_last: State, length: int) -> Scalar:
    """How far ln σ_1(P) may be from ln‖Pᵀ u‖ = `back`, where P v = e^out u for the unit vector v = `first`.

    Dixon: σ_1² ≤ θ (vᵀ (PᵀP)² v)^½ except with probability 0.8 √N/θ. Rounding shows in v · Pᵀ u, which is e^out.
    """
    first, right, of_last = (ravel_pytree(each)[0] for each in (first, right, of_last))
    missed = math.log(0.8 * math.sqrt(len(first)) / (1 - CONFIDENCE)) / 2
    dixon = missed + (out - back) / 2
    cosine = jnp.abs(jnp.vdot(right, of_last))
    tangent = CAUTION * jnp.sqrt(jnp.maximum(1 - cosine * cosine, 0)) / cosine
    rounded = jnp.abs(jnp.log(jnp.abs(jnp.vdot(first, right))) + back - out)
    eps = jnp.finfo(first.dtype).eps
    error = jnp.where(tangent < dixon, tangent, dixon) + rounded + 4 * eps * (length + jnp.abs(back))
    return jnp.where(back == -jnp.inf, 0, error)


def _mean_growth(growth: jax.Array, length: int) -> tuple[Scalar, Scalar]:
    """(nats per step, standard error) from the growth of each block, without the first tenth of the steps."""
    sizes = _block_lengths(length)
    counted = int(np.sum(np.cumsum(sizes) <= length // 10 + sizes[0] * (sizes[0] < sizes[-1])))
    growth, sizes = growth[counted:], sizes[counted:]
    mean = jnp.sum(growth) / float(sizes.sum())
    if len(sizes) < 2:
        return mean, jnp.full_like(mean, jnp.nan)
    rates = growth / jnp.asarray(sizes, growth.dtype)
    spread = jnp.std(jnp.where(jnp.isfinite(mean), rates, 0), ddof=1)
    return mean, jnp.where(jnp.isnan(mean), jnp.nan, spread / math.sqrt(len(sizes)))


def _block_lengths(length: int) -> np.ndarray:
    """Steps of each block, in time's order: all alike but the first."""
    size = max(1, min(LONGEST, length // BLOCKS))
    rest = length % size
    return np.array([rest] * bool(rest) + [size] * (length // size))


def _scan_in_blocks(body, shorten, carry, steps, length, *, reverse=False):
    """`lax.scan` of `body`, after each block of steps `shorten`: (carry, what body gave [T], what shorten gave)."""
    lengths = _block_lengths(length)
    size, rest = int(lengths[-1]), length % int(lengths[-1])

    def block(carry, steps):
        carry, kept = jax.lax.scan(body, carry, steps, reverse=reverse)
        carry, grown = shorten(carry)
        return carry, (kept, grown)

    whole = jax.tree.map(lambda leaf: leaf[rest:].reshape(-1, size, *leaf.shape[1:]), steps)
    first = jax.tree.map(lambda leaf: leaf[:rest], steps)
    join = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
    if not rest:
        carry, (kept, grown) = jax.lax.scan(block, carry, whole, reverse=reverse)
        return carry, jax.tree.map(join, kept), grown
    if reverse:
        carry, (kept, grown) = jax.lax.scan(block, carry, whole, reverse=True)
        carry, (kept_first, grown_first) = block(carry, first)
    else:
        carry, (kept_first, grown_first) = block(carry, first)
        carry, (kept, grown) = jax.lax.scan(block, carry, whole)
    kept = jax.tree.map(lambda one, other: jnp.concatenate((one, join(other))), kept_first, kept)
    return carry, kept, jnp.concatenate((grown_first[None], grown))


def _normalise(vector):
    """(the vector at length 1, ln of its length); zero stays zero."""
    length = norm_of(vector)
    divisor = jnp.where(length == 0, 1, length)
    return jax.tree.map(lambda leaf: leaf / divisor, vector), jnp.log(length)


def _first_sequence(problem: Problem) -> Problem:
    """That of the first of B sequences side by side."""
    first = lambda leaf: leaf[:, 0]
    initial = None if problem.initial is None else jax.tree.map(lambda leaf: leaf[0], problem.initial)
    inputs, targets = jax.tree.map(first, problem.inputs), jax.tree.map(first, problem.targets)
    return Problem(problem.params, inputs, targets, initial, problem.length)
