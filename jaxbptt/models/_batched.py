"""B sequences of one model side by side."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.cells.lifting import side_by_side
from jaxbptt.models._order import require_order
from jaxbptt.models.model import Model
from jaxbptt.types import Input, Params, State, Step


@dataclasses.dataclass(frozen=True)
class BatchedStep:
    """A step of B sequences side by side, which knows the step of one."""

    one: Step
    size: int  # B

    def __call__(self, params: Params, state: State, x: Input, /) -> State:
        _validation.require_batch("x", x, self.size)
        return jax.vmap(self.one, in_axes=(None, 0, 0))(params, state, x)


def batched(model: Model, size: int) -> Model:
    """B sequences as one model: its state is the B states side by side, and C = Σ_b C_b on shared params.

    Every function of the toolkit takes it as a model. A gradient over the batch forms each weight's gradient once, as
    one matrix product over all steps and sequences, while `jax.vmap` of a route forms one per sequence.

    Args:
      model: a model of one sequence.
      size: B ≥ 1. Inputs and targets then have leading axes [T, B], one state has leading axis [B].

    Returns:
      Model on the same params; every leaf of its state has leading B. The reduction over steps is unchanged; C is a sum
      over sequences (divide by B for their mean). Its state Jacobian is dense, [BN, BN], and block-diagonal.

    Raises:
      TypeError, ValueError: a size that is not an int ≥ 1; a model that is already a batch; when the model is called,
        inputs of another B.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import gradients, models
      >>> step = lambda a, h, x: a * h + x
      >>> model = models.make_model(step, jnp.zeros_like, lambda a, h: h, models.squared_error)
      >>> inputs = jnp.stack((jnp.ones(3), jnp.zeros(3)), axis=1)  # [T, B]: the second adds nothing to C
      >>> loss, grad = gradients.bptt(models.batched(model, 2), jnp.asarray(0.5), inputs, jnp.zeros((3, 2)))
      >>> float(loss), float(grad)
      (3.15625, 5.0)
    """
    _validation.require_size("size", size)
    _validation.require_functions("model", model, ("initial_state", "step", "readout", "loss"))
    if model.batch is not None:
        raise ValueError(f"model: got a batch of {model.batch}, expected a model of one sequence")
    require_order(model, "batched")

    def loss(output, target):
        _validation.require_batch("target", target, size)
        return jnp.sum(jax.vmap(model.loss)(output, target))

    return model._replace(
        initial_state=lambda params: _repeat(model.initial_state(params), size),
        step=BatchedStep(model.step, size),
        readout=lambda params, *seen: jax.vmap(lambda *seen: model.readout(params, *seen))(*seen),
        loss=loss,
        derivation=side_by_side(model.derivation),
        num_inputs=None,
        batch=size,
        applied=(*model.applied, "batched"),
        single=model,
    )


def single_of(model: Model) -> Model | None:
    """The model of one sequence of a batch, with the batch's reduction; None: not known."""
    return None if model.single is None else model.single._replace(reduction=model.reduction)


def _repeat(state, size):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *jnp.shape(leaf))), state)
