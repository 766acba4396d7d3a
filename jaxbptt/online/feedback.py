"""e-prop: eligibility traces, and learning signals through a feedback matrix in place of the readout's transpose."""

import functools
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt._jaxprs.dependence import leaves_read
from jaxbptt.models.model import read
from jaxbptt.online import sparse
from jaxbptt.online.method import Method
from jaxbptt.online.patterns import Constant
from jaxbptt.online.rule import Rule, make_rule

Feedback: TypeAlias = Literal["symmetric", "random", "adaptive"]


class Fed(NamedTuple):
    """Eligibility traces and the matrix that brings errors back."""

    trace: jax.Array  # [G, K, C]
    feedback: jax.Array  # [N, O] B, of one sequence


class Plan(NamedTuple):
    own: sparse.Plan
    listens: tuple[bool, ...]  # of each entry of one sequence's state: whether the readout reads it
    state: Constant  # [sequences, N]: where the flattened state has them; one row without a batch
    output: Constant  # [sequences, O]: where the flattened output has them
    rate: float
    weight_decay: float


def eprop(
    feedback: Feedback = "symmetric",
    *,
    leak: float | None = None,
    rate: float | None = None,
    weight_decay: float = 0.0,
) -> Rule:
    """g_t = e_tᵀ ℓ_t + (∂⁺o_t/∂⁺θ)ᵀ ∂L_t/∂o_t,  e_t = K_t e_{t−1} + ∂⁺h_t/∂⁺θ,  ℓ_t = B ∂L_t/∂o_t: e-prop.

    K_t is what of J_t stays within a unit, past the recurrent weights, as in `rflo`. The learning signal ℓ_t is

        symmetric   (∂⁺o_t/∂⁺h_t)ᵀ ∂L_t/∂o_t, the exact ∂L_t/∂h_t: the rule is `rflo`
        random      B ∂L_t/∂o_t, B [N, O] fixed, ± 1/√N with random signs
        adaptive    the same, and B ← (1 − c) B − η h_t (∂L_t/∂o_t)ᵀ after each step

    An adaptive B moves as the readout W [O, N] does under SGD with rate η and weight decay c, transposed: Bᵀ − W then
    shrinks by 1 − c a step, and the rule becomes the symmetric one. B is zero for parts of the state that the readout
    does not read, such as the cell state of an LSTM. The readout's own gradient is exact for each of them. The
    sequences of a batched model share B, whose step is then the sum of theirs.

    State: e as in `rflo`, G·K·C numbers; random and adaptive also B [N, O], and a key at init. Cost: (2K + 3) GKC
    flops per step and N² for K as `rflo`, and 2NO for B, 6NO if adaptive. Works where `rflo` does.

    Args:
      feedback: "symmetric", "random" or "adaptive".
      leak: as in `rflo`.
      rate: η ≥ 0, for "adaptive" alone: that of the readout.
      weight_decay: c, 0 … 1, for "adaptive" alone.

    Returns:
      Rule. Biased. `init` raises ValueError as that of `rflo`, and for a readout that reads h_{t−1} unless symmetric.

    Raises:
      TypeError, ValueError: another feedback; a rate missing or given where none is used; numbers not as stated.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, models, online
      >>> model = models.sequence_model(cells.lstm(num_inputs=2, num_hidden=4), num_outputs=1)
      >>> params, rule = model.init(jax.random.key(0)), online.eprop("adaptive", rate=0.1)
      >>> state = rule.init(model, params, key=jax.random.key(1))
      >>> jnp.abs(state.sensitivity.feedback[:, 0]).tolist()  # the cell's part, then the hidden part
      [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5]

    Reference: Bellec et al. (2020), Nature Communications 11:3625; Kolen & Pollack (1994), ICNN, for "adaptive".
    """
    _validation.require_choice("feedback", feedback, get_args(Feedback))
    if (rate is None) == (feedback == "adaptive"):
        raise ValueError(f"rate: got {rate}, expected a number for 'adaptive' feedback and none for the others")
    _validation.require_number("weight_decay", weight_decay)
    if rate is not None:
        _validation.require_number("rate", rate)
    if weight_decay and feedback != "adaptive":
        raise ValueError(f"weight_decay: got {weight_decay}, expected none but for 'adaptive' feedback")
    if rate is not None and not rate >= 0:
        raise ValueError(f"rate: got {rate}, expected at least 0")
    if not 0 <= weight_decay <= 1:
        raise ValueError(f"weight_decay: got {weight_decay}, expected a number between 0 and 1")
    traces = sparse.plan_of_traces(leak, "eprop")
    if feedback == "symmetric":
        return make_rule(sparse.METHOD, traces)
    return make_rule(METHOD, functools.partial(_plan, traces, float(rate or 0), float(weight_decay)))


def _plan(traces, rate, weight_decay, model, params, x, constant_start):
    if model.reads == "state, x, previous":
        raise ValueError("eprop: got a readout that reads h_{t−1}, expected one of h_t, or 'symmetric' feedback")
    own = traces(model, params, x, constant_start)
    state = jax.eval_shape(model.initial_state, params)
    answer = lambda state, params, x: read(model, params, state, x)
    read_leaves = leaves_read(answer, state, params, x)
    count = model.batch or 1
    sizes = [leaf.size // count for leaf in jax.tree.leaves(state)]
    listens = [flag for flag, size in zip(read_leaves, sizes, strict=True) for _ in range(size)]
    outputs: Any = jax.eval_shape(answer, state, params, x)
    return Plan(own, tuple(listens), _places(state, count), _places(outputs, count), rate, weight_decay)


def _places(tree, count):
    """[count, …] the places, in a flattened pytree, of each of so many side by side."""
    sizes = [leaf.size for leaf in jax.tree.leaves(tree)]
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return Constant(np.concatenate([part.reshape(count, -1) for part in parts], axis=1))


def _mask(plan, dtype):
    return jnp.asarray(plan.listens, dtype)[:, None]


def _start(plan, initial_state, params, signs):
    trace = sparse.METHOD.start(plan.own, initial_state, params, None)
    scale = sum(plan.listens) ** -0.5 if any(plan.listens) else 1.0
    matrix = signs.reshape(len(plan.listens), -1) * jnp.asarray(scale, signs.dtype)
    return Fed(trace, _mask(plan, signs.dtype) * matrix)


def _advance(plan, model, params, state, x, fed, signs):
    new, trace = sparse.METHOD.advance(plan.own, model, params, state, x, fed.trace, signs)
    return new, fed._replace(trace=trace)


def _feed(plan, fed, state, error):
    errors = error[plan.output.array]
    signal = jnp.zeros_like(state).at[plan.state.array].set(errors @ fed.feedback.T)
    if not (plan.rate or plan.weight_decay):
        return signal, fed
    listened = _mask(plan, state.dtype) * (plan.rate * state[plan.state.array].T)
    return signal, fed._replace(feedback=(1 - plan.weight_decay) * fed.feedback - listened @ errors)


def _contract(plan, params, fed, local):
    return sparse.METHOD.contract(plan.own, params, fed.trace, local)


def _flops(plan):
    count, outputs = plan.output.array.shape
    entries, learns = len(plan.listens) * outputs, bool(plan.rate or plan.weight_decay)
    return sparse.METHOD.flops(plan.own) + 2 * count * entries + learns * (2 * count + 2) * entries


METHOD = Method(
    _start,
    _advance,
    _contract,
    _flops,
    num_start=lambda plan: len(plan.listens) * plan.output.array.shape[1],
    feed=_feed,
)
