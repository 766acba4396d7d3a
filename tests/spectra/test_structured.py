"""Singular values, norms and exponents of structured chains, against those of the matrices that they stand for."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import jacobians, spectra
from tests.jacobians.chains import chain_of
from tests.jacobians.structures import chains
from tests.mutation import mutate_package

CHAINS = chains(20)


def values_of(chain, package=spectra, **options):
    return package.log_singular_values(chain, every=7, start=1, **options)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("name", CHAINS)
def test_singular_values_are_within_their_errors(name, dtype):
    chain = chains(20, dtype)[name]
    found = values_of(chain, errors=True)
    exact = chain.assemble().astype(jnp.float64)
    expected = values_of(exact, errors=True)
    assert found.log_sigma.shape == (3, chain.size)
    log_sigma, rest, error = (np.asarray(field, np.float64) for field in (found.log_sigma, found.rest, found.error))
    known = np.isfinite(log_sigma)
    off = np.abs((log_sigma + rest)[known] - expected.log_sigma[known])
    assert np.all(off <= 3 * error[known] + 3 * np.asarray(expected.error)[known])
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


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", CHAINS)
def test_exponents_are_those_of_the_blocks(name):
    chain = chains(200, seed=1)[name]
    found = spectra.lyapunov_exponents(chain, interval=1)
    assert found.size == chain.size
    entries = chain.diagonal() if hasattr(chain, "core") else jnp.stack((chain.steps.scale, chain.steps.corner), axis=1)
    if entries is None:
        parts = [spectra.lyapunov_exponents(block, interval=1).exponents for block in _blocks(chain)]
        values = np.concatenate(parts)
    else:
        counted = np.log(np.abs(np.broadcast_to(entries, (200, entries.shape[1]))))[20:]
        values = np.mean(counted, axis=0)
        values = values if hasattr(chain, "core") else np.repeat(values, (chain.size - 1, 1))
    expected = np.sort(np.repeat(values, chain.size // len(values)))[::-1]
    np.testing.assert_allclose(found.exponents, expected, atol=1e-13)
    few = spectra.lyapunov_exponents(chain, k=3, interval=1)
    np.testing.assert_array_equal(few.exponents, found.exponents[:3])


def _blocks(chain):
    matrices = chain.matrices()
    return jnp.broadcast_to(matrices, (len(chain), *matrices.shape[1:])).swapaxes(0, 1)


@pytest.mark.parametrize("name", ["A x I", "I x A", "blocks"])
def test_exponents_are_near_those_of_the_whole(name):
    chain = chains(200, seed=1)[name]
    found, whole = spectra.lyapunov_exponents(chain), spectra.lyapunov_exponents(chain.assemble())
    assert np.all(np.abs(found.exponents - whole.exponents) < 3 * found.standard_error)


def test_what_wants_matrices_says_how_to_get_them():
    for function in (spectra.bounds, spectra.log_growth):
        with pytest.raises(TypeError, match=r"jacobians: got BlockJacobians, expected an array .*assemble"):
            function(CHAINS["blocks"])


def test_equal_steps_have_no_standard_error():
    found = spectra.lyapunov_exponents(chains(200)["constant"])
    assert np.all(found.standard_error == 0)
    entries = chains(200)["constant"].diagonal()[0]
    np.testing.assert_allclose(found.exponents, np.sort(np.repeat(np.log(np.abs(entries)), 2))[::-1], atol=1e-15)


@pytest.mark.filterwarnings("ignore:jacobians")
@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "leaky", "slstm"])
def test_diagonals_and_blocks_are_formed_step_by_step(name):
    cell, params, trajectory, chain = chain_of(name, 1.0)
    structured = jacobians.structured_jacobians(cell, params, trajectory)
    for function in (
        lambda chain: spectra.log_singular_values(chain, every=2),
        lambda chain: spectra.log_singular_values(chain, errors=True).log_sigma,
        lambda chain: spectra.pair_norms(chain, spectral=False).log_frobenius,
    ):
        known = function(chain)
        np.testing.assert_allclose(function(structured), known, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("diagonal", "sums = add_log(sums, jnp.abs(entry))", "sums = add_log(sums, jnp.abs(entry) ** 2)"),
        ("constant", "log_sigma = taken * jnp.log(", "log_sigma = jnp.log("),
        ("border", "scale + corner, side) +", "scale + corner, 0 * side) +"),
        ("open border", "many = jnp.broadcast_to(found.log_scale", "many = jnp.broadcast_to(found.log_first"),
        ("open border", "log_corner + jnp.log(length)", "log_corner * 0"),
        ("A x I", "chain.size // field.shape[1], axis=1) for", "chain.size // field.shape[1], axis=1) * 2 for"),
    ],
)
def test_a_broken_line_is_seen(name, old, new):
    mutant, chain = mutate_package(spectra, old, new), CHAINS[name]
    with np.errstate(all="ignore"):
        broken = mutant.log_singular_values(chain, every=7, start=1, errors=True).log_sigma
    assert not np.allclose(broken, values_of(chain, errors=True).log_sigma, atol=1e-3)
