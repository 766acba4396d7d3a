"""The known slips of a whole gradient dC/dθ, computed: BPTT with one thing wrong."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import checks
from jaxbptt.gradients.forward import flatten_steps, run_forward
from jaxbptt.models import Model, reduction_weight, step_losses
from jaxbptt.rewrite import Program, evaluate
from jaxbptt.slips import Candidate, Variant, reverse_factors, stack, step_variants


class Row(NamedTuple):
    """One wrong gradient: r · Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t + (∂h_0/∂θ)ᵀ μ_0 + d · direct."""

    slip: str | None
    note: str
    adjoints: jax.Array  # λ [T, N], r included
    initial: jax.Array  # μ_0 = J_1ᵀ λ_1 [N], r included
    variant: int = 0  # of the step, for ∂⁺h_t/∂⁺θ
    direct: Any = 1  # d, or "last": the last loss's share alone


def gradient_candidates(
    model: Model, program: Program, params: Any, inputs: Any, targets: Any
) -> tuple[list[Candidate], dict]:
    """What each slip gives for every leaf of dC/dθ; and per leaf a size against which rounding can be judged."""
    trajectory, _, local, direct = run_forward(model, params, inputs, targets, None)
    local = flatten_steps(local)
    length, dtype = len(local), local.dtype
    unravel = ravel_pytree(trajectory.initial)[1]
    variants = step_variants(program)
    coefficients, shift = stack(variants, dtype)
    previous, states = trajectory.previous, trajectory.states

    def step(coefficients, shift, params, state, x, after):
        pick = lambda a, b: jax.tree.map(lambda a, b: jnp.where(shift, a, b), a, b)  # noqa: E731
        return evaluate(program, coefficients, params, pick(after, state), x, pick(state, after))

    def jacobian(coefficients, shift, state, x, after):
        flat, after_flat = ravel_pytree(state)[0], ravel_pytree(after)[0]
        start = jnp.where(shift, after_flat, flat)
        other = unravel(jnp.where(shift, flat, after_flat))
        return jax.jacfwd(lambda h: ravel_pytree(evaluate(program, coefficients, params, unravel(h), x, other))[0])(
            start
        )

    over_steps = jax.vmap(jacobian, in_axes=(None, None, 0, 0, 0))
    chains = jax.vmap(over_steps, in_axes=(0, 0, None, None, None))(
        coefficients, shift, previous, trajectory.inputs, states
    )
    rows = _rows(variants, chains, local, length, model.reduction)

    def pull(adjoints, initial, coefficients, shift):
        def all_steps(params):
            run = jax.vmap(lambda state, x, after: step(coefficients, shift, params, state, x, after))
            return run(previous, trajectory.inputs, states)

        (recurrent,) = jax.vjp(all_steps, params)[1](jax.vmap(unravel)(adjoints))
        (of_initial,) = jax.vjp(model.initial_state, params)[1](unravel(initial))
        return recurrent, of_initial

    # For the rounding: |λ| carried by |J|, and φ' once taken for 1, as 1 − φ² is where φ is nearly 1.
    plain = next((k for k in _plain(variants, program)), 0)
    sums = _adjoints(jnp.abs(chains[0]), _absolute_drive(chains, plain, local))
    sized = [Row(None, "", sums[0], sums[1]), Row(None, "", sums[0], sums[1], plain)]
    index = jnp.asarray([row.variant for row in rows + sized])
    chosen = jax.tree.map(lambda leaf: leaf[index], (coefficients, shift))
    recurrent, of_initial = jax.vmap(pull)(
        jnp.stack([row.adjoints for row in rows + sized]), jnp.stack([row.initial for row in rows + sized]), *chosen
    )
    weights = reduction_weight(model, length, dtype) * jnp.zeros(length, dtype).at[-1].set(1)
    (last,) = jax.vjp(lambda params: step_losses(model, params, states, targets), params)[1](weights)

    named = [_numbers(tree) for tree in (recurrent, of_initial, direct, last)]
    recurrent, of_initial, direct, last = named
    found = []
    for k, row in enumerate(rows):
        parts = {name: last[name] if row.direct == "last" else row.direct * direct[name] for name in direct}
        total = {name: recurrent[name][k] + of_initial[name][k] + parts[name] for name in direct}
        found.append(Candidate(row.slip, row.note, total))
    true = found[0].pieces
    partial = {n: recurrent[n][0] + direct[n] for n in direct if np.any(of_initial[n][0])}
    found.append(Candidate("missing_direct_term", "that of h_0 as a function of the params", partial))
    for slip, factor in (("sign", -1), ("double", 2), ("half", 0.5)):
        found.append(Candidate(slip, "", {name: factor * leaf for name, leaf in true.items()}))
    scale = {
        name: np.max(np.abs(direct[name]), initial=0)
        + np.max(np.abs(recurrent[name][len(rows) :]), initial=0)
        + np.max(np.abs(of_initial[name][len(rows) :]), initial=0)
        for name in direct
    }
    return [candidate for candidate in found if candidate.slip], scale


def _rows(variants: list[Variant], chains: jax.Array, local: jax.Array, length: int, reduction: str) -> list[Row]:
    true = chains[0]
    adjoints, initial = _adjoints(true, local)
    rows = [Row(None, "", adjoints, initial)]

    def add(slip, note, carried, variant=0, direct=1):
        rows.append(Row(slip, note, *carried, variant, direct))

    for k, variant in enumerate(variants):
        if variant.slip is None or not np.any(chains[k]):
            continue  # with no path left nothing particular was dropped
        wrong = _adjoints(chains[k], local)
        add(variant.slip, variant.note, wrong, k)
        add(variant.slip, f"{variant.note}, in dh_t/dh_{{t−1}} alone", wrong)
        add(variant.slip, f"{variant.note}, in dh_t/dθ alone", (adjoints, initial), k)
        if variant.slip == "missing_activation_derivative":
            swapped = reverse_factors(np.asarray(true, np.float64), np.asarray(chains[k], np.float64))
            if swapped is not None:
                note = "W diag(φ') for diag(φ') W"
                add("reversed_product", note, _adjoints(jnp.asarray(swapped, true.dtype), local))
    turned = jnp.swapaxes(true, 1, 2)
    add("transposed_jacobian", "in the recursion of λ", _adjoints(turned, local))
    add("transposed_jacobian", "every product dh_t/dh_k as a whole", _products(turned, local))
    add("reversed_product", "J_{k+1} … J_t for J_t … J_{k+1}", _products(true, local))
    # J_t in the place of J_{t+1}; the first adjoint still passes J_1 on its way to h_0
    early = jnp.concatenate((true[:1], true[:-1]))
    late = jnp.concatenate((true[1:], true[-1:]))
    for note, chain in (("J_t for J_{t+1}", early), ("J_{t+2} for J_{t+1}", late)):
        add("wrong_time_index", note, _adjoints(chain, local))
    zero = jnp.zeros_like(adjoints[:1])
    add("wrong_time_index", "λ_{t+1} for λ_t", (jnp.concatenate((adjoints[1:], zero)), initial))
    add("wrong_time_index", "λ_{t−1} for λ_t", (jnp.concatenate((zero, adjoints[:-1])), initial))
    if reduction == "mean":
        for slip, factor in (("lost_mean", length), ("double_mean", 1 / length)):
            for of_step, of_readout in ((factor, factor), (factor, 1), (1, factor)):
                add(slip, "", (adjoints * of_step, initial * of_step), direct=of_readout)
    for of_step, of_readout in ((-1, 1), (1, -1)):
        add("sign", "of one of its two parts", (adjoints * of_step, initial * of_step), direct=of_readout)
    add("missing_direct_term", "the readout's own use of the parameter", (adjoints, initial), direct=0)
    at_end = jnp.zeros_like(local).at[-1].set(local[-1])
    only_last = (jnp.zeros_like(adjoints).at[-1].set(adjoints[-1]), jnp.zeros_like(initial))
    only_here = (local, jnp.zeros_like(initial))
    for direct in (1, "last"):
        add("last_term_only", "only the last step's loss", _adjoints(true, at_end), direct=direct)
        add("last_term_only", "only the last step's use of the parameter", only_last, direct=direct)
        add("last_term_only", "of each loss only its own step's term", only_here, direct=direct)
    add("double_path", "dh_k/dθ in total for the direct one, beside λ", _adjoints(true, adjoints))
    for of_step, of_readout in ((2, 1), (1, 2)):
        add("double_path", "of its two parts, one twice", (adjoints * of_step, initial * of_step), direct=of_readout)
    return rows


def _adjoints(chain, local):
    """(λ [T, N], μ_0 [N]): λ_t = c_t + J_{t+1}ᵀ λ_{t+1}, μ_0 = J_1ᵀ λ_1."""
    initial, adjoints = jax.lax.scan(_pull_back, jnp.zeros_like(local[0]), (chain, local), reverse=True)
    return adjoints, initial


def _pull_back(from_later, step):
    jacobian, local = step
    adjoint = local + from_later
    return adjoint @ jacobian, adjoint


def _products(chain, local):
    """(λ, μ_0) of λ_k = Σ_t (J_{k+1} … J_t)ᵀ c_t, the latest factor on the right."""
    length, size = local.shape
    products = jnp.broadcast_to(jnp.eye(size, dtype=local.dtype), (length + 1, size, size))
    carry = (products, jnp.zeros((length + 1, size), local.dtype))
    (_, total), _ = jax.lax.scan(_extend, carry, (jnp.arange(1, length + 1), chain, local))
    return total[1:], total[0]


def _extend(carry, step):
    products, total = carry
    t, jacobian, local = step
    k = jnp.arange(len(products))
    products = jnp.where((k < t)[:, None, None], products @ jacobian, products)
    pulled = jnp.einsum("kij,i->kj", products, local)
    return (products, total + jnp.where((k <= t)[:, None], pulled, jnp.zeros_like(pulled))), None


def _plain(variants, program):
    """The variants in which every φ' is taken for 1."""
    for k, variant in enumerate(variants):
        if variant.slip == "missing_activation_derivative":
            primary = variant.coefficients.direct[: program.num_primary]
            if not primary.any():
                yield k


def _absolute_drive(chains, plain, local):
    """|c_t| + |J_{t+1} with φ' = 1|ᵀ |λ_{t+1}|: what rounding acts on."""
    adjoints, _ = _adjoints(jnp.abs(chains[0]), jnp.abs(local))
    later = jnp.concatenate((adjoints[1:], jnp.zeros_like(adjoints[:1])))
    after = jnp.concatenate((chains[plain][1:], chains[plain][:1]))
    return jnp.abs(local) + jnp.einsum("tij,ti->tj", jnp.abs(after), later)


def _numbers(tree):
    """{"params.<leaf>": float64 array}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {checks.leaf_name("params", path): np.asarray(leaf, np.float64) for path, leaf in leaves}
