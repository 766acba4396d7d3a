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
    """A recurrence as pure functions. It is static: close over it, or mark it static under `jit`.

    Attributes:
      init: (key) -> params, from a typed `jax.random.key`; the built-in cells draw JAX's default float.
      initial_state: (params) -> h_0, a pytree of float arrays; N is its flattened size.
      step: (params, h_{t−1}, x_t) -> h_t, of the structure, shapes and dtypes of h_{t−1}.
      derivation: the direct partials of step, derived by hand; None: not known.
      num_inputs: M, where inputs are one array [T, M]; None: any pytree with leading T.
      output: (params, h_t, x_t) -> y_t; None: the hidden part of h_t.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, jacobians, trajectories
      >>> init, step = lambda key: jnp.asarray(0.5), lambda a, h, x: a * h + x
      >>> cell = cells.Cell(init=init, initial_state=jnp.zeros_like, step=step)
      >>> trajectory = trajectories.unroll(cell, jnp.asarray(0.5), jnp.ones(3))
      >>> jacobians.step_jacobians(cell, jnp.asarray(0.5), trajectory).tolist()  # J_t = a
      [[[0.5]], [[0.5]], [[0.5]]]
    """

    init: Init
    initial_state: InitialState
    step: Step
    derivation: Derivation | None = None
    num_inputs: int | None = None
    output: CellOutput | None = None


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
      TypeError, ValueError: an argument that must be a function is not one; a num_inputs that is no int ≥ 0.
      ValueError: `init` of the result is called and none was given.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, trajectories
      >>> cell = cells.from_step(lambda a, h, x: a * h + x, jnp.zeros_like)
      >>> trajectories.unroll(cell, jnp.asarray(0.5), jnp.ones(3)).states.tolist()
      [1.0, 1.5, 1.75]
    """
    init = _validation.no_init if init is None else init
    for name, function in (("step", step), ("initial_state", initial_state), ("init", init)):
        if not callable(function):
            raise TypeError(f"{name}: got {type(function).__name__}, expected a function")
    if num_inputs is not None:
        _validation.require_size("num_inputs", num_inputs, least=0)
    return Cell(init, initial_state, step, num_inputs=num_inputs)
