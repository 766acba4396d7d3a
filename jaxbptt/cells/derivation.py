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
    """

    state_jacobian: StateJacobian
    pullback: Pullback
    parts: Parts | None = None  # only with a FactoredPullback: they are formed from its factors
