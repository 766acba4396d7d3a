"""Rows of a verdict about the step: is it a function, is its derivative linear and its own transpose, does it reach."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt.derivations.linearity import find_nonlinear_step
from jaxbptt.derivations.samples import Stream, normal_like
from jaxbptt.gradients.adjoint import sequential_adjoint
from jaxbptt.gradients.forward import join_early, run_forward
from jaxbptt.partials import MISSING_RULE, step_partials
from jaxbptt.report._subject import Outcome, Subject, flat64, join_names, map_floats, named, one_line

PLACES = 5  # steps at which one step is examined
EAGER_STEPS = 3
LARGEST = 512  # N of a J_t that is decomposed
SLACK = 1e3  # times eps


def keeps_state(subject: Subject) -> Outcome:
    """`take_problem` has looked; this says what it saw."""
    leaves = jax.tree.leaves(subject.forward.trajectory.initial)
    size = sum(leaf.size for leaf in leaves)
    return Outcome("passed", f"N = {size} entries in {len(leaves)} leaves of {leaves[0].dtype} at every step")


def repeats(subject: Subject) -> Outcome:
    """Two calls of one program, and two programs traced one after the other."""
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], subject.data)

    def make():
        def body(carry, row):
            forward = run_forward(subject.model, *row)
            return carry, (forward.loss, forward.trajectory.states, forward.local)

        return lambda: jax.tree.map(np.asarray, jax.lax.scan(body, None, rows)[1])

    one = make()
    first, again = one(), one()
    state, x = subject.forward.trajectory.initial, jax.tree.map(lambda leaf: leaf[0], subject.inputs)
    jax.eval_shape(lambda *at: subject.model.step(*at), subject.params, state, x)  # a counter of even period shows, too
    other = make()()
    for name, result in (("two calls of one program", again), ("two traces", other)):
        pairs = zip(jax.tree.leaves(first), jax.tree.leaves(result), strict=True)
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            off = np.nanmax(np.abs(flat64(first) - flat64(result)), initial=0)
            what = "the step reads something that changes: a counter, a global, NumPy's or the host's random numbers"
            return Outcome("failed", f"{name} on the same arguments differ; {what}", float(off))
    return Outcome("passed", "two calls and two traces agree in every bit")


def is_linear(subject: Subject) -> Outcome:
    """pull(s v) = s pull(v), pull(v + w) = pull(v) + pull(w)."""
    trajectory, model = subject.forward.trajectory, subject.model
    found = find_nonlinear_step(model.step, subject.params, trajectory.previous, trajectory.inputs, subject.key, None)
    if found is not None:
        return Outcome("failed", found.sentence, found.relative)
    return Outcome("passed", "the step's pullback of multiples and sums is multiples and sums of pullbacks")


def is_transpose(subject: Subject) -> Outcome:
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩, J the derivative by (θ, h_{t−1}) at several steps."""
    chosen, trajectory = subject.pick(PLACES), subject.forward.trajectory
    states, xs = jax.tree.map(lambda leaf: leaf[chosen], (trajectory.previous, trajectory.inputs))
    tangents = normal_like(Stream(subject.key, 31), states), normal_like(Stream(subject.key, 32), subject.params)
    cotangents = normal_like(Stream(subject.key, 33), states)

    def at(params, tangent, state, x, of_state, cotangent):
        step = lambda params, state: subject.model.step(params, state, x)
        return step, (params, state), (tangent, of_state), cotangent

    def pushes(*point):
        step, primals, tangents, cotangent = at(*point)
        return _products(cotangent, jax.jvp(step, primals, tangents)[1])

    def pulls(*point):
        step, primals, tangents, cotangent = at(*point)
        return _products(jax.vjp(step, *primals)[1](cotangent), tangents)

    found = []
    for mode, function in (("forward", pushes), ("reverse", pulls)):

        def many(params, tangent, *steps, function=function):
            return jax.lax.map(lambda at: function(params, tangent, *at), steps)

        try:
            found.append(subject.compiled(many, subject.params, tangents[1], states, xs, tangents[0], cotangents))
        except MISSING_RULE as missing:
            return Outcome("n/a", f"the step has no {mode} mode ({one_line(missing)})")
    (forward, size), (reverse, other) = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), each) for each in found
    )
    finite = np.isfinite(forward) & np.isfinite(reverse)
    if not finite.any():
        return Outcome("n/a", "no step has finite derivatives in both modes")
    off = np.abs(forward - reverse)[finite] / np.maximum((size + other)[finite], np.finfo(np.float64).tiny)
    steps = join_names([str(t + 1) for t in chosen[finite]], PLACES)
    if np.max(off) > SLACK * subject.epsilon:
        worst = chosen[finite][np.argmax(off)] + 1
        return Outcome(
            "failed", f"forward and reverse mode are not transposes, worst at t = {worst}", float(np.max(off))
        )
    return Outcome("passed", f"⟨u, J v⟩ = ⟨Jᵀ u, v⟩ at t = {steps}", float(np.max(off)))


def _products(one, other):
    """(Σ of the products, Σ of their absolute values)."""
    pairs = [(a * b).ravel() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]
    products = jnp.concatenate(pairs)
    return jnp.sum(products), jnp.sum(jnp.abs(products))


def is_causal(subject: Subject) -> Outcome:
    """The first T − 1 steps by themselves: the same states and the same ∂C/∂h_t|o_t, but for a common factor."""
    if subject.length == 1:
        return Outcome("n/a", "T = 1 has no shorter prefix")
    params, inputs, targets, initial = subject.data
    shorter = jax.tree.map(lambda leaf: leaf[:-1], (inputs, targets))
    prefix = subject.compiled(lambda *data: run_forward(subject.model, *data), params, *shorter, initial)
    kept = subject.length - 1
    off = _deviation(prefix.trajectory.states, _first(subject.forward.trajectory.states, kept))
    # With the mean each loss' weight is another; an output that reads h_{t−1} passes something back to the step before.
    one, other = (flat64(_first(each.local, kept - 1)) for each in (prefix, subject.forward))
    factor = one @ other / max(one @ one, np.finfo(np.float64).tiny)
    off = max(
        off, float(np.max(np.abs(factor * one - other), initial=0) / max(np.max(np.abs(other), initial=0), 1e-300))
    )
    if off > max(SLACK * subject.epsilon, 1e-12):
        return Outcome("failed", "states or losses of the first T − 1 steps change when step T is left out", off)
    return Outcome("passed", "the first T − 1 steps give the same states and losses without step T", off)


def _first(tree, count):
    return jax.tree.map(lambda leaf: leaf[:count], tree)


def _deviation(one, other):
    """The largest difference, relative to the largest entry; equal infinities are equal."""
    a, b = flat64(one), flat64(other)
    with np.errstate(invalid="ignore"):
        off = np.where(a == b, 0, np.abs(a - b))
    size = np.max(np.abs(b[np.isfinite(b)]), initial=0)
    return float(np.nan_to_num(np.max(off, initial=0), nan=np.inf) / max(size, 1e-300))


def is_live(subject: Subject) -> Outcome:
    """λ_t of a loss at T alone, t = T … 0: where it ends, and whether h_T still depends on the state there."""
    partials = step_partials(subject.model, source="automatic")

    def follow(params, inputs, trajectory, local, early):
        residuals, pull = partials.pull_over(params, trajectory)
        zero = jax.tree.map(jnp.zeros_like, trajectory.initial)

        def of(local, early):
            local, first = join_early(local, early)
            keep = lambda at, cotangent: (pull(at, cotangent), cotangent)
            adjoints, before = sequential_adjoint(keep, residuals, local, zero)
            before = before if first is None else jax.tree.map(jnp.add, before, first)
            return adjoints, before, partials.sum_params(params, trajectory.previous, inputs, adjoints)

        last = jax.tree.map(lambda leaf: jnp.zeros_like(leaf).at[-1].set(leaf[-1]), (local, early))
        return of(*last), of(local, early)[-1]

    trajectory = subject.forward.trajectory
    arguments = subject.params, subject.inputs, trajectory, subject.forward.local, subject.forward.early
    (adjoints, before, grads), of_all = subject.compiled(follow, *arguments)
    rows = jax.tree.map(lambda first, rest: np.concatenate((first[None], rest)), before, adjoints)
    largest = np.max([np.max(np.abs(leaf.reshape(len(leaf), -1)), axis=1) for leaf in jax.tree.leaves(rows)], axis=0)
    others = named(of_all)
    dead = [name for name, leaf in named(grads).items() if np.any(others[name]) and not np.any(leaf)]
    also = f"; none of it goes to {join_names(dead)}, which other losses reach" if dead else ""
    ended = np.flatnonzero(largest == 0)
    if not len(ended):
        said = f"the gradient of the loss at T alone reaches h_0 (‖dL_T/dh_0‖ beside){also}"
        return Outcome("note" if dead else "passed", said, float(np.linalg.norm(flat64(before))))
    t = int(ended[-1])
    if t == subject.length:
        return Outcome("note", "the loss at T alone has no gradient in h_T: nothing can be followed back", 0.0)
    state, x = jax.tree.map(lambda leaf: leaf[t], (trajectory.previous, subject.inputs))
    cotangent = jax.tree.map(lambda leaf: leaf[t + 1] / largest[t + 1].astype(leaf.dtype), rows)
    slopes, passes = _slopes(subject, state, x, cotangent)
    reach = f"the loss at T reaches back to h_{t + 1}, not to h_{t}"
    if passes:
        return Outcome("note", f"{reach}: λ leaves the float range there{also}", 0.0)
    agree = abs(slopes[0] - slopes[1]) <= 0.2 * abs(slopes[0])
    if agree and abs(slopes[0]) > 1e3 * subject.epsilon ** (2 / 3):
        why = f"though step {t + 1} depends on it (by differences): stop_gradient, or a truncation in the step"
        return Outcome("failed", f"{reach}, {why}", float(slopes[0]))
    return Outcome("note", f"{reach}: step {t + 1} does not depend on it (a reset, or saturated throughout){also}", 0.0)


def _slopes(subject, state, x, cotangent):
    """⟨u, f(h + e v) − f(h − e v)⟩ / 2e at two e, and whether Jᵀ u is more than zero."""
    direction = map_floats(lambda leaf: leaf, normal_like(Stream(subject.key, 34), state))
    size = subject.epsilon ** (1 / 3)

    def evaluate(params, state, x, cotangent, direction):
        def ahead(e):
            moved = jax.tree.map(lambda leaf, v: leaf + jnp.asarray(e, leaf.dtype) * v, state, direction)
            return ravel_pytree(subject.model.step(params, moved, x))[0]

        flat = ravel_pytree(cotangent)[0]
        slopes = [jnp.vdot(flat, (ahead(e) - ahead(-e)) / jnp.asarray(2 * e, flat.dtype)) for e in (size, size / 4)]
        partials = step_partials(subject.model, source="automatic")
        pulled = partials.pull_state(params, partials.residuals(params, state, x), cotangent)
        return slopes, jnp.any(ravel_pytree(pulled)[0] != 0)

    slopes, passes = subject.compiled(evaluate, subject.params, state, x, cotangent, direction)
    return [float(slope) for slope in slopes], bool(passes)


def is_compiled_alike(subject: Subject) -> Outcome:
    """One step op by op, outside any program, beside the same step of the compiled trajectory."""
    trajectory, worst = subject.forward.trajectory, 0.0
    count = min(EAGER_STEPS, subject.length)
    for t in range(count):
        at = jax.tree.map(
            lambda leaf, t=t: jnp.asarray(leaf)[t], (trajectory.previous, subject.inputs, trajectory.states)
        )
        new = subject.model.step(subject.params, *at[:2])
        worst = max(worst, _deviation(new, at[2]))
    if worst > 10 * SLACK * subject.epsilon:
        said = "a step outside jit gives other numbers than the same step inside: it asks whether it is traced"
        return Outcome("failed", said, worst)
    return Outcome("passed", f"the first {count} steps op by op give what the compiled program gives", worst)


def has_full_rank(subject: Subject) -> Outcome:
    """The numerical rank of J_t at the first, the middle and the last step."""
    size = sum(leaf.size for leaf in jax.tree.leaves(subject.forward.trajectory.initial))
    if size > LARGEST:
        return Outcome("n/a", f"N = {size}: J_t is decomposed up to N = {LARGEST}")
    chosen, trajectory = subject.pick(3), subject.forward.trajectory
    states, xs = jax.tree.map(lambda leaf: leaf[chosen], (trajectory.previous, trajectory.inputs))
    jacobian = jax.vmap(step_partials(subject.model, source="automatic").jacobian, in_axes=(None, 0, 0))
    chain = np.asarray(subject.compiled(jacobian, subject.params, states, xs), np.float64)
    good = np.isfinite(chain).all(axis=(1, 2))
    if not good.any():
        return Outcome("n/a", "J_t is not finite at the first, the middle and the last step")
    sigma = np.linalg.svd(chain[good], compute_uv=False)
    ranks = np.sum(sigma > size * subject.epsilon * sigma[:, :1], axis=1).tolist()
    steps = (chosen[good] + 1).tolist()
    if min(ranks) == size:
        return Outcome(
            "passed", f"J_t has full rank N = {size} at t = {join_names(list(map(str, steps)))}", float(size)
        )
    said = ", ".join(f"{rank} at t = {t}" for rank, t in zip(ranks, steps, strict=True))
    return Outcome(
        "note", f"rank of J_t, numerically: {said}; N = {size}: some directions of h are lost", float(min(ranks))
    )
