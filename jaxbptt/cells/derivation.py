"""Hand-derived direct partials of one step, and the factored form that lets a whole sequence share the work."""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp


class StateJacobian(Protocol):
    def __call__(self, params: Any, state: Any, x: Any) -> jax.Array:
        """∂⁺h_t/∂⁺h_{t−1} at one step, [N, N] on the flattened state: row = output, column = input."""


class Pullback(Protocol):
    def __call__(self, params: Any, state: Any, x: Any, cotangent: Any) -> tuple[Any, Any, Any]:
        """(∂⁺h_t/∂⁺·)ᵀ cotangent for params, previous state and x, each shaped like its argument."""


class JacobianParts(NamedTuple):
    """J_t as diagonals and blocks that multiply a matrix without being put together."""

    form: Any  # (params, factors) -> parts; factors as of `FactoredPullback`
    dense: Any  # (parts) -> J [N, N]
    left: Any  # (parts, matrix [N, K]) -> J matrix
    right: Any  # (parts, matrix [K, N]) -> matrix J


class Derivation(NamedTuple):
    """The direct partials of a cell's `step`, derived by hand.

    Both functions take the arguments of `step`: `state` is h_{t−1}, `cotangent` is shaped like h_t.
    """

    state_jacobian: StateJacobian
    pullback: Pullback
    parts: JacobianParts | None = None  # with a FactoredPullback, whose factors they are formed from


class Outer(NamedTuple):
    """The matrix Σ left rightᵀ over all axes but the last, kept as its vectors: a weight's cotangent at one step.

    One vector each (rank one) for one sequence; [B, ...] for B sequences side by side.
    """

    left: jax.Array  # [..., rows]
    right: jax.Array  # [..., columns]

    def matrix(self) -> jax.Array:
        """[rows, columns], as one product."""
        flat = lambda side: side.reshape(math.prod(side.shape[:-1]), side.shape[-1])  # noqa: E731
        # The barrier has the transpose made first: over many steps that is up to 1.6 times faster than a product that
        # contracts both leading axes.
        return jax.lax.optimization_barrier(flat(self.left).T) @ flat(self.right)


class FactoredPullback(NamedTuple):
    """A step and its pullback in parts, so that a sequence can share the work.

    `drive` reads no state, and `params` no adjoint but through δ: over a sequence each is one matrix product. `advance`
    is what is left of the step, and keeps what `expand` needs to form the factors, entry by entry, all that multiplies
    a cotangent. A reverse scan is left with `delta` and `state`. Call it like any other pullback for one step.
    """

    drive: Any  # (params, x) -> drive
    advance: Any  # (params, state, drive) -> (new state, kept)
    expand: Any  # (state, new state, kept) -> factors
    delta: Any  # (factors, cotangent) -> δ, the cotangent of the pre-activations
    state: Any  # (params, factors, cotangent, δ) -> cotangent of the previous state
    params: Any  # (params, state, x, δ) -> cotangent of params, weight matrices as Outer
    input: Any  # (params, δ) -> cotangent of x

    def factors(self, params: Any, state: Any, x: Any) -> Any:
        """What multiplies a cotangent at this step."""
        new, kept = self.advance(params, state, self.drive(params, x))
        return self.expand(state, new, kept)

    def pull_state(self, params: Any, factors: Any, cotangent: Any) -> Any:
        """J_tᵀ cotangent."""
        return self.state(params, factors, cotangent, self.delta(factors, cotangent))

    def __call__(self, params: Any, state: Any, x: Any, cotangent: Any) -> tuple[Any, Any, Any]:
        factors = self.factors(params, state, x)
        delta = self.delta(factors, cotangent)
        return (
            map_outer(Outer.matrix, self.params(params, state, x, delta)),
            self.state(params, factors, cotangent, delta),
            self.input(params, delta),
        )


def sum_over_steps(cotangents: Any) -> Any:
    """Σ_t of parameter cotangents with leading time axis: a rank-one leaf becomes one matrix product over all steps."""
    return map_outer(Outer.matrix, cotangents, plain=lambda leaf: jnp.sum(leaf, axis=0))


def norms(cotangents: Any) -> Any:
    """Frobenius norm of each leaf for each entry of the leading axis: leaves [T]; ‖left rightᵀ‖ = ‖left‖ ‖right‖."""

    def norm(leaf):
        return jnp.sqrt(jnp.sum(leaf * leaf, axis=tuple(range(1, leaf.ndim))))

    def norm_of_sum(outer):
        """‖Σ_b l_b r_bᵀ‖² = Σ_bc (l_b·l_c)(r_b·r_c)."""
        if outer.left.ndim == 2:
            return norm(outer.left) * norm(outer.right)
        left, right = (leaf.reshape(len(leaf), -1, leaf.shape[-1]) for leaf in outer)
        square = jnp.sum((left @ left.swapaxes(1, 2)) * (right @ right.swapaxes(1, 2)), axis=(1, 2))
        return jnp.sqrt(jnp.maximum(square, 0))

    return map_outer(norm_of_sum, cotangents, plain=norm)


def map_outer(f: Any, tree: Any, plain: Any = lambda leaf: leaf) -> Any:
    """`f` of every Outer, `plain` of every other leaf."""
    is_outer = lambda leaf: isinstance(leaf, Outer)  # noqa: E731
    return jax.tree.map(lambda leaf: f(leaf) if is_outer(leaf) else plain(leaf), tree, is_leaf=is_outer)
