"""The known slips of a whole gradient dC/dθ, computed: BPTT with one thing wrong."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt._jaxprs.sites import StepProgram, find_sites
from jaxbptt.derivations.rewrite import evaluate
from jaxbptt.derivations.step_slips import Candidate, Variant, named_leaves, reverse_factors, stack, step_variants
from jaxbptt.gradients.forward import ForwardPass, run_forward
from jaxbptt.models.model import Model, reduction_weight, step_losses
from jaxbptt.partials import jacobian, vjp
from jaxbptt.trajectories import flatten_steps
from jaxbptt.types import Inputs, Params, Targets


class Instance(NamedTuple):
    """A model at the point where its gradient is checked."""

    model: Model
    program: StepProgram
    params: Params
    targets: Targets
    forward: ForwardPass
    local: jax.Array  # [T, N] ∂C/∂h_t|o_t


class Row(NamedTuple):
    """One wrong gradient: r · Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t + (∂h_0/∂θ)ᵀ μ_0 + d · direct."""

    slip: str | None
    note: str
    adjoints: jax.Array  # λ [T, N], r included
    initial: jax.Array  # μ_0 = J_1ᵀ λ_1 [N], r included
    variant: int = 0  # of the step, for ∂⁺h_t/∂⁺θ
    direct: Any = 1  # d, or "last": the last loss's share alone


class Pulled(NamedTuple):
    """{"params.<leaf>": float64 array [rows, ...]} of R rows, without the readout's direct part."""

    recurrent: dict
    of_initial: dict


def make_instance(model: Model, params: Params, inputs: Inputs, targets: Targets) -> Instance:
    """Run the model forward and read its step's program."""
    forward = run_forward(model, params, inputs, targets)
    x = jax.tree.map(lambda leaf: leaf[0], inputs)
    program = find_sites(model.step, params, forward.trajectory.initial, x)
    return Instance(model, program, params, targets, forward, flatten_steps(forward.local))


def rounding_scale(instance: Instance) -> dict[str, float]:
    """The size of each leaf against which rounding is judged: |λ| carried by |J|, with absolute values throughout.

    φ' is also taken as 1 once, because where φ is nearly 1 the rounding of 1 − φ² is that of a number near 1.
    """
    variants = step_variants(instance.program)
    plain = next(_plain(variants, instance.program), 0)
    variants = [variants[0], variants[plain]]
    chains = _chains(instance, variants)
    adjoints, initial = _adjoints(jnp.abs(chains[0]), _absolute_drive(chains, instance.local))
    pulled = _pull(instance, variants, [Row(None, "", adjoints, initial, variant=k) for k in (0, 1)])
    direct = _numbers(instance.forward.direct)
    return {
        name: sum(np.max(np.abs(part[name]), initial=0) for part in (direct, pulled.recurrent, pulled.of_initial))
        for name in direct
    }


def gradient_candidates(instance: Instance) -> list[Candidate]:
    """What each slip gives for every leaf of dC/dθ."""
    model, local = instance.model, instance.local
    variants = step_variants(instance.program)
    rows = _rows(variants, _chains(instance, variants), local, model.reduction)
    recurrent, of_initial = _pull(instance, variants, rows)
    direct, last = _numbers(instance.forward.direct), _numbers(_direct_of_last(instance))
    found: list[Candidate] = []
    true = {name: recurrent[name][0] + of_initial[name][0] + direct[name] for name in direct}
    for k, row in enumerate(rows):
        if row.slip is None:
            continue
        parts = {name: last[name] if row.direct == "last" else row.direct * direct[name] for name in direct}
        total = {name: recurrent[name][k] + of_initial[name][k] + parts[name] for name in direct}
        found.append(Candidate(row.slip, row.note, total))
    partial = {n: recurrent[n][0] + direct[n] for n in direct if np.any(of_initial[n][0])}
    found.append(Candidate("missing_direct_term", "that of h_0 as a function of the params", partial))
    for slip, factor in (("sign", -1), ("double", 2), ("half", 0.5)):
        found.append(Candidate(slip, "", {name: factor * leaf for name, leaf in true.items()}))
    return found


def _chains(instance: Instance, variants: list[Variant]) -> jax.Array:
    """J_t of every variant, [variants, T, N, N]."""
    trajectory, params = instance.forward.trajectory, instance.params
    unravel = ravel_pytree(trajectory.initial)[1]

    def at_step(coefficients, shift, state, x, after):
        flat, after_flat = ravel_pytree(state)[0], ravel_pytree(after)[0]
        start, other = jnp.where(shift, after_flat, flat), unravel(jnp.where(shift, flat, after_flat))
        flat_step = lambda h: ravel_pytree(evaluate(instance.program, coefficients, params, unravel(h), x, other))[0]
        return jacobian(flat_step, start)

    def at_all_steps(variant):
        coefficients, shift = variant
        over_steps = jax.vmap(at_step, in_axes=(None, None, 0, 0, 0))
        return over_steps(coefficients, shift, trajectory.previous, trajectory.inputs, trajectory.states)

    return jax.lax.map(at_all_steps, stack(variants, instance.local.dtype))


def _pull(instance: Instance, variants: list[Variant], rows: list[Row]) -> Pulled:
    """Σ_t (∂⁺h_t/∂⁺θ)ᵀ λ_t and (∂h_0/∂θ)ᵀ μ_0 of every row."""
    trajectory, params = instance.forward.trajectory, instance.params
    unravel = ravel_pytree(trajectory.initial)[1]
    index = np.asarray([row.variant for row in rows])
    chosen = jax.tree.map(lambda leaf: leaf[index], stack(variants, instance.local.dtype))

    def step(coefficients, shift, params, state, x, after):
        pick = lambda a, b: jax.tree.map(lambda a, b: jnp.where(shift, a, b), a, b)
        return evaluate(instance.program, coefficients, params, pick(after, state), x, pick(state, after))

    def pull(row):
        adjoints, initial, (coefficients, shift) = row

        def all_steps(params):
            run = jax.vmap(lambda state, x, after: step(coefficients, shift, params, state, x, after))
            return run(trajectory.previous, trajectory.inputs, trajectory.states)

        recurrent = vjp(all_steps, params)[1](jax.vmap(unravel)(adjoints))
        return recurrent, vjp(instance.model.initial_state, params)[1](unravel(initial))

    adjoints, initial = (jnp.stack(parts) for parts in zip(*((row.adjoints, row.initial) for row in rows), strict=True))
    recurrent, of_initial = jax.lax.map(pull, (adjoints, initial, chosen))
    return Pulled(_numbers(recurrent), _numbers(of_initial))


def _direct_of_last(instance: Instance) -> Params:
    """The last loss's share of Σ_t (∂⁺o_t/∂⁺θ)ᵀ ∂C/∂o_t."""
    length, dtype, states = len(instance.local), instance.local.dtype, instance.forward.trajectory.states
    weights = reduction_weight(instance.model, length, dtype) * jnp.zeros(length, dtype).at[-1].set(1)
    losses = lambda params: step_losses(instance.model, params, states, instance.targets)
    return vjp(losses, instance.params)[1](weights)


def _rows(variants: list[Variant], chains: jax.Array, local: jax.Array, reduction: str) -> list[Row]:
    true, length = chains[0], len(local)
    adjoints, initial = _adjoints(true, local)
    rows = [Row(None, "", adjoints, initial)]

    def add(slip, note, carried, variant=0, direct=None):
        adjoints, initial = carried
        rows.append(Row(slip, note, adjoints, initial, variant, 1 if direct is None else direct))

    for k, variant in enumerate(variants):
        if variant.slip is None or not np.any(chains[k]):
            continue  # if no path is left, no particular one was dropped
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
    # J_t in place of J_{t+1}; the first adjoint still passes J_1 on its way to h_0
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
    """The indices of the variants in which every φ' is taken as 1."""
    for k, variant in enumerate(variants):
        if variant.slip == "missing_activation_derivative":
            primary = variant.coefficients.direct[: program.num_primary]
            if not primary.any():
                yield k


def _absolute_drive(chains, local):
    """|c_t| + |J_{t+1} with φ' = 1|ᵀ |λ_{t+1}|: what rounding acts on; chains: the true one, and that with φ' = 1."""
    adjoints, _ = _adjoints(jnp.abs(chains[0]), jnp.abs(local))
    later = jnp.concatenate((adjoints[1:], jnp.zeros_like(adjoints[:1])))
    after = jnp.concatenate((chains[1][1:], chains[1][:1]))
    return jnp.abs(local) + jnp.einsum("tij,ti->tj", jnp.abs(after), later)


def _numbers(tree):
    """{"params.<leaf>": float64 array}."""
    return {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(tree).items()}
