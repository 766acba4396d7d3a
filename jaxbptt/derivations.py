"""Hand-derived local derivatives and gradients, checked: which piece is wrong, and what the mistake looks like."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import checks, slips
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.derivation import Derivation, FactoredPullback, Outer
from jaxbptt.findings import Finding, Piece, Report, explain, is_wrong, worst_steps
from jaxbptt.gradient_slips import gradient_candidates
from jaxbptt.gradients import autodiff
from jaxbptt.instances import draw_instance, draw_targets, epsilon_of, normal_like, perturb, tolerances
from jaxbptt.models import Model
from jaxbptt.rewrite import evaluate, neutral, trace
from jaxbptt.trajectories import require_call, unroll

__all__ = [
    "Derivation",
    "FactoredPullback",
    "Finding",
    "Outer",
    "Report",
    "assert_correct",
    "check",
    "check_gradient",
]

COTANGENTS = 3  # random ones per step
MATCHED = 3  # steps at which slips are compared


def check(cell: Cell, derivation: Derivation, *, key: jax.Array, params: Any = None, inputs: Any = None) -> Report:
    """Compare a hand derivation of `cell.step` with automatic differentiation, piece by piece, and name the slip.

    state_jacobian ∂⁺h_t/∂⁺h_{t−1}; of the pullback (∂⁺h_t/∂⁺·)ᵀ cotangent each leaf "params.<leaf>", "previous_state"
    and "input"; of a factored one also the state it advances to, "advance"; at every step of a trajectory from a random
    h_0, for several random cotangents. Slips looked for, and where they are defined:

      sign, half, double             any cell
      transposed_jacobian            any cell of N > 1: Jᵀ for J, a square weight's cotangent transposed, W_hhᵀ for W_hh
      missing_activation_derivative  cells with a nonlinearity, at one or several of them
      reversed_product               J = diag(φ') W written as W diag(φ'): cells h_t = φ(affine)
      wrong_time_index               h_t for h_{t−1} in a parameter's factor or throughout; φ' by h_{t−1}
      double_path                    cells with several paths: one nonlinearity's, or the one past the gates
      dropped_gate_path              the same cells

    Args:
      cell: its `step` is taken as right.
      derivation: (state_jacobian, pullback) of that step, to be checked; called eagerly, step by step.
      key: typed key of all that is drawn.
      params: θ; None: `cell.init(key)`, every leaf perturbed at random (a bias of zero hides mistakes).
      inputs: x_1 … x_T; None: standard normal [6, M].

    Returns:
      Report: `.ok`, `.findings` (each `.piece`, `.slip`, `.relative` and where), `str()`.

    Raises:
      TypeError, ValueError: what is neither given nor can be drawn; arguments or pullbacks of wrong structure.

    Reference: S1.10, S4.31.
    """
    checks.require_key(key)
    keys = jax.random.split(key, 5)
    params, inputs = draw_instance(cell, keys, params, inputs)
    start = cell.initial_state(params)
    initial = jax.tree.map(lambda leaf, noise: leaf + noise / 2, start, normal_like(keys[2], start))
    trajectory = unroll(cell, params, inputs, initial=initial)
    previous, length = trajectory.previous, checks.require_time_axis("inputs", inputs)
    shaped = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:, None], (length, COTANGENTS, *leaf.shape[1:])), previous)
    cotangents = normal_like(keys[3], shaped)

    actual = _call_derivation(derivation, params, previous, inputs, cotangents)
    expected, tolerance = _expected_partials(cell, params, previous, inputs, cotangents, keys[4])
    pieces = {name: Piece(expected[name], actual[name], tolerance[name]) for name in actual if name in expected}
    if isinstance(derivation.pullback, FactoredPullback):
        pieces["advance"] = _compare_advance(cell, derivation.pullback, params, previous, inputs, keys[4])
    checked = f"{len(pieces)} pieces ({', '.join(pieces)}), at {length} steps"
    if not any(map(is_wrong, pieces.values())):
        return Report((), checked)
    steps = worst_steps(pieces, MATCHED)
    candidates = []
    if steps:
        program = trace(cell.step, params, *jax.tree.map(lambda leaf: leaf[0], (previous, inputs)))
        at = jax.tree.map(lambda leaf: leaf[np.asarray(steps)], (previous, inputs, trajectory.states, cotangents))
        candidates, _ = slips.local_candidates(program, params, *at)
    return Report(tuple(explain(pieces, candidates, steps)), checked)


def check_gradient(
    model: Model,
    gradient: Callable[..., Any],
    *,
    key: jax.Array,
    params: Any = None,
    inputs: Any = None,
    targets: Any = None,
) -> Report:
    """Compare a gradient dC/dθ with automatic differentiation, leaf by leaf, and name the slip.

    Slips looked for, beside those of `check` (at every step: in dh_t/dh_{t−1}, in ∂⁺h_t/∂⁺θ, or in both):

      transposed_jacobian   λ_t = c_t + J_{t+1} λ_{t+1}                               any model of N > 1, T > 1
      reversed_product      dh_t/dh_k = J_{k+1} … J_t                                T > 2, J_t not constant
      wrong_time_index      h_t for h_{t−1} in a parameter's factor; J_t for J_{t+1}; λ_{t±1} for λ_t
      lost_mean, double_mean   ×T, ÷T                                                reduction "mean"
      missing_direct_term   the readout's own use of a parameter that step uses too; that of h_0
      last_term_only        only L_T, only the parameter's use at T, of each loss only its own step's term
      double_path           total dh_k/dθ for the direct one beside λ_k (S4.6); one part of two counted twice

    Args:
      model: f, g, L and the reduction, taken as right.
      gradient: (model, params, inputs, targets) -> grads shaped like params, or (loss, grads).
      key: typed key of all that is drawn.
      params: θ; None: `model.init(key)`, every leaf perturbed.
      inputs: x_1 … x_T; None: standard normal [6, M].
      targets: y_1 … y_T; None: standard normal like the outputs, or classes, whichever the loss takes.

    Returns:
      Report; its pieces are "params.<leaf>".

    Raises:
      TypeError, ValueError: what is neither given nor can be drawn; grads of wrong structure.

    Reference: S4.6, S4.9.
    """
    checks.require_key(key)
    keys = jax.random.split(key, 5)
    params, inputs = draw_instance(model, keys, params, inputs)
    length = require_call(model, params, inputs, None)
    targets = draw_targets(model, keys[2], params, length) if targets is None else targets
    result = gradient(model, params, inputs, targets)
    actual = _take_grads(result, params)

    arguments = perturb((params, inputs, targets), keys[3])
    _, grads = jax.vmap(lambda arguments: autodiff(model, *arguments))(arguments)
    values = {name: np.asarray(leaf, np.float64) for name, leaf in _named(grads).items()}
    state = model.initial_state(params)
    program = trace(model.step, params, state, jax.tree.map(lambda leaf: leaf[0], inputs))
    candidates, scale = gradient_candidates(model, program, params, inputs, targets)
    epsilon = epsilon_of(params)
    pieces = {}
    for name, value in values.items():
        if value.size:
            tolerance = tolerances(value[:, None], np.asarray([scale[name]]), epsilon)
            other = actual[name]
            pieces[name] = Piece(value[:1], other if isinstance(other, str) else other[None], tolerance)
    checked = f"{len(pieces)} leaves of dC/dθ ({', '.join(pieces)}), over {length} steps"
    return Report(tuple(explain(pieces, candidates, None)), checked)


def assert_correct(subject: Any, candidate: Any, **options: Any) -> None:
    """Raise AssertionError with the report unless `check` or `check_gradient` finds all correct.

    Args:
      subject: Cell for a derivation, Model for a gradient.
      candidate: Derivation (then `check`), else a function (then `check_gradient`).
      **options: theirs: `key`, and `params`, `inputs`, `targets` as they take them.

    Returns:
      None.

    Raises:
      AssertionError: something is wrong; the message is the report.
      TypeError, ValueError: as `check` and `check_gradient`.
    """
    if not isinstance(candidate, Derivation) and not callable(candidate):
        raise TypeError(f"candidate: got {type(candidate).__name__}, expected a Derivation or a function")
    run = check if isinstance(candidate, Derivation) else check_gradient
    report = run(subject, candidate, **options)
    if not report.ok:
        raise AssertionError(str(report))


def _call_derivation(derivation, params, states, xs, cotangents):
    """{piece: [T, N, N] or [T, C, ...] in float64, or what is wrong with its shape}."""
    length, count = jax.tree.leaves(cotangents)[0].shape[:2]
    collected = {}

    def collect(t, name, value, like):
        value, shape = np.asarray(value, np.float64), tuple(like)
        if value.shape != shape:
            got = f"has shape {list(value.shape)}, expected {list(shape)} (at t = {t + 1})"
            collected[name] = got
        elif not isinstance(collected.setdefault(name, []), str):
            collected[name].append(value)

    for t in range(length):
        params_state_x = (params, *jax.tree.map(lambda leaf, t=t: leaf[t], (states, xs)))
        size = sum(leaf.size for leaf in jax.tree.leaves(params_state_x[1]))
        collect(t, "state_jacobian", derivation.state_jacobian(*params_state_x), (size, size))
        for c in range(count):
            result = derivation.pullback(*params_state_x, jax.tree.map(lambda leaf, t=t, c=c: leaf[t, c], cotangents))
            if not isinstance(result, tuple) or len(result) != 3:
                raise ValueError(f"pullback: got {type(result).__name__}, expected (params, state, x) cotangents")
            for name, tree, like in zip(("params", "previous_state", "input"), result, params_state_x, strict=True):
                if name == "input" and not any(map(_is_float, jax.tree.leaves(like))):
                    continue  # classes and the like have no derivative
                _require_structure(f"pullback's {name}", tree, like)
                for piece, (value, target) in _pairs(name, tree, like).items():
                    collect(t, piece, value, target)
    per_step = {name: (1 if name == "state_jacobian" else count) for name in collected}
    stacked = {}
    for name, values in collected.items():
        stacked[name] = values
        if not isinstance(values, str):
            stacked[name] = np.stack(values).reshape(length, *([count] * (per_step[name] > 1)), *values[0].shape)
    return stacked


def _pairs(name, tree, like):
    """{piece: (value, expected shape)}: params leaf by leaf, a state or an input as one vector."""
    if name == "params":
        shapes = _named(like)
        return {piece: (leaf, shapes[piece].shape) for piece, leaf in _named(tree).items()}
    leaves = [
        (np.asarray(leaf), target)
        for leaf, target in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
        if _is_float(target)
    ]
    wrong = [(leaf, target.shape) for leaf, target in leaves if leaf.shape != target.shape]
    if wrong or not leaves:
        return {name: wrong[0]} if wrong else {}
    vector = np.concatenate([leaf.astype(np.float64).ravel() for leaf, _ in leaves])
    return {name: (vector, vector.shape)}


def _expected_partials(cell, params, states, xs, cotangents, key):
    """({piece: [T, ...]}, {piece: tolerance [T]})."""
    stacked = perturb((params, states, xs), key)
    over_steps = jax.vmap(slips.partials, in_axes=(None, None, 0, 0, 0))
    pieces = jax.vmap(lambda arguments: over_steps(cell.step, *arguments, cotangents))(stacked)
    program = trace(cell.step, params, *jax.tree.map(lambda leaf: leaf[0], (states, xs)))
    plain = jax.tree.map(lambda leaf: jnp.asarray(leaf, jax.tree.leaves(states)[0].dtype), neutral(program))
    primary = jnp.arange(len(program.sites)) < program.num_primary
    plain = plain._replace(identity=jnp.where(primary, 1, 0).astype(plain.identity.dtype))
    step = lambda params, state, x: evaluate(program, plain, params, state, x, state)  # noqa: E731
    sized = over_steps(step, params, states, xs, cotangents)
    expected, tolerance, epsilon = {}, {}, epsilon_of(params)
    for name, piece in pieces.items():
        piece, size = np.asarray(piece, np.float64), np.asarray(sized[name], np.float64)
        expected[name] = piece[0]
        largest = np.maximum(np.abs(piece[0]), np.abs(size))
        tolerance[name] = tolerances(piece, np.max(largest.reshape(len(largest), -1), axis=1, initial=0), epsilon)
    return expected, tolerance


def _compare_advance(cell, pullback, params, states, xs, key):
    """The state that a factored pullback advances to, against the step's."""
    flat_step = lambda params, state, x: ravel_pytree(cell.step(params, state, x))[0]  # noqa: E731
    over_steps = jax.vmap(flat_step, in_axes=(None, 0, 0))
    values = np.asarray(
        jax.vmap(lambda arguments: over_steps(*arguments))(perturb((params, states, xs), key)), np.float64
    )
    advance = lambda state, x: pullback.advance(params, state, pullback.drive(params, x))[0]  # noqa: E731
    actual = jax.vmap(lambda state, x: ravel_pytree(advance(state, x))[0])(states, xs)
    scale = np.max(np.abs(values[0]), axis=1, initial=1)
    tolerance = tolerances(values, scale, epsilon_of(params))
    return Piece(values[0][:, None], np.asarray(actual, np.float64)[:, None], tolerance)


def _take_grads(result, params):
    """{"params.<leaf>": float64 array, or what is wrong with its shape} from grads or (loss, grads)."""
    is_pair = isinstance(result, tuple) and len(result) == 2
    if is_pair and jax.tree.structure(result) != jax.tree.structure(params):
        result = result[1]
    _require_structure("gradient", result, params)
    taken = {}
    for (name, leaf), like in zip(_named(result).items(), jax.tree.leaves(params), strict=True):
        value = np.asarray(leaf, np.float64)
        matches = value.shape == like.shape
        taken[name] = value if matches else f"has shape {list(value.shape)}, expected {list(like.shape)}"
    return taken


def _require_structure(name, tree, like):
    got, expected = jax.tree.structure(tree), jax.tree.structure(like)
    if got != expected:
        raise ValueError(f"{name}: got structure {got}, expected {expected}")


def _named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {checks.leaf_name("params", path): leaf for path, leaf in leaves}


def _is_float(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
