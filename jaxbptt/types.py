"""Types that several modules share.

Dimensions: T steps, N state entries (flattened), M inputs, O outputs, B batch; time is axis 0. Shapes are written in
jaxtyping's notation, with the names `time` T, `state` N, `batch` B, `keys` K, `records` R. A pytree is `Any` to a type
checker: the alias says which pytree is meant.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Int

ArrayLike: TypeAlias = jax.Array | np.ndarray

Params: TypeAlias = Any  # θ, float arrays of one dtype
State: TypeAlias = Any  # h_t, float arrays; N entries when flattened
States: TypeAlias = Any  # h_1 … h_T, leaves [T, ...]
Input: TypeAlias = Any  # x_t
Inputs: TypeAlias = Any  # x_1 … x_T, leaves [T, ...]
Output: TypeAlias = Any  # o_t
Target: TypeAlias = Any  # y_t
Targets: TypeAlias = Any  # y_1 … y_T, leaves [T, ...]

Key: TypeAlias = jax.Array  # one typed key, from `jax.random.key`
Scalar: TypeAlias = Float[Array, ""]
Integer: TypeAlias = Int[Array, ""]
LossAndGrads: TypeAlias = tuple[Scalar, Params]  # (C, dC/dθ shaped like params)

Reduction: TypeAlias = Literal["sum", "mean"]  # of the losses over the T steps
Reads: TypeAlias = Literal["state", "state, x", "state, x, previous"]  # what a readout takes besides params
AdjointMethod: TypeAlias = Literal["auto", "sequential", "parallel"]  # how λ_t is carried back in time
ClipKind: TypeAlias = Literal["norm", "value"]  # of one state's cotangent as a whole, or entry by entry
ClipPlace: TypeAlias = Literal["carried", "whole"]  # what is clipped: J_{t+1}ᵀ λ_{t+1}, or λ_t with the loss's own part
ProductMethod: TypeAlias = Literal["auto", "sequential", "parallel"]  # how dh_t/dh_k is factored


class Init(Protocol):
    def __call__(self, key: Key, /) -> Params:
        """Draw params (a pytree of float arrays of one dtype) from a typed `jax.random.key`."""
        ...


class InitialState(Protocol):
    def __call__(self, params: Params, /) -> State:
        """h_0, a pytree of float arrays. It may depend on params; its gradient is then part of dC/dθ."""
        ...


class Step(Protocol):
    def __call__(self, params: Params, state: State, x: Input, /) -> State:
        """h_t from h_{t−1} and x_t, with the structure, shapes and dtypes of `state`."""
        ...


class Recurrence(Protocol):
    """What a Cell and a Model share: h_t = step(params, h_{t−1}, x_t).

    Attributes:
      init: (key) -> params, or None.
      initial_state: (params) -> h_0.
      step: (params, h_{t−1}, x_t) -> h_t.
      derivation: its direct partials by hand, or None.
      num_inputs: M, or None where inputs are any pytree.

    Example:
      >>> import jax
      >>> from jaxbptt import cells
      >>> cell = cells.gru(num_inputs=2, num_hidden=3)
      >>> cell.num_inputs, cell.initial_state(cell.init(jax.random.key(0))).shape
      (2, (3,))
    """

    @property
    def init(self) -> Init | None: ...
    @property
    def initial_state(self) -> InitialState: ...
    @property
    def step(self) -> Step: ...
    @property
    def derivation(self) -> Any: ...
    @property
    def num_inputs(self) -> int | None: ...


class Steps(Protocol):
    """The state before each of T steps and the input of each: a Trajectory, or an object like it."""

    @property
    def previous(self) -> States:
        """h_0 … h_{T−1}, leaves [T, ...]."""
        ...

    @property
    def inputs(self) -> Inputs:
        """x_1 … x_T, leaves [T, ...]."""
        ...


class Unrolled(Steps, Protocol):
    """What `trajectories.unroll` returns, by any method."""

    @property
    def initial(self) -> State:
        """h_0."""
        ...

    @property
    def states(self) -> States:
        """h_1 … h_T, leaves [T, ...]."""
        ...


class Optimizer(Protocol):
    """An optax GradientTransformation, or an object like it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> optimizer, w = optax.sgd(0.5), jnp.array(1.0)
      >>> updates, state = optimizer.update(jnp.array(2.0), optimizer.init(w), w)  # the gradient, the state, w
      >>> float(w + updates)
      0.0
    """

    @property
    def init(self) -> Callable[[Any], Any]:
        """(variables) -> the optimizer's state."""
        ...

    @property
    def update(self) -> Callable[..., Any]:
        """(gradient, the optimizer's state, variables) -> (updates, the optimizer's new state)."""
        ...


class Estimator(Protocol):
    """An estimate of dC/dθ: a route, a truncation or `online.run` with its own options bound.

    Example:
      >>> import functools
      >>> from jaxbptt import online, truncation
      >>> short, forward = functools.partial(truncation.lag, num_lags=3), functools.partial(online.run, online.rtrl())
    """

    def __call__(
        self, model: Any, params: Params, inputs: Inputs, targets: Targets, /, *, initial: State | None
    ) -> LossAndGrads:
        """(C, an estimate of dC/dθ shaped like params)."""
        ...
