"""Lyapunov exponents λ_i = lim 1/T ln σ_i(dh_T/dh_0), with standard errors: from a chain of Jacobians, or from a cell's
own trajectory in constant memory.

Reference: Benettin et al. (1980), Meccanica 15; Dieci & Van Vleck (1995), Appl. Numer. Math. 17.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation, trajectories
from jaxbptt.cells.structure import BlockParts, BorderedParts
from jaxbptt.jacobians.blocks import BlockJacobians, BorderedJacobians
from jaxbptt.jacobians.products import Jacobians
from jaxbptt.jacobians.structured import StructuredJacobians, require_one_chain
from jaxbptt.partials import Partials, step_partials
from jaxbptt.spectra.frames import connected
from jaxbptt.spectra.qr_scan import run_scan
from jaxbptt.spectra.qr_step import Chain, Options
from jaxbptt.spectra.statistics import LyapunovExponents
from jaxbptt.spectra.structured_exponents import scan_structured
from jaxbptt.types import Inputs, Params, Recurrence, State


def lyapunov_exponents(
    jacobians: Jacobians,
    *,
    k: int | None = None,
    warm_up: int | None = None,
    interval: int | None = None,
    blocks: int = 32,
) -> LyapunovExponents:
    """λ_i = 1/T' Σ_t ln r_ii(t) over the T' = T − warm_up steps after the warm-up, where J_t Q_{t−1} = Q_t R_t.

    Args:
      jacobians: [T, N, N], [t−1] is J_t, float; or from `structured_jacobians`: one J_t at a time is assembled, blocks
        are scanned apart and count as often as they have copies, diagonals and bordered chains need no QR.
      k: how many of the largest exponents, static; None: all N.
      warm_up: first steps, in which Q only turns to the chain's directions; not counted; None: T // 10.
      interval: steps between QR factorisations, static; None: chosen from the chain itself. A fixed interval that costs
        more than √eps nats per step in a checked block, or leaves a block no digits, is refused (under jit: NaN
        throughout).
      blocks: number of blocks of time for `local` (at most T'), static.

    Returns:
      LyapunovExponents in nats per step, of the dtype of jacobians, with what time, the warm-up and rounding may have
      done to each (the errors of the Jacobians themselves are not known). NaN where rounding may have changed it by
      more than 0.001: a chain whose directions overtake each other by more nats than a float has, 36 in float64. Parts
      of the state that no J_t couples are scanned apart and cannot disturb each other (under jit, if k = N). The
      exponent of a direction that a zero row or column removes is −inf. For a batch use `jax.lax.map`: `vmap` computes
      both branches of every choice.

    Raises:
      TypeError: jacobians that are no array of float32 or float64; a k, warm_up, interval or blocks that is no int.
      ValueError: jacobians that are not [T, N, N]; an int out of its range; outside jit, NaN or inf, with its first
        step, and a fixed interval that is too long.
      RuntimeWarning: outside jit, exponents that are NaN, or a warm-up error above the standard error.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import spectra
      >>> chain = jnp.tile(jnp.array([[2.0, 1.0], [0.0, 0.5]]), (50, 1, 1))
      >>> found = spectra.lyapunov_exponents(chain)
      >>> print(jnp.exp(found.exponents).round(3))  # the eigenvalues of a constant J
      [2.  0.5]
    """
    require_one_chain(jacobians)
    if isinstance(jacobians, BlockJacobians | BorderedJacobians):
        options = require_options(k, warm_up, interval, blocks, len(jacobians), jacobians.size)
        return tell(_scan_stored(jacobians, options))
    if isinstance(jacobians, StructuredJacobians):
        size, dtype, stored = jacobians.size, jacobians.dtype, None
        advance, steps = lambda state, factors: (state, jacobians.dense(factors)), jacobians.factors
        collect = lambda couples, factors: (couples | (jacobians.dense(factors) != 0), None)
        all_couples = lambda: jax.lax.scan(collect, jnp.zeros((size, size), bool), steps)[0]
        first = jacobians.dense(jax.tree.map(lambda leaf: leaf[0], steps))
    else:
        steps = stored = _validation.take_jacobians(jacobians)
        size, dtype = stored.shape[1], stored.dtype
        if dtype not in (jnp.float32, jnp.float64):
            raise TypeError(f"jacobians: got {dtype}, expected float32 or float64")
        advance = lambda state, jacobian: (state, jacobian)
        all_couples, first = lambda: jnp.any(stored != 0, axis=0), stored[0]
    options = require_options(k, warm_up, interval, blocks, len(jacobians), size)
    couples = jax.lax.cond(jnp.all(first != 0), lambda: jnp.ones(first.shape, bool), all_couples)
    same: jax.Array | None = connected(couples)
    if _validation.is_concrete(same):
        same = None if np.all(same) else same
        options = options if same is None else options._replace(width=size)
    elif options.width < size:
        same = None
    return tell(run_scan(Chain(advance, (), steps, stored, dtype, len(jacobians), size, same=same), options))


def _scan_stored(jacobians: BlockJacobians | BorderedJacobians, options: Options) -> LyapunovExponents:
    steps: Any = jacobians.steps if isinstance(jacobians, BorderedJacobians) else jacobians.core
    first = jax.tree.map(lambda leaf: leaf[0], steps)
    constant = isinstance(jacobians, BlockJacobians) and jacobians.is_constant
    advance = lambda state, step: (state, first if constant else step)
    return scan_structured(advance, (), None if constant else steps, len(jacobians), jacobians.size, options)


def stream_exponents(
    cell: Recurrence,
    params: Params,
    inputs: Inputs,
    *,
    initial: State | None = None,
    transient: int = 0,
    k: int | None = None,
    warm_up: int | None = None,
    interval: int | None = None,
    blocks: int = 32,
) -> LyapunovExponents:
    """`lyapunov_exponents` of the cell's own trajectory, each J_t computed when it is needed: memory O(N²) at any T.

    Beside it, at most 4,096 samples of ln r_ii are kept. The sequences of a batched model are scanned apart: B·N³ work
    instead of (B·N)³, and none can disturb another. So are the blocks of a cell whose derivation knows them.

    Args:
      cell: Cell or Model.
      params: θ.
      inputs: as in `unroll`; [T, 0] for an autonomous cell.
      initial: h_0, as in `unroll`.
      transient: first steps in which only the state advances, towards its attractor; static; T counts the later steps.
      k, warm_up, interval, blocks: as in `lyapunov_exponents`.

    Returns:
      LyapunovExponents in nats per step, of the dtype of the state; of a batched model, those of all its sequences.

    Raises:
      TypeError, ValueError: as `unroll` and `lyapunov_exponents`.
      ValueError: a transient that leaves no steps.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, spectra
      >>> henon = lambda b, h, x: jnp.stack([1 - 1.4 * h[0] ** 2 + h[1], b * h[0]])  # |det J| = b at every step
      >>> cell = cells.from_step(henon, lambda b: jnp.zeros(2), num_inputs=0)
      >>> found = spectra.stream_exponents(cell, jnp.array(0.3), jnp.zeros((1000, 0)), transient=100)
      >>> bool(found.exponents[0] > 0), round(float(jnp.exp(found.exponents.sum())), 3)  # chaos, on a set that shrinks
      (True, 0.3)
    """
    params, inputs, initial, length = trajectories.take_call(cell, params, inputs, initial)
    _validation.require_size("transient", transient, least=0, most=length - 1)
    state = cell.initial_state(params) if initial is None else initial
    state = jax.tree.map(jnp.asarray, state)
    flat, batch = ravel_pytree(state)[0], getattr(cell, "batch", None)
    options = require_options(k, warm_up, interval, blocks, length - transient, flat.size, batch or 1)
    if transient:
        settling = jax.tree.map(lambda leaf: leaf[:transient], inputs)
        inputs = jax.tree.map(lambda leaf: leaf[transient:], inputs)
        state, _ = jax.lax.scan(lambda state, x: (cell.step(params, state, x), None), state, settling)
    partials = step_partials(cell)
    parts = partials.parts
    if batch is None and isinstance(parts, BlockParts | BorderedParts):
        core = lambda state, x: parts.form(params, partials.residuals(params, state, x))
        move = lambda state, x: (cell.step(params, state, x), core(state, x))
        return tell(scan_structured(move, state, inputs, length - transient, flat.size, options))
    if batch is None:
        advance = lambda state, x: partials.value_and_jacobian(params, state, x)
    else:
        advance = lambda state, x: _blocks(cell, partials, params, state, x)
    chain = Chain(advance, state, inputs, None, flat.dtype, length - transient, flat.size // (batch or 1), batch)
    return tell(run_scan(chain, options))


def _blocks(cell: Recurrence, partials: Partials, params: Params, state: State, x: Inputs) -> tuple[State, jax.Array]:
    """(h_t, ∂h_t/∂h_{t−1} of every sequence [B, n, n]): a cotangent is pulled back in all sequences at once."""
    residuals = partials.residuals(params, state, x)
    new, one = cell.step(params, state, x), jax.tree.map(lambda leaf: leaf[0], state)
    flat, unravel = ravel_pytree(one)
    batch = len(jax.tree.leaves(state)[0])

    def row(unit):
        cotangent = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), unravel(unit))
        pulled = partials.pull_state(params, residuals, cotangent)
        return jax.vmap(lambda one: ravel_pytree(one)[0])(pulled)

    return new, jax.vmap(row, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))


def tell(found: LyapunovExponents) -> LyapunovExponents:
    """Outside jit, with a warning of what the numbers do not tell by themselves."""
    if all(_validation.is_concrete(field) for field in found):
        for note in found.notes():
            if not note.startswith("No "):
                warnings.warn(note, RuntimeWarning, stacklevel=3)
    return found


def require_options(
    k: int | None, warm_up: int | None, interval: int | None, blocks: int, length: int, size: int, sequences: int = 1
) -> Options:
    k = size if k is None else k
    _validation.require_size("k", k, most=size)
    warm_up = length // 10 if warm_up is None else warm_up
    _validation.require_size("warm_up", warm_up, least=0, most=length - 1)
    if interval is not None:
        _validation.require_size("interval", interval)
    _validation.require_size("blocks", blocks)
    return Options(k, min(k + 1, size // sequences), warm_up, interval, min(blocks, length - warm_up))
