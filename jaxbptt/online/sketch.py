"""Sketched RTRL: dh_t/dθ as its sparse own part plus a matrix of rank r, with a bound on what the sketch leaves out."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.online import sparse
from jaxbptt.online.method import Method
from jaxbptt.online.rule import OnlineState, Rule, make_rule
from jaxbptt.types import State


class Sketch(NamedTuple):
    """dh_t/dθ ≈ own + left right, and what bounds the difference."""

    own: jax.Array  # [G, K, C], the entries that SnAp-1 keeps
    left: jax.Array  # [N, r] U, orthonormal columns
    right: jax.Array  # [r, G, C] V, the columns in the groups of `own`
    error: jax.Array  # [N, N] B: vᵀ E Eᵀ v ≤ vᵀ B v for every v, E = Â − dh/dθ


class Plan(NamedTuple):
    own: sparse.Plan
    rank: int
    num_state: int


def sketched_rtrl(rank: int) -> Rule:
    """Â_t = S_t + U_t V_t: SnAp-1's entries S, and the rest of dh_t/dθ to rank r, with a bound on the error.

        S_t = P ⊙ (J_t S_{t−1}) + ∂⁺h_t/∂⁺θ
        R_t = J_t U_{t−1} V_{t−1} + (1 − P) ⊙ (J_t S_{t−1}),  U_t V_t = U_t U_tᵀ R_t

    P is the pattern of ∂⁺h/∂⁺θ (`snap(1)`), and U_t the r leading left singular vectors of R_t, from its Gram matrix
    [N, N]: the best approximation of R_t of that rank. R_t itself is never formed. `rank` goes from SnAp-1 (0) to exact
    RTRL (N).

    The certificate. E_t = Â_t − dh_t/dθ = J_t E_{t−1} − (1 − U_t U_tᵀ) R_t, and the rule carries a matrix B with
    vᵀ E_t E_tᵀ v ≤ vᵀ B_t v for every v: B_t = (1 + b/a) J_t B_{t−1} J_tᵀ + (1 + a/b) F_t, F_t the Gram matrix of what
    is discarded, a² and b² the traces of J_t B_{t−1} J_tᵀ and F_t. So ‖E_t‖ ≤ √tr B_t ≤ ‖J_t‖ √tr B_{t−1} + √tr F_t,
    and the bias of g_t is at most √(∂L/∂hᵀ B_t ∂L/∂h): `bias_bound`. It holds at fixed params, and for the truncation:
    each discarded direction counts for N eps ‖R_t‖² at least, which covers the rounding of the Gram matrix, so no step
    adds less than √(N (N − r) eps) ‖R_t‖. At rank N nothing is discarded and the bound is zero. Random Elman nets of
    N = 64, gain 0.5 … 1.2, ranks 4 and 16, up to 40 steps: the bound on the bias of g_t was 1.4 to 2.7 times the bias,
    √tr B_t ‖∂L/∂h‖ 11 to 20 times.

    Published sketched RTRL (SK-RTRL) differs in two points: it first cuts (1 − P) ⊙ (J S) down to max(4, r/4) columns,
    and it carries e_t = ρ_t e_{t−1} + ‖discarded‖, ρ_t an upper bound on ‖J_t‖. The cut is not needed here, where R_t
    is seen through its Gram matrix, and √tr B_t is never more than e_t.

    State: S, the G·K·C numbers of `snap(1)`; U, V and B, N r + r G C + N² more (for a dense Elman net G = N, K = 1 and
    G C = |θ|). Cost: (4r² + 4rK + 4K²) G C + 2N² (G K + 3r) + 17N³ flops per step to leading order, of which an
    eigendecomposition is counted as 9N³ (at rank N there is none: 4N³), where RTRL takes 2N² |θ|. Works for any cell.
    The key is not used; the pattern is found and looked at as in `snap`.

    Args:
      rank: r, 0 … N.

    Returns:
      Rule. `init` raises ValueError for a rank above N.

    Raises:
      TypeError: a rank that is no int.
      ValueError: a rank below 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, models, online
      >>> model = models.sequence_model(cells.elman(num_inputs=2, num_hidden=8), num_outputs=1)
      >>> params, rules = model.init(jax.random.key(0)), [online.sketched_rtrl(rank) for rank in (0, 4, 8)]
      >>> [rule.cost(model, params).state_floats for rule in (*rules, online.rtrl())]
      [160, 544, 928, 712]

    Reference: Yi & Wang (2026), github.com/sonaradarcn/sketched-rtrl; Menick et al. (2020), arXiv:2006.07232.
    """
    _validation.require_size("rank", rank, least=0)
    return make_rule(METHOD, functools.partial(_plan, rank))


def bias_bound(state: OnlineState, local: State | None = None) -> Float[Array, ""]:
    """The certificate of `sketched_rtrl`: ‖Â_t − dh_t/dθ‖ ≤ √tr B_t, and ‖(Â_t − dh_t/dθ)ᵀ v‖ ≤ √(vᵀ B_t v).

    Args:
      state: of `sketched_rtrl`, after any number of updates at fixed params.
      local: v = ∂L_t/∂h_t, like the model's state: the bound is then on the bias of g_t (of its part by h_t, where the
        readout reads h_{t−1}, too). None: on the Frobenius norm of the error, which times ‖v‖ bounds the bias for every
        v.

    Returns:
      Scalar.

    Raises:
      TypeError: no OnlineState; a state of another rule.
      ValueError: a local of another structure or shape than the model's state; the states of a mapped batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, models, online
      >>> model = models.sequence_model(cells.elman(num_inputs=1, num_hidden=3), num_outputs=1)
      >>> params, bounds = model.init(jax.random.key(0)), []
      >>> for rule in (online.sketched_rtrl(1), online.sketched_rtrl(3)):
      ...     state = rule.init(model, params)
      ...     update = jax.jit(rule.update)
      ...     for _ in range(4):
      ...         state, loss, grads = update(params, state, jnp.ones(1), jnp.ones(1))
      ...     bounds.append(float(online.bias_bound(state)))
      >>> bounds[0] > 0, bounds[1]  # rank 3 is exact
      (True, 0.0)
    """
    _validation.require_type("state", state, OnlineState, "the OnlineState of sketched_rtrl")
    if not isinstance(state.sensitivity, Sketch):
        raise TypeError("state: got that of another rule, expected one of sketched_rtrl (no other carries a bound)")
    error = state.sensitivity.error
    if error.ndim != 2:
        raise ValueError(f"state: got B of shape {list(error.shape)}, expected that of one sequence (vmap a batch)")
    if local is None:
        return jnp.sqrt(jnp.trace(error))
    local = _validation.as_arrays("local", local)
    _validation.require_same("local", local, state.model_state)
    vector = ravel_pytree(local)[0]
    return jnp.sqrt(jnp.maximum(vector @ error @ vector, 0))


def _plan(rank, model, params, x, constant_start):
    num_state = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.initial_state, params)))
    _validation.require_size("rank", rank, least=0, most=num_state)
    return Plan(sparse.make_plan(None, 0, model, params, x, constant_start), rank, num_state)


def _start(plan, initial_state, params, signs):
    own = sparse.METHOD.start(plan.own, initial_state, params, signs)
    groups, _, width = own.shape
    size, rank = plan.num_state, plan.rank
    zeros = lambda *shape: jnp.zeros(shape, own.dtype)
    return Sketch(own, jnp.eye(size, rank, dtype=own.dtype), zeros(rank, groups, width), zeros(size, size))


def _advance(plan, model, params, state, x, sketch, signs):
    new, own, transition = sparse.advance_by(plan.own, model, params, state, x, sketch.own)
    leaving = _leaving(plan, transition)
    moved = transition @ sketch.left
    gram = _gram(sketch, moved, leaving)
    left, lost = _split(plan, gram)
    fresh = _discarded(plan, gram, lost)
    error = _add_errors(transition @ sketch.error @ transition.T, fresh)
    right = jnp.einsum("rs,sgc->rgc", left.T @ moved, sketch.right)
    right = right + jnp.einsum("rgk,gkc->rgc", jnp.einsum("nr,ngk->rgk", left, leaving), sketch.own)
    return new, Sketch(own, left, right, error)


def _leaving(plan, transition):
    """[N, G, K]: the columns of J_t that carry the rows of a group to rows outside it."""
    rows = plan.own.rows.array
    inside = np.any(rows[None, :, :] == np.arange(plan.num_state)[:, None, None], axis=2)
    chosen = transition[:, rows]
    return jnp.where(~inside[:, :, None] & (rows >= 0)[None], chosen, jnp.zeros_like(chosen))


def _gram(sketch, moved, leaving):
    """R Rᵀ [N, N] of R = moved · right + Σ_g leaving_g own_g."""
    flat = leaving.reshape(leaving.shape[0], -1)
    within = jnp.einsum("rgc,sgc->rs", sketch.right, sketch.right)
    meeting = jnp.einsum("rgc,gkc->rgk", sketch.right, sketch.own).reshape(moved.shape[1], flat.shape[1])
    cross = moved @ (meeting @ flat.T)
    inner = jnp.einsum("gkc,glc->gkl", sketch.own, sketch.own)
    spread = jnp.einsum("ngk,gkl->ngl", leaving, inner).reshape(flat.shape)
    return moved @ within @ moved.T + cross + cross.T + spread @ flat.T


def _split(plan, gram):
    """(U [N, r], the other directions [N, N − r])."""
    if plan.rank == plan.num_state:  # nothing to choose
        return jnp.eye(plan.num_state, dtype=gram.dtype), gram[:, :0]
    vectors = jnp.linalg.eigh(gram)[1]  # ascending
    return vectors[:, plan.num_state - plan.rank :], vectors[:, : plan.num_state - plan.rank]


def _discarded(plan, gram, lost):
    """The Gram matrix of what the sketch drops, [N, N], no smaller than its rounding allows to say."""
    values = jnp.sum(lost * (gram @ lost), axis=0)
    rounding = plan.num_state * jnp.finfo(gram.dtype).eps * jnp.trace(gram)
    return (lost * (jnp.maximum(values, 0) + rounding)[None, :]) @ lost.T


def _add_errors(carried, fresh):
    """A bound on the Gram matrix of a sum, (1 + b/a) carried + (1 + a/b) fresh: its trace is (a + b)², the least."""
    a, b = (jnp.sqrt(jnp.maximum(jnp.trace(part), 0)) for part in (carried, fresh))
    share = lambda norm: jnp.where(norm == 0, jnp.zeros_like(norm), (a + b) / jnp.where(norm == 0, 1, norm))
    return share(a) * carried + share(b) * fresh


def _contract(plan, params, sketch, local):
    low_rank = jnp.einsum("r,rgc->gc", local @ sketch.left, sketch.right)
    return sparse.spread(plan.own, params, sparse.by_group(plan.own, sketch.own, local) + low_rank)


def _flops(plan):
    groups, height = plan.own.rows.array.shape
    entries, size, rank = groups * plan.own.columns.array.shape[1], plan.num_state, plan.rank
    low_rank = entries * (4 * rank**2 + 4 * rank * height + 2 * height**2 + 2 * rank)
    gram = 2 * size * (3 * size * rank + 2 * rank**2 + groups * height * (size + height + 2 * rank))
    decomposition = 0 if rank == size else 9 * size**3 + 4 * size**2 * (size - rank)
    return sparse.METHOD.flops(plan.own) + low_rank + gram + decomposition + 4 * size**3


METHOD = Method(_start, _advance, _contract, _flops)
