"""Persistent evolution strategies window by window: pairs of perturbed runs that go on while the params change."""

import dataclasses
import functools
from typing import NamedTuple, Protocol, TypeAlias, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.gradients.diagnosis import require_finite_result
from jaxbptt.gradients.forward import take_problem
from jaxbptt.models.model import Model, read
from jaxbptt.perturbation.draws import draw_like, take_draws
from jaxbptt.types import Inputs, Key, Params, Scalar, State, States, Targets

Window: TypeAlias = tuple["Particles", Float[Array, " window"], Params]


class StrategiesInit(Protocol):
    def __call__(
        self, model: Model, params: Params, *, key: Key | None = None, initial: State | None = None
    ) -> "Particles":
        """The runs at h_0, nothing perturbed yet."""
        ...


class StrategiesUpdate(Protocol):
    def __call__(
        self,
        params: Params,
        state: "Particles",
        inputs: Inputs,
        targets: Targets,
        *,
        perturbations: Params | None = None,
    ) -> tuple["Particles", Scalar, Params]:
        """(state, the window's loss, its estimate shaped like params)."""
        ...


class StrategiesRule(NamedTuple):
    """Persistent evolution strategies, window by window. Static; its state goes through scan, jit and vmap.

    Attributes:
      init: (model, params, *, key, initial) -> Particles at h_0.
      update: (params, state, x_1 … x_K, y_1 … y_K, *, perturbations) -> (state, the window's loss, its estimate).

    Example:
      >>> from jaxbptt import perturbation
      >>> perturbation.persistent_strategies(scale=0.1)._fields
      ('init', 'update')
    """

    init: StrategiesInit
    update: StrategiesUpdate


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["model_states", "sums", "at_start", "key"],
    meta_fields=["model"],
)
@dataclasses.dataclass(frozen=True)
class Particles:
    """What one window passes to the next: arrays, and as a static field the model.

    Attributes:
      model_states: h of each run at the end of the last window, pytree [m, 2, …], the pair at + σ ε and − σ ε.
      sums: Ξ = ε_1 + … + ε_w of each pair, shaped like params with leading m.
      at_start: bool, whether model_states are an h_0 that the perturbed params replace.
      key: typed key for the following windows; None where perturbations are given.
      model: static.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import models, perturbation
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> rule = perturbation.persistent_strategies(scale=0.1, num_pairs=3)
      >>> state = rule.init(model, jnp.array(2.0), key=jax.random.key(0))
      >>> state.model_states.shape, state.sums.tolist()
      ((3, 2), [0.0, 0.0, 0.0])
    """

    model_states: States
    sums: Params
    at_start: jax.Array
    key: Key | None
    model: Model


def persistent_strategies(*, scale: float, num_pairs: int = 1) -> StrategiesRule:
    """ĝ_w = 1/m Σ_i Ξ_iw (C⁺_iw − C⁻_iw) / 2σ of window w,  Ξ_iw = Ξ_i,w−1 + ε_iw: `evolution_strategies` as it runs.

    The 2m runs and the sums Ξ of their perturbations pass from window to window; params may change in between, as by an
    optimizer's step on ĝ_w. At fixed params Σ_w ĝ_w is the estimate of `evolution_strategies`, unbiased for the
    gradient of the smoothed loss. When params change, the runs hold on to states of earlier ones, as in any online
    rule, and the bias is of the order of that change. For a new sequence call `init` again: Ξ of a run that goes on for
    ever grows as √w, and the variance with w.

    State: m (2N + P) floats and a key. Cost per window: 2m forward passes and 7mP flops.

    Args:
      scale: σ > 0.
      num_pairs: m ≥ 1.

    Returns:
      StrategiesRule. Its losses and estimates add up over the windows to those of the reduction "sum".

    Raises:
      TypeError, ValueError: a scale that is no number above 0; a num_pairs that is no int, or below 1.

    Example:
      >>> import itertools, jax, jax.numpy as jnp
      >>> from jaxbptt import models, perturbation
      >>> model = models.make_model(lambda w, h, x: h + w * x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> w, inputs, targets = jnp.array(2.0), jnp.ones(2), jnp.zeros(2)  # h = 2, 4, 6, 8: dC/dw = 10 + 50
      >>> signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=2)))  # all pairs of windows' perturbations
      >>> rule = perturbation.persistent_strategies(scale=0.5, num_pairs=4)
      >>> state = rule.init(model, w)
      >>> state, loss, first = rule.update(w, state, inputs, targets, perturbations=signs[:, 0])
      >>> state, loss, second = rule.update(w, state, inputs, targets, perturbations=signs[:, 1])
      >>> float(first), float(second)
      (10.0, 50.0)

    Reference: Vicol, Metz & Sohl-Dickstein (2021), arXiv:2112.13835.
    """
    _validation.require_above("scale", scale, 0)
    _validation.require_size("num_pairs", num_pairs)

    def init(model: Model, params: Params, *, key: Key | None = None, initial: State | None = None) -> Particles:
        """The runs at h_0.

        Args:
          model: f, g and L, reduction "sum".
          params: θ, float leaves of one dtype.
          key: typed key that draws all perturbations; None: each update is given its own.
          initial: h_0 as a constant; None: `model.initial_state` of the perturbed params of the first window.

        Returns:
          Particles, a pytree; it carries the model.

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
        if key is not None:
            _validation.require_key(key)
        return begin(model, params, num_pairs, key, initial)

    def update(
        params: Params, state: Particles, inputs: Inputs, targets: Targets, *, perturbations: Params | None = None
    ) -> tuple[Particles, Scalar, Params]:
        """One window.

        Args:
          params: θ of this window.
          state: from `init` or the last update.
          inputs: x_1 … x_K of the window.
          targets: y_1 … y_K of the window.
          perturbations: ε_w, shaped like params with leading m, of unit variance; None: normal, drawn by the key.

        Returns:
          (state, the mean over the runs of Σ L_t of the window, ĝ_w shaped like params).

        Raises:
          TypeError, ValueError: an argument of wrong structure, shape or dtype; outside jit, numbers that are not
            finite.
          TypeError: both or neither of a key in the state and perturbations.
        """
        kind = "the Particles of persistent_strategies: update(params, state, inputs, targets)"
        _validation.require_type("state", state, Particles, kind)
        if (state.key is None) == (perturbations is None):
            got = "neither" if state.key is None else "both"
            raise TypeError(f"state.key, perturbations: got {got}, expected exactly one of them")
        problem = take_problem(state.model, params, inputs, targets, one_of(state.model_states))
        params, inputs, targets, _, _ = problem
        if perturbations is not None:
            perturbations = take_draws("perturbations", perturbations, params, (num_pairs,))
        state, losses, grads = over_window(params, state, inputs, targets, perturbations, scale=scale)
        require_finite_result(state.model, problem, losses, grads)
        return state, jnp.sum(losses), grads

    return StrategiesRule(init, update)


def begin(model: Model, params: Params, num_pairs: int, key: Key | None, initial: State | None) -> Particles:
    """The runs at h_0 and Ξ = 0, of arguments that are checked already."""
    start = jax.tree.map(jnp.asarray, model.initial_state(params) if initial is None else initial)
    sums = jax.tree.map(lambda leaf: jnp.zeros((num_pairs, *leaf.shape), leaf.dtype), params)
    return Particles(_repeat(start, num_pairs), sums, jnp.asarray(initial is None), key, model)


def over_window(
    params: Params,
    state: Particles,
    inputs: Inputs,
    targets: Targets,
    perturbations: Params | None,
    *,
    scale: float,
    persistent: bool = True,
) -> Window:
    """(state, losses [K] as means over the runs, ĝ_w); not persistent: Ξ = ε_w, from the states of a run without noise.

    The arguments are checked already; without perturbations the key draws them.
    """
    model, num_pairs, key = state.model, jax.tree.leaves(state.sums)[0].shape[0], state.key
    if perturbations is None:
        key, draw = jax.random.split(cast(Key, key))
        perturbations = draw_like(draw, params, (num_pairs,), "normal")

    def unroll(params, at):
        """(the last state, the losses)."""

        def body(h, step):
            x, target = step
            new = model.step(params, h, x)
            return new, model.loss(read(model, params, new, x, h), target)

        own = jax.tree.map(jnp.asarray, model.initial_state(params))
        at = jax.tree.map(lambda own, at: jnp.where(state.at_start, own, at), own, at)
        return jax.lax.scan(body, at, (inputs, targets))

    def of_pair(noise, states):
        """One antithetic pair: its states, its losses [2, K]."""

        def one(sign, at):
            moved = jax.tree.map(lambda leaf, noise: leaf + sign.astype(leaf.dtype) * scale * noise, params, noise)
            return unroll(moved, at)

        return jax.vmap(one)(jnp.array([1, -1]), states)

    sums = jax.tree.map(jnp.add, state.sums, perturbations)
    states, losses = jax.vmap(of_pair)(perturbations, state.model_states)
    slopes = jnp.sum(losses[:, 0] - losses[:, 1], axis=1) / (2 * num_pairs * scale)
    grads = jax.tree.map(lambda leaf: jnp.tensordot(slopes.astype(leaf.dtype), leaf, axes=1), sums)
    if not persistent:
        clean, _ = unroll(params, one_of(state.model_states))
        states, sums = _repeat(clean, num_pairs), state.sums
    new = Particles(states, sums, jnp.zeros_like(state.at_start), key, model)
    return new, jnp.mean(losses, axis=(0, 1)), grads


def one_of(states: States) -> State:
    """The state of the first run."""
    return jax.tree.map(lambda leaf: leaf[0, 0], states)


def _repeat(state, num_pairs):
    """The state of each of m pairs, [m, 2, …]."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_pairs, 2, *leaf.shape)), state)
