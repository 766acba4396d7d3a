"""Reverse KF-RTRL: dh_t/dΘ kept as one Kronecker product of the other kind, unbiased by random signs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt.online import preactivations
from jaxbptt.online.kronecker import find_form
from jaxbptt.online.method import Method
from jaxbptt.online.rule import Rule, make_rule
from jaxbptt.online.scales import balance
from jaxbptt.partials import step_partials


class Reverse(NamedTuple):
    """dh_t/dΘ ≈ vector ⊗ matrix: entry (n, z, v) is vector[z] matrix[n, v]."""

    vector: jax.Array  # [Z] a
    matrix: jax.Array  # [N, V] B


def reverse_kf_rtrl() -> Rule:
    """a_t = p₁ a_{t−1} + p₂ ν_t,  B_t = 1/p₁ J_t B_{t−1} + 1/p₂ (D_t ν_t) ⊗ v_t,  E[a_t ⊗ B_t] = dh_t/dΘ.

    Where KF-RTRL keeps a vector over what Θ multiplies and a matrix over (state, pre-activation), this keeps a vector
    over the pre-activations and a matrix over (state, v): z = Θ v, v = (x, h_{t−1}, 1), D = ∂⁺h/∂⁺z [N, Z], ν [Z] are
    random signs, p₁ = √(‖J B‖/‖a‖) and p₂ = √(‖(D ν) ⊗ v‖/‖ν‖). a = B = 0 at h_0. The gradient for Θ is
    a ⊗ (Bᵀ ∂L/∂h). A product that is zero is dropped.

    State: a [Z], B [N, V] and a key. Cost: 2N²V flops per step. Works where `kf_rtrl` does. Unlike there, the signs cut
    through D, so the estimate is noisy from the first step on: it is exact only while dh_t/dΘ is one product a ⊗ B.

    Returns:
      Rule. Unbiased at fixed params. `init` raises ValueError as that of `kf_rtrl`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, models, online
      >>> model = models.sequence_model(cells.elman(num_inputs=2, num_hidden=4), num_outputs=1)
      >>> params, rule = model.init(jax.random.key(0)), online.reverse_kf_rtrl()
      >>> state = rule.init(model, params, key=jax.random.key(1))
      >>> [leaf.shape for leaf in jax.tree.leaves(state.sensitivity)]  # a [N] and B [N, M + N + 1]
      [(4,), (4, 7)]

    Reference: Marschall, Cho & Savin (2020), JMLR 21, arXiv:1907.02649, R-KF-RTRL.
    """
    return make_rule(METHOD, _plan)


def _plan(model, params, x, constant_start):
    return find_form("reverse_kf_rtrl", model, params, x, constant_start)


def _start(form, initial_state, params, signs):
    zeros = lambda *shape: jnp.zeros(shape, signs.dtype)
    return Reverse(zeros(form.num_rows), zeros(form.num_state, sum(form.lengths)))


def _advance(form, model, params, state, x, sensitivity, signs):
    local = preactivations.evaluate(form, model, params, state, x)
    n, z = np.array(form.entries).T
    pushed = jnp.zeros_like(sensitivity.matrix[:, 0]).at[n].add(local.left * signs[z])
    direct = jnp.outer(pushed, jnp.concatenate(local.right))
    new, transition = step_partials(model).value_and_jacobian(params, state, x)
    carried = transition @ sensitivity.matrix
    p_1, inverse_1 = balance(carried, sensitivity.vector)
    p_2, inverse_2 = balance(direct, signs)
    return new, Reverse(p_1 * sensitivity.vector + p_2 * signs, inverse_1 * carried + inverse_2 * direct)


def _contract(form, params, sensitivity, local):
    on_v = jnp.split(local @ sensitivity.matrix, np.cumsum(form.lengths)[:-1])
    every = tuple(range(form.num_rows))
    return form.gather(params, {s: (every, jnp.outer(sensitivity.vector, part)) for s, part in enumerate(on_v)})


def _flops(form):
    width = sum(form.lengths)
    return 2 * form.num_state * width * (form.num_state + 3) + 2 * len(form.entries) + form.num_rows * width


METHOD = Method(_start, _advance, _contract, _flops, num_signs=lambda form: form.num_rows)
