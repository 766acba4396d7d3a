"""f, g and L together: a recurrence with a readout and a loss at every step."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.cells.cell import Cell, Init, InitialState, Step
from jaxbptt.cells.derivation import Derivation, FactoredPullback, map_outer
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
    batch: int | None = None  # B, when the state is B states side by side (`batched`)


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


def batched(model: Model, size: int) -> Model:
    """B sequences as one recurrence whose state is their B states side by side: C = Σ_b C_b on shared params.

    Every function of the toolkit takes it as a model. A gradient over the batch forms each weight's gradient once, as
    one matrix product over all steps and sequences, where `jax.vmap` of a route forms one per sequence.

    Args:
      model: of one sequence.
      size: B ≥ 1; inputs, targets and states then have leading [T, B] and [B].

    Returns:
      Model on the same params, every leaf of its state with leading B; `reduction` as before, over steps (C is a sum
      over sequences: divide by B for their mean). Its state Jacobian is the dense [BN, BN] one, block-diagonal.

    Raises:
      TypeError, ValueError: `size` no int ≥ 1; a model that is a batch already; when called: inputs of another B.
    """
    checks.require_size("size", size)
    if model.batch is not None:
        raise ValueError(f"model: got a batch of {model.batch}, expected a model of one sequence")

    def step(params, state, x):
        checks.require_batch("x", x, size)
        return jax.vmap(model.step, in_axes=(None, 0, 0))(params, state, x)

    def loss(output, target):
        checks.require_batch("target", target, size)
        return jnp.sum(jax.vmap(model.loss)(output, target))

    return model._replace(
        initial_state=lambda params: _repeat(model.initial_state(params), size),
        step=step,
        readout=jax.vmap(model.readout, in_axes=(None, 0)),
        loss=loss,
        derivation=None if model.derivation is None else _side_by_side(model.derivation),
        num_inputs=None,
        batch=size,
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

    parts = derivation.parts
    if parts is not None:
        parts = parts._replace(form=lambda params, factors: derivation.parts.form(params.cell, factors))
    factored = derivation.pullback
    if not isinstance(factored, FactoredPullback):
        return Derivation(state_jacobian, pullback)
    return Derivation(
        state_jacobian,
        FactoredPullback(
            drive=lambda params, x: factored.drive(params.cell, x),
            advance=lambda params, state, drive: factored.advance(params.cell, state, drive),
            expand=factored.expand,
            delta=factored.delta,
            state=lambda params, *rest: factored.state(params.cell, *rest),
            params=lambda params, *rest: with_readout(params, factored.params(params.cell, *rest)),
            input=lambda params, delta: factored.input(params.cell, delta),
        ),
        parts,
    )


def _repeat(state, size):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *jnp.shape(leaf))), state)


def _side_by_side(derivation: Derivation) -> Derivation:
    """The same partials for B states at once; cotangents of params are summed, a matrix's kept as its B vectors."""
    total = lambda leaf: jnp.sum(leaf, axis=0)  # noqa: E731

    def each(function):
        return lambda params, *rest: jax.vmap(lambda *rest: function(params, *rest))(*rest)

    def state_jacobian(params, state, x):
        blocks = each(derivation.state_jacobian)(params, state, x)
        flat, unravel = ravel_pytree(state)
        places = jax.vmap(lambda one: ravel_pytree(one)[0])(unravel(jnp.arange(flat.size, dtype=flat.dtype)))
        places, dense = places.astype(int), jnp.zeros((flat.size, flat.size), blocks.dtype)
        return dense.at[places[:, :, None], places[:, None, :]].set(blocks)

    factored = derivation.pullback
    if not isinstance(factored, FactoredPullback):

        def pullback(params, state, x, cotangent):
            pulled = jax.vmap(factored, in_axes=(None, 0, 0, 0))(params, state, x, cotangent)
            return jax.tree.map(total, pulled[0]), *pulled[1:]

        return Derivation(state_jacobian, pullback)

    def pull_params(params, state, x, delta):
        pulled = each(factored.params)(params, state, x, delta)
        return map_outer(lambda outer: outer, pulled, plain=total)

    return Derivation(
        state_jacobian,
        FactoredPullback(
            drive=each(factored.drive),
            advance=each(factored.advance),
            expand=jax.vmap(factored.expand),
            delta=jax.vmap(factored.delta),
            state=each(factored.state),
            params=pull_params,
            input=each(factored.input),
        ),
    )
