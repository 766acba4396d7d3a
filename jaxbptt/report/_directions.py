"""dC/dθ along random directions v of each leaf: two routes that would take long for all of θ."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt.gradients.adjoint import add_initial
from jaxbptt.gradients.exact import scan_terms, sum_losses
from jaxbptt.gradients.forward import ForwardPass, Problem
from jaxbptt.models.model import Model
from jaxbptt.partials import jvp
from jaxbptt.types import Params

DIRECTIONS = 3  # of each leaf


def draw_directions(params: Params) -> Params:
    """Standard normal, leaves [DIRECTIONS, ...]: drawn on the host, where nothing is compiled for each shape."""
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.standard_normal((DIRECTIONS, *leaf.shape)).astype(leaf.dtype), params)


def push_forward(model: Model, problem: Problem, directions: Params) -> Float[Array, "leaves directions"]:
    """dC/dθ v by forward mode through the whole computation."""
    params, inputs, targets, initial, _ = problem
    loss = lambda params: sum_losses(model, params, inputs, targets, initial)[0]
    return _of_each(directions, lambda tangent: jvp(loss, params, tangent)[1])


def sum_pairs(
    model: Model,
    problem: Problem,
    run: ForwardPass,
    jacobians: Float[Array, "time state state"],
    directions: Params,
) -> Float[Array, "leaves directions"]:
    """Σ_t Σ_{k≤t} (∂⁺h_k/∂⁺θ v)ᵀ (dh_t/dh_k)ᵀ ∂C/∂h_t|o_t, each (t, k) formed before it is added, and what is not in
    that table: the readout's direct part and the terms of h_0.
    """
    params, (trajectory, _, local, direct, early) = problem.params, run

    def push_steps(tangent):
        step = lambda state, x: jvp(lambda params: model.step(params, state, x), params, tangent)[1]
        pushed = jax.vmap(step)(trajectory.previous, trajectory.inputs)
        return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(pushed)], axis=1)

    def add_terms(total, _, pushed, cotangents):
        return total + jnp.sum(jnp.tensordot(cotangents, pushed, (1, 2)), axis=0), None

    pushed = jnp.moveaxis(_of_each(directions, push_steps), 2, 0)  # [T, leaves, DIRECTIONS, N]
    none = jnp.zeros(pushed.shape[1:3], pushed.dtype)
    total, _, carried = scan_terms(add_terms, none, trajectory._replace(inputs=pushed), jacobians, local, early)
    if problem.initial is None:
        unravel = ravel_pytree(trajectory.initial)[1]
        direct = add_initial(model, params, direct, unravel(jnp.sum(carried, axis=0)))
    return total + along(direct, directions)


def along(gradient: Params, directions: Params) -> Float[Array, "leaves directions"]:
    """⟨g, v⟩ of each leaf."""
    products = jax.tree.map(lambda leaf, drawn: drawn.reshape(DIRECTIONS, -1) @ leaf.ravel(), gradient, directions)
    return jnp.stack(jax.tree.leaves(products))


def _of_each(directions, push):
    """`push` of every direction, zero in all leaves but one, one after another; [leaves, DIRECTIONS, ...]."""
    leaves, structure = jax.tree.flatten(directions)

    def at(place):
        chosen, draw = place
        tangent = [jnp.where(chosen == i, leaf[draw], 0) for i, leaf in enumerate(leaves)]
        return push(jax.tree.unflatten(structure, tangent))

    places = jnp.meshgrid(jnp.arange(len(leaves)), jnp.arange(DIRECTIONS), indexing="ij")
    found = jax.lax.map(at, tuple(place.ravel() for place in places))
    return found.reshape(len(leaves), DIRECTIONS, *found.shape[1:])
