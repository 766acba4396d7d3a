"""How a rule carries Â_t ≈ dh_t/dθ: what it knows before the first step, what it keeps, and what it draws."""

from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

from jaxbptt.models.model import Model
from jaxbptt.types import InitialState, Input, Params, State

Plan: TypeAlias = Any  # hashable, in the method's own form
Sensitivity: TypeAlias = Any  # Â_t, in the method's own form
Signs: TypeAlias = jax.Array | None  # [signs] ±1, for a method that draws them


class MakePlan(Protocol):
    def __call__(self, model: Model, params: Params, x: Input, constant_start: bool, /) -> Plan:
        """All that is known before the first step, hashable."""
        ...


class Start(Protocol):
    def __call__(self, plan: Plan, initial_state: InitialState, params: Params, signs: Signs, /) -> Sensitivity:
        """Â_0."""
        ...


class Advance(Protocol):
    def __call__(
        self,
        plan: Plan,
        model: Model,
        params: Params,
        state: State,
        x: Input,
        sensitivity: Sensitivity,
        signs: Signs,
        /,
    ) -> tuple[State, Sensitivity]:
        """(h_t, Â_t)."""
        ...


class Contract(Protocol):
    def __call__(self, plan: Plan, params: Params, sensitivity: Sensitivity, local: jax.Array, /) -> Params:
        """Âᵀ ∂L/∂h, shaped like params."""
        ...


class Count(Protocol):
    def __call__(self, plan: Plan, /) -> int:
        """Flops of a step, or the random signs it draws."""
        ...


class Feed(Protocol):
    def __call__(
        self, plan: Plan, sensitivity: Sensitivity, state: jax.Array, error: jax.Array, /
    ) -> tuple[jax.Array, Sensitivity]:
        """(what stands for ∂L_t/∂h_t, Â_t with what was learned), from h_t [N] and ∂L_t/∂o_t [O]."""
        ...


def no_signs(plan: Plan, /) -> int:
    """A rule that draws nothing."""
    return 0


class Method(NamedTuple):
    """How a rule carries Â_t ≈ dh_t/dθ; with `feed`, also by what it replaces ∂L_t/∂h_t."""

    start: Start
    advance: Advance
    contract: Contract
    flops: Count
    num_signs: Count = no_signs
    num_start: Count | None = None  # random signs that `start` draws, if not as many as a step
    feed: Feed | None = None
