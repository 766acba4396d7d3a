"""The interface: a recurrence h_t = f(h_{t−1}, x_t, θ) as a NamedTuple of pure functions."""

from typing import NamedTuple, Protocol

from jaxbptt import _validation
from jaxbptt.cells.derivation import Derivation
from jaxbptt.types import Init, InitialState, Input, Output, Params, State, Step


class CellOutput(Protocol):
    def __call__(self, params: Params, state: State, x: Input, /) -> Output:
        """y_t, what a readout or the layer above sees of h_t where that depends on x_t too."""
        ...


class Cell(NamedTuple):
    """A recurrence as pure functions. It is static: close over it, or mark it static under `jit`."""

    init: Init  # (key) -> params
    initial_state: InitialState  # (params) -> h_0; N is its flattened size
    step: Step  # (params, h_{t-1}, x_t) -> h_t
    derivation: Derivation | None = None  # hand-derived direct partials of step, when known
    num_inputs: int | None = None  # M, when known: inputs are then one array [T, M]
    output: CellOutput | None = None  # (params, h_t, x_t) -> y_t; None: the hidden part of h_t


def from_step(
    step: Step, initial_state: InitialState, *, init: Init | None = None, num_inputs: int | None = None
) -> Cell:
    """Make a cell from any pure `(params, state, x) -> state`.

    Every function of the toolkit works on it. `gradients.bptt` finds the products with weights in the step's program
    and forms these weights' gradients outside the loop: 0.7 to 1.8 times the speed of automatic differentiation through
    the scan. A derivation with a `FactoredPullback` (see `cells.elman`), set by `cell._replace(derivation=...)`, is 1.3
    to 2.7 times faster than that and gives closed-form Jacobians; one with a plain pullback serves for proofs alone.

    Args:
      step: (params, h_{t−1}, x_t) -> h_t; keeps the structure, shapes and dtypes of the state.
      initial_state: (params) -> h_0, any pytree of float arrays.
      init: (key) -> params, if the cell can draw its params.
      num_inputs: M, if inputs are one array [T, M]; None: any pytree with leading T.

    Returns:
      Cell without a derivation.

    Raises:
      TypeError: an argument that must be a function is not one.
      ValueError: `init` of the result is called and none was given.
    """
    init = _validation.no_init if init is None else init
    for name, function in (("step", step), ("initial_state", initial_state), ("init", init)):
        if not callable(function):
            raise TypeError(f"{name}: got {type(function).__name__}, expected a function")
    if num_inputs is not None:
        _validation.require_size("num_inputs", num_inputs, least=0)
    return Cell(init, initial_state, step, num_inputs=num_inputs)
