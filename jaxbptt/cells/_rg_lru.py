"""The real-gated linear recurrent unit (RG-LRU) of Griffin and RecurrentGemma."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.cells._diagonal import derive_diagonal
from jaxbptt.cells.cell import Cell
from jaxbptt.cells.factored import FactoredPullback, outer
from jaxbptt.cells.initializers import draw_input_weights

SHARPNESS = 8  # the paper's c
LEAST, MOST = 0.9, 0.999  # of a at initialisation, at a gate of 1/8


class RGLRUParams(NamedTuple):
    """θ of `rg_lru`: floats of one dtype, named as in the equations.

    Attributes:
      w_a, b_a: [N, N] and [N], of the recurrence gate r.
      w_i, b_i: [N, N] and [N], of the input gate i.
      lambda_: Λ [N]: ln a = −8 r ⊙ softplus(Λ).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> params = cells.rg_lru(num_hidden=2).init(jax.random.key(0))
      >>> jax.tree.map(jnp.shape, params)
      RGLRUParams(w_a=(2, 2), b_a=(2,), w_i=(2, 2), b_i=(2,), lambda_=(2,))
    """

    w_a: jax.Array
    b_a: jax.Array
    w_i: jax.Array
    b_i: jax.Array
    lambda_: jax.Array


class RGLRUInput(NamedTuple):
    """x_t of `rg_lru` with resets.

    Attributes:
      x: x_t [N], of a whole sequence [T, N].
      reset: [] bool, of a whole sequence [T]: whether this step starts a sequence.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, trajectories
      >>> cell = cells.rg_lru(num_hidden=2, resets=True)
      >>> inputs = cells.RGLRUInput(x=jnp.ones((6, 2)), reset=jnp.arange(6) % 3 == 0)  # two sequences of 3 steps
      >>> states = trajectories.unroll(cell, cell.init(jax.random.key(0)), inputs).states
      >>> bool((states[:3] == states[3:]).all())
      True
    """

    x: jax.Array
    reset: Any


class RGLRUGates(NamedTuple):
    """h_t = carry ⊙ h_{t−1} + write ⊙ x_t, and what their derivatives need, from the input alone; each [N]."""

    carry: jax.Array  # a, 0 at a reset
    write: jax.Array  # √(1−a²) i, at a reset i
    x: jax.Array
    bend: jax.Array  # −∂⁺(write ⊙ x)/∂⁺ln a = a²/√(1−a²) i x, 0 at a reset
    of_a: jax.Array  # ∂⁺ln a/∂⁺(W_a x + b_a)
    of_lambda: jax.Array  # ∂⁺ln a/∂⁺Λ
    of_i: jax.Array  # ∂⁺(write ⊙ x)/∂⁺(W_i x + b_i)


class RGLRUFactors(NamedTuple):
    """∂⁺h_t/∂⁺ of h_{t−1}, of the pre-activations of the gates, of Λ, and of x_t where it is gated; each [N]."""

    carry: jax.Array
    a: jax.Array
    i: jax.Array
    lambda_: jax.Array
    x: jax.Array


class RGLRUDelta(NamedTuple):
    """The cotangents that belong to the factors but `carry`, each [N]."""

    a: jax.Array
    i: jax.Array
    lambda_: jax.Array
    x: jax.Array


def rg_lru(num_hidden: int, *, resets: bool = False) -> Cell:
    """h_t = a ⊙ h_{t−1} + √(1−a²) ⊙ i ⊙ x_t,  ln a = −8 r ⊙ softplus(Λ),  (r, i) = σ(W_a x_t + b_a), σ(W_i x_t + b_i).

    The hand derivation, with m = √(1−a²) and d = (a h_{t−1} − (a²/m) i x_t) ⊙ λ, the cotangent of ln a: J_t = diag(a);
    δ_a = (1−r) ln a ⊙ d, δ_i = m i (1−i) x_t ⊙ λ. The cotangents are δ_a x_tᵀ (w_a), δ_a (b_a), δ_i x_tᵀ (w_i),
    δ_i (b_i), −8 r σ(Λ) ⊙ d (lambda_), a ⊙ λ (previous state) and m i ⊙ λ + W_aᵀ δ_a + W_iᵀ δ_i (input).
    m is computed as √(−expm1(2 ln a)), with all its digits where a is near 1. Its derivative by ln a, −a²/m, is the
    exact one and grows without bound as a → 1; the published code bounds it on purpose.
    Exact at every T: ln σ_i of dh_T/dh_0 is Σ_t ln a_ti.

    Args:
      num_hidden: N ≥ 1, the number of inputs as well.
      resets: whether inputs are `RGLRUInput(x [T, N], reset [T] bool)`: where a step starts a sequence it forgets
        h_{t−1} and writes with the multiplier 1, h_t = i ⊙ x_t and J_t = 0.

    Returns:
      Cell on a state [N] with `RGLRUParams(w_a [N, N], b_a [N], w_i [N, N], b_i [N], lambda_ [N])`. Weights are full
      (published models have blocks on the diagonal) and N(0, 1/N), biases 0; Λ as the published code draws it:
      softplus(Λ) = −ln a with a² uniform in [0.9², 0.999²].

    Raises:
      TypeError, ValueError: a size that is not an int or is too small; resets that is no bool; when called, inputs not
        as stated.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cell = cells.rg_lru(num_hidden=2)
      >>> params = cell.init(jax.random.key(0))
      >>> carried = cell.step(params, jnp.ones(2), jnp.zeros(2))  # x = 0: r = ½, and h_t = a ⊙ h_{t−1}
      >>> bool(jnp.allclose(carried, jnp.exp(-4 * jax.nn.softplus(params.lambda_))))
      True

    Reference: De et al. (2024), arXiv:2402.19427.
    """
    _validation.require_size("num_hidden", num_hidden)
    _validation.require_type("resets", resets, bool, "a bool")

    def init(key):
        _validation.require_key(key)
        weights_key, lambda_key = jax.random.split(key)
        w_a, w_i = jnp.split(draw_input_weights(weights_key, 2 * num_hidden, num_hidden), 2)
        area = jax.random.uniform(lambda_key, (num_hidden,), w_a.dtype, minval=LEAST**2, maxval=MOST**2)
        lambda_ = jnp.log(jnp.expm1(-jnp.log(area) / 2))
        return RGLRUParams(w_a, jnp.zeros_like(lambda_), w_i, jnp.zeros_like(lambda_), lambda_)

    def split(x):
        """(x_t, whether the step starts a sequence)."""
        if not resets:
            return x, False
        _validation.require_type("inputs", x, RGLRUInput, "cells.RGLRUInput(x, reset)")
        _validation.require_array("inputs.reset", x.reset, (), jnp.bool_)
        return x

    def pull_input(params, delta):
        cotangent = delta.x + delta.a @ params.w_a + delta.i @ params.w_i
        return RGLRUInput(cotangent, np.zeros((), jax.dtypes.float0)) if resets else cotangent

    drive = lambda params, x: _gates(params, *split(x))
    pullback = FactoredPullback(
        drive=drive,
        advance=lambda params, state, gates: (_update(gates, state), gates),
        expand=_expand,
        delta=_delta,
        state=lambda params, factors, cotangent, delta: factors.carry * cotangent,
        params=lambda params, state, x, delta: _pull_params(split(x)[0], delta),
        input=pull_input,
    )
    return Cell(
        init=init,
        initial_state=lambda params: jnp.zeros_like(params.lambda_),
        step=lambda params, state, x: _update(drive(params, x), state),
        derivation=derive_diagonal(pullback, num_hidden),
        num_inputs=None if resets else num_hidden,
    )


def _gates(params, x, reset):
    a, i = x @ params.w_a.T + params.b_a, x @ params.w_i.T + params.b_i
    rate = -SHARPNESS * jax.nn.sigmoid(a)  # ln a = rate ⊙ softplus(Λ)
    log_a = rate * jax.nn.softplus(params.lambda_)
    below = log_a < 0  # a gate that is shut in floats has a = 1: it writes nothing, with derivative 0, the limit
    multiplier = jnp.where(below, jnp.sqrt(-jnp.expm1(2 * jnp.where(below, log_a, -1))), 0)
    bend = jnp.where(below, jnp.exp(2 * log_a) / jnp.where(below, multiplier, 1), 0)
    unless_reset = lambda value, at_reset: jnp.where(reset, jnp.full_like(value, at_reset), value)
    gate = jax.nn.sigmoid(i)
    write = unless_reset(multiplier, 1) * gate
    return RGLRUGates(
        carry=unless_reset(jnp.exp(log_a), 0),
        write=write,
        x=x,
        bend=unless_reset(bend, 0) * gate * x,
        of_a=log_a * jax.nn.sigmoid(-a),
        of_lambda=rate * jax.nn.sigmoid(params.lambda_),
        of_i=write * x * jax.nn.sigmoid(-i),
    )


def _update(gates, state):
    return gates.carry * state + gates.write * gates.x


def _expand(state, new, gates):
    of_log_a = gates.carry * state - gates.bend
    return RGLRUFactors(
        carry=gates.carry,
        a=of_log_a * gates.of_a,
        i=gates.of_i,
        lambda_=of_log_a * gates.of_lambda,
        x=gates.write,
    )


def _delta(factors, cotangent):
    return RGLRUDelta(*(factor * cotangent for factor in factors[1:]))


def _pull_params(x, delta):
    return RGLRUParams(outer(delta.a, x), delta.a, outer(delta.i, x), delta.i, delta.lambda_)
