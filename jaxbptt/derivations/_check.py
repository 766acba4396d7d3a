"""A hand derivation of one step, checked piece by piece."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt._jaxprs.sites import find_sites
from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import factored_pullback
from jaxbptt.derivations.reports import Piece, Report, explain, is_wrong, worst_steps
from jaxbptt.derivations.rewrite import evaluate, neutral
from jaxbptt.derivations.samples import draw_instance, epsilon_of, normal_like, perturb, tolerances
from jaxbptt.derivations.step_slips import (
    Candidate,
    local_candidates,
    named_leaves,
    partials,
    require_structure,
)
from jaxbptt.trajectories import unroll
from jaxbptt.types import Inputs, Key, Params, Recurrence

COTANGENTS = 3  # random ones per step
MATCHED = 3  # steps at which slips are compared


def check(
    cell: Recurrence, derivation: Derivation, *, key: Key, params: Params | None = None, inputs: Inputs | None = None
) -> Report:
    """Compare a hand derivation of `cell.step` with automatic differentiation, piece by piece, and name the slip.

    The pieces are "state_jacobian", ∂⁺h_t/∂⁺h_{t−1}; "params.<leaf>", "previous_state" and "input" of the pullback,
    (∂⁺h_t/∂⁺·)ᵀ cotangent; and "advance", the new state, of a factored pullback. They are compared at every step of a
    trajectory from a random h_0, for several random cotangents. Known slips, and the cells that can have them:

      sign, half, double             any cell
      transposed_jacobian            any cell of N > 1: Jᵀ for J, a square weight's cotangent transposed, W_hhᵀ for W_hh
      missing_activation_derivative  cells with a nonlinearity, at one or several of them
      reversed_product               J = diag(φ') W written as W diag(φ'): cells h_t = φ(affine)
      wrong_time_index               h_t for h_{t−1} in a parameter's factor or throughout; φ' from h_{t−1}
      double_path                    cells with several paths: the one through a nonlinearity, or past the gates
      dropped_gate_path              the same cells

    Args:
      cell: its `step` is taken as correct.
      derivation: (state_jacobian, pullback) of that step, to be checked; called eagerly, step by step.
      key: typed key for all random draws.
      params: θ; None: `cell.init(key)`, every leaf perturbed at random (a bias of zero hides mistakes).
      inputs: x_1 … x_T; None: standard normal [6, M].

    Returns:
      Report: `.ok`, `.findings` (each `.piece`, `.slip`, `.relative` and where), `str()`.

    Raises:
      TypeError, ValueError: an argument neither given nor possible to draw; arguments or pullbacks of wrong structure.

    Reference: J_tᵀ λ_t in the adjoint recursion, S1.10; the LSTM's state Jacobian, S4.31.
    """
    _validation.require_key(key)
    keys = jax.random.split(key, 5)
    params, inputs = draw_instance(cell, keys, params, inputs)
    start = cell.initial_state(params)
    initial = jax.tree.map(lambda leaf, noise: leaf + noise / 2, start, normal_like(keys[2], start))
    trajectory = unroll(cell, params, inputs, initial=initial)
    previous, length = trajectory.previous, _validation.require_time_axis("inputs", inputs)
    shaped = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:, None], (length, COTANGENTS, *leaf.shape[1:])), previous)
    cotangents = normal_like(keys[3], shaped)

    actual = _call_derivation(derivation, params, previous, inputs, cotangents)
    expected, tolerance = _expected_partials(cell, params, previous, inputs, cotangents, keys[4])
    pieces = {name: Piece(expected[name], actual[name], tolerance[name]) for name in actual if name in expected}
    factored = factored_pullback(derivation)
    if factored is not None:
        pieces["advance"] = _compare_advance(cell, factored, params, previous, inputs, keys[4])
    checked = f"{len(pieces)} pieces ({', '.join(pieces)}), at {length} steps"
    if not any(map(is_wrong, pieces.values())):
        return Report((), checked)
    steps = worst_steps(pieces, MATCHED)
    candidates: list[Candidate] = []
    if steps:
        program = find_sites(cell.step, params, *jax.tree.map(lambda leaf: leaf[0], (previous, inputs)))
        at = jax.tree.map(lambda leaf: leaf[np.asarray(steps)], (previous, inputs, trajectory.states, cotangents))
        candidates, _ = local_candidates(program, params, *at)
    return Report(tuple(explain(pieces, candidates, steps)), checked)


def _call_derivation(derivation, params, states, xs, cotangents):
    """{piece: [T, N, N] or [T, C, ...] in float64, or what is wrong with its shape}."""
    length, count = jax.tree.leaves(cotangents)[0].shape[:2]
    values: dict[str, list[np.ndarray]] = {}
    misshapen: dict[str, str] = {}

    def collect(t, name, value, like):
        value, shape = np.asarray(value, np.float64), tuple(like)
        values.setdefault(name, []).append(value)
        if value.shape != shape:
            misshapen[name] = f"has shape {list(value.shape)}, expected {list(shape)} (at t = {t + 1})"

    for t in range(length):
        params_state_x = (params, *jax.tree.map(lambda leaf, t=t: leaf[t], (states, xs)))
        size = sum(leaf.size for leaf in jax.tree.leaves(params_state_x[1]))
        collect(t, "state_jacobian", derivation.state_jacobian(*params_state_x), (size, size))
        for c in range(count):
            pulled = derivation.pullback(*params_state_x, jax.tree.map(lambda leaf, t=t, c=c: leaf[t, c], cotangents))
            if not isinstance(pulled, tuple) or len(pulled) != 3:
                raise ValueError(f"pullback: got {type(pulled).__name__}, expected (params, state, x) cotangents")
            for name, tree, like in zip(("params", "previous_state", "input"), pulled, params_state_x, strict=True):
                if name == "input" and not any(map(_validation.is_float, jax.tree.leaves(like))):
                    continue  # inputs such as classes have no derivative
                require_structure(f"pullback's {name}", tree, like)
                for piece, (value, target) in _pairs(name, tree, like).items():
                    collect(t, piece, value, target)
    result: dict[str, np.ndarray | str] = {}
    for name, each in values.items():
        leading = (length,) if name == "state_jacobian" else (length, count)
        result[name] = misshapen.get(name) or np.stack(each).reshape(*leading, *each[0].shape)
    return result


def _pairs(name, tree, like):
    """{piece: (value, expected shape)}: params leaf by leaf, a state or an input as one vector."""
    if name == "params":
        shapes = named_leaves(like)
        return {piece: (leaf, shapes[piece].shape) for piece, leaf in named_leaves(tree).items()}
    leaves = [
        (np.asarray(leaf), target)
        for leaf, target in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
        if _validation.is_float(target)
    ]
    wrong = [(leaf, target.shape) for leaf, target in leaves if leaf.shape != target.shape]
    if wrong or not leaves:
        return {name: wrong[0]} if wrong else {}
    vector = np.concatenate([leaf.astype(np.float64).ravel() for leaf, _ in leaves])
    return {name: (vector, vector.shape)}


def _expected_partials(cell, params, states, xs, cotangents, key):
    """({piece: [T, ...]}, {piece: tolerance [T]})."""
    stacked = perturb((params, states, xs), key)
    over_steps = jax.vmap(partials, in_axes=(None, None, 0, 0, 0))
    # One after another, all compiled as one program.
    pieces = jax.lax.map(lambda at: over_steps(cell.step, at[0], at[1], at[2], cotangents), stacked)
    program = find_sites(cell.step, params, *jax.tree.map(lambda leaf: leaf[0], (states, xs)))
    plain = jax.tree.map(lambda leaf: jnp.asarray(leaf, jax.tree.leaves(states)[0].dtype), neutral(program))
    primary = jnp.arange(len(program.sites)) < program.num_primary
    plain = plain._replace(identity=jnp.where(primary, 1, 0).astype(plain.identity.dtype))

    def without_slopes(params, state, x):
        return evaluate(program, plain, params, state, x, state)

    one = jax.tree.map(lambda leaf: leaf[:1], stacked)
    sized = jax.lax.map(lambda at: over_steps(without_slopes, at[0], at[1], at[2], cotangents), one)
    expected, tolerance, epsilon = {}, {}, epsilon_of(params)
    for name, piece in pieces.items():
        piece, size = np.asarray(piece, np.float64), np.asarray(sized[name][0], np.float64)
        expected[name] = piece[0]
        largest = np.maximum(np.abs(piece[0]), np.abs(size))
        tolerance[name] = tolerances(piece, np.max(largest.reshape(len(largest), -1), axis=1, initial=0), epsilon)
    return expected, tolerance


def _compare_advance(cell, pullback, params, states, xs, key):
    """The state that a factored pullback advances to, against the step's."""

    def flat_step(params, state, x):
        return ravel_pytree(cell.step(params, state, x))[0]

    def flat_advance(state, x):
        return ravel_pytree(pullback.advance(params, state, pullback.drive(params, x))[0])[0]

    over_steps = jax.vmap(flat_step, in_axes=(None, 0, 0))
    perturbed = perturb((params, states, xs), key)
    values = np.asarray(jax.vmap(lambda arguments: over_steps(*arguments))(perturbed), np.float64)
    actual = jax.vmap(flat_advance)(states, xs)
    scale = np.max(np.abs(values[0]), axis=1, initial=1)
    tolerance = tolerances(values, scale, epsilon_of(params))
    return Piece(values[0][:, None], np.asarray(actual, np.float64)[:, None], tolerance)
