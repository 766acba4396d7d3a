"""Rows of a verdict about dC/dθ: by other routes, by differences, in a batch, in another dtype."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import derivations
from jaxbptt.derivations.compiled import map_many, map_rows
from jaxbptt.derivations.samples import Stream, normal_like
from jaxbptt.gradients.backpropagation import bptt
from jaxbptt.gradients.exact import autodiff, double_sum, forward_sensitivity
from jaxbptt.gradients.forward import add_penalty, run_forward, take_problem
from jaxbptt.models._batched import single_of
from jaxbptt.report._differences import extrapolate, sizes_of
from jaxbptt.report._subject import Outcome, Subject, flat64, join_names, map_floats, named, one_line
from jaxbptt.types import LossAndGrads

MOST_SENSITIVITIES = 10**8  # numbers that forward_sensitivity and double_sum may form, T N |θ| and T² |θ| / 2
STEPS_OF_DERIVATION = 8
DIRECTIONS = 3
COARSE = 0.05  # relative error above which a difference says nothing
SEQUENCES = 3
ELSEWHERE = 30  # times the tolerance, for other sequences than the one it was measured at


def agree_by_routes(subject: Subject) -> Outcome:
    """autodiff beside the other exact routes."""
    theta = sum(leaf.size for leaf in jax.tree.leaves(subject.params))
    size = sum(leaf.size for leaf in jax.tree.leaves(subject.forward.trajectory.initial))
    routes: dict[str, Callable[..., LossAndGrads]] = {"bptt": bptt}
    if subject.length * size * theta <= MOST_SENSITIVITIES:
        routes["forward_sensitivity"] = forward_sensitivity
    if subject.length**2 * theta / 2 <= MOST_SENSITIVITIES:
        routes["double_sum"] = double_sum

    def run(params, inputs, targets, initial):
        return [route(subject.model, params, inputs, targets, initial=initial)[1] for route in routes.values()]

    off = 0.0
    for name, grads in zip(routes, subject.compiled(run, *subject.data), strict=True):
        relative, excess, leaf = subject.reference.worst(grads)
        if excess > 1:
            return subject.wrong(f"{name} differs from autodiff, most in {leaf}", relative)
        off = max(off, relative)
    left = [name for name in ("forward_sensitivity", "double_sum") if name not in routes]
    too_large = f" ({', '.join(left)} left out: too large)" if left else ""
    return Outcome("passed", f"autodiff = {' = '.join(routes)}{too_large}", off)


def matches_derivation(subject: Subject) -> Outcome:
    """The model's hand derivation, piece by piece."""
    derivation = subject.model.derivation
    if not derivation:
        return Outcome("n/a", "the model has none")
    inputs = jax.tree.map(lambda leaf: leaf[:STEPS_OF_DERIVATION], subject.inputs)
    report = derivations.check(subject.model, derivation, key=subject.key, params=subject.params, inputs=inputs)
    return _of_report(report)


def matches_gradient(subject: Subject) -> Outcome:
    """The user's own gradient, leaf by leaf, with the name of its slip."""
    if subject.gradient is None:
        return Outcome("n/a", "none given (gradient=)")
    model, initial = subject.model, subject.initial
    if initial is not None:
        model = model._replace(initial_state=lambda params: initial)
    report = derivations.check_gradient(
        model,
        subject.gradient,
        key=subject.key,
        params=subject.params,
        inputs=subject.inputs,
        targets=subject.targets,
    )
    return _of_report(report)


def _of_report(report: derivations.Report) -> Outcome:
    notes = "".join(f"; {note}" for note in report.notes[:1])
    if report.ok:
        return Outcome("passed", f"all correct: {report.checked}{notes}")
    first = report.findings[0]
    others = [finding.piece for finding in report.findings[1:]]
    also = f" Also: {join_names(others)}." if others else ""
    return Outcome("failed", f"{first.sentence}{also}", first.relative)


def matches_differences(subject: Subject) -> Outcome:
    """⟨dC/dθ, v⟩ beside central differences of C along random v, extrapolated."""
    reference = subject.reference
    directions = normal_like(
        Stream(subject.key, 35),
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((DIRECTIONS, *leaf.shape), leaf.dtype), subject.params),
    )
    usual = jax.tree.map(
        lambda leaf: (float(np.sqrt(np.mean(np.square(np.asarray(leaf, np.float64))))) or 1.0) if leaf.size else 1.0,
        subject.params,
    )
    directions = jax.tree.map(lambda leaf, size: leaf * jnp.asarray(size, leaf.dtype), directions, usual)
    program = object()  # one program for all directions below
    found = _differences(subject, program, directions)
    worst, unseen = 0.0, 0
    for i, (slope, error) in enumerate(found):
        along = {name: leaf[i] for name, leaf in named(directions).items()}
        expected, size, tolerance = _along(reference, along)
        resolution = error / max(size, np.finfo(np.float64).tiny)
        off = abs(slope - expected)
        if off > 4 * error + tolerance:
            number = off / max(size, np.finfo(np.float64).tiny)
            leaf = _worst_leaf(subject, program, jax.tree.map(lambda leaf, i=i: leaf[i], directions))
            said = f"C moves along θ otherwise than dC/dθ says, most in {leaf} (stop_gradient, or a rule of its own?)"
            return subject.wrong(said, number)
        if resolution > COARSE:
            unseen += 1
        else:
            worst = max(worst, off / max(size, np.finfo(np.float64).tiny))
    if unseen == len(found):
        return Outcome("note", "C is too rough or too small here: differences settle to no digit", None)
    return Outcome("passed", f"central differences of C along {len(found) - unseen} random directions", worst)


def _along(reference, along):
    """⟨g, v⟩, its size, and what rounding may do to it."""
    parts = [reference.grads[name] * v for name, v in along.items()]
    size = np.sqrt(sum(np.sum(part**2) for part in parts))
    tolerance = np.sqrt(sum(np.sum((reference.tolerance[name] * v) ** 2) for name, v in along.items()))
    return float(sum(np.sum(part) for part in parts)), float(size), float(3 * tolerance)


def _differences(subject: Subject, program: Any, directions: Any) -> list[tuple[float, float]]:
    """[(slope, its error)] along each of D directions [D, ...]."""
    sizes = sizes_of(jax.tree.leaves(subject.params)[0].dtype)
    number = len(jax.tree.leaves(directions)[0])
    index, signed = np.meshgrid(np.arange(number), np.concatenate((sizes, -sizes)), indexing="ij")

    def loss(shared, row):
        (params, inputs, targets, initial), directions = shared
        index, e = row
        moved = jax.tree.map(lambda leaf, v: leaf + e.astype(leaf.dtype) * v[index], params, directions)
        return run_forward(subject.model, moved, inputs, targets, initial).loss

    rows = index.ravel(), signed.ravel().astype(jax.tree.leaves(subject.params)[0].dtype)
    shared = jax.tree.map(jnp.asarray, (subject.data, directions))
    values = np.asarray(map_many(program, loss, shared, rows), np.float64).reshape(number, 2, len(sizes))
    return [extrapolate(ahead, behind, sizes, subject.reference.noise) for ahead, behind in values]


def _worst_leaf(subject: Subject, program: Any, direction: Any) -> str:
    """The leaf along which alone the differences disagree most."""
    leaves, structure = jax.tree.flatten(direction)
    names, off = list(subject.reference.grads), []
    for position, name in enumerate(names):
        alone = [leaf if i == position else jnp.zeros_like(leaf) for i, leaf in enumerate(leaves)]
        alone = jax.tree.unflatten(structure, [jnp.broadcast_to(leaf, (DIRECTIONS, *leaf.shape)) for leaf in alone])
        slope, error = _differences(subject, program, alone)[0]
        expected, size, tolerance = _along(subject.reference, {name: np.asarray(leaves[position], np.float64)})
        off.append((abs(slope - expected) - 4 * error - tolerance) / max(size, abs(slope), 1e-300))
    return names[int(np.argmax(off))]


def agrees_in_a_batch(subject: Subject) -> Outcome:
    """Several sequences at once beside each by itself."""
    if subject.model.batch is not None:
        return _keeps_apart(subject)
    params = subject.params
    rows = [_another(subject, b) for b in range(SEQUENCES)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    route = lambda inputs, targets, initial: autodiff(subject.model, params, inputs, targets, initial=initial)
    together = subject.compiled(jax.vmap(route), *stacked)
    apart = map_rows(None, lambda _, row: route(*row), None, stacked)
    return _compare_batch(subject, together, apart, "jax.vmap over 3 sequences gives what each gives by itself")


def _compare_batch(subject, together, apart, said):
    reference, worst = subject.reference, 0.0
    (losses, grads), (expected, each) = together, apart
    whole = np.asarray(losses, np.float64), np.asarray(expected, np.float64)
    for (name, one), other in zip(named(grads).items(), named(each).values(), strict=True):
        scale = max(np.max(np.abs(other), initial=0) / max(np.max(np.abs(reference.grads[name]), initial=0), 1e-300), 1)
        largest = np.max(np.abs(other), initial=0)
        tolerance = ELSEWHERE * reference.tolerance[name] * min(scale, 1e6)
        off = np.max(np.where(_same(one, other), 0, np.abs(one - other)), initial=0)
        worst = max(worst, off / max(largest, tolerance / 1e-3, 1e-300))
        if not off <= tolerance:
            return Outcome(
                "failed",
                f"sequences side by side have another gradient, most in {name}",
                float(off / max(largest, 1e-300)),
            )
    off = np.max(np.where(_same(*whole), 0, np.abs(whole[0] - whole[1])))
    if not off <= ELSEWHERE * reference.noise * max(1, np.max(np.abs(whole[1])) / max(np.abs(whole[1][0]), 1e-300)):
        return Outcome("failed", "sequences side by side have another loss", float(off))
    return Outcome("passed", said, float(worst))


def _same(a, b):
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _another(subject, number):
    """(inputs, targets, initial) of another sequence: rolled in time, its floats moved by a tenth; 0: as given."""
    order = np.roll(np.arange(subject.length), number)
    data = jax.tree.map(lambda leaf: leaf[order], (subject.inputs, subject.targets))
    return _moved(subject, (*data, subject.initial), number) if number else (*data, subject.initial)


def _moved(subject, tree, number):
    generator = np.random.default_rng([number, *np.asarray(jax.random.key_data(subject.key)).ravel().tolist()])
    return map_floats(
        lambda leaf: leaf * jnp.asarray(1 + 0.1 * generator.standard_normal(leaf.shape), leaf.dtype), tree
    )


def _keeps_apart(subject: Subject) -> Outcome:
    """A batched model: other numbers in its first sequence leave the others alone; and their sum is C."""
    params, inputs, targets, initial = subject.data
    others = _another(subject, 1)
    take = lambda leaf, other: leaf.at[:, 0].set(other[:, 0])
    changed = jax.tree.map(take, (inputs, targets), others[:2])
    start = None if initial is None else jax.tree.map(lambda leaf, other: leaf.at[0].set(other[0]), initial, others[2])
    run = lambda *data: run_forward(subject.model, *data)
    moved = subject.compiled(run, params, *changed, start)
    rest = lambda forward: jax.tree.map(lambda leaf: leaf[:, 1:], (forward.trajectory.states, forward.local))
    one, other = flat64(rest(subject.forward)), flat64(rest(moved))
    off = np.max(np.abs(one - other), initial=0) / max(np.max(np.abs(one), initial=0), 1e-300)
    if off > 1e3 * subject.epsilon:
        said = "other numbers in the first sequence change the others: the step or the loss mixes the batch"
        return Outcome("failed", said, float(off))
    single = single_of(subject.model)
    if single is None:
        return Outcome(
            "passed", f"other numbers in the first of {subject.model.batch} sequences leave the rest alone", off
        )

    def total(params, inputs, targets, initial):
        route = lambda *at: autodiff(single, params, at[0], at[1], initial=at[2])[1]
        axes = (1, 1, None if initial is None else 0)
        each = jax.vmap(route, in_axes=axes)(inputs, targets, initial)
        summed = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each)
        return add_penalty(subject.model, params, jnp.zeros(()), summed)[1]

    relative, excess, leaf = subject.reference.worst(subject.compiled(total, *subject.data))
    if excess > 1:
        return subject.wrong(f"the batch's gradient is not the sum of its sequences', most in {leaf}", relative)
    return Outcome(
        "passed", f"sequences do not mix, and the gradient is the sum of all {subject.model.batch}", relative
    )


def has_no_dead_leaf(subject: Subject) -> Outcome:
    """Leaves whose gradient is zero throughout."""
    dead = [name for name, leaf in subject.reference.grads.items() if leaf.size and not np.any(leaf)]
    if dead:
        return Outcome("note", f"the gradient is exactly zero in {join_names(dead)}", float(len(dead)))
    return Outcome("passed", "no leaf's gradient is zero throughout")


def counts_initial(subject: Subject) -> Outcome:
    """Whether an `initial` replaces an h_0 that is learned."""
    if subject.initial is None:
        return Outcome("n/a", "no initial= given: h_0 and its gradient are the model's own")
    cotangent = normal_like(Stream(subject.key, 36), subject.initial)
    pull = lambda params, cotangent: jax.vjp(subject.model.initial_state, params)[1](cotangent)[0]
    pulled = named(subject.compiled(pull, subject.params, cotangent))
    learned = [name for name, leaf in pulled.items() if np.any(leaf != 0)]
    if learned:
        return Outcome("note", f"the model's h_0 depends on {join_names(learned)}; with initial= that is not counted")
    return Outcome("passed", "the model's own h_0 does not depend on params")


def agrees_in_other_dtype(subject: Subject) -> Outcome:
    """float32 beside float64."""
    if jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        return Outcome("n/a", "float64 is off (jax_enable_x64)")
    own = np.dtype(jax.tree.leaves(subject.params)[0].dtype)
    if own not in (np.float32, np.float64):
        return Outcome("n/a", f"params are {own}")
    other = np.dtype(np.float32 if own == np.float64 else np.float64)
    data = map_floats(lambda leaf: leaf.astype(other) if leaf.dtype == own else leaf, subject.data)
    try:
        take_problem(subject.model, *data)
    except (TypeError, ValueError) as error:
        return Outcome("n/a", f"the model keeps to {own} ({one_line(error)})")
    grads = subject.compiled(lambda *at: autodiff(subject.model, *at[:3], initial=at[3])[1], *data)
    coarser = float(np.finfo(np.float32).eps) / subject.epsilon
    relative, excess, leaf = subject.reference.worst(grads, coarser)
    if excess > 1:
        return subject.wrong(f"{other} and {own} give another gradient, most in {leaf}", relative)
    if relative > COARSE:
        return Outcome("note", "rounding in float32 leaves no digit of this gradient", relative)
    return Outcome("passed", f"the gradient in {other} is that in {own}, to float32's rounding", relative)
