"""The known slips of hand derivations, computed: what each would give for this cell at these points."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import _validation
from jaxbptt._jaxprs.sites import StepProgram
from jaxbptt.derivations.rewrite import Coefficients, evaluate, neutral
from jaxbptt.partials import jacobian, vjp
from jaxbptt.trajectories import flatten_steps
from jaxbptt.types import Input, Params, State, States, Step

# Most specific first: of two slips that explain the same numbers equally well, the first is named.
KINDS = {
    "sign": "its sign is wrong",
    "double": "it is twice what it should be",
    "half": "it is half of what it should be",
    "lost_mean": "the 1/T of the mean is lost",
    "double_mean": "the 1/T of the mean is applied twice",
    "transposed_jacobian": "a Jacobian is transposed",
    "missing_activation_derivative": "the derivative of an activation, φ', is missing",
    "reversed_product": "the factors of a product stand in reverse order",
    "missing_direct_term": "a direct term is missing",
    "last_term_only": "only the last term of a sum is there",
    "wrong_time_index": "a neighbouring step's value is used, such as h_t for h_{t−1}",
    "double_path": "a path is counted twice",
    "dropped_gate_path": "the path through a gate, or past the gates, is dropped",
}


class Variant(NamedTuple):
    """One wrong derivative of the step."""

    slip: str | None  # None: the true derivative
    note: str  # where, e.g. "at tanh"
    coefficients: Coefficients
    shift: bool = False  # everything evaluated at h_t in place of h_{t−1}


class Candidate(NamedTuple):
    slip: str  # of KINDS
    note: str
    pieces: dict  # piece -> numpy array


def step_variants(program: StepProgram) -> list[Variant]:
    """The true derivative, then every one with a single slip that the program's coefficients can express."""
    true = neutral(program)
    count, primary = len(program.sites), program.num_primary
    names = _site_names(program)
    variants = [Variant(None, "", true)]

    def add(slip, note, shift=False, **fields):
        changed = {}
        for field, (indices, value) in fields.items():
            changed[field] = getattr(true, field).copy()
            changed[field][list(indices)] = value
        variants.append(Variant(slip, note, true._replace(**changed), shift))

    def at(chosen):
        return "at " + ", ".join(names[i] for i in chosen)

    readings = _subsets(primary) + [(i,) for i in range(primary, count)]
    if count > primary:
        readings.append(tuple(range(primary, count)))
    for subset in readings:
        add("missing_activation_derivative", at(subset), direct=(subset, 0), identity=(subset, 1))
    for i in range(primary):
        if program.lag is not None:
            add("wrong_time_index", f"φ' by h_{{t−1}} {at((i,))}", direct=([i], 0), lagged=([i], 1))
    products = range(len(program.products))
    for subset in [(i,) for i in products] + [tuple(products)] * (len(products) > 1):
        for shift in (False, True):
            add("wrong_time_index", "in the parameter's factor", shift, shifted=(subset, 1))
    add("wrong_time_index", "throughout", True)
    carries = range(len(program.carries))
    for subset in [(i,) for i in carries] + [tuple(carries)] * (len(carries) > 1):
        add("transposed_jacobian", "in the recurrent weights", turned=(subset, 1), carry=((), 1))
    single = [(), *((i,) for i in range(primary))]
    past_gates = [(i,) for i in carries] + [tuple(carries)] * (len(carries) > 1)
    for gates, past in [(subset, ()) for subset in _subsets(primary)] + list(itertools.product(single, past_gates)):
        note = " and ".join([at(gates)] * bool(gates) + ["past the gates"] * bool(past))
        add("dropped_gate_path", note, direct=(gates, 0), carry=(past, 0))
    for subset in [(i,) for i in range(primary)] + [tuple(range(primary))] * (primary > 1):
        add("double_path", at(subset), direct=(subset, 2))
    for i in carries:
        add("double_path", "past the gates", carry=([i], 2))
    return variants


def stack(variants: list[Variant], dtype: Any) -> tuple[Coefficients, jax.Array]:
    """(coefficients with leading [K], shift [K])."""
    rows = [jax.tree.map(lambda leaf: leaf.astype(dtype), variant.coefficients) for variant in variants]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *rows), jnp.asarray([v.shift for v in variants])


def partials(step: Step, params: Params, state: State, x: Input, cotangents: Any) -> dict:
    """The pieces at one step: J [N, N]; per cotangent (leading [C]) the pullbacks to params' leaves, state and x."""
    flat, unravel = ravel_pytree(state)
    leaves, structure = jax.tree.flatten(x)
    floating = [i for i, leaf in enumerate(leaves) if _validation.is_float(leaf)]

    def flat_step(params, h, floats):
        filled = dict(zip(floating, floats, strict=True))
        x = jax.tree.unflatten(structure, [filled.get(i, leaf) for i, leaf in enumerate(leaves)])
        return ravel_pytree(step(params, unravel(h), x))[0]

    floats = [leaves[i] for i in floating]
    pull = jax.vmap(vjp(lambda at: flat_step(*at), (params, flat, floats))[1])
    of_params, of_state, of_x = pull(jax.vmap(lambda tree: ravel_pytree(tree)[0])(cotangents))
    return {
        "state_jacobian": jacobian(lambda h: flat_step(params, h, floats), flat),
        **name_pieces(of_params, of_state, of_x, jax.tree.leaves(cotangents)[0].shape[0]),
    }


def name_pieces(of_params: Any, of_state: Any, of_x: Any, count: int) -> dict:
    """Pullbacks as {"params.<leaf>": …, "previous_state": [C, N], "input": [C, M]}, without pieces of no entries."""
    pieces = named_leaves(of_params)
    for name, tree in (("previous_state", of_state), ("input", of_x)):
        rows = [jnp.reshape(leaf, (count, -1)) for leaf in jax.tree.leaves(tree)]
        if rows:
            pieces[name] = jnp.concatenate(rows, axis=1)
    return {name: piece for name, piece in pieces.items() if piece.size}


def require_structure(name: str, tree: Any, like: Any) -> None:
    """Raise unless `tree` has the structure of `like`."""
    got: Any = jax.tree.structure(tree)
    expected: Any = jax.tree.structure(like)
    if got != expected:
        raise ValueError(f"{name}: got structure {got}, expected {expected}")


def named_leaves(tree: Any) -> dict[str, Any]:
    """{"params.<leaf>": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_validation.leaf_name("params", path): leaf for path, leaf in leaves}


def local_candidates(
    program: StepProgram, params: Params, states: States, xs: Any, others: Any, cotangents: Any
) -> tuple[list[Candidate], dict]:
    """What each slip gives for every piece at S steps: (candidates with pieces [S, C, ...], the true pieces)."""
    variants = step_variants(program)
    dtype = jax.tree.leaves(states)[0].dtype
    coefficients, shift = stack(variants, dtype)

    def one(coefficients, shift, state, x, other, cotangents):
        at, else_at = _swap(shift, state, other)
        step = lambda params, state, x: evaluate(program, coefficients, params, state, x, else_at)
        return partials(step, params, at, x, cotangents)

    per_step = jax.vmap(one, in_axes=(None, None, 0, 0, 0, 0))
    pieces = jax.lax.map(lambda v: per_step(v[0], v[1], states, xs, others, cotangents), (coefficients, shift))
    pieces = {name: np.asarray(piece, np.float64) for name, piece in pieces.items()}
    true = {name: piece[0] for name, piece in pieces.items()}
    found = [
        Candidate(variant.slip, variant.note, {name: piece[k] for name, piece in pieces.items()})
        for k, variant in enumerate(variants)
        if variant.slip is not None
        and np.any(pieces["state_jacobian"][k])  # if no path is left, no particular one was dropped
    ]
    jacobian = true["state_jacobian"]
    flat = np.asarray(jax.vmap(flatten_steps)(cotangents), np.float64)
    for slip, factor in (("sign", -1), ("double", 2), ("half", 0.5)):
        found.append(Candidate(slip, "", {name: factor * piece for name, piece in true.items()}))
    turned = {name: np.swapaxes(piece, -1, -2) for name, piece in true.items() if _is_square_weight(name, piece)}
    turned["state_jacobian"] = np.swapaxes(jacobian, -1, -2)
    turned["previous_state"] = np.einsum("sij,scj->sci", jacobian, flat)
    found.append(Candidate("transposed_jacobian", "as a whole", turned))
    for k, variant in enumerate(variants):
        if variant.slip == "missing_activation_derivative":
            swapped = reverse_factors(jacobian, pieces["state_jacobian"][k])
            if swapped is not None:
                pulled = np.einsum("sji,scj->sci", swapped, flat)
                note = "W diag(φ') for diag(φ') W"
                found.append(Candidate("reversed_product", note, {"state_jacobian": swapped, "previous_state": pulled}))
    return found, true


def reverse_factors(jacobian: np.ndarray, plain: np.ndarray) -> np.ndarray | None:
    """W diag(d) where J = diag(d) W and `plain` is W, [..., N, N]; None where J is not such a product."""
    norms = np.sum(plain * plain, axis=-1)
    slopes = np.sum(jacobian * plain, axis=-1) / np.where(norms, norms, 1)
    scale = np.max(np.abs(jacobian), initial=0)
    if not np.max(np.abs(jacobian - slopes[..., None] * plain), initial=0) <= 1e-5 * scale:
        return None
    return plain * slopes[..., None, :]


def _swap(shift, state, other):
    """(where to evaluate, what the other time index holds)."""
    pick = lambda here, there: jax.tree.map(lambda a, b: jnp.where(shift, a, b), here, there)
    return pick(other, state), pick(state, other)


def _is_square_weight(name, piece):
    return name.startswith("params") and piece.ndim == 4 and piece.shape[-1] == piece.shape[-2]


def _site_names(program):
    names = [site.name for site in program.sites]
    seen: dict[str, int] = {}
    named = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        plain = "φ" if name == "custom_jvp_call" else name
        named.append(f"{plain} (number {seen[name]} of {names.count(name)})" if names.count(name) > 1 else plain)
    return named


def _subsets(count):
    """Which of `count` places slip together: all non-empty sets of few places; else one, some, all but one, or all."""
    sizes = [*range(1, count + 1)] if count <= 5 else [1, count - 1, count]
    if 5 < count <= 8:
        sizes = [1, 2, 3, count - 1, count]
    return [subset for size in sizes for subset in itertools.combinations(range(count), size)]
