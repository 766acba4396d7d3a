"""RWKV-7: its equations, and its Jacobian with its determinant."""

import jax
import numpy as np
import pytest

from tests import cases
from tests.cells import matrix_cells

CELL = cases.MODERN["rwkv7"]
K, V = cases.N, 2
sigmoid = lambda a: 1 / (1 + np.exp(-a))


def transition(params, x):
    """(w, a, b) of one step, in NumPy."""
    p, x = jax.tree.map(np.asarray, params), np.asarray(x)
    w = np.exp(-np.exp(np.log(sigmoid(p.w_w @ x + p.b_w)) - 0.5))
    kappa = p.xi * (p.w_k @ x)
    kappa = kappa / np.linalg.norm(kappa)
    return w, -kappa, kappa * sigmoid(p.w_a @ x + p.b_a)


@pytest.mark.parametrize("seed", range(3))
def test_it_computes_its_equations_and_their_jacobian(seed):
    """J = I_V ⊗ Aᵀ, row-major; ln|det J| = V (Σ ln w + ln|1 + bᵀ diag(w)⁻¹ a|)."""
    params, inputs, _, state = matrix_cells.instance(CELL, jax.random.key(seed))
    x = inputs[0]
    w, a, b = transition(params, x)
    matrix = np.diag(w) + np.outer(a, b)
    new = CELL.step(params, state, x)
    np.testing.assert_allclose(new, state @ matrix + np.outer(params.w_v @ x, params.w_k @ x), rtol=1e-12)
    np.testing.assert_allclose(CELL.output(params, new, x), new @ (params.w_r @ x), rtol=1e-13)

    jacobian = jax.jacfwd(lambda h: CELL.step(params, h.reshape(V, K), x).ravel())(state.ravel())
    np.testing.assert_allclose(jacobian, np.kron(np.eye(V), matrix.T), rtol=1e-13, atol=1e-15)
    assert np.linalg.norm(jacobian - np.kron(np.eye(V), matrix)) > 1e-2
    expected = V * (np.sum(np.log(w)) + np.log(abs(1 + b @ (a / w))))
    np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], expected, rtol=1e-12)
