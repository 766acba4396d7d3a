"""The direct partials of one step, derived by hand: what a cell can say about its own derivative."""

from typing import Any, NamedTuple, Protocol

import jax

from jaxbptt.types import Input, Params, State


class StateJacobian(Protocol):
    def __call__(self, params: Params, state: State, x: Input, /) -> jax.Array:
        """∂⁺h_t/∂⁺h_{t−1} at one step, [N, N] on the flattened state: row = output, column = input."""
        ...


class Pullback(Protocol):
    def __call__(self, params: Params, state: State, x: Input, cotangent: State, /) -> tuple[Params, State, Input]:
        """(∂⁺h_t/∂⁺·)ᵀ cotangent for params, previous state and x, each shaped like its argument."""
        ...


class FormParts(Protocol):
    def __call__(self, params: Params, factors: Any, /) -> Any:
        """The diagonals and blocks of J_t, a pytree, from the factors of a `FactoredPullback` at one step."""
        ...


class Assemble(Protocol):
    def __call__(self, parts: Any, /) -> jax.Array:
        """J_t [N, N]."""
        ...


class Multiply(Protocol):
    def __call__(self, parts: Any, matrix: jax.Array, /) -> jax.Array:
        """J_t · matrix [N, K] (`left`), or matrix [K, N] · J_t (`right`)."""
        ...


class JacobianParts(NamedTuple):
    """J_t as diagonals and blocks, which multiply a matrix without being assembled."""

    form: FormParts
    dense: Assemble
    left: Multiply
    right: Multiply


class Derivation(NamedTuple):
    """The direct partials of a cell's `step`, derived by hand.

    Both functions take the arguments of `step`: `state` is h_{t−1}, `cotangent` is shaped like h_t. A pullback that is
    a `FactoredPullback` lets a whole sequence share the work.
    """

    state_jacobian: StateJacobian
    pullback: Pullback
    parts: JacobianParts | None = None  # only with a FactoredPullback: they are formed from its factors
