"""Is dC/dθ right? Reverse mode through the whole computation, beside routes that share none of its algorithm."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from jaxbptt import _validation
from jaxbptt.gradients.backpropagation import bptt
from jaxbptt.gradients.exact import autodiff, double_sum, forward_sensitivity, sum_losses
from jaxbptt.partials import step_partials
from jaxbptt.report._differences import extrapolate, sizes_of
from jaxbptt.report._directions import along, draw_directions, push_forward, sum_pairs
from jaxbptt.report._problem import Subject
from jaxbptt.trajectories import unroll

ROUTES: dict[str, Any] = {"bptt": bptt, "forward_sensitivity": forward_sensitivity, "double_sum": double_sum}
# Along random directions of each leaf, in place of the routes that are left out.
SAMPLED: dict[str, Any] = {"directional": push_forward, "double_sum_directional": sum_pairs}
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
    left_out = _costly(subject)
    routes = {name: route for name, route in ROUTES.items() if name not in left_out}
    sampled = {name: SAMPLED[name] for name in _replacements(subject, left_out)}
    has_closed_form = step_partials(subject.model).source != "automatic"
    compares_jacobians = has_closed_form and "state_jacobian" not in left_out

    def at(problem, directions):
        params, *data, initial, _ = problem
        loss, expected = autodiff(subject.model, params, *data, initial=initial)
        errors = {
            name: _relative(expected, route(subject.model, params, *data, initial=initial)[1])
            for name, route in routes.items()
        }
        for name, route in sampled.items():
            errors[name] = _of_directions(expected, route(subject.model, problem, directions), directions)
        if compares_jacobians:
            errors["state_jacobian"] = _closed_form(subject, problem)
        finite = jnp.all(jnp.isfinite(ravel_pytree(expected)[0]))
        return loss, errors, finite, _moved(subject, problem, expected, directions)

    stages = tuple(routes), tuple(sampled), compares_jacobians
    directions = draw_directions(subject.problem.params)
    loss, errors, finite, moved = subject.measure(("proof", stages), at, directions)
    for index, good in zip(subject.chosen, finite & np.isfinite(loss), strict=True):
        if not good:  # once more outside a compiled program, which says where and why
            params, *data, initial, _ = subject.sequence(subject.problem, int(index))
            autodiff(subject.model, params, *data, initial=initial)
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
    names = ["directional"] if {"forward_sensitivity", "double_sum"} & set(left_out) else []
    is_cheap = 2 * length**2 * size**2 * count <= MOST_FLOPS and length * size**2 * count <= MOST_JACOBIAN
    return [*names, "double_sum_directional"] if "double_sum" in left_out and is_cheap else names


def _relative(expected, actual):
    """‖actual − expected‖ / max(‖expected‖, SMALL ‖all of expected‖) of every leaf, [leaves]."""
    pairs = list(zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True))
    if not pairs:
        return jnp.zeros(0)
    return jnp.stack([_norm(actual - expected) for expected, actual in pairs]) / _scales(expected)


def _of_directions(expected, found, directions):
    """As `_relative` of what was found along normal directions v: E (⟨g, v⟩ − dC/dθ v)² = ‖g − dC/dθ‖²."""
    return jnp.sqrt(jnp.mean((found - along(expected, directions)) ** 2, axis=1)) / _scales(expected)


def _moved(subject, problem, expected, directions):
    """(C(θ ± e v) [directions, 2, sizes], ⟨dC/dθ, v⟩ and its size [directions]) along random v as large as θ."""
    params, *data, initial, _ = problem
    usual = lambda leaf: jnp.sqrt(jnp.mean(leaf * leaf)) if leaf.size else jnp.ones((), leaf.dtype)
    usual = jax.tree.map(lambda leaf: jnp.where(usual(leaf) > 0, usual(leaf), 1), params)
    sizes = jnp.asarray(sizes_of(subject.dtype), subject.dtype)

    def follow(drawn):
        drawn = jax.tree.map(jnp.multiply, drawn, usual)

        def value(e):
            moved = jax.tree.map(lambda leaf, each: leaf + e * each, params, drawn)
            return sum_losses(subject.model, moved, *data, initial)[0]

        products = jax.tree.leaves(jax.tree.map(jnp.multiply, expected, drawn))
        slope = functools.reduce(jnp.add, [jnp.sum(each) for each in products])
        values = jax.lax.map(value, jnp.concatenate((sizes, -sizes))).reshape(2, -1)
        return values, slope, _norm(jnp.stack([_norm(each) for each in products]))

    return jax.lax.map(follow, directions)


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


def _closed_form(subject, problem):
    """How far the derivation's J_t is from automatic differentiation at the worst step, relative to ‖J_t‖; [1]."""
    params, inputs, _, initial, _ = problem
    trajectory = unroll(subject.model, params, inputs, initial=initial)
    closed, automatic = (step_partials(subject.model, source=source).jacobian for source in ("best", "automatic"))

    def at(step):
        expected = automatic(params, *step)
        return _norm(closed(params, *step) - expected), _norm(expected)

    differences, norms = jax.lax.map(at, (trajectory.previous, trajectory.inputs))
    scale = jnp.maximum(norms, jnp.asarray(SMALL, norms.dtype) * jnp.max(norms))
    return jnp.max(differences / _positive(scale), keepdims=True)


def _scales(expected):
    norms = jnp.stack([_norm(leaf) for leaf in jax.tree.leaves(expected)])
    return _positive(jnp.maximum(norms, jnp.asarray(SMALL, norms.dtype) * _norm(norms)))


def _positive(scale):
    return jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)


def _norm(array):
    """‖array‖, no square leaving the float range."""
    largest = jnp.max(jnp.abs(array), initial=0)
    return largest * jnp.linalg.norm((array / jnp.where(largest > 0, largest, 1)).ravel())
