"""The interface: a recurrence f with a readout g and a loss L at every step."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.cells.derivation import Derivation
from jaxbptt.types import (
    Init,
    InitialState,
    Input,
    Inputs,
    Output,
    Params,
    Reads,
    Reduction,
    Scalar,
    State,
    States,
    Step,
    Target,
    Targets,
)

READS: tuple[Reads, ...] = get_args(Reads)


class ReadoutFunction(Protocol):
    """o_t = g(θ, h_t), g(θ, h_t, x_t) or g(θ, h_t, x_t, h_{t−1}): the output of one step.

    Args:
      params: θ.
      state: h_t.
      *rest: x_t, or x_t and h_{t−1}, if its positional arguments without defaults are three or four.

    Returns:
      o_t, any pytree.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> step = lambda a, h, x: a * h + x
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h, x: h - x, models.squared_error)
      >>> model.reads
      'state, x'
    """

    def __call__(self, params: Params, state: State, /, *rest: Any) -> Output: ...


class Loss(Protocol):
    """L_t = L(o_t, y_t): `squared_error`, `softmax_cross_entropy`, or any such function of one step.

    Args:
      output: o_t, as the readout gives it.
      target: y_t, the targets of one step.

    Returns:
      L_t, a real scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, models
      >>> absolute_error = lambda output, target: jnp.sum(jnp.abs(output - target))
      >>> model = models.sequence_model(cells.gru(2, 3), num_outputs=2, loss=absolute_error)
      >>> float(model.loss(jnp.array([3.0, 4.0]), jnp.array([1.0, 5.0])))
      3.0
    """

    def __call__(self, output: Output, target: Target, /) -> Scalar: ...


class Model(NamedTuple):
    """h_t = f(h_{t−1}, x_t, θ), o_t = g(h_t, θ), L_t = L(o_t, y_t), C = Σ_t L_t or 1/T Σ_t L_t. Static, like a Cell.

    `step` and `readout` may share parameters. An output that reads h_{t−1} gives λ_{t−1} a term of its own; J_t is of
    the state alone.

    Attributes:
      init: (key) -> params; None: the structure of params is not checked.
      initial_state: (params) -> h_0, a pytree of float arrays; N is its flattened size.
      step: (params, h_{t−1}, x_t) -> h_t.
      readout: (params, h_t) -> o_t; also x_t, or x_t and h_{t−1}, as `reads` says.
      loss: (o_t, y_t) -> a real scalar.
      reduction: "sum" or "mean" of the losses over the T steps.
      derivation: the direct partials of step, on the model's params; None: not known.
      num_inputs: M, where inputs are one array [T, M]; None: any pytree with leading T.
      batch: B, where the state is B states side by side (`batched`).
      reads: what the readout takes besides params: "state", "state, x" or "state, x, previous".
      normalise: (targets, dtype) -> targets whose weights add up to one (`weighted`); None: the mean is over T.
      penalty: (params) -> a scalar that is added to C once (`penalised`).
      applied: what it was made by, in order: "resetting", "weighted", …
      single: of a batch, the model of one sequence.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, models
      >>> model = models.sequence_model(cells.gru(2, 3), num_outputs=1)
      >>> params = model.init(jax.random.key(0))
      >>> state = model.step(params, model.initial_state(params), jnp.ones(2))
      >>> output = model.readout(params, state)
      >>> float(model.loss(output, output)), model.reduction
      (0.0, 'sum')
    """

    init: Init | None
    initial_state: InitialState
    step: Step
    readout: ReadoutFunction
    loss: Loss
    reduction: Reduction = "sum"
    derivation: Derivation | None = None
    num_inputs: int | None = None
    batch: int | None = None
    reads: Reads = "state"
    normalise: Callable[[Targets, Any], Targets] | None = None
    penalty: Callable[[Params], Scalar] | None = None
    applied: tuple[str, ...] = ()
    single: Any = None


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
      readout: (params, h_t) -> o_t, any pytree; it may take x_t as its third argument and h_{t−1} as its fourth: its
        positional arguments without defaults say which.
      loss: (o_t, y_t) -> a scalar.
      init: (key) -> params, if the model can draw its params.
      reduction: "sum" or "mean" over the T steps.
      num_inputs: M, if inputs are one array [T, M]; None: any pytree with leading T.

    Returns:
      Model without a derivation.

    Raises:
      TypeError, ValueError: an argument that must be a function is not one; a readout of another number of arguments;
        reduction or num_inputs not as stated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> step = lambda a, h, x: a * h + x
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h: h, models.squared_error)
      >>> loss, grad = gradients.bptt(model, jnp.asarray(0.5), jnp.ones(3), jnp.zeros(3))  # h = 1, 1.5, 1.75
      >>> float(loss), float(grad)  # Σ ½ h_t², Σ h_t dh_t/da
      (3.15625, 5.0)
    """
    functions = {"step": step, "initial_state": initial_state, "readout": readout, "loss": loss}
    for name, function in (functions if init is None else {**functions, "init": init}).items():
        if not callable(function):
            raise TypeError(f"{name}: got {type(function).__name__}, expected a function")
    _validation.require_choice("reduction", reduction, ("sum", "mean"))
    if num_inputs is not None:
        _validation.require_size("num_inputs", num_inputs, least=0)
    reads = _reads_of(readout)
    return Model(init, initial_state, step, readout, loss, reduction, num_inputs=num_inputs, reads=reads)


def _reads_of(readout):
    try:
        parameters = inspect.signature(readout).parameters.values()
    except (TypeError, ValueError):  # written in C
        return "state"
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return "state"
    count = sum(p.default is p.empty for p in positional)
    if not 2 <= count <= 4:
        way = "(params, state), (params, state, x) or (params, state, x, previous)"
        raise TypeError(f"readout: got a function of {count} arguments, expected {way}")
    return READS[count - 2]


def read(model: Model, params: Params, state: State, x: Input = None, previous: State | None = None) -> Output:
    """o_t = g(θ, h_t), with x_t and h_{t−1} where the readout takes them.

    Args:
      model: its readout, and what it reads.
      params: θ.
      state: h_t.
      x: x_t.
      previous: h_{t−1}.

    Returns:
      o_t, any pytree, as the readout gives it.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models
      >>> step = lambda a, h, x: a * h + x
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h, x: h - x, models.squared_error)
      >>> models.read(model, jnp.asarray(0.5), jnp.asarray(3.0), jnp.asarray(1.0)).item()
      2.0
    """
    rest = (x, previous)[: READS.index(model.reads)]
    return model.readout(params, state, *rest)


def step_losses(
    model: Model,
    params: Params,
    states: States,
    targets: Targets,
    *,
    inputs: Inputs = None,
    previous: States | None = None,
) -> Float[Array, " time"]:
    """L_t = L(g(h_t, θ), y_t), before the reduction.

    Args:
      model: its readout and loss.
      params: θ.
      states: h_1 … h_T, leading T.
      targets: y_1 … y_T, leading T.
      inputs: x_1 … x_T, for a readout that reads x_t.
      previous: h_0 … h_{T−1}, for one that reads h_{t−1}.

    Returns:
      [T], one loss a step, of the dtype that the loss gives.

    Raises:
      TypeError: inputs or previous missing though the readout reads them.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, trajectories
      >>> step = lambda a, h, x: a * h + x
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h: h, models.squared_error)
      >>> states = trajectories.unroll(model, jnp.asarray(0.5), jnp.ones(3)).states  # 1, 1.5, 1.75
      >>> models.step_losses(model, jnp.asarray(0.5), states, jnp.zeros(3)).tolist()
      [0.5, 1.125, 1.53125]
    """
    for name, given in (("inputs", inputs), ("previous", previous))[: READS.index(model.reads)]:
        if given is None:
            raise TypeError(f"{name}: got None, expected them: the readout reads {model.reads!r}")

    def loss(state, target, x, before):
        return model.loss(read(model, params, state, x, before), target)

    return jax.vmap(loss)(states, targets, inputs, previous)


def reduction_weight(model: Model, length: int, dtype: jnp.dtype) -> Scalar:
    """∂C/∂L_t: 1 for the sum, 1/T for the mean; 1 too where the targets carry normalised weights."""
    _validation.require_choice("reduction", model.reduction, ("sum", "mean"))
    whole = model.reduction == "sum" or model.normalise is not None
    return jnp.asarray(1 if whole else 1 / length, dtype)
