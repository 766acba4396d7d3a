"""The direct partials of one step h_t = f(h_{t−1}, x_t, θ). Their source is chosen here and nowhere else.

    factored    the derivation's pullback in parts, so that a whole sequence shares the work
    plain       the derivation's pullback and state Jacobian
    automatic   reverse or forward mode of `step`, whichever exists

`step_partials` takes the first of these that exists; the reference routes ask for "automatic". A step that has only a
reverse rule (`jax.custom_vjp`) or only a forward rule (`jax.lax.while_loop`) is differentiated in that mode: a product
with J or Jᵀ then costs N products of the other kind.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt.cells.derivation import Derivation, Parts
from jaxbptt.cells.factored import FactoredPullback, factored_pullback, sum_over_steps
from jaxbptt.types import Input, Params, Recurrence, State, States, Step, Steps

__all__ = ["Partials", "jacobian", "jvp", "step_partials", "vjp"]

Source: TypeAlias = Literal["factored", "plain", "automatic"]
Mode: TypeAlias = Literal["forward", "reverse"]
AT_ONCE = 128  # tangents side by side
MISSING_RULE = (TypeError, ValueError, NotImplementedError)  # what JAX raises where a function lacks a mode

Residuals: TypeAlias = Any  # what `pull_state` needs from one step
Pull: TypeAlias = Callable[[Params, State, Input, State], Any]
SumParams: TypeAlias = Callable[[Params, States, Any, States], Params]


class Partials(NamedTuple):
    """The direct partials of one step, each from the most specific source that exists.

    Attributes:
      source: "factored", "plain" or "automatic".
      value_and_jacobian: (θ, h_{t−1}, x_t) -> (h_t, J_t [N, N]).
      residuals: (θ, h_{t−1}, x_t) -> what `pull_state` needs.
      pull_state: (θ, residuals, λ_t) -> J_tᵀ λ_t.
      pull_params: (θ, h_{t−1}, x_t, λ_t) -> (∂⁺h_t/∂⁺θ)ᵀ λ_t, weight matrices as `Outer` where factored.
      pull_input: (θ, h_{t−1}, x_t, λ_t) -> (∂⁺h_t/∂⁺x_t)ᵀ λ_t for float leaves of x_t; None for each other.
      sum_params: (θ, h_0 … h_{T−1}, x_1 … x_T, λ_1 … λ_T) -> Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t.
      push_state: (θ, h_{t−1}, x_t, tangent) -> (h_t, J_t tangent), always by differentiating `step` itself.
      factored: the derivation's pullback, if it is in parts.
      parts: what J_t consists of, formed from the factors of `factored`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import cells, partials
      >>> cell = cells.from_step(lambda a, h, x: a * h + x, jnp.zeros_like)
      >>> at = jnp.asarray(0.5), jnp.asarray(3.0), jnp.asarray(1.0)  # a, h_{t−1}, x_t
      >>> found = partials.step_partials(cell)
      >>> found.jacobian(*at).tolist(), found.pull_params(*at, jnp.asarray(2.0)).item()  # a; h_{t−1} λ_t
      ([[0.5]], 6.0)
    """

    source: Source
    value_and_jacobian: Callable[[Params, State, Input], tuple[State, jax.Array]]
    residuals: Callable[[Params, State, Input], Residuals]
    pull_state: Callable[[Params, Residuals, State], State]
    pull_params: Pull
    pull_input: Pull
    sum_params: SumParams
    push_state: Callable[[Params, State, Input, State], tuple[State, State]]
    factored: FactoredPullback | None = None
    parts: Parts | None = None

    def jacobian(self, params: Params, state: State, x: Input) -> jax.Array:
        """J_t [N, N]."""
        return self.value_and_jacobian(params, state, x)[1]

    def pull_over(self, params: Params, steps: Steps) -> tuple[Any, Callable[[Any, State], State]]:
        """(the residuals of all steps, (residuals of one step, λ_t) -> J_tᵀ λ_t)."""
        residuals = jax.vmap(self.residuals, in_axes=(None, 0, 0))(params, steps.previous, steps.inputs)
        return residuals, lambda residuals, cotangent: self.pull_state(params, residuals, cotangent)


def step_partials(cell: Recurrence, *, source: Literal["best", "automatic"] = "best") -> Partials:
    """The partials of a cell's or a model's step.

    Args:
      cell: Cell or Model.
      source: "best", or "automatic" to leave out the hand derivation.

    Returns:
      Partials; its `source` says what they are made of.

    Raises:
      ValueError: another source.

    Example:
      >>> from jaxbptt import cells, partials
      >>> cell = cells.gru(num_inputs=2, num_hidden=3)
      >>> partials.step_partials(cell).source, partials.step_partials(cell, source="automatic").source
      ('factored', 'automatic')
    """
    _validation.require_choice("source", source, ("best", "automatic"))
    automatic = _automatic(cell.step)
    derivation: Derivation | None = cell.derivation if source == "best" else None
    if derivation is None:
        return automatic
    plain = _plain(automatic, cell.step, derivation)
    factored = factored_pullback(derivation)
    return plain if factored is None else _factored(plain, factored, derivation.parts)


def _automatic(step: Step) -> Partials:
    def value_and_jacobian(params, state, x):
        flat, unravel = ravel_pytree(state)

        def flat_step(h):
            new = step(params, unravel(h), x)
            return ravel_pytree(new)[0], new

        derivative, new = jacobian(flat_step, flat, has_aux=True)
        return new, derivative

    def pull_state(params, residuals, cotangent):
        state, x = residuals
        return vjp(lambda state: step(params, state, x), state)[1](cotangent)

    def pull_params(params, state, x, cotangent):
        return vjp(lambda params: step(params, state, x), params)[1](cotangent)

    def pull_input(params, state, x, cotangent):
        join = lambda floats: jax.tree.map(lambda old, new: old if new is None else new, x, floats)
        return vjp(lambda floats: step(params, state, join(floats)), _floats(x, x))[1](cotangent)

    def sum_params(params, states, xs, cotangents):
        return vjp(lambda params: jax.vmap(lambda *at: step(params, *at))(states, xs), params)[1](cotangents)

    push_state = lambda params, state, x, tangent: jvp(lambda state: step(params, state, x), state, tangent)

    return Partials(
        source="automatic",
        value_and_jacobian=value_and_jacobian,
        residuals=lambda params, state, x: (state, x),
        pull_state=pull_state,
        pull_params=pull_params,
        pull_input=pull_input,
        sum_params=sum_params,
        push_state=push_state,
    )


def _plain(automatic: Partials, step: Step, derivation: Derivation) -> Partials:
    pull_params = lambda params, state, x, cotangent: derivation.pullback(params, state, x, cotangent)[0]
    pull_input = lambda params, state, x, cotangent: _floats(x, derivation.pullback(params, state, x, cotangent)[2])
    pull_state = lambda params, at, cotangent: derivation.pullback(params, at[0], at[1], cotangent)[1]

    return automatic._replace(
        source="plain",
        value_and_jacobian=lambda *at: (step(*at), derivation.state_jacobian(*at)),
        pull_state=pull_state,
        pull_params=pull_params,
        pull_input=pull_input,
        sum_params=_summed(pull_params),
    )


def _factored(plain: Partials, pullback: FactoredPullback, parts: Parts | None) -> Partials:
    return plain._replace(
        source="factored",
        residuals=pullback.factors,
        pull_state=pullback.pull_state,
        pull_params=pullback.pull_params,
        pull_input=lambda *at: _floats(at[2], pullback.pull_input(*at)),
        sum_params=_summed(pullback.pull_params),
        factored=pullback,
        parts=parts,
    )


def _floats(x, values):
    """`values` where x has a float leaf, None in place of each other one."""
    return jax.tree.map(lambda leaf, value: value if _validation.is_float(leaf) else None, x, values)


def _summed(pull_params: Pull) -> SumParams:
    def sum_params(params, states, xs, cotangents):
        return sum_over_steps(jax.vmap(lambda *at: pull_params(params, *at))(states, xs, cotangents))

    return sum_params


def is_linear(partials: Partials, params: Params, state: State, x: Input) -> bool:
    """Whether JAX sees that J_tᵀ λ is linear in λ: it can transpose it. A pullback that clips λ is not linear."""

    def transposed(params, state, x):
        residuals = partials.residuals(params, state, x)
        return jax.linear_transpose(lambda cotangent: partials.pull_state(params, residuals, cotangent), state)(state)

    try:
        jax.eval_shape(transposed, params, state, x)
    except Exception:  # a rule may be missing for unforeseen reasons: then it is not seen
        return False
    return True


def vjp(function: Callable[[Any], Any], primal: Any) -> tuple[Any, Callable[[Any], Any]]:
    """(f(primal), cotangent -> Jᵀ cotangent), in reverse mode; without a reverse rule, by one jvp per entry of primal.

    Args:
      function: f, of one pytree of floats.
      primal: the point, such a pytree.

    Returns:
      (f(primal), pull): pull takes a cotangent like f(primal) and gives Jᵀ cotangent like primal (`jax.vjp` gives it in
      a tuple).

    Raises:
      ValueError: a function with neither a reverse nor a forward rule.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import partials
      >>> grow = lambda x: jax.lax.while_loop(lambda x: x < 8, lambda x: 2 * x, x)  # jax.vjp refuses it
      >>> value, pull = partials.vjp(grow, jnp.asarray(1.0))
      >>> value.item(), pull(jnp.asarray(1.0)).item()
      (8.0, 8.0)
    """
    try:
        value, pull = jax.vjp(function, primal)
    except MISSING_RULE as missing:
        return function(primal), functools.partial(_pull_by_forward, function, primal, missing)

    def pull_either(cotangent):
        try:
            return pull(cotangent)[0]
        except MISSING_RULE as missing:
            return _pull_by_forward(function, primal, missing, cotangent)

    return value, pull_either


def jvp(function: Callable[[Any], Any], primal: Any, tangent: Any) -> tuple[Any, Any]:
    """(f(primal), J tangent), in forward mode; without a forward rule, by the transposed pullback or by N vjps.

    Args:
      function: f, of one pytree of floats.
      primal: the point, such a pytree.
      tangent: like primal.

    Returns:
      (f(primal), J tangent), both like f(primal).

    Raises:
      ValueError: a function with neither a reverse nor a forward rule.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import partials
      >>> double = jax.custom_vjp(lambda x: 2 * x)
      >>> double.defvjp(lambda x: (2 * x, None), lambda _, cotangent: (2 * cotangent,))  # jax.jvp refuses it
      >>> value, tangent = partials.jvp(double, jnp.asarray(3.0), jnp.asarray(1.0))
      >>> value.item(), tangent.item()
      (6.0, 2.0)
    """
    one = jax.tree.map(lambda leaf: leaf[None], tangent)
    try:
        # Without vmap, JAX refuses a step without a forward rule only when it compiles it.
        jax.eval_shape(jax.vmap(lambda tangent: jax.jvp(function, (primal,), (tangent,))[1]), one)
        return jax.jvp(function, (primal,), (tangent,))
    except MISSING_RULE as missing:
        return both_missing(missing, lambda: _push_by_reverse(function, primal, tangent))


def jacobian(
    function: Callable[..., Any],
    *primals: jax.Array,
    argnums: int | tuple[int, ...] = 0,
    prefer: Mode = "forward",
    has_aux: bool = False,
) -> Any:
    """∂f/∂primals of vectors, in the preferred mode; in the other mode where `function` has no rule for it.

    Args:
      function: f, from vectors to one vector (with has_aux, to a pair of a vector and anything else).
      *primals: the point, vectors.
      argnums: which of them f is differentiated in.
      prefer: "forward" (one jvp per entry of the primals), or "reverse" (one vjp per entry of the result).
      has_aux: as in `jax.jacfwd`.

    Returns:
      [N, M] for f from [M] to [N], row = output, column = input; a tuple of them where argnums is one; with has_aux,
      (that, the auxiliary result).

    Raises:
      ValueError: another mode; a function with neither a reverse nor a forward rule.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbptt import partials
      >>> partials.jacobian(lambda x: x**2, jnp.array([1.0, 2.0])).tolist()
      [[2.0, 0.0], [0.0, 4.0]]
    """
    _validation.require_choice("prefer", prefer, ("forward", "reverse"))
    modes = [jax.jacfwd, jax.jacrev] if prefer == "forward" else [jax.jacrev, jax.jacfwd]
    first, second = (mode(function, argnums, has_aux=has_aux) for mode in modes)
    try:
        return first(*primals)
    except MISSING_RULE as missing:
        return both_missing(missing, lambda: second(*primals))


def _push_by_reverse(function, primal, tangent):
    value, pull = jax.vjp(function, primal)
    try:  # the transpose of a pullback that is written in linear operations
        return value, jax.linear_transpose(pull, value)((tangent,))[0]
    except MISSING_RULE:
        flat, unravel = ravel_pytree(primal)
        derivative = jax.jacrev(lambda entries: ravel_pytree(function(unravel(entries)))[0])(flat)
        return value, ravel_pytree(value)[1](derivative @ ravel_pytree(tangent)[0])


def _pull_by_forward(function, primal, missing, cotangent):
    flat, unravel = ravel_pytree(primal)
    against = ravel_pytree(cotangent)[0]

    def entry(index):
        unit = (jnp.arange(flat.size) == index).astype(flat.dtype)
        pushed = jax.jvp(lambda entries: ravel_pytree(function(unravel(entries)))[0], (flat,), (unit,))[1]
        return jnp.vdot(against, pushed)

    return unravel(both_missing(missing, lambda: jax.lax.map(entry, jnp.arange(flat.size), batch_size=AT_ONCE)))


def both_missing(first: Exception, second: Callable[[], Any]) -> Any:
    """`second()`; if that fails as well, an error in one line that names `step`."""
    try:
        return second()
    except MISSING_RULE as error:
        if _validation.is_ours(error):  # no rule is missing
            raise
        reasons = " / ".join(str(each).partition("\n")[0] for each in (first, error))
        raise ValueError(
            f"step: got one that has neither a reverse nor a forward rule ({reasons}), expected one of them"
            " (jax.custom_vjp or jax.custom_jvp gives it one)"
        ) from error
