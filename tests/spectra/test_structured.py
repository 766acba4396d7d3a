"""Singular values, norms and exponents of structured chains, against those of the matrices that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import jacobians, spectra
from jaxbptt.jacobians import BlockJacobians
from tests import cases
from tests.jacobians.chains import chain_of
from tests.jacobians.structures import chains
from tests.mutation import mutate_package

KEY = jax.random.key(6)
CHAINS = chains(20)
TRUTH = 1e-12


def values_of(chain, package=spectra, **options):
    return package.log_singular_values(chain, every=7, start=1, **options)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("name", CHAINS)
def test_singular_values_are_within_their_errors(name, dtype):
    chain = chains(20, dtype)[name]
    found = values_of(chain, errors=True)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float64)), chain.assemble())
    expected = values_of(exact, errors=True)
    assert found.log_sigma.shape == (3, chain.size)
    known = np.isfinite(found.log_sigma)
    off = np.abs((found.log_sigma.astype(float) + found.rest)[known] - expected.log_sigma[known])
    assert np.all(off <= 3 * found.error[known] + 3 * expected.error[known])
    assert np.array_equal(found.log_sigma == -jnp.inf, expected.log_sigma == -jnp.inf)
    if dtype == jnp.float64:
        assert known.mean() > 0.5
        np.testing.assert_allclose(values_of(chain)[known], expected.log_sigma[known], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CHAINS)
def test_directions_are_those_of_the_matrices(name):
    chain = chains(5)[name]
    found, dense = spectra.singular_decomposition(chain), jacobians.product(chain, 0, 5)
    product = found.left[0] * jnp.exp(found.log_sigma[0])[None] @ found.right[0].T
    np.testing.assert_allclose(product, dense, atol=1e-11 * np.abs(dense).max())


@pytest.mark.parametrize("name", CHAINS)
def test_pair_norms_are_those_of_the_matrices(name):
    chain = chains(9)[name]
    dense = chain.assemble()
    found = spectra.pair_norms(chain, tolerance=1e-9)
    for t, k in ((9, 0), (9, 3), (4, 2), (3, 3)):
        product = jacobians.product(dense, k, t)
        np.testing.assert_allclose(found.log_frobenius[t, k], np.log(np.linalg.norm(product)), atol=1e-12)
        np.testing.assert_allclose(found.log_spectral[t, k], np.log(np.linalg.norm(product, 2)), atol=1e-8)
    assert np.all(found.log_frobenius[np.triu_indices(10, 1)] == -np.inf)
    assert np.nanmax(found.error) < 1e-12
    without = spectra.pair_norms(chain, spectral=False)
    assert without.log_spectral is None
    np.testing.assert_array_equal(without.log_frobenius, found.log_frobenius)


@pytest.mark.parametrize("name", CHAINS)
def test_exponents_are_those_of_the_matrices(name):
    chain = chains(200, seed=1)[name]
    with pytest.warns(RuntimeWarning) if name == "border" else _nothing():
        dense = spectra.lyapunov_exponents(chain.assemble(), interval=1)
    found = spectra.lyapunov_exponents(chain, interval=1)
    assert found.size == chain.size
    finite = np.isfinite(dense.exponents)
    allowed = 1e-12 + 2 * np.maximum(dense.warm_up_error, found.warm_up_error) + 40 / 200 * (name == "open border")
    assert np.all(np.abs(found.exponents - dense.exponents)[finite] <= allowed[finite])
    few = spectra.lyapunov_exponents(chain, k=3, interval=1)
    np.testing.assert_array_equal(few.exponents, found.exponents[:3])


def _nothing():
    import contextlib

    return contextlib.nullcontext()
