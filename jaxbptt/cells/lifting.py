"""The derivation of a larger step: on params that contain the cell's params, or on B states side by side."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt.cells.derivation import Derivation
from jaxbptt.cells.factored import FactoredPullback, factored_pullback, map_outer
from jaxbptt.types import Params


def on_larger_params(
    derivation: Derivation | None, select: Callable[[Params], Params], embed: Callable[[Params, Params], Params]
) -> Derivation | None:
    """The partials of step(select(params), state, x).

    Args:
      derivation: of `step`; None stays None.
      select: (larger params) -> the cell's params.
      embed: (larger params, cotangent of the cell's params) -> cotangent of the larger params, zero elsewhere.

    Returns:
      Derivation of the same kind (plain, factored, with parts).
    """
    if derivation is None:
        return None

    def selected(function):
        return lambda params, *rest: function(select(params), *rest)

    def embedded(function):
        return lambda params, *rest: embed(params, function(select(params), *rest))

    factored, parts = factored_pullback(derivation), derivation.parts
    if factored is None:

        def pullback(params, state, x, cotangent):
            cell, state, x = derivation.pullback(select(params), state, x, cotangent)
            return embed(params, cell), state, x

        return Derivation(selected(derivation.state_jacobian), pullback)
    lifted = factored._replace(
        drive=selected(factored.drive),
        advance=selected(factored.advance),
        state=selected(factored.state),
        params=embedded(factored.params),
        input=selected(factored.input),
    )
    parts = None if parts is None else parts._replace(form=selected(parts.form))
    return Derivation(selected(derivation.state_jacobian), lifted, parts)


def side_by_side(derivation: Derivation | None) -> Derivation | None:
    """The partials of B states at once; cotangents of params are summed over B, those of matrices kept as vectors.

    Args:
      derivation: of one sequence's step; None stays None.

    Returns:
      Derivation, without parts, of the step mapped over a leading axis of state and x with shared params.
    """
    if derivation is None:
        return None

    def each(function):
        return lambda params, *rest: jax.vmap(lambda *rest: function(params, *rest))(*rest)

    def state_jacobian(params, state, x):
        blocks = each(derivation.state_jacobian)(params, state, x)
        flat, unravel = ravel_pytree(state)
        places = jax.vmap(lambda one: ravel_pytree(one)[0])(unravel(jnp.arange(flat.size, dtype=flat.dtype)))
        places, dense = places.astype(int), jnp.zeros((flat.size, flat.size), blocks.dtype)
        return dense.at[places[:, :, None], places[:, None, :]].set(blocks)

    factored = factored_pullback(derivation)
    if factored is None:

        def pullback(params, state, x, cotangent):
            pulled = jax.vmap(derivation.pullback, in_axes=(None, 0, 0, 0))(params, state, x, cotangent)
            return jax.tree.map(_total, pulled[0]), *pulled[1:]

        return Derivation(state_jacobian, pullback)

    def pull_params(params, state, x, delta):
        return map_outer(lambda outer: outer, each(factored.params)(params, state, x, delta), plain=_total)

    return Derivation(
        state_jacobian,
        FactoredPullback(
            drive=each(factored.drive),
            advance=each(factored.advance),
            expand=jax.vmap(factored.expand),
            delta=jax.vmap(factored.delta),
            state=each(factored.state),
            params=pull_params,
            input=each(factored.input),
        ),
    )


def _total(leaf: Any) -> jax.Array:
    return jnp.sum(leaf, axis=0)
