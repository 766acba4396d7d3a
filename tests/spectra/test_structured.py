"""Singular values, norms and exponents of structured chains, against those of the matrices that they stand for."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxbptt import jacobians, spectra
from jaxbptt.cells import Border, DiagonalLowRank
from tests.jacobians.chains import chain_of
from tests.jacobians.structures import chains
from tests.mutation import mutate_package

CHAINS = chains(20)


def values_of(chain, package=spectra, **options):
    return package.log_singular_values(chain, every=7, start=1, **options)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, jnp.float64) for name in CHAINS),
        *((name, jnp.float32) for name in ("complex diagonal", "A x I", "border")),
    ],
)
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


@pytest.mark.parametrize("name", ["A x I", "border"])
def test_directions_are_those_of_the_matrices(name):
    chain = chains(5)[name]
    found, dense = spectra.singular_decomposition(chain), jacobians.product(chain, 0, 5)
    product = found.left[0] * jnp.exp(found.log_sigma[0])[None] @ found.right[0].T
    np.testing.assert_allclose(product, dense, atol=1e-11 * np.abs(dense).max())


@pytest.mark.sweep
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


@pytest.mark.sweep
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
    if name in ("diagonal", "A x I"):
        few = spectra.lyapunov_exponents(chain, k=3, interval=1)
        np.testing.assert_array_equal(few.exponents, found.exponents[:3])


def _blocks(chain):
    matrices = chain.matrices()
    return jnp.broadcast_to(matrices, (len(chain), *matrices.shape[1:])).swapaxes(0, 1)


@pytest.mark.sweep
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


@pytest.mark.sweep
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


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("diagonal", "sums = add_log(sums, entries[0] if constant else entry)", "sums = add_log(sums, entry**2)"),
        ("constant", "lambda leaf: taken * leaf[None], one", "lambda leaf: jnp.ones_like(taken) * leaf[None], one"),
        ("border", "scale + corner, side) +", "scale + corner, 0 * side) +"),
        ("open border", "many = jnp.broadcast_to(found.log_scale", "many = jnp.broadcast_to(found.log_first"),
        ("open border", "add_log(product.corner, length)", "add_log(product.scale, length)"),
        ("A x I", "chain.size // field.shape[1], axis=1) for", "chain.size // field.shape[1], axis=1) * 2 for"),
    ],
)
def test_a_broken_line_is_seen(name, old, new):
    mutant, chain = mutate_package(spectra, old, new), CHAINS[name]
    with np.errstate(all="ignore"):
        broken = mutant.log_singular_values(chain, every=7, start=1, errors=True).log_sigma
    assert not np.allclose(broken, values_of(chain, errors=True).log_sigma, atol=1e-3)


def test_equal_steps_of_a_float32_rotation_keep_their_digits():
    """At T = 10⁵, one rounding of |λ| alone would be 0.01 nats."""
    place = np.stack((np.arange(40), np.arange(40, 80)), axis=-1).reshape(40, 1, 2)
    draw = np.random.default_rng(0)
    modulus, phase = 1 - 10.0 ** draw.uniform(-6, -2, 40), draw.uniform(0, 6, 40)
    entries = (modulus * np.exp(1j * phase)).astype(np.complex64)[None, :, None]
    none = jnp.zeros((1, 40, 1, 0), jnp.complex64)
    chain = jacobians.BlockJacobians(DiagonalLowRank(jnp.asarray(entries), none, none), place, 100_000)
    found = spectra.log_singular_values(chain, errors=True)
    exact = np.sort(np.repeat(100_000 * np.log(np.abs(entries.astype(complex).ravel())), 2))[::-1]
    off = np.abs(np.asarray(found.log_sigma[0], float) + np.asarray(found.rest[0], float) - exact)
    assert np.all(off <= np.asarray(found.error[0], float))
    assert np.all(off < 1e-3)


def test_a_column_that_decays_after_its_corner_has_died_keeps_its_digits():
    draw, length = np.random.default_rng(0), 2000
    corner, column = np.arange(length) < 3, draw.standard_normal((length, 5)).astype(np.float32)
    scale = np.full(length, 0.9, np.float32)
    chains = [
        jacobians.BorderedJacobians(Border(*(jnp.asarray(leaf, dtype) for leaf in (scale, column, corner))))
        for dtype in (jnp.float32, jnp.float64)
    ]
    found, expected = (spectra.log_singular_values(chain, errors=True) for chain in chains)
    alive = np.isfinite(expected.log_sigma)
    off = np.abs(np.asarray(found.log_sigma, float)[alive] - np.asarray(expected.log_sigma)[alive])
    assert np.all(off <= np.asarray(found.error, float)[alive])


def test_logs_that_cancel_are_within_their_error():
    for entry in (1.3, 2.7, 4.9):
        chain = np.where(np.arange(2000) % 2 == 0, entry, 1.00001 / entry).reshape(-1, 1, 1)
        exact = float(1000 * (mpmath.log(mpmath.mpf(chain[0, 0, 0])) + mpmath.log(mpmath.mpf(chain[1, 0, 0]))))
        found = spectra.log_singular_values(jnp.asarray(chain), errors=True)
        assert abs(float(found.log_sigma[0, 0] + found.rest[0, 0] - exact)) <= found.error[0, 0]


def test_norms_of_scaled_permutations_are_those_of_the_largest_path():
    order = np.array([2, 0, 3, 1])
    entries = np.random.default_rng(1).uniform(-1, 1, (12, 4))
    chain = np.zeros((12, 4, 4))
    chain[:, np.arange(4), order] = entries
    found = spectra.pair_norms(jnp.asarray(chain))
    for t, k in ((12, 0), (10, 5), (6, 5)):
        product = jacobians.product(jnp.asarray(chain), k, t)
        np.testing.assert_allclose(found.log_spectral[t, k], np.log(np.linalg.norm(product, 2)), atol=1e-13)
        np.testing.assert_allclose(found.log_frobenius[t, k], np.log(np.linalg.norm(product)), atol=1e-13)


def test_a_stack_of_chains_is_refused_in_one_line():
    stacked = jax.tree.map(lambda leaf: jnp.stack((jnp.asarray(leaf),) * 2), CHAINS["diagonal"])
    for function in (spectra.log_singular_values, spectra.pair_norms, spectra.lyapunov_exponents):
        with pytest.raises(ValueError, match=r"^jacobians: got a stack of BlockJacobians, expected one chain"):
            function(stacked)
