"""The direct partials of one step, derived by hand: what a cell can say about its own derivative."""

from typing import NamedTuple, Protocol, TypeAlias

import jax

from jaxbptt.cells.structure import BlockParts, BorderedParts, JacobianParts
from jaxbptt.types import Input, Params, State

Parts: TypeAlias = JacobianParts | BlockParts | BorderedParts


class StateJacobian(Protocol):
    def __call__(self, params: Params, state: State, x: Input, /) -> jax.Array:
        """∂⁺h_t/∂⁺h_{t−1} at one step, [N, N] on the flattened state: row = output, column = input."""
        ...


class Pullback(Protocol):
    def __call__(self, params: Params, state: State, x: Input, cotangent: State, /) -> tuple[Params, State, Input]:
        """(∂⁺h_t/∂⁺·)ᵀ cotangent for params, previous state and x, each shaped like its argument."""
        ...


class Derivation(NamedTuple):
    """The direct partials of a cell's `step`, derived by hand.

    Both functions take the arguments of `step`: `state` is h_{t−1}, `cotangent` is shaped like h_t. A pullback that is
    a `FactoredPullback` lets a whole sequence share the work.

    Attributes:
      state_jacobian: (params, h_{t−1}, x_t) -> ∂⁺h_t/∂⁺h_{t−1} [N, N] on the flattened state, row = output, column =
        input.
      pullback: (params, h_{t−1}, x_t, λ_t) -> (∂⁺h_t/∂⁺·)ᵀ λ_t for params, h_{t−1} and x_t, each shaped like its
        argument.
      parts: what J_t consists of; only with a `FactoredPullback`: they are formed from its factors.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, partials
      >>> cell = cells.from_step(lambda a, h, x: a * h + x, jnp.zeros_like)
      >>> pullback = lambda a, h, x, cotangent: (h * cotangent, a * cotangent, cotangent)  # for a, h_{t−1}, x_t
      >>> by_hand = cells.Derivation(lambda a, h, x: a[None, None], pullback)
      >>> cell = cell._replace(derivation=by_hand)  # derivations.check(cell, by_hand, key=...): is it right?
      >>> partials.step_partials(cell).source
      'plain'
    """

    state_jacobian: StateJacobian
    pullback: Pullback
    parts: Parts | None = None
