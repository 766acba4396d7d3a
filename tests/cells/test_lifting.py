"""A derivation carried to the params of a model, and to states side by side."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import models
from tests import cases

KEY = jax.random.key(2)


def plain(cell):
    """The same derivation as a user writes it, not factored."""
    factored = cell.derivation.pullback
    return cell._replace(derivation=cell.derivation._replace(pullback=lambda *arguments: factored(*arguments)))


@pytest.mark.parametrize("change", [plain, lambda cell: cell], ids=["plain", "factored"])
def test_lifted_derivation_is_the_cells_with_a_zero_readout(change):
    cell = change(cases.CELLS["gru"])
    model = models.sequence_model(cell, 2)
    params, inputs, _, state = cases.instance(model, KEY)
    ours = model.derivation.pullback(params, state, inputs[0], jnp.ones(cases.N))
    cells_own = cell.derivation.pullback(params.cell, state, inputs[0], jnp.ones(cases.N))
    chex.assert_trees_all_equal((ours[0].cell, *ours[1:]), cells_own)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(ours[0].readout))
    np.testing.assert_array_equal(
        model.derivation.state_jacobian(params, state, inputs[0]),
        cell.derivation.state_jacobian(params.cell, state, inputs[0]),
    )


@pytest.mark.sweep
@pytest.mark.parametrize("change", [plain, lambda cell: cell], ids=["plain", "factored"])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_side_by_side_is_the_derivative_of_the_step_side_by_side(name, change):
    """Also where the flat state holds all C before all h: the blocks of J are woven into one another."""
    model = models.batched(models.sequence_model(change(cases.CELLS[name]), 2), 2)
    one, other = (cases.instance(models.sequence_model(cases.CELLS[name], 2), jax.random.key(i)) for i in range(2))
    params, x = one[0], jnp.stack((one[1][0], other[1][0]))
    state = jax.tree.map(lambda a, b: jnp.stack((a, b)), one[3], other[3])
    new, pull = jax.vjp(model.step, params, state, x)
    cotangent = jax.tree.map(jnp.cos, new)
    chex.assert_trees_all_close(
        model.derivation.pullback(params, state, x, cotangent), pull(cotangent), rtol=1e-12, atol=1e-14
    )
    flat, unravel = ravel_pytree(state)
    dense = jax.jacfwd(lambda h: ravel_pytree(model.step(params, unravel(h), x))[0])(flat)
    np.testing.assert_allclose(model.derivation.state_jacobian(params, state, x), dense, rtol=1e-12, atol=1e-14)
