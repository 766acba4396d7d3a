"""No singular value is further off than a few times its own error, and what cannot be known is NaN and marked."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, jacobians, models, spectra, trajectories
from tests import references
from tests.mutation import mutate_package
from tests.spectra.chains import INF, last, singular_decomposition, tanh_chain

SIZE, LENGTH, COUNT = 3, 12, 12
EPS = {dtype: float(np.finfo(dtype).eps) for dtype in (np.float64, np.float32)}
errors_of = jax.jit(functools.partial(spectra.log_singular_values, errors=True))


def orthogonal(rng, size=SIZE):
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def ill_conditioned(rng, eps):
    scales = np.exp(rng.uniform(np.log(eps) / 3, 0, (LENGTH, SIZE)))
    return np.array([orthogonal(rng) @ np.diag(scale) @ orthogonal(rng) for scale in scales])


def reversing(rng, eps):
    steps = [np.eye(SIZE) + 0.5 * rng.standard_normal((SIZE, SIZE)) for _ in range(LENGTH // 2)]
    return np.array(steps + [np.linalg.inv(step) for step in steps[::-1]])


def nearly_singular(rng, eps):
    chain = rng.standard_normal((LENGTH, SIZE, SIZE))
    chain[5, 2] = chain[5, 0] + chain[5, 1] + eps * np.exp(rng.uniform(0, 12)) * rng.standard_normal(SIZE)
    return chain


def triangular(rng, eps):
    return np.triu(rng.standard_normal((LENGTH, SIZE, SIZE)))


def deficient(rng, eps):
    """The last entry of the state is twice the first."""
    chain = rng.standard_normal((LENGTH, SIZE, SIZE))
    chain[::3, 2] = 2 * chain[::3, 0]
    return chain


def saturated(rng, eps):
    return tanh_chain(rng, SIZE, LENGTH, 4.0)


def permuted(rng, eps):
    scales = np.exp(rng.uniform(-13, 2, (LENGTH, SIZE)))
    return np.array([np.diag(scale)[rng.permutation(SIZE)] for scale in scales])


FAMILIES = (ill_conditioned, reversing, nearly_singular, triangular, deficient, saturated, permuted)


@functools.cache
def sample(dtype):
    """(chains [families, COUNT, T, N, N], their true values [families, COUNT, N])."""
    rng = np.random.default_rng(5)
    chains = np.array([[make(rng, EPS[dtype]) for _ in range(COUNT)] for make in FAMILIES]).astype(dtype)
    digits = 400
    truth = [[references.log_singular_values(chain, digits) for chain in family] for family in chains]
    return chains, np.array(truth)


def found_by(module, dtype):
    """[families, COUNT, N] of each field of SingularValues."""
    chains, truth = sample(dtype)
    call = functools.partial(module.log_singular_values, errors=True)
    found = jax.jit(lambda chains: jax.lax.map(call, chains))(chains.reshape(-1, *chains.shape[2:]))
    return (np.asarray(field, float).reshape(truth.shape) for field in found)


def misses(module, dtype):
    """How many values are off by more than three times their error."""
    log_sigma, error, *_ = found_by(module, dtype)
    truth = sample(dtype)[1]
    with np.errstate(invalid="ignore"):
        off = np.where(log_sigma == truth, 0, np.abs(log_sigma - truth))
    return int(np.sum(off > 3 * error))


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", EPS)
def test_no_value_is_off_by_more_than_three_errors(dtype):
    log_sigma, error, resolved, _ = found_by(spectra, dtype)
    assert misses(spectra, dtype) == 0
    unknown = dict(zip((make.__name__ for make in FAMILIES), np.isnan(log_sigma).mean(axis=(1, 2)), strict=True))
    assert unknown["saturated"] == unknown["permuted"] == 0
    assert unknown["deficient"] <= 0.34
    assert 0 < unknown["nearly_singular"] < 0.34
    if dtype == np.float64:
        assert unknown["ill_conditioned"] == 0
    np.testing.assert_array_equal(np.isnan(log_sigma), ~(error <= 1e-2))
    np.testing.assert_array_equal(resolved == 1, error < 1)
    off = np.abs(log_sigma - np.where(np.isfinite(sample(dtype)[1]), sample(dtype)[1], np.nan))
    far = off > EPS[dtype] * np.abs(sample(dtype)[1])
    assert np.median(error[far] / off[far]) < 100


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kappa = jnp.abs(scale", "kappa = 1e-3 * jnp.abs(scale"),
        ("jnp.sum(x * (c @ step.residual[:, back].T), axis=1) / state.overlap", "0 * state.overlap"),
    ],
)
def test_a_broken_line_is_seen(old, new):
    assert sum(misses(mutate_package(spectra, old, new), dtype) for dtype in EPS) > 0


def test_a_correction_makes_float32_better():
    """First order brings the values of well-conditioned chains close to float64's, log_sigma to its own rounding."""
    chains, truth = (part[FAMILIES.index(saturated)] for part in sample(np.float32))
    found = [errors_of(chain) for chain in chains]
    rounded, rest = (
        np.array([np.asarray(getattr(one, name), float)[0] for one in found]) for name in ("log_sigma", "rest")
    )
    plain = np.array([np.asarray(last(chain), float) for chain in chains])
    assert np.median(np.abs(rounded + rest - truth)) < np.median(np.abs(plain - truth)) / 10
    assert np.median(np.abs(rounded - truth)) < 0.75 * EPS[np.float32] * np.median(np.abs(truth))


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.0, 1.0], [1.0, 1.0 + 2.0**-52]],
        [[3.0, 1.0], [1.0, 1 / 3]],
        [[1e8, 1.0], [1.0, 1e-8]],
    ],
)
def test_a_pivot_that_is_zero_by_rounding_is_not_a_zero_value(matrix):
    found = errors_of(np.array([matrix]))
    np.testing.assert_allclose(found.log_sigma[0, 0], np.log(np.linalg.norm(matrix, 2)), atol=1e-14)
    assert np.isnan(found.log_sigma[0, 1])
    assert not found.resolved[0, 1]
    assert np.isnan(last(np.array([matrix]))[1])


@pytest.mark.parametrize("dtype", EPS)
def test_a_diagonal_chain_whose_order_changes_is_a_sum_of_logs(dtype):
    rng = np.random.default_rng(0)
    logs = np.repeat(rng.uniform(-13, -2, (4, 3)), 5, axis=0)
    chain = np.array([np.diag(np.exp(log)) for log in logs]).astype(dtype)
    entries = np.diagonal(chain.astype(float), axis1=1, axis2=2)
    expected = np.sort([math.fsum(np.log(path)) for path in entries.T])[::-1]
    found = singular_decomposition(chain)
    np.testing.assert_allclose(found.log_sigma[0], expected, rtol=4 * EPS[dtype])
    assert (np.abs(np.asarray(found.log_sigma[0], float) - expected) <= np.asarray(found.error[0], float)).all()


def test_monomial_chains_end_where_they_should():
    chain = np.array([[[0, 2.0, 0], [0, 0, -3], [0, 0, 0]], [[0, 0, 1], [5, 0, 0], [0, 0.5, 0]]])
    found = singular_decomposition(chain, every=1)
    for record, dense in enumerate((chain[0], chain[1] @ chain[0])):
        left, right, sigma = found.left[record], found.right[record], np.exp(found.log_sigma[record])
        np.testing.assert_allclose(left @ np.diag(sigma) @ np.asarray(right).T, dense, atol=1e-14)
        np.testing.assert_allclose(left.T @ left, np.eye(3))
        assert found.log_sigma[record, 2] == -INF


@pytest.mark.slow
def test_the_rounding_of_equal_steps_adds_up():
    """All σ of many times the same exactly orthogonal step are one; equal steps are rounded alike."""
    hadamard = np.kron([[1.0, 1.0], [1.0, -1.0]], [[1.0, 1.0], [1.0, -1.0]]) / 2
    chain = np.repeat(hadamard[None], 100_000, axis=0)
    off = []
    for module in (spectra, mutate_package(spectra, "DRIFT, REPEATED = 0.1, 1.0", "DRIFT, REPEATED = 0.1, 0.1")):
        found = jax.jit(functools.partial(module.log_singular_values, errors=True))(chain)
        off.append(float(jnp.max(jnp.abs(found.log_sigma) / found.error)))
    assert off[0] < 2
    assert off[1] > 3


def test_saturated_units_leave_the_others_known():
    """A unit whose slope is exactly zero at one step loses a direction, and no more than that."""
    rng = np.random.default_rng(2)
    chain = np.diag([1.0, 0.5, 1e-3, 1e-6]) @ (np.eye(4) + 0.3 * rng.standard_normal((20, 4, 4)))
    chain[15, 2] = 0
    found = errors_of(chain)
    expected = np.linalg.svd(np.linalg.multi_dot(chain[::-1]), compute_uv=False)
    np.testing.assert_allclose(found.log_sigma[0, :2], np.log(expected[:2]), atol=1e-9)
    assert found.log_sigma[0, 3] == -INF
    assert (found.error < 1e-9).all()
    assert np.isfinite(jax.jit(spectra.log_singular_values)(chain)[0, :3]).all()


def test_blocks_of_a_batch_are_taken_apart():
    model = models.batched(models.sequence_model(cells.lstm(2, 2), 1), 3)
    params = model.init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (20, 3, 2))
    trajectory = trajectories.unroll(model, params, inputs)
    blocks = jacobians.batch_jacobians(model, params, trajectory)
    assert blocks.shape == (20, 3, 4, 4)
    dense = jacobians.step_jacobians(model, params, trajectory)
    of_blocks, of_dense = (spectra.singular_decomposition(chain, every=8) for chain in (blocks, dense))
    np.testing.assert_allclose(of_blocks.log_sigma, of_dense.log_sigma, rtol=0, atol=1e-11)
    np.testing.assert_allclose(last(blocks), of_dense.log_sigma[-1], rtol=0, atol=1e-11)
    wide = np.zeros((12, 12))
    for b in range(3):
        wide[4 * b : 4 * b + 4, 4 * b : 4 * b + 4] = jacobians.product(blocks[:, b], 0, 8)
    left, right = of_blocks.left[0], np.asarray(of_blocks.right[0])
    np.testing.assert_allclose(left @ np.diag(np.exp(of_blocks.log_sigma[0])) @ right.T, wide, atol=1e-13)


@pytest.mark.parametrize("period", [20, 50])
def test_sequences_that_grow_and_shrink_in_turns(period):
    """Two sequences of h' = e^x Q h, x = 3/2 and −2 in turns, one up while the other is down."""
    q = orthogonal(np.random.default_rng(1))
    x = np.where(np.arange(400) // period % 2 == 0, 1.5, -2.0)
    blocks = np.stack([np.exp(x)[:, None, None] * q, np.exp(-0.5 - x)[:, None, None] * q], axis=1)
    np.testing.assert_allclose(last(blocks), 400 * -0.25, atol=1e-9)


def test_a_model_of_one_sequence_is_no_batch():
    model = models.sequence_model(cells.elman(2, 2), 1)
    params = model.init(jax.random.key(0))
    trajectory = trajectories.unroll(model, params, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="model: got one sequence, expected a batch"):
        jacobians.batch_jacobians(model, params, trajectory)
    with pytest.raises(ValueError, match=r"jacobians: got shape \[3, 2, 2, 3\]"):
        spectra.log_singular_values(jnp.ones((3, 2, 2, 3)))
