"""The interface: a recurrence f with a readout g and a loss L at every step."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.cells.derivation import Derivation
from jaxbptt.types import Init, InitialState, Output, Params, Reduction, Scalar, State, States, Step, Target, Targets


class ReadoutFunction(Protocol):
    def __call__(self, params: Params, state: State, /) -> Output:
        """o_t = g(h_t, θ)."""
        ...


class Loss(Protocol):
    def __call__(self, output: Output, target: Target, /) -> Scalar:
        """L_t, a scalar."""
        ...


class Model(NamedTuple):
    """h_t = f(h_{t−1}, x_t, θ), o_t = g(h_t, θ), L_t = L(o_t, y_t), C = Σ_t L_t or 1/T Σ_t L_t. Static, like a Cell.

    `step` and `readout` may share parameters.
    """

    init: Init | None  # (key) -> params; None: the structure of params is not checked
    initial_state: InitialState  # (params) -> h_0
    step: Step  # (params, h_{t-1}, x_t) -> h_t
    readout: ReadoutFunction  # (params, h_t) -> o_t
    loss: Loss  # (o_t, y_t) -> scalar
    reduction: Reduction = "sum"  # over the T steps
    derivation: Derivation | None = None  # of step, on the model's params
    num_inputs: int | None = None  # M, when known
    batch: int | None = None  # B, when the state is B states side by side (`batched`)


def make_model(
    step: Step,
    initial_state: InitialState,
    readout: ReadoutFunction,
    loss: Loss,
    *,
    init: Init | None = None,
    reduction: Reduction = "sum",
    num_inputs: int | None = None,
) -> Model:
    """Make a model from pure functions: h_t = f(h_{t−1}, x_t, θ), o_t = g(h_t, θ), L_t = L(o_t, y_t).

    Args:
      step: (params, h_{t−1}, x_t) -> h_t; keeps the structure, shapes and dtypes of the state.
      initial_state: (params) -> h_0, any pytree of float arrays of the dtype of params. Where it depends on params, its
        gradient is part of dC/dθ, unless a function is given `initial=`, which is a constant.
      readout: (params, h_t) -> o_t, any pytree.
      loss: (o_t, y_t) -> a scalar.
      init: (key) -> params, if the model can draw its params.
      reduction: "sum" or "mean" over the T steps.
      num_inputs: M, if inputs are one array [T, M]; None: any pytree with leading T.

    Returns:
      Model without a derivation.

    Raises:
      TypeError, ValueError: an argument that must be a function is not one; reduction or num_inputs not as stated.
    """
    functions = {"step": step, "initial_state": initial_state, "readout": readout, "loss": loss}
    for name, function in (functions if init is None else {**functions, "init": init}).items():
        if not callable(function):
            raise TypeError(f"{name}: got {type(function).__name__}, expected a function")
    _validation.require_choice("reduction", reduction, ("sum", "mean"))
    if num_inputs is not None:
        _validation.require_size("num_inputs", num_inputs, least=0)
    return Model(init, initial_state, step, readout, loss, reduction, num_inputs=num_inputs)


def step_losses(model: Model, params: Params, states: States, targets: Targets) -> Float[Array, " time"]:
    """L_t = L(g(h_t, θ), y_t), before the reduction.

    Args:
      model: its readout and loss.
      params: θ.
      states: h_1 … h_T, leading T.
      targets: y_1 … y_T, leading T.

    Returns:
      [T].
    """
    return jax.vmap(lambda state, target: model.loss(model.readout(params, state), target))(states, targets)


def reduction_weight(model: Model, length: int, dtype: jnp.dtype) -> Scalar:
    """∂C/∂L_t: 1 for the sum, 1/T for the mean."""
    _validation.require_choice("reduction", model.reduction, ("sum", "mean"))
    return jnp.asarray(1 if model.reduction == "sum" else 1 / length, dtype)
