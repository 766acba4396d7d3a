"""KF-RTRL: dh_t/dΘ kept as one Kronecker product, unbiased by random signs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.models.model import Model
from jaxbptt.online import preactivations
from jaxbptt.online.active import reads_at_start
from jaxbptt.online.method import Method
from jaxbptt.online.preactivations import NotFactored, Preactivations
from jaxbptt.online.rule import Rule, make_rule
from jaxbptt.online.scales import balance
from jaxbptt.partials import step_partials
from jaxbptt.types import Input, Params


class Kronecker(NamedTuple):
    """dh_t/dΘ ≈ matrix ⊗ vector."""

    vector: jax.Array  # [V] u
    matrix: jax.Array  # [N, Z] A


def kf_rtrl() -> Rule:
    """u_t = c₁ p₁ u_{t−1} + c₂ p₂ v_t,  A_t = c₁/p₁ J_t A_{t−1} + c₂/p₂ D_t,  E[A_t ⊗ u_t] = dh_t/dΘ.

    Here z = Θ v, v = (x, h_{t−1}, 1), D = ∂⁺h/∂⁺z [N, Z], c₁ and c₂ are random signs, p₁ = √(‖J A‖/‖u‖) and
    p₂ = √(‖D‖/‖v‖). A = u = 0 at h_0. The gradient for Θ is (Aᵀ ∂L/∂h) uᵀ. A product that is zero is dropped. Z = N for
    Elman and linear, 4H for the LSTM (A is [2H, 4H]) and for the GRU, whose n is split into an x part and an h part.

    State: A [N, Z], u [V] and a key. Cost: 2N²Z flops per step. Works where θ enters through z = Θ v: for the built-in
    cells and any with a factored derivation.

    Returns:
      Rule. Unbiased at fixed params. `init` raises ValueError for a cell known only by its step, and for an h_0 that
      depends on params (∂h_0/∂θ is not a Kronecker product).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, models, online
      >>> model = models.sequence_model(cells.elman(num_inputs=2, num_hidden=4), num_outputs=1)
      >>> params, rule = model.init(jax.random.key(0)), online.kf_rtrl()
      >>> state = rule.init(model, params, key=jax.random.key(1))
      >>> [leaf.shape for leaf in jax.tree.leaves(state.sensitivity)]  # u [M + N + 1] and A [N, N]
      [(7,), (4, 4)]

    Reference: Mujika, Meier & Steger (2018), arXiv:1805.10842.
    """
    return make_rule(METHOD, _plan)


def _plan(model, params, x, constant_start):
    return find_form("kf_rtrl", model, params, x, constant_start)


def find_form(rule: str, model: Model, params: Params, x: Input, constant_start: bool) -> Preactivations:
    """z = Θ v of a model's step, for a rule that needs it and starts from A = 0."""
    form = preactivations.find(model, params, x)
    if isinstance(form, NotFactored):
        raise ValueError(f"{rule}: got a model without z = Θ (x, h, 1) ({form.reason}), expected a factored derivation")
    if not constant_start and any(reads_at_start(model, params)):
        raise ValueError(f"{rule}: got an h_0 that depends on params, expected a constant one (or pass initial)")
    return form


def _start(form, initial_state, params, signs):
    zeros = lambda *shape: jnp.zeros(shape, signs.dtype)
    return Kronecker(zeros(sum(form.lengths)), zeros(form.num_state, form.num_rows))


def _advance(form, model, params, state, x, sensitivity, signs):
    local = preactivations.evaluate(form, model, params, state, x)
    n, z = np.array(form.entries).T
    direct = jnp.zeros_like(sensitivity.matrix).at[n, z].set(local.left)
    v = jnp.concatenate(local.right)
    new, transition = step_partials(model).value_and_jacobian(params, state, x)
    carried = transition @ sensitivity.matrix
    p_1, inverse_1 = balance(carried, sensitivity.vector)
    p_2, inverse_2 = balance(direct, v)
    vector = signs[0] * p_1 * sensitivity.vector + signs[1] * p_2 * v
    matrix = signs[0] * inverse_1 * carried + signs[1] * inverse_2 * direct
    return new, Kronecker(vector, matrix)


def _contract(form, params, sensitivity, local):
    on_z = local @ sensitivity.matrix
    parts = jnp.split(sensitivity.vector, np.cumsum(form.lengths)[:-1])
    every = tuple(range(form.num_rows))
    return form.gather(params, {s: (every, jnp.outer(on_z, part)) for s, part in enumerate(parts)})


def _flops(form):
    return 2 * form.num_state * form.num_rows * (form.num_state + 1) + 2 * form.num_rows * sum(form.lengths)


METHOD = Method(_start, _advance, _contract, _flops, num_signs=lambda form: 2)
