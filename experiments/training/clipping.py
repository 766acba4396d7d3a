"""Gradients clipped on their way: by the norm of the whole, or the state's cotangent at every step back in time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from experiments import descent
from jaxbptt import gradients
from jaxbptt.models import Model, batched

BOUND = 0.3  # of ‖λ_t‖ of one sequence when clipped in time: about what the loss of one asked step sends in


def clip_in_time(model: Model, bound: float) -> Model:
    """The same outputs; on its way back λ_t = dC/dh_t, the loss's own part in it, becomes λ_t min(1, bound/‖λ_t‖) at
    every step. No longer a gradient."""

    @jax.custom_vjp
    def pass_on(state):
        return state

    def backward(_, cotangent):
        return (shorten(cotangent, bound),)

    pass_on.defvjp(lambda state: (state, None), backward)
    step = lambda params, state, x: pass_on(model.step(params, state, x))
    return model._replace(step=step, derivation=None)


def norm_of(tree: Any) -> jax.Array:
    """Of all leaves as one vector."""
    return jnp.linalg.norm(ravel_pytree(tree)[0])


def shorten(tree: Any, longest: float) -> Any:
    """The tree times min(1, longest/its norm)."""
    norm = norm_of(tree)
    return jax.tree.map(lambda leaf: leaf * (longest / jnp.maximum(norm, longest)), tree)


def make_gradients(model: Model, batch: int) -> dict[str, Callable]:
    """By kind of clipping: (params, inputs [B, T, …], targets) -> the mean gradient of the batch, before Adam."""

    def mean(route, model):
        def gradient(params, inputs, targets):
            steps_first = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), (inputs, targets))
            return jax.tree.map(lambda leaf: leaf / batch, route(batched(model, batch), params, *steps_first)[1])

        return gradient

    exact = mean(gradients.bptt, model)

    by_norm = lambda *call: shorten(exact(*call), descent.CLIP)
    in_time = mean(gradients.autodiff, clip_in_time(model, BOUND))
    return {"no clipping": exact, "by the global norm": by_norm, "in time": in_time}


def measure_bias(model: Model, params: Any, data: Any) -> dict[str, jax.Array]:
    """What each kind of clipping leaves, [kinds], over K batches (leaves of data lead with [K, B]).

    clipped_norm   ‖·‖ of the first batch's clipped gradient
    cosine         of the mean clipped gradient to the mean exact one: below 1, the mean update points elsewhere
    shrinkage      its norm over that of the mean exact one
    """
    routes = make_gradients(model, len(jax.tree.leaves(data)[0][0]))
    flat = [
        jax.lax.map(lambda one, route=route: ravel_pytree(route(params, *one))[0], data) for route in routes.values()
    ]
    means, norm = [jnp.mean(each, axis=0) for each in flat], jnp.linalg.norm
    return {
        "clipped_norm": jnp.stack([norm(each[0]) for each in flat]),
        "cosine": jnp.stack([jnp.vdot(mean, means[0]) / (norm(mean) * norm(means[0])) for mean in means]),
        "shrinkage": jnp.stack([norm(mean) / norm(means[0]) for mean in means]),
    }


def make_optimiser(decay: float) -> optax.GradientTransformation:
    """AdamW but for its rate: the decay is added to Adam's direction (Loshchilov & Hutter 2019)."""
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(decay))
