"""The interface: a recurrence h_t = f(h_{t−1}, x_t, θ) as a NamedTuple of pure functions."""

from typing import Any, NamedTuple, Protocol

import jax

from jaxbptt import checks
from jaxbptt.cells.derivation import Derivation


class Init(Protocol):
    def __call__(self, key: jax.Array) -> Any:
        """Draw params (a pytree of float arrays of one dtype) from a typed `jax.random.key`."""


class InitialState(Protocol):
    def __call__(self, params: Any) -> Any:
        """h_0, a pytree of float arrays; may depend on params, and then has a gradient of its own."""


class Step(Protocol):
    def __call__(self, params: Any, state: Any, x: Any) -> Any:
        """h_t from h_{t−1} and x_t: same structure, shapes and dtypes as `state`."""


class Cell(NamedTuple):
    """A recurrence as pure functions. It is static: close over it, or mark it static under `jit`."""

    init: Init  # (key) -> params
    initial_state: InitialState  # (params) -> h_0; N is its flattened size
    step: Step  # (params, h_{t-1}, x_t) -> h_t
    derivation: Derivation | None = None  # hand-derived direct partials of step, when known
    num_inputs: int | None = None  # M, when known: inputs are then one array [T, M]


def from_step(step: Step, initial_state: InitialState, *, init: Init | None = None, num_inputs: int | None = None):
    """Make a cell of any pure `(params, state, x) -> state`.

    Every function of the toolkit works on it. `gradients.bptt` finds the step's products with weights in its program
    and takes those weights' gradients out of the loop: 0.7 to 1.8 times the speed of automatic differentiation through
    the scan. A derivation, `cell._replace(derivation=...)`, gains 1.3 to 2.7 times over it with a `FactoredPullback`
    (see `cells.elman`), and closed-form Jacobians; one with a plain pullback serves proofs, not speed.

    Args:
      step: h_t = f(θ, h_{t−1}, x_t); keeps structure, shapes and dtypes of the state.
      initial_state: (params) -> h_0, any pytree of float arrays.
      init: (key) -> params, if the cell can draw its own.
      num_inputs: M, if inputs are one array [T, M]; None admits any pytree with leading T.

    Returns:
      Cell without derivation.

    Raises:
      TypeError: an argument that must be a function is not one.
      ValueError: `init` of the result is called and none was given.
    """
    for name, function in (("step", step), ("initial_state", initial_state), ("init", init or no_init)):
        if not callable(function):
            raise TypeError(f"{name}: got {type(function).__name__}, expected a function")
    if num_inputs is not None:
        checks.require_size("num_inputs", num_inputs, least=0)
    return Cell(init or no_init, initial_state, step, num_inputs=num_inputs)


def no_init(key: jax.Array) -> Any:
    """The `init` of a cell that was given none."""
    raise ValueError("init: this cell was made without one; pass init= to from_step, or bring your own params")
