"""J_t in diagonals and blocks multiplies as the dense one."""

import jax
import numpy as np
import pytest

from jaxbptt import jacobians, models, trajectories
from tests import cases
from tests.jacobians.chains import KEY, chain_of


@pytest.mark.sweep
@pytest.mark.parametrize("gain", cases.GAINS)
@pytest.mark.parametrize("name", cases.BUILT_IN)
def test_structured_jacobians_multiply_as_dense_ones(name, gain):
    cell, params, trajectory, chain = chain_of(name, gain)
    structured = jacobians.structured_jacobians(cell, params, trajectory)
    assert len(structured) == cases.T
    np.testing.assert_allclose(structured.assemble(), chain, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(jacobians.product(structured, 1, 4), jacobians.product(chain, 1, 4), atol=1e-13)
    expected = jacobians.prefix_products(chain)
    np.testing.assert_allclose(jacobians.prefix_products(structured), expected, atol=1e-12 * np.abs(expected).max())
    at = structured.at(jax.tree.map(lambda leaf: leaf[2], structured.factors))
    matrix = jax.random.normal(KEY, (chain.shape[1], 2))
    np.testing.assert_allclose(structured.parts.left(at, matrix), chain[2] @ matrix, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(structured.parts.right(at, matrix.T), matrix.T @ chain[2], rtol=1e-12, atol=1e-14)


def test_a_model_lifts_the_parts_and_a_step_has_none():
    model = models.sequence_model(cases.CELLS["lstm"], cases.O)
    params, inputs, _, initial = cases.instance(model, KEY)
    trajectory = trajectories.unroll(model, params, inputs, initial=initial)
    structured = jax.jit(lambda *data: jacobians.structured_jacobians(model, *data))(params, trajectory)
    expected = jacobians.step_jacobians(model, params, trajectory, method="forward")
    np.testing.assert_allclose(structured.assemble(), expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="cell: got one without parts of its Jacobian"):
        jacobians.structured_jacobians(cases.CELLS["custom"], params, trajectory)
