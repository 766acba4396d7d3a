"""f, g and L together: a recurrence with a readout and a loss at every step."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.cells.cell import Cell, Init, InitialState, Step
from jaxbptt.cells.derivation import Derivation, FactoredPullback
from jaxbptt.cells.lstm import LSTMState


class ReadoutFunction(Protocol):
    def __call__(self, params: Any, state: Any) -> Any:
        """o_t = g(h_t, θ)."""


class Loss(Protocol):
    def __call__(self, output: Any, target: Any) -> jax.Array:
        """L_t, a scalar."""


class Model(NamedTuple):
    """h_t = f(h_{t−1}, x_t, θ), o_t = g(h_t, θ), L_t = L(o_t, y_t), C = Σ_t L_t or 1/T Σ_t L_t. Static, like a Cell.

    A parameter may be used by `step` and `readout` both.
    """

    init: Init  # (key) -> params
    initial_state: InitialState  # (params) -> h_0
    step: Step  # (params, h_{t-1}, x_t) -> h_t
    readout: ReadoutFunction  # (params, h_t) -> o_t
    loss: Loss  # (o_t, y_t) -> scalar
    reduction: str = "sum"  # "sum" | "mean" over the T steps
    derivation: Derivation | None = None  # of step, on the model's params
    num_inputs: int | None = None  # M, when known


class Readout(NamedTuple):
    w_yh: jax.Array  # [O, H]
    b_y: jax.Array  # [O]


class SequenceParams(NamedTuple):
    cell: Any
    readout: Readout


def squared_error(output: jax.Array, target: jax.Array) -> jax.Array:
    """½ ‖o − y‖².

    Args:
      output: o, any shape.
      target: y, of the same shape and dtype.

    Returns:
      Scalar of the dtype of output.

    Raises:
      TypeError, ValueError: shapes or dtypes differ (nothing is broadcast).
    """
    checks.require_same("target", target, output)
    return jnp.sum((output - target) ** 2) / 2


def softmax_cross_entropy(output: jax.Array, target: jax.Array) -> jax.Array:
    """−log softmax(o)[y] = logsumexp(o) − o_y, in nats.

    Args:
      output: o [O], logits.
      target: y, integer scalar in 0 … O−1; outside of it loss and gradient are NaN.

    Returns:
      Scalar of the dtype of output.

    Raises:
      TypeError, ValueError: a target that is no integer scalar, an output that is no vector.
    """
    if not jnp.issubdtype(jnp.result_type(target), jnp.integer):
        raise TypeError(f"target: got {jnp.result_type(target)}, expected an integer class")
    if jnp.shape(target) or jnp.ndim(output) != 1:
        got = f"target {list(jnp.shape(target))}, output {list(jnp.shape(output))}"
        raise ValueError(f"target: got shapes {got}, expected a scalar and a vector")
    valid = (target >= 0) & (target < output.shape[0])
    loss = jax.nn.logsumexp(output) - output[jnp.where(valid, target, 0)]
    return loss * jnp.where(valid, 1, jnp.nan).astype(output.dtype)


def sequence_model(cell: Cell, num_outputs: int, *, loss: Loss = squared_error, reduction: str = "sum") -> Model:
    """A cell with the readout o_t = W_yh h_t + b_y at every step.

    Args:
      cell: the recurrence; an LSTM is read from its hidden part, any other state flattened.
      num_outputs: O ≥ 1.
      loss: (output [O], target) -> scalar.
      reduction: "sum" or "mean" over the T steps.

    Returns:
      Model on `SequenceParams(cell, Readout(w_yh [O, H] ~ N(0, 1/H), b_y [O] = 0))`, with the cell's derivation lifted.

    Raises:
      TypeError, ValueError: `num_outputs` or `reduction` not as stated.
    """
    checks.require_size("num_outputs", num_outputs)
    checks.require_choice("reduction", reduction, ("sum", "mean"))

    def init(key):
        checks.require_key(key)
        cell_key, readout_key = jax.random.split(key)
        params = cell.init(cell_key)
        hidden = jax.eval_shape(lambda p: _hidden(cell.initial_state(p)), params)
        w_yh = jax.random.normal(readout_key, (num_outputs, hidden.size), hidden.dtype)
        readout = Readout(w_yh * jnp.asarray(hidden.size**-0.5, hidden.dtype), jnp.zeros(num_outputs, hidden.dtype))
        return SequenceParams(params, readout)

    return Model(
        init=init,
        initial_state=lambda params: cell.initial_state(params.cell),
        step=lambda params, state, x: cell.step(params.cell, state, x),
        readout=lambda params, state: params.readout.w_yh @ _hidden(state) + params.readout.b_y,
        loss=loss,
        reduction=reduction,
        derivation=None if cell.derivation is None else _lift(cell.derivation),
        num_inputs=cell.num_inputs,
    )


def step_losses(model: Model, params: Any, states: Any, targets: Any) -> jax.Array:
    """L_1 … L_T, [T], before the reduction."""
    return jax.vmap(lambda state, target: model.loss(model.readout(params, state), target))(states, targets)


def reduction_weight(model: Model, length: int, dtype: Any) -> jax.Array:
    """∂C/∂L_t: 1 for the sum, 1/T for the mean."""
    checks.require_choice("reduction", model.reduction, ("sum", "mean"))
    return jnp.asarray(1 if model.reduction == "sum" else 1 / length, dtype)


def _hidden(state):
    return state.hidden if isinstance(state, LSTMState) else ravel_pytree(state)[0]


def _lift(derivation: Derivation) -> Derivation:
    """The same partials on SequenceParams: the readout has no part in the step."""

    def with_readout(params, cell_cotangent):
        return SequenceParams(cell_cotangent, jax.tree.map(jnp.zeros_like, params.readout))

    def pullback(params, state, x, cotangent):
        cell, state, x = derivation.pullback(params.cell, state, x, cotangent)
        return with_readout(params, cell), state, x

    def state_jacobian(params, state, x):
        return derivation.state_jacobian(params.cell, state, x)

    factored = derivation.pullback
    if not isinstance(factored, FactoredPullback):
        return Derivation(state_jacobian, pullback)
    return Derivation(
        state_jacobian,
        FactoredPullback(
            factors=lambda params, state, x: factored.factors(params.cell, state, x),
            state=lambda params, factors, cotangent: factored.state(params.cell, factors, cotangent),
            params=lambda params, state, x, factors, cotangent: with_readout(
                params, factored.params(params.cell, state, x, factors, cotangent)
            ),
            input=lambda params, factors, cotangent: factored.input(params.cell, factors, cotangent),
        ),
    )
