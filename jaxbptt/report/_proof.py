"""Is dC/dθ right? Reverse mode through the whole computation, beside routes that share none of its algorithm."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxbptt import _validation
from jaxbptt.gradients.backpropagation import bptt
from jaxbptt.gradients.exact import autodiff, automatic_jacobians, forward_sensitivity, sum_losses, sum_terms
from jaxbptt.gradients.forward import run_forward
from jaxbptt.partials import step_partials
from jaxbptt.report._differences import extrapolate, sizes_of
from jaxbptt.report._directions import DIRECTIONS, along, draw_directions, push_forward, sum_pairs
from jaxbptt.report._problem import Subject

ROUTES = ("bptt", "forward_sensitivity", "double_sum")
# Along random directions of each leaf, in place of the routes that are left out.
SAMPLED = ("directional", "double_sum_directional")
ORDER = (*ROUTES, *SAMPLED, "state_jacobian", "differences")
MOST_FLOPS = 2**34  # of forward_sensitivity and double_sum_directional: about a second
MOST_TERMS = 2**28  # numbers of double_sum, each formed by itself: about a second
MOST_JACOBIAN = 2**27  # T·N² numbers that are formed to be compared or multiplied
# About a thousand eps of the format: sums over thousands of terms lose tens, a wrong factor shows as 1 or 0.1.
PROVED = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-4}
GROSS = 1e-2  # relative difference from central differences that is a fault
COARSE = 0.02  # relative error of a difference above which it says nothing
SMALL = 1e-4  # a leaf this much smaller than the whole gradient is judged by the whole: it may be zero by cancellation


class Proof(NamedTuple):
    """How far each route is from autodiff, by sequence and leaf of θ."""

    loss: Float[np.ndarray, " batch"]  # C
    errors: dict[str, Float[np.ndarray, "batch leaves"]]  # relative; of "state_jacobian" [B, 1], the worst step; of
    # "differences" [B, 1], where central differences of C along random directions contradict dC/dθ
    confirmed: float  # the worst relative difference from central differences; NaN where they settle to no digit
    left_out: dict[str, str]  # route -> why
    leaves: list[str]  # names of the leaves of θ
    bound: float

    @property
    def routes(self) -> dict[str, float]:
        """The worst relative difference of each route; NaN where one is."""
        return {name: float(np.max(self.errors[name], initial=0.0)) for name in ORDER if name in self.errors}

    @property
    def worst(self) -> float:
        """The worst of all."""
        return float(np.max(list(self.routes.values()), initial=0.0))

    @property
    def wrong(self) -> dict[str, str]:
        """Each route that is further off than the bound, with the leaf where it is worst."""
        places = {}
        for name, error in self.errors.items():
            if not np.all(error <= self.bound):
                by_leaf = np.where(np.isnan(error), np.inf, error).max(axis=0)
                by_name = {"state_jacobian": "J_t", "differences": "θ as a whole"}
                places[name] = by_name.get(name) or self.leaves[int(by_leaf.argmax())]
        return places


def prove(subject: Subject) -> Proof:
    """Compare the routes that the sizes allow, leaf by leaf; along random directions where one of them is left out."""
    left_out, model = _costly(subject), subject.model
    asked = {name for name in ROUTES if name not in left_out} | _replacements(subject, left_out)
    if step_partials(model).source != "automatic" and "state_jacobian" not in left_out:
        asked.add("state_jacobian")

    def at(problem, directions, lengths):
        params, *data, initial, _ = problem
        loss, expected = autodiff(model, params, *data, initial=initial)
        size = _Size.of(expected)
        slopes, errors = along(expected, directions), {}
        for name, route in (("bptt", bptt), ("forward_sensitivity", forward_sensitivity)):
            if name in asked:
                errors[name] = size.relative(expected, route(model, params, *data, initial=initial)[1])
        if "directional" in asked:
            errors["directional"] = size.sampled(slopes - push_forward(model, problem, directions))
        if asked & {"double_sum", "double_sum_directional", "state_jacobian"}:  # of one forward pass
            run = run_forward(model, *problem[:4])
            jacobians = automatic_jacobians(model, params, run.trajectory)
        if "double_sum" in asked:
            errors["double_sum"] = size.relative(expected, sum_terms(model, problem, run, jacobians))
        if "double_sum_directional" in asked:
            found = sum_pairs(model, problem, run, jacobians, directions)
            errors["double_sum_directional"] = size.sampled(slopes - found)
        if "state_jacobian" in asked:
            errors["state_jacobian"] = _closed_form(model, params, run.trajectory, jacobians)
        values = _moved(subject, problem, directions, lengths)
        return loss, errors, size.finite, (values, lengths @ slopes, size.along(expected, directions, lengths))

    given = draw_directions(subject.problem.params), _usual(subject.problem.params)
    loss, errors, finite, moved = subject.measure(("proof", tuple(sorted(asked))), at, *given)
    for index, good in zip(subject.chosen, finite & np.isfinite(loss), strict=True):
        if not good:  # once more outside a compiled program, which says where and why
            params, *data, initial, _ = subject.sequence(subject.problem, int(index))
            autodiff(model, params, *data, initial=initial)
    names = [_validation.leaf_name("", path) for path, _ in jax.tree_util.tree_leaves_with_path(subject.problem.params)]
    judged = [_judge(subject, *(each[b] for each in moved)) for b in range(len(loss))]
    off = np.array([each for each, _ in judged])[:, None]
    if any(contradicts for _, contradicts in judged):
        errors = {**errors, "differences": np.nan_to_num(off)}
    return Proof(loss, errors, float(np.max(off)), left_out, names, PROVED[subject.dtype])


def _costly(subject):
    """{route: why it is left out}."""
    length, count, size, number = subject.problem.length, len(subject.chosen), subject.size, subject.num_params
    flops, terms = 2 * size**2 * number * length * count, length**2 * number // 2 * count
    reasons = {}
    if flops > MOST_FLOPS:
        reasons["forward_sensitivity"] = f"{flops:.0e} operations"
    if terms > MOST_TERMS:
        reasons["double_sum"] = f"{terms:.0e} numbers"
    if length * size**2 * count > MOST_JACOBIAN and step_partials(subject.model).source != "automatic":
        reasons["state_jacobian"] = f"{length * size**2 * count:.0e} numbers"
    return reasons


def _replacements(subject, left_out):
    """What is asked along random directions in place of the routes that are left out."""
    length, count, size = subject.problem.length, len(subject.chosen), subject.size
    names = {"directional"} if {"forward_sensitivity", "double_sum"} & set(left_out) else set()
    is_cheap = 2 * length**2 * size**2 * count <= MOST_FLOPS and length * size**2 * count <= MOST_JACOBIAN
    return names | {"double_sum_directional"} if "double_sum" in left_out and is_cheap else names


class _Size(NamedTuple):
    """How large a gradient is. Squares are of parts of its largest entry: none that counts leaves the float range."""

    unit: jax.Array  # its largest entry; 1 where all are zero
    leaves: jax.Array  # what a difference in each leaf is relative to, in units
    finite: jax.Array

    @classmethod
    def of(cls, gradient: Any) -> "_Size":
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(gradient)]))
        unit = jnp.where(largest > 0, largest, 1)
        norms = _norms(gradient, unit)
        scales = jnp.maximum(norms, jnp.asarray(SMALL, norms.dtype) * jnp.sqrt(jnp.sum(norms * norms)))
        return cls(unit, _positive(scales), jnp.isfinite(largest))

    def relative(self, expected, actual):
        """‖actual − expected‖ / max(‖expected‖, SMALL ‖all of expected‖) of every leaf, [leaves]."""
        return _norms(jax.tree.map(jnp.subtract, actual, expected), self.unit) / self.leaves

    def sampled(self, differences):
        """The same from ⟨expected − actual, v⟩ [leaves, directions], v normal: E ⟨d, v⟩² = ‖d‖²."""
        return jnp.sqrt(jnp.mean((differences / self.unit) ** 2, axis=1)) / self.leaves

    def along(self, gradient, directions, lengths):
        """[directions], the norm of the entries that ⟨g, v⟩ adds, v of these lengths."""
        parts = lambda leaf, each: each.reshape(len(each), -1) ** 2 @ (leaf / self.unit).ravel() ** 2
        squares = jax.tree.leaves(jax.tree.map(parts, gradient, directions))
        return self.unit * jnp.sqrt(lengths**2 @ jnp.stack(squares))


def _norms(tree, unit):
    return jnp.stack([jnp.sqrt(jnp.sum((leaf / unit) ** 2)) for leaf in jax.tree.leaves(tree)])


def _usual(params):
    """The root mean square of each leaf, [leaves]; 1 where that is zero."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    sizes = [np.sqrt(np.mean(leaf * leaf)) if leaf.size else 1 for leaf in leaves]
    return np.array([size if size > 0 else 1 for size in sizes], leaves[0].dtype)


def _moved(subject, problem, directions, lengths):
    """C(θ ± e v), [directions, 2, sizes], along random v, each leaf of the given length."""
    params, inputs, targets, initial, _ = problem
    sizes = jnp.asarray(sizes_of(subject.dtype), subject.dtype)
    lengths = jax.tree.unflatten(jax.tree.structure(params), list(lengths))

    def value(at):
        draw, e = at
        moved = jax.tree.map(lambda leaf, drawn, size: leaf + e * size * drawn[draw], params, directions, lengths)
        return sum_losses(subject.model, moved, inputs, targets, initial)[0]

    draws, signed = jnp.meshgrid(jnp.arange(DIRECTIONS), jnp.concatenate((sizes, -sizes)), indexing="ij")
    return jax.lax.map(value, (draws.ravel(), signed.ravel())).reshape(DIRECTIONS, 2, -1)


def _judge(subject, values, slopes, scales):
    """(the worst relative difference between slopes and central differences, whether most of them contradict)."""
    sizes, epsilon = sizes_of(subject.dtype), float(np.finfo(subject.dtype).eps)
    found, wrong = [], 0
    for (ahead, behind), slope, scale in zip(np.asarray(values, float), slopes, scales, strict=True):
        noise = 8 * epsilon * np.sqrt(subject.problem.length) * _largest(ahead, behind)
        difference, error = extrapolate(ahead, behind, sizes, noise)
        size = max(float(scale), abs(difference))
        if size > 0 and error <= COARSE * size:
            off = abs(difference - float(slope))
            found.append(off / size)
            wrong += off > 10 * error + GROSS * size
    return max(found, default=np.nan), wrong > len(found) / 2


def _largest(*values):
    return max((abs(each) for each in np.concatenate(values) if np.isfinite(each)), default=0.0)


def _closed_form(model, params, trajectory, jacobians):
    """How far the derivation's J_t is from automatic differentiation at the worst step, relative to ‖J_t‖; [1]."""
    closed = step_partials(model).jacobian

    def at(step):
        state, x, expected = step
        return _norm(closed(params, state, x) - expected), _norm(expected)

    differences, norms = jax.lax.map(at, (trajectory.previous, trajectory.inputs, jacobians))
    scale = jnp.maximum(norms, jnp.asarray(SMALL, norms.dtype) * jnp.max(norms))
    return jnp.max(differences / _positive(scale), keepdims=True)


def _positive(scale):
    return jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)


def _norm(array):
    """‖array‖, no square leaving the float range."""
    largest = jnp.max(jnp.abs(array), initial=0)
    return largest * jnp.linalg.norm((array / jnp.where(largest > 0, largest, 1)).ravel())
