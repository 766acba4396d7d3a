"""A hand derivation of one step, checked piece by piece."""

from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt._jaxprs.sites import find_sites
from jaxbptt._jaxprs.text import key_of_program
from jaxbptt.cells.derivation import Derivation
from jaxbptt.derivations.calls import ADVANCE, JACOBIAN, Run, call_derivation
from jaxbptt.derivations.compiled import map_one, map_rows
from jaxbptt.derivations.doubts import settle_doubts
from jaxbptt.derivations.kinks import Spot, find_visits, move_off
from jaxbptt.derivations.linearity import find_nonlinear_pieces, find_nonlinear_step
from jaxbptt.derivations.matching import Piece, is_wrong, name_slips
from jaxbptt.derivations.reports import Finding, Report, explain, worst_steps
from jaxbptt.derivations.rewrite import evaluate, without_slopes
from jaxbptt.derivations.samples import Stream, draw_instance, epsilon_of, normal_like, perturb, responses, tolerances
from jaxbptt.derivations.step_slips import Points, local_batches, partials, pullbacks
from jaxbptt.trajectories import run_steps, take_call
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
      activated_value                φ'(φ(a)) for φ'(a), such as 1 − tanh²(tanh a): likewise
      squared_complement             (1 − y)² for 1 − y²: at a tanh
      reversed_product               J = diag(φ') W written as W diag(φ'): cells h_t = φ(affine)
      swapped_gates                  gated cells: two gates' values in a product, in φ' or throughout; their rows
      missing_direct_term            cells that read a parameter more than once: one of its uses
      across_reset                   the state where the input resets it: where(reset, h_0, h), (1 − reset) ⊙ h
      wrong_time_index               h_t for h_{t−1} in a parameter's factor or throughout; φ' from h_{t−1}
      double_path                    cells with several paths: the one through a nonlinearity, or past the gates
      dropped_gate_path              the same cells

    Two slips at once, their names joined by " + ", are looked for where no single one gives a piece: two of the above,
    the sign or a factor beside any other, at most 10,000 pairs. A report names the gate by the letter that the cell
    declares (`gates` of its params), else by number and by the rows of a stacked weight. Where a step is not
    differentiable at a number it visits, such as a ReLU at 0, the check moves off it, by 1e-3, and says so. A pullback
    that is not linear in its cotangent, and a step with such a `jax.custom_vjp`, are findings.

    Args:
      cell: its `step` is taken as correct.
      derivation: (state_jacobian, pullback) of that step, to be checked; called step by step if not written in JAX.
      key: typed key for all random draws.
      params: θ; None: `cell.init(key)`, every leaf perturbed at random (a bias of zero hides mistakes).
      inputs: x_1 … x_T; None: standard normal [6, M].

    Returns:
      Report: `.ok`, `.findings` (each `.piece`, `.slip`, `.relative` and where), `.notes`, `str()`.

    Raises:
      TypeError, ValueError: an argument neither given nor possible to draw; arguments or pullbacks of wrong structure.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, derivations
      >>> cell = cells.from_step(lambda w, h, x: w @ h + x, lambda w: jnp.zeros(2))
      >>> pullback = lambda w, h, x, v: (jnp.outer(v, h), w.T @ v, v)
      >>> mine = derivations.Derivation(lambda w, h, x: w.T, pullback)  # J is w
      >>> data = {"params": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "inputs": jnp.ones((3, 2))}
      >>> report = derivations.check(cell, mine, key=jax.random.key(0), **data)  # print(report): where, and by how much
      >>> [(finding.piece, finding.slip) for finding in report.findings]
      [('state_jacobian', 'transposed_jacobian')]

    Reference: J_tᵀ λ_t in the adjoint recursion, S1.10; the LSTM's state Jacobian, S4.31.
    """
    _validation.require_key(key)
    _validation.require_functions("cell", cell, ("initial_state", "step"))
    params, inputs = draw_instance(cell, key, params, inputs)
    params, inputs, _, length = take_call(cell, params, inputs)
    run, spot = _find_run(cell, params, inputs, key)
    trajectory, checked = run.trajectory, f"pieces, at {length} steps"
    nonlinear = find_nonlinear_step(cell.step, run.params, trajectory.previous, trajectory.inputs, key, run.key)
    if nonlinear is not None:
        return Report((nonlinear,), checked, spot.notes)
    called = call_derivation(derivation, run)
    pulled = {name: values for name, values in called.items() if name not in (JACOBIAN, ADVANCE)}
    pieces = _compare(cell, called, run, key)
    checked = f"{len(pieces)} pieces ({', '.join(pieces)}), at {length} steps"
    findings = find_nonlinear_pieces(pulled, pieces, COTANGENTS, epsilon_of(params))
    rest = {name: piece for name, piece in pieces.items() if name not in {finding.piece for finding in findings}}
    rest, notes = settle_doubts(rest, jax.tree.leaves(params)[0].dtype)
    if spot.visits:
        rest, undecided = _leave_undecided(rest, spot)
        notes += undecided
    if any(map(is_wrong, rest.values())):
        findings += _name(cell, run, rest)
    return Report(tuple(findings), checked, (*spot.notes, *notes))


def _find_run(cell: Recurrence, params: Params, inputs: Inputs, key: Key) -> tuple[Run, Spot]:
    """A trajectory from a random h_0, off the kinks of the step if possible."""
    program = lambda params, x: cell.step(params, cell.initial_state(params), x)
    own = key_of_program((cell.step, cell.initial_state), program, params, _first(inputs))
    noise = normal_like(Stream(key, 9), jax.eval_shape(cell.initial_state, params))
    found = []

    def body(_, row):
        params, inputs, noise = row
        initial = jax.tree.map(lambda leaf, noise: leaf + noise / 2, cell.initial_state(params), noise)
        return run_steps(cell, params, inputs, initial)

    def visits(params, inputs):
        found.append(map_one(own and ("unroll", own), body, (params, inputs, noise)))
        _validation.require_states(found[-1].states, found[-1].initial)
        return find_visits(own, cell.step, params, found[-1].previous, found[-1].inputs, of_input=True)

    spot = move_off(visits, params, inputs, key)
    trajectory = found[0] if spot.visits else found[-1]
    many = lambda leaf: jax.ShapeDtypeStruct((len(leaf), COTANGENTS, *leaf.shape[1:]), leaf.dtype)
    cotangents = normal_like(Stream(key, 10), jax.tree.map(many, trajectory.states))
    return Run(spot.params, trajectory, cotangents, own), spot


def _leave_undecided(pieces: dict[str, Piece], spot: Spot) -> tuple[dict[str, Piece], tuple[str, ...]]:
    """The pieces without those that are off, by more than rounding, only where a kink is visited."""
    kinks = [t - 1 for t in sorted({t for visit in spot.visits for t in visit.steps})]
    decided, notes = {}, []
    for name, piece in pieces.items():
        if isinstance(piece.actual, str) or not is_wrong(piece):
            decided[name] = piece
            continue
        rest = np.setdiff1d(np.arange(len(piece.expected)), kinks)
        free = Piece(piece.expected[rest], piece.actual[rest], piece.tolerance[rest])
        if len(rest) and is_wrong(free):
            decided[name] = piece
        else:
            notes.append(f"{name} differs only at such steps, and is left undecided")
    return decided, tuple(notes)


def _name(cell: Recurrence, run: Run, pieces: dict[str, Piece]) -> list[Finding]:
    """The findings of the wrong pieces, with the slips that give their numbers."""
    steps = worst_steps(pieces, MATCHED)
    named = {}
    if steps:
        trajectory = run.trajectory
        program = find_sites(cell.step, run.params, *_first((trajectory.previous, trajectory.inputs)))
        each = trajectory.previous, trajectory.inputs, trajectory.states, run.cotangents
        at = Points(*jax.tree.map(lambda leaf: leaf[np.asarray(steps)], each))
        factors = {"sign": -1.0, "double": 2.0, "half": 0.5}
        named = name_slips(pieces, local_batches(program, run.key, run.params, at), factors, steps)
    return explain(pieces, named, by_step=True)


def _compare(cell: Recurrence, called: dict[str, Any], run: Run, key: Key) -> dict[str, Piece]:
    """Every piece beside what automatic differentiation gives."""
    states, xs = run.trajectory.previous, run.trajectory.inputs
    program = find_sites(cell.step, run.params, *_first((states, xs)))
    plain = without_slopes(program, run.params, direct=1)

    def expected(cotangents, row):
        params, states, xs = row
        pieces = jax.vmap(lambda *at: partials(cell.step, params, *at))(states, xs, cotangents)
        new = jax.vmap(lambda *at: ravel_pytree(cell.step(params, *at))[0])(states, xs)
        return {**pieces, ADVANCE: new[:, None]}

    def sizes(cotangents, row):
        params, states, xs = row
        step = lambda params, state, x: evaluate(program, plain, params, state, x, state)
        return jax.vmap(lambda *at: pullbacks(step, params, *at))(states, xs, cotangents)

    stacked = perturb((run.params, states, xs), Stream(key, 11))
    # In NumPy, where a slice compiles nothing.
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[:1] if _validation.is_float(leaf) else leaf[:1], stacked)
    values = map_rows(run.key and ("expected", run.key), expected, run.cotangents, stacked)
    size = map_rows(run.key and ("sizes", run.key), sizes, run.cotangents, one)
    largest = {name: _largest(np.asarray(value, np.float64)[0]) for name, value in size.items()}
    largest[JACOBIAN], largest[ADVANCE] = largest["previous_state"], np.ones(len(jax.tree.leaves(states)[0]))
    pieces, epsilon = {}, epsilon_of(run.params)
    for name, actual in called.items():
        if name in values:
            value = np.asarray(values[name], np.float64)
            scale = np.maximum(_largest(value[0]), largest[name])
            tolerance = tolerances(value, scale, epsilon)
            taken = actual if isinstance(actual, str) or name == JACOBIAN else actual[:, :COTANGENTS]
            pieces[name] = Piece(value[0], taken, tolerance, responses(value, epsilon), 200 * epsilon)
    return pieces


def _largest(values: np.ndarray) -> np.ndarray:
    """The largest entry of each step."""
    return np.max(np.abs(values).reshape(len(values), -1), axis=1, initial=0)


def _first(tree: Any) -> Any:
    """The first of leading T."""
    return jax.tree.map(lambda leaf: leaf[0], tree)
