"""What the tests of the xLSTM's cells, DeltaNet and RWKV-7 share: instances, references, spoilt copies."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, derivations, gradients, models
from jaxbptt.cells.structure import BlockParts, apply_core, gather_copies, scatter_copies, transpose_core
from jaxbptt.comparison import compare
from tests import cases
from tests.mutation import mutate

KEY = jax.random.key(4)
NAMES = ("slstm", "mlstm", "delta_net", "gated_delta_net", "rwkv7")
STOPPED = ("write", "forget", "carry")  # the uses of m' at which a gradient can be stopped


def instance(model, key, gain=1.0, **options):
    """`cases.instance` with all params times `gain` (a large one closes and opens gates), and n > 0."""
    params, inputs, targets, initial = cases.instance(model, key, **options)
    params = jax.tree.map(lambda leaf: gain * leaf, params)
    if hasattr(initial, "normaliser"):
        initial = initial._replace(normaliser=jnp.abs(initial.normaliser) + 0.5)
    return params, inputs, targets, initial


def relative(actual, expected):
    """‖actual − expected‖/‖expected‖, or ‖actual‖ where nothing is expected."""
    return np.linalg.norm(actual - expected) / (np.linalg.norm(expected) or 1)


def step_pairs(cell, params, state, x):
    """(hand-derived, automatic) partials of one step for a cotangent of ones and cosines."""
    out, pull = jax.vjp(cell.step, params, state, x)
    cotangent = jax.tree.map(lambda leaf: 1 + jnp.cos(3 * leaf), out)
    flat, unravel = ravel_pytree(state)
    jacobian = jax.jacfwd(lambda h: ravel_pytree(cell.step(params, unravel(h), x))[0])(flat)
    own = cell.derivation
    ours = *own.pullback(params, state, x, cotangent), own.state_jacobian(params, state, x)
    return ours, (*pull(cotangent), jacobian)


def step_errors(cell, points):
    """The largest relative error of each piece over points (params, state, x)."""
    pairs = jax.jit(lambda *at: step_pairs(cell, *at))
    errors = [[relative(*pair) for pair in zip(*map(jax.tree.leaves, pairs(*at)), strict=True)] for at in points]
    return np.max(errors, axis=0)


def points(cell, seeds=(0, 1, 2), gains=(0.3, 1.0, 4.0)):
    """Of several draws, each with small, usual and saturated gates."""
    for seed in seeds:
        for gain in gains:
            params, inputs, _, state = instance(cell, jax.random.key(seed), gain)
            yield params, state, inputs[0]


def mutant_error(name, old, new):
    """The largest error of a cell's derivation with one line broken."""
    module, options = ("delta_net", {"gated": True}) if name == "gated_delta_net" else (name, {})
    broken = getattr(mutate(importlib.import_module(f"jaxbptt.cells._{module}"), old, new), module)
    sizes = (cases.M, cases.N) if module == "slstm" else (cases.M, cases.N, 2)
    cell = broken(*sizes, **options)
    return step_errors(cell, points(cell, seeds=(0,), gains=(1.0,))).max()


def products(cell, params, state, x, matrix):
    """(J matrix, matrixᵀ J) by the parts of J alone."""
    parts = cell.derivation.parts
    formed = parts.form(params, cell.derivation.pullback.factors(params, state, x))
    if isinstance(parts, cells.JacobianParts):
        return parts.left(formed, matrix), parts.right(formed, matrix.T)
    if isinstance(parts, BlockParts):
        by_blocks = lambda core: jax.vmap(
            lambda column: scatter_copies(
                apply_core(core, gather_copies(column, parts.place, column.dtype)), parts.place
            )
        )
        return by_blocks(formed)(matrix.T).T, by_blocks(transpose_core(formed))(matrix.T)
    rest, last = matrix[:-1], matrix[-1:]
    column = formed.column[:, None]
    left = jnp.concatenate((formed.scale * rest + column * last, formed.corner * last))
    right = jnp.concatenate((formed.scale * rest.T, rest.T @ column + formed.corner * last.T), axis=1)
    return left, right


def stopped(cell, step):
    """{uses of m' at which the gradient is stopped: the cell}, from step(params, state, x, {use: function of m'})."""
    stop = jax.lax.stop_gradient
    variants = {}
    for uses in (STOPPED, *((use,) for use in STOPPED)):
        at = {use: stop if use in uses else lambda m: m for use in STOPPED}
        own = lambda params, state, x, at=at: step(params, state, x, at)
        variants[uses] = cell._replace(step=own, derivation=None)
    return variants


def error_of_gradient(cell, variant):
    """How far the gradient of losses on y moves, relative, if a variant's rules of differentiation take over."""
    right, wrong = (models.sequence_model(each, 2) for each in (cell, variant))
    params, inputs, targets, initial = instance(right, KEY, num_outputs=2)
    call = jax.jit(lambda *data: [gradients.autodiff(each, *data, initial=initial)[1] for each in (right, wrong)])
    return compare(*call(params, inputs, targets)).relative


def found_in_gradient(cell, variant):
    """What `check_gradient` says of a variant's gradient of losses on y."""
    right, wrong = (models.sequence_model(each, 2) for each in (cell, variant))
    gradient = jax.jit(lambda *data: gradients.autodiff(wrong, *data))
    inputs = jax.random.normal(KEY, (3, right.num_inputs))
    return derivations.check_gradient(right, lambda model, *data: gradient(*data), key=KEY, inputs=inputs)


def found_in_step(cell, variant):
    """What `check` says of a variant's partials, taken by automatic differentiation."""

    def state_jacobian(params, state, x):
        flat, unravel = ravel_pytree(state)
        return jax.jacfwd(lambda h: ravel_pytree(variant.step(params, unravel(h), x))[0])(flat)

    pullback = lambda params, state, x, cotangent: jax.vjp(variant.step, params, state, x)[1](cotangent)
    inputs = jax.random.normal(KEY, (2, cell.num_inputs))
    return derivations.check(cell, cells.Derivation(state_jacobian, pullback), key=KEY, inputs=inputs)
