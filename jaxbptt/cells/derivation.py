"""Hand-derived direct partials of one step, and the factored form that lets a whole sequence share the work."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp


class StateJacobian(Protocol):
    def __call__(self, params: Any, state: Any, x: Any) -> jax.Array:
        """∂⁺h_t/∂⁺h_{t−1} at one step, [N, N] on the flattened state: row = output, column = input."""


class Pullback(Protocol):
    def __call__(self, params: Any, state: Any, x: Any, cotangent: Any) -> tuple[Any, Any, Any]:
        """(∂⁺h_t/∂⁺·)ᵀ cotangent for params, previous state and x, each shaped like its argument."""


class Derivation(NamedTuple):
    """The direct partials of a cell's `step`, derived by hand.

    Both functions take the arguments of `step`: `state` is h_{t−1}, `cotangent` is shaped like h_t.
    """

    state_jacobian: StateJacobian
    pullback: Pullback


class Outer(NamedTuple):
    """The rank-one matrix left rightᵀ, kept as its two vectors: the cotangent of a weight matrix at one step."""

    left: jax.Array  # [..., rows]
    right: jax.Array  # [..., columns]


class FactoredPullback(NamedTuple):
    """A pullback in two parts: `factors` does all that needs no cotangent, the rest is linear in the cotangent.

    Over a sequence the factors of all steps are one matrix product and the parameter cotangents of all steps
    another, so that a reverse scan is left with `state` alone. Call it like any other pullback for one step.
    """

    factors: Any  # (params, state, x) -> factors
    state: Any  # (params, factors, cotangent) -> cotangent of the previous state
    params: Any  # (params, state, x, factors, cotangent) -> cotangent of params, weight matrices as Outer
    input: Any  # (params, factors, cotangent) -> cotangent of x

    def __call__(self, params: Any, state: Any, x: Any, cotangent: Any) -> tuple[Any, Any, Any]:
        factors = self.factors(params, state, x)
        return (
            _map_outer(lambda o: jnp.outer(o.left, o.right), self.params(params, state, x, factors, cotangent)),
            self.state(params, factors, cotangent),
            self.input(params, factors, cotangent),
        )


def sum_over_steps(cotangents: Any) -> Any:
    """Σ_t of parameter cotangents with leading time axis: a rank-one leaf becomes one matrix product over all steps."""
    return _map_outer(lambda o: o.left.T @ o.right, cotangents, plain=lambda leaf: jnp.sum(leaf, axis=0))


def norms(cotangents: Any) -> Any:
    """Frobenius norm of each leaf for each entry of the leading axis: leaves [T]; ‖left rightᵀ‖ = ‖left‖ ‖right‖."""

    def norm(leaf):
        return jnp.sqrt(jnp.sum(leaf * leaf, axis=tuple(range(1, leaf.ndim))))

    return _map_outer(lambda o: norm(o.left) * norm(o.right), cotangents, plain=norm)


def _map_outer(f, tree, plain=lambda leaf: leaf):
    is_outer = lambda leaf: isinstance(leaf, Outer)  # noqa: E731
    return jax.tree.map(lambda leaf: f(leaf) if is_outer(leaf) else plain(leaf), tree, is_leaf=is_outer)
