"""Covariant Lyapunov vectors: the directions that grow at each exponent, carried along by the chain itself.

    J_t v_i(t−1) = e^{g_i(t)} v_i(t),   ‖v_i(t)‖ = 1,   λ_i = mean g_i

The Q_t of a QR scan hold the same nested subspaces, but their columns are orthogonal, not covariant.

Reference: Ginelli et al. (2007), PRL 99, 130601, arXiv:0706.0510; Kuptsov & Parlitz (2012), J. Nonlinear Sci. 22,
arXiv:1105.5228; Ginelli et al. (2013), J. Phys. A 46, arXiv:1212.3961.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxbptt import _validation, trajectories
from jaxbptt.jacobians.products import Jacobians
from jaxbptt.jacobians.structured import STRUCTURED, require_one_chain
from jaxbptt.partials import step_partials
from jaxbptt.spectra.autoregression import long_run
from jaxbptt.spectra.covariant_passes import OPERATION, Chain, Plan, run_passes
from jaxbptt.spectra.frames import initial_frame
from jaxbptt.types import Inputs, Params, Recurrence, State


class CovariantVectors(NamedTuple):
    """At M + 1 times, warm_up … T − cool_down; i = 1 … k in the order of the exponents, largest first.

    Attributes:
      times: [M + 1], t of each: v_i(t) lies in the space of h_t.
      vectors: [M + 1, N, k], columns v_i(t) of length 1; J_t v_i(t−1) is a positive multiple of v_i(t).
      exponents: [k], nats per step, mean of `growth`.
      standard_error: [k], of the exponents, by the variation of `growth` in time; NaN if M < 8.
      growth: [M, k], nats per step of v_i from each time to the next: a finite-time exponent. −inf where a
        step removes v_i (r_ii = 0), NaN where rounding decides by how much v_i shrinks.
      angles: [M + 1, k − 1], radians between v_{i+1}(t) and the span of v_1 … v_i: 0 at a tangency.
      mixing: [M + 1, k, K], [t, i, j]: how much of v_j the computed v_i may hold; K = min(k + 1, N).
      error: [M + 1, k], of the direction of v_i: the root of Σ_j mixing², an angle; at most 1: nothing known.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> chain = jnp.tile(jnp.array([[2.0, 1.0], [0.0, 0.5]]), (100, 1, 1))
      >>> found = spectra.covariant_vectors(chain)
      >>> found.vectors.shape, bool(jnp.max(found.error[20:60]) < 1e-4)
      ((81, 2, 2), True)
      >>> [round(float(p), 2) for p in found.participation[40]]  # (1, 0), and (−2, 3)/√13
      [1.0, 1.74]
    """

    times: Int[Array, " records"]
    vectors: Float[Array, "records state k"]
    exponents: Float[Array, " k"]
    standard_error: Float[Array, " k"]
    growth: Float[Array, "intervals k"]
    angles: Float[Array, "records pairs"]
    mixing: Float[Array, "records k width"]
    error: Float[Array, "records k"]

    @property
    def participation(self) -> Float[Array, "records k"]:
        """[M + 1, k], 1/Σ_n v_n⁴: how many entries of the state a vector is spread over, 1 … N."""
        return 1 / jnp.sum(self.vectors**4, axis=1)


def covariant_vectors(
    jacobians: Jacobians,
    *,
    k: int | None = None,
    warm_up: int | None = None,
    cool_down: int | None = None,
    every: int = 1,
) -> CovariantVectors:
    """v_i(t) = Q_t c_i(t):  J_t Q_{t−1} = Q_t R_t forward,  c_i(t−1) ∝ R_t⁻¹ c_i(t) backward from T.

    Cost: a QR [N, K] and two triangular solves [K, K] a step, about 2 N²K + 4 N K² + 2 K³ flops, K = min(k + 1, N) or
    N. Memory: T K² for the R_t, and Q_t every `every` steps.

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float; or from `structured_jacobians`, whose J_t are never assembled.
      k: how many of the leading vectors, static; None: all N.
      warm_up: first steps, in which the forward pass only turns to the chain's directions, static; None: T // 10.
      cool_down: last steps, in which the backward pass does, static; None: T // 10.
      every: steps between recorded vectors, static. What the span leaves over is added to the warm-up.

    Returns:
      CovariantVectors of the dtype of jacobians. `error` and `mixing` follow how the start of either pass is forgotten
      and what rounding adds, step by step, by the growth of the vectors themselves. A start is taken to hold at most
      100 times as much of another direction as of its own (1 in 150 generic ones holds more: it is then off for ln 100
      over the gap of the exponents longer than it says), and near a tangency 10 times what the closest one of any step
      after the warm-up lets it hold. It says too little where the start is closer to a tangency than that, or where a
      slower direction outgrows a faster one by more than 1/eps for a while. Where exponents are equal, or a complex
      pair, only the span of their vectors is determined: their mutual `mixing` stays large, that with all others does
      not, and `error` is 1. Before a step that removes a direction, v_i is that direction, and those after it are not
      told apart from it. With k < N, of the directions left out `mixing` knows the largest alone.

    Raises:
      TypeError: jacobians that are no array of float32 or float64; a count that is no int.
      ValueError: jacobians that are not [T, N, N]; a k outside 1 … N; a warm_up and cool_down that leave no
        `every` steps; outside jit, NaN or inf, with its first step.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> found = spectra.covariant_vectors(jnp.tile(jnp.array([[2.0, 1.0], [0.0, 0.5]]), (100, 1, 1)))
      >>> print(jnp.abs(found.vectors[40]).round(3), jnp.exp(found.exponents).round(3))  # eigenvectors of a constant J
      [[1.    0.555]
       [0.    0.832]] [2.  0.5]
    """
    require_one_chain(jacobians)
    if isinstance(jacobians, STRUCTURED):
        size, dtype, steps = jacobians.size, jacobians.dtype, jacobians.steps
        multiply = lambda state, step, q: (state, jacobians.left(step, q))
    else:
        steps = _validation.take_jacobians(jacobians)
        size, dtype = steps.shape[1], steps.dtype
        multiply = lambda state, step, q: (state, step @ q)
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"jacobians: got {dtype}, expected float32 or float64")
    k, plan = _require_plan(k, warm_up, cool_down, every, len(jacobians), size, stored=True)
    return _collect(Chain(multiply, (), steps, initial_frame(size, min(k + 1, size), None, dtype)), plan, k)


def stream_covariant_vectors(
    cell: Recurrence,
    params: Params,
    inputs: Inputs,
    *,
    initial: State | None = None,
    transient: int = 0,
    k: int | None = None,
    warm_up: int | None = None,
    cool_down: int | None = None,
    every: int | None = None,
) -> CovariantVectors:
    """`covariant_vectors` of the cell's own trajectory, each J_t computed when it is needed, the vectors recorded every
    few steps.

    The forward pass keeps h and Q every `every` steps; the backward pass runs each block again. Memory: N K T/every for
    what is kept, K² · every for a block. Cost: each J_t and each QR twice.

    Args:
      cell: Cell or Model; the sequences of a batched model count as one state.
      params: θ.
      inputs: as in `unroll`; [T, 0] for an autonomous cell.
      initial: h_0, as in `unroll`.
      transient: first steps in which only the state advances, towards its attractor; static; T counts the later steps.
      k, warm_up, cool_down: as in `covariant_vectors`.
      every: steps between recorded vectors, and of a block, static; None: √T, the least memory for K = N.

    Returns:
      CovariantVectors, `times` counted from the end of the transient. Should the second run of a block round otherwise
      than the first, the difference between the two is part of `error`.

    Raises:
      TypeError, ValueError: as `unroll` and `covariant_vectors`.
      ValueError: a transient that leaves no steps.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, spectra
      >>> henon = lambda b, h, x: jnp.stack([1 - 1.4 * h[0] ** 2 + h[1], b * h[0]])
      >>> cell = cells.from_step(henon, lambda b: jnp.zeros(2), num_inputs=0)
      >>> found = spectra.stream_covariant_vectors(cell, jnp.array(0.3), jnp.zeros((2000, 0)), transient=100, every=10)
      >>> round(float(jnp.exp(found.exponents.sum())), 1), found.vectors.shape  # |det J| = 0.3 at every step
      (0.3, (153, 2, 2))
    """
    params, inputs, initial, length = trajectories.take_call(cell, params, inputs, initial)
    _validation.require_size("transient", transient, least=0, most=length - 1)
    state = jax.tree.map(jnp.asarray, cell.initial_state(params) if initial is None else initial)
    flat = ravel_pytree(state)[0]
    every = math.isqrt(length - transient) if every is None else every
    k, plan = _require_plan(k, warm_up, cool_down, every, length - transient, flat.size, stored=False)
    if transient:
        settling = jax.tree.map(lambda leaf: leaf[:transient], inputs)
        inputs = jax.tree.map(lambda leaf: leaf[transient:], inputs)
        state, _ = jax.lax.scan(lambda state, x: (cell.step(params, state, x), None), state, settling)
    partials = step_partials(cell)

    def multiply(state, x, q):
        state, jacobian = partials.value_and_jacobian(params, state, x)
        return state, jacobian @ q

    start = initial_frame(flat.size, min(k + 1, flat.size), None, flat.dtype)
    return _collect(Chain(multiply, state, inputs, start), plan, k)


def _collect(chain: Chain, plan: Plan, k: int) -> CovariantVectors:
    found = run_passes(chain, plan)
    growth = found.growth[:, :k] / plan.every
    exponents = jnp.mean(growth, axis=0)
    alive = jnp.isfinite(exponents)
    spread = long_run(
        jnp.where(alive[None, :], growth - exponents[None, :], 0), jnp.full(k, len(growth))
    ).variance / len(growth)
    c = found.c[:, :, :k]
    own, before = jnp.diagonal(c, axis1=1, axis2=2), jnp.triu(c[:, :k], 1)
    mixing = jnp.swapaxes(found.shares, 1, 2)[:, :k]
    floor = OPERATION * jnp.finfo(c.dtype).eps * chain.start.shape[0] ** 0.5
    error = jnp.minimum(jnp.sqrt(jnp.sum(mixing * mixing, axis=2)) + floor, 1)
    return CovariantVectors(
        times=plan.warm_up + plan.every * jnp.arange(plan.blocks + 1),
        vectors=found.q @ c,
        exponents=exponents,
        standard_error=jnp.where(alive, jnp.sqrt(spread), jnp.nan),
        growth=growth,
        angles=jnp.arctan2(jnp.abs(own), jnp.linalg.norm(before, axis=1))[:, 1:],
        mixing=mixing,
        error=jnp.where(jnp.isnan(jnp.sum(c, axis=1)), jnp.nan, error),
    )


def _require_plan(
    k: int | None, warm_up: int | None, cool_down: int | None, every: Any, length: int, size: int, *, stored: bool
) -> tuple[int, Plan]:
    k = size if k is None else k
    _validation.require_size("k", k, most=size)
    _validation.require_size("every", every, most=length)
    warm_up = length // 10 if warm_up is None else warm_up
    cool_down = length // 10 if cool_down is None else cool_down
    _validation.require_size("warm_up", warm_up, least=0, most=length - every)
    _validation.require_size("cool_down", cool_down, least=0)
    after = -(-cool_down // every)
    blocks = (length - warm_up) // every - after
    if blocks < 1:
        most = max(0, ((length - warm_up) // every - 1) * every)
        raise ValueError(f"cool_down: got {cool_down}, expected at most {most} (T = {length} less the warm-up)")
    return k, Plan(length - every * (blocks + after), every, blocks, after, stored)
