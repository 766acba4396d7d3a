"""OK-RTRL: dh_t/dΘ kept as the sum of r Kronecker products that is unbiased with the least variance."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import _validation
from jaxbptt.online import preactivations
from jaxbptt.online.kronecker import find_form
from jaxbptt.online.method import Method
from jaxbptt.online.preactivations import Preactivations
from jaxbptt.online.rule import Rule, make_rule
from jaxbptt.partials import step_partials


class KroneckerSum(NamedTuple):
    """dh_t/dΘ ≈ Σ_i matrices[i] ⊗ vectors[i]."""

    vectors: jax.Array  # [r, V] u_i
    matrices: jax.Array  # [r, N, Z] A_i


class Plan(NamedTuple):
    form: Preactivations
    rank: int


def ok_rtrl(rank: int) -> Rule:
    """Σ_i A_i ⊗ u_i of r terms: J_t Â_{t−1} + D_t ⊗ v_t has r + 1, replaced by r unbiased ones of least variance.

    In orthonormal bases of the r + 1 vectors and of the r + 1 matrices the sum is a matrix C = X diag(σ) Yᵀ of that
    size. The largest σ are kept as they are; the k smallest, k the largest number for which (k − 1) σ_i ≤ s = their sum
    holds for each, are mixed: with z_i² = 1 − (k − 1) σ_i/s and Z [k, k − 1] an orthonormal basis of what is orthogonal
    to z, their diagonal becomes s/(k − 1) diag(c) Z Zᵀ diag(c), c random signs. A sum that is of rank r already stays
    as it is: the rule is exact for the first r steps, and `kf_rtrl` with the best signs and scales for r = 1.

    Here z = Θ v and D = ∂⁺h/∂⁺z as in `kf_rtrl`. State: A [r, N, Z], u [r, V] and a key. Cost: 2 r N²Z flops per step
    for J A, and 6 (r + 1)² (N Z + V) for the two bases and the new terms. Works where `kf_rtrl` does.

    Args:
      rank: r ≥ 1.

    Returns:
      Rule. Unbiased at fixed params. `init` raises ValueError as that of `kf_rtrl`.

    Raises:
      TypeError: a rank that is no int.
      ValueError: a rank below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells, comparison, gradients, models, online
      >>> model = models.sequence_model(cells.elman(num_inputs=1, num_hidden=3), num_outputs=1)
      >>> params, inputs, targets = model.init(jax.random.key(0)), jnp.ones((3, 1)), jnp.ones((3, 1))
      >>> loss, grads = online.run(online.ok_rtrl(3), model, params, inputs, targets, key=jax.random.key(1))
      >>> bool(comparison.compare(gradients.bptt(model, params, inputs, targets)[1], grads).relative < 1e-5)  # r = T
      True

    Reference: Benzing et al. (2019), arXiv:1902.03993.
    """
    _validation.require_size("rank", rank)
    return make_rule(METHOD, functools.partial(_plan, rank=rank))


def _plan(model, params, x, constant_start, rank=1):
    return Plan(find_form("ok_rtrl", model, params, x, constant_start), rank)


def _start(plan, initial_state, params, signs):
    form, zeros = plan.form, lambda *shape: jnp.zeros(shape, signs.dtype)
    return KroneckerSum(zeros(plan.rank, sum(form.lengths)), zeros(plan.rank, form.num_state, form.num_rows))


def _advance(plan, model, params, state, x, sensitivity, signs):
    local = preactivations.evaluate(plan.form, model, params, state, x)
    n, z = np.array(plan.form.entries).T
    direct = jnp.zeros_like(sensitivity.matrices[0]).at[n, z].set(local.left)
    new, transition = step_partials(model).value_and_jacobian(params, state, x)
    vectors = jnp.concatenate((sensitivity.vectors, jnp.concatenate(local.right)[None]))
    matrices = jnp.concatenate((transition @ sensitivity.matrices, direct[None]))
    shape = matrices.shape[1:]
    (basis_u, inner_u), (basis_a, inner_a) = map(_decompose, (vectors, matrices.reshape(len(matrices), -1)))
    left, values, right = jnp.linalg.svd(inner_u @ inner_a.T)
    mix = _mix(values, signs)
    vectors, matrices = (basis_u @ (left @ mix)).T, (basis_a @ (right.T @ mix)).T
    return new, KroneckerSum(vectors, matrices.reshape(plan.rank, *shape))


def _decompose(rows):
    """(Q [columns, rows], R [rows, rows]) with rowsᵀ = Q R, also for more rows than columns."""
    count, width = rows.shape
    basis, inner = jnp.linalg.qr(jnp.pad(rows.T, ((0, max(0, count - width)), (0, 0))))
    return basis[:width], inner


def _mix(values, signs):
    """M [r + 1, r] with E[M Mᵀ] = diag(σ), of least variance."""
    count = len(values)
    rounding = count * jnp.finfo(values.dtype).eps * values[0]  # mixed, it would make noise of its square root
    values = jnp.where(values > rounding, values, jnp.zeros_like(values))
    index = jnp.arange(count)
    sums = jnp.cumsum(values[::-1])[::-1]  # of σ_i and all smaller ones
    fits = (count - 1 - index).astype(values.dtype) * values <= sums
    first = jnp.argmax(fits & (index < count - 1))  # at least the two smallest are mixed
    mixed, parts, total = index >= first, (count - 1 - first).astype(values.dtype), sums[first]
    positive = total > 0
    divisor = jnp.where(positive, total, jnp.ones_like(total))
    square = jnp.where(mixed & positive, 1 - parts * values / divisor, (index == count - 1).astype(values.dtype))
    square = jnp.where(mixed, square, jnp.zeros_like(square))
    z = jnp.sqrt(jnp.maximum(square, 0))
    z = z / jnp.linalg.norm(z)
    last = (index == count - 1).astype(values.dtype)
    normal = z - last  # the reflection that takes the last axis to z; its other columns are orthogonal to z
    size = normal @ normal
    reflected = jnp.where(size > 0, 2 / jnp.where(size > 0, size, 1), 0) * jnp.outer(normal, normal)
    scale = jnp.where(mixed, total / parts, values)
    return (jnp.sqrt(scale) * signs)[:, None] * (jnp.eye(count, dtype=z.dtype) - reflected)[:, :-1]


def _contract(plan, params, sensitivity, local):
    form = plan.form
    on_z = jnp.einsum("n,rnz->rz", local, sensitivity.matrices)
    parts = jnp.split(on_z.T @ sensitivity.vectors, np.cumsum(form.lengths)[:-1], axis=1)
    every = tuple(range(form.num_rows))
    return form.gather(params, {s: (every, part) for s, part in enumerate(parts)})


def _flops(plan):
    form, rank = plan.form, plan.rank
    block, width = form.num_state * form.num_rows, sum(form.lengths)
    return (
        2 * rank * block * (form.num_state + 1)
        + 6 * (rank + 1) ** 2 * (block + width)
        + 2 * rank * form.num_rows * width
    )


METHOD = Method(_start, _advance, _contract, _flops, num_signs=lambda plan: plan.rank + 1)
