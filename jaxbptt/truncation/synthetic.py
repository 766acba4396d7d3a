"""Synthetic gradients (DNI): windows whose missing adjoint is read out of the state at their end, as it was learned."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.gradients.adjoint import add_initial
from jaxbptt.gradients.diagnosis import require_finite_gradient
from jaxbptt.gradients.forward import ForwardPass, read_out, require_finite_losses, run_forward, take_problem
from jaxbptt.models.model import Model
from jaxbptt.trajectories import flatten_steps, run_steps
from jaxbptt.truncation.replay import assemble, replay_adjoint, window_blocks
from jaxbptt.types import ArrayLike, Inputs, LossAndGrads, Optimizer, Params, Scalar, State, Targets

Features: TypeAlias = Callable[[jax.Array], jax.Array]  # φ: h_t flattened [N] -> [F]


def bootstrapped(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    window: int,
    weights: Float[ArrayLike, "state features"],
    features: Features | None = None,
) -> LossAndGrads:
    """λ_t = ∂C/∂h_t|o_t + μ_t with μ_t = J_{t+1}ᵀ λ_{t+1} within windows of K steps, μ̂_t = D φ(h_t) at their ends.

    `windowed` with the adjoint that comes from later windows not dropped but predicted; at step T there is none. Exact
    where D φ(h) is the true μ at the ends of all windows but the last, and for K ≥ T; biased otherwise. D = 0 is
    `windowed`. `synthetic_gradients` learns D.

    One forward scan of T steps, one reverse scan of K steps over all windows at once, one gradient of params over
    all T, as `windowed`, and 2N·F flops at the end of each but the last. Memory T·N beyond the gradient.

    Args:
      model: f, g, L and the reduction.
      params: θ.
      inputs: x_1 … x_T.
      targets: y_1 … y_T.
      initial: h_0 as a constant; None: `model.initial_state(params)`, whose gradient goes with step 1.
      window: K ≥ 1, static.
      weights: D [N, F].
      features: φ, from the flattened state [N] to [F]; None: its entries and a one, F = N + 1.

    Returns:
      (C scalar, the gradient shaped like params).

    Raises:
      TypeError, ValueError: as `gradients.autodiff`.
      TypeError: a window that is no int; weights or features of another dtype than the state's.
      ValueError: a window below 1; weights that are not [N, F]; features that are no vector.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4)  # dC/dw = 114
      >>> weights = jnp.array([[20.0, 0.0]])  # μ_2 = 2 (h_3 + 2 h_4) = 20 h_2, whatever h_2
      >>> float(truncation.bootstrapped(model, w, inputs, targets, window=2, weights=weights)[1])
      114.0
      >>> float(truncation.bootstrapped(model, w, inputs, targets, window=2, weights=0 * weights)[1])  # `windowed`
      74.0

    Reference: Jaderberg et al. (2017), arXiv:1608.05343.
    """
    _validation.require_size("window", window)
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, length = problem
    weights = _validation.as_arrays("weights", weights)
    forward = run_forward(model, params, inputs, targets, initial)
    ends = jnp.arange(window, length, window) - 1
    states = jax.tree.map(lambda leaf: leaf[ends], forward.trajectory.states)
    flat, unravel = flatten_steps(states), ravel_pytree(forward.trajectory.initial)[1]
    phi = _take_features(features)
    _validation.require_array("weights", weights, (flat.shape[1], _count_features(phi, flat.shape[1], flat.dtype)))
    if weights.dtype != flat.dtype:
        raise TypeError(f"weights: got {weights.dtype}, expected {flat.dtype} like the state")
    matrix = jnp.asarray(weights)
    predicted = jax.vmap(lambda h: unravel(matrix @ phi(h)))(flat)
    local = jax.tree.map(lambda leaf, later: leaf.at[ends].add(later), forward.local, predicted)
    recurrent, carried = _within_windows(model, params, forward._replace(local=local), window)
    first = jax.tree.map(lambda leaf: leaf[0], carried)
    grads = add_initial(model, params, recurrent, first) if initial is None else recurrent
    require_finite_gradient(model, problem, grads)
    # A traced D that is not finite does not reach the readout's leaves by itself.
    finite = jnp.all(jnp.isfinite(matrix))
    return forward.loss, jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.nan), grads)


class SyntheticInit(Protocol):
    def __call__(self, model: Model, params: Params, *, initial: State | None = None) -> "SyntheticState":
        """The state at h_0, with D = 0."""
        ...


class SyntheticUpdate(Protocol):
    def __call__(
        self, params: Params, state: "SyntheticState", inputs: Inputs, targets: Targets, *, last: bool = False
    ) -> tuple["SyntheticState", Scalar, Params]:
        """(state, Σ L_t of the window, its gradient shaped like params); last: no step follows."""
        ...


class SyntheticRule(NamedTuple):
    """Synthetic gradients as they are learned, window by window. Static; its state goes through scan, jit and vmap.

    Attributes:
      init: (model, params, *, initial) -> SyntheticState at h_0.
      update: (params, state, x_1 … x_K, y_1 … y_K, *, last) -> (state, the window's loss, its gradient).

    Example:
      >>> import optax
      >>> from jaxbptt import truncation
      >>> rule = truncation.synthetic_gradients(optax.sgd(0.1))
      >>> rule._fields
      ('init', 'update')
    """

    init: SyntheticInit
    update: SyntheticUpdate


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["model_state", "weights", "memory", "at_start"],
    meta_fields=["model"],
)
@dataclasses.dataclass(frozen=True)
class SyntheticState:
    """What one window passes to the next: arrays, and as a static field the model.

    Attributes:
      model_state: h at the end of the last window, pytree.
      weights: D [N, F].
      memory: of the optimizer of D.
      at_start: bool, whether model_state is an h_0 that depends on params.
      model: static.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxbptt import models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> state = truncation.synthetic_gradients(optax.sgd(0.1)).init(model, jnp.array(2.0))
      >>> state.weights.tolist()  # D = 0: the first window is truncated
      [[0.0, 0.0]]
    """

    model_state: State
    weights: Float[Array, "state features"]
    memory: Any
    at_start: jax.Array
    model: Model


def synthetic_gradients(optimizer: Optimizer, *, features: Features | None = None) -> SyntheticRule:
    """D ← D + optimizer's step along −∂/∂D ½‖D φ(h_0) − μ_0‖², where μ_0 comes from the window after h_0.

    Each window of K steps runs forward, takes μ̂_K = D φ(h_K) as the adjoint of all that follows (0 after the last
    step), and goes backward: that gives the gradient of params and μ_0, the target that D learns (bootstrapped, for μ_0
    itself holds μ̂_K). Nothing else passes between windows, so the memory is that of K steps, however long the sequence.
    D is at rest where D φ(h) agrees with itself one window later; where μ is linear in φ(h), that is the true μ.

    Cost per window: bptt of K steps and 5N·F flops, besides the optimizer's. State: N + N·F floats and the optimizer's.

    Args:
      optimizer: of D, an optax transformation (init, update).
      features: φ, from the flattened state [N] to [F]; None: its entries and a one, F = N + 1.

    Returns:
      SyntheticRule. Its losses and gradients add up over the windows to C and the estimate of dC/dθ of the reduction
      "sum".

    Raises:
      TypeError: an optimizer without init and update; features that are no function.
      ValueError: by `init`, reduction "mean" or a penalty; features that are no vector of the state's dtype.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxbptt import models, truncation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(0.5), jnp.ones(2), jnp.zeros(2)  # h goes to 2, μ to (½ + ¼ + …) 2
      >>> rule = truncation.synthetic_gradients(optax.sgd(0.1), features=lambda h: h)
      >>> learn = lambda state, _: (rule.update(w, state, inputs, targets)[0], None)
      >>> state, _ = jax.lax.scan(learn, rule.init(model, w), length=200)
      >>> round(float(state.weights[0, 0]), 3)  # μ = D h
      1.0

    Reference: Jaderberg et al. (2017), arXiv:1608.05343; Czarnecki et al. (2017), arXiv:1703.00522.
    """
    _validation.require_optimizer(optimizer)
    phi = _take_features(features)

    def init(model: Model, params: Params, *, initial: State | None = None) -> SyntheticState:
        """The state at h_0.

        Args:
          model: f, g and L, reduction "sum".
          params: θ, float leaves of one dtype.
          initial: h_0 as a constant; None: `model.initial_state(params)`, whose gradient goes with the first window.

        Returns:
          SyntheticState, a pytree; it carries the model.

        Raises:
          TypeError, ValueError: an argument not as stated.
        """
        _validation.require_functions("model", model, ("initial_state", "step", "readout", "loss"))
        if model.reduction != "sum":
            raise ValueError(f"model.reduction: got {model.reduction!r}, expected 'sum' (a window knows no T)")
        if model.penalty is not None:
            raise ValueError("model.penalty: got a penalty, expected none: each window would add it")
        params, initial = _validation.as_arrays("params", params), _validation.as_arrays("initial", initial)
        dtype = _validation.require_params(params)
        _validation.require_like_init(params, model.init)
        own = _validation.require_initial_state(model.initial_state, params, dtype)
        if initial is not None:
            _validation.require_state("initial", initial, own)
        state = jax.tree.map(jnp.asarray, model.initial_state(params) if initial is None else initial)
        flat = ravel_pytree(state)[0]
        weights = jnp.zeros((flat.size, _count_features(phi, flat.size, flat.dtype)), flat.dtype)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            memory = optimizer.init(weights)
        return SyntheticState(state, weights, memory, jnp.asarray(initial is None), model)

    def update(
        params: Params, state: SyntheticState, inputs: Inputs, targets: Targets, *, last: bool = False
    ) -> tuple[SyntheticState, Scalar, Params]:
        """One window.

        Args:
          params: θ of this window.
          state: from `init` or the last update.
          inputs: x_1 … x_K of the window.
          targets: y_1 … y_K of the window.
          last: static; whether the sequence ends with this window.

        Returns:
          (state, the sum of the window's losses, its gradient shaped like params).

        Raises:
          TypeError, ValueError: an argument of wrong structure, shape or dtype; outside jit, numbers that are not
            finite.
        """
        kind = "a SyntheticState: update(params, state, inputs, targets)"
        _validation.require_type("state", state, SyntheticState, kind)
        _validation.require_choice("last", last, (True, False))
        model = state.model
        problem = take_problem(model, params, inputs, targets, state.model_state)
        params, inputs, targets, initial, length = problem
        trajectory = run_steps(model, params, inputs, initial)
        losses, local, direct, early = read_out(model, params, trajectory, targets, length)
        require_finite_losses(model, params, trajectory, targets, losses)
        end = jax.tree.map(lambda leaf: leaf[-1], trajectory.states)
        first, unravel = ravel_pytree(initial)
        if not last:
            predicted = unravel(state.weights @ phi(ravel_pytree(end)[0]))
            local = jax.tree.map(lambda leaf, later: leaf.at[-1].add(later), local, predicted)
        loss = jnp.sum(losses)
        grads, carried = _within_windows(model, params, ForwardPass(trajectory, loss, local, direct, early), length)
        earlier = jax.tree.map(lambda leaf: leaf[0], carried)
        at_start = jax.tree.map(lambda leaf: jnp.where(state.at_start, leaf, jnp.zeros_like(leaf)), earlier)
        grads = add_initial(model, params, grads, at_start)
        require_finite_gradient(model, problem, grads)
        error = state.weights @ phi(first) - ravel_pytree(earlier)[0]
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimizer.update(jnp.outer(error, phi(first)), state.memory, state.weights)
        weights = state.weights + updates.astype(state.weights.dtype)
        new = SyntheticState(end, weights, memory, jnp.zeros_like(state.at_start), model)
        return new, loss, grads

    return SyntheticRule(init, update)


def _within_windows(model, params, forward, window):
    """(the gradient of params with all windows cut apart, μ at the state that each starts from, leading windows)."""
    length = jax.tree.leaves(forward.trajectory.inputs)[0].shape[0]
    blocks = window_blocks(length, window)
    steps, _, local, direct, early = forward
    adjoint, carried = replay_adjoint(model, params, steps, local, early, blocks, min(window, length))
    return assemble(model, params, steps, direct, adjoint, None), carried


def _take_features(features: Features | None) -> Features:
    if features is not None and not callable(features):
        raise TypeError(f"features: got {type(features).__name__}, expected a function or None")
    return features or _entries_and_one


def _count_features(phi: Features, size: int, dtype: Any) -> int:
    """F; raise unless φ takes one flattened state to a vector of its dtype."""
    found: Any = _validation.trace("features", phi, jax.ShapeDtypeStruct((size,), dtype))
    if not isinstance(found, jax.ShapeDtypeStruct) or len(found.shape) != 1:
        got = f"shape {list(found.shape)}" if hasattr(found, "shape") else type(found).__name__
        raise ValueError(f"features: got {got}, expected a vector [F]")
    if found.dtype != dtype:
        raise TypeError(f"features: got {found.dtype}, expected {dtype} like the state")
    return found.shape[0]


def _entries_and_one(h: jax.Array) -> jax.Array:
    return jnp.concatenate((h, jnp.ones_like(h[:1])))
