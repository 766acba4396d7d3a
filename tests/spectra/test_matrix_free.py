"""The leading singular values from products with the step alone, and a residual that tells what they are worth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbptt import cells, jacobians, trajectories
from jaxbptt.spectra import matrix_free
from tests import cases
from tests.mutation import mutate

KEY, K, LENGTH = jax.random.key(7), 3, 12
CELLS = {"elman": cells.elman(2, 12), "lstm": cells.lstm(2, 5), "custom": cases.custom_cell(2)}
LINEAR = cells.linear(0, 8)


def instance(name, dtype=np.float64):
    cell = CELLS[name]
    params, inputs, _, initial = cases.instance(cell, KEY, length=LENGTH, gain=1.5)
    params, inputs, initial = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, inputs, initial))
    return cell, params, trajectories.unroll(cell, params, inputs, initial=initial)


def dense_product(cell, params, trajectory, start=0, stop=None):
    chain = np.asarray(jacobians.step_jacobians(cell, params, trajectory), np.float64)[start:stop]
    return functools.reduce(lambda product, jacobian: jacobian @ product, chain, np.eye(chain.shape[1]))


def run(cell, params, trajectory, module=matrix_free, **options):
    options = {"k": K, "key": jax.random.key(0)} | options
    call = functools.partial(module.leading_singular_values, cell, **options)
    return jax.jit(call)(params, trajectory)


def dense_residual(product, found):
    left, right = np.asarray(found.left, np.float64), np.asarray(found.right, np.float64)
    sigma = np.exp(np.asarray(found.log_sigma, np.float64))
    return np.linalg.norm(product.T @ left - sigma * right, axis=0) / sigma


def assert_orthonormal(found, tolerance=1e-13):
    for basis in (found.left, found.right):
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), rtol=0, atol=tolerance)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "span", "options"),
    [
        ("elman", {}, {"oversampling": 2}),
        ("elman", {"start": 3, "stop": 9}, {"tolerance": 1e-9, "oversampling": 4}),
        ("lstm", {"stop": 5}, {"oversampling": 3}),
        ("custom", {}, {"k": 4}),
    ],
)
def test_against_a_dense_decomposition(name, span, options):
    cell, params, trajectory = instance(name)
    found, product = run(cell, params, trajectory, **span, **options), dense_product(cell, params, trajectory, **span)
    expected = np.linalg.svd(product, compute_uv=False)
    floor = 100 * np.finfo(float).eps * expected[0] / expected[: options.get("k", K)]
    tolerance = options.get("tolerance", 1e-3)
    assert (found.residual <= tolerance).all()
    assert found.rounds < 8
    # An error δ of the directions is one of δ² of the values.
    values = np.log(expected[: len(found.log_sigma)])
    assert (np.abs(found.log_sigma - values) <= floor + tolerance**2).all()
    assert (np.abs(dense_residual(product, found) - found.residual) <= floor).all()
    assert (np.abs(dense_residual(product.T, found._replace(left=found.right, right=found.left))) <= floor).all()
    assert_orthonormal(found)


def test_in_float32():
    cell, params, trajectory = instance("elman", np.float32)
    found, product = run(cell, params, trajectory), dense_product(cell, params, trajectory)
    assert all(leaf.dtype == np.float32 for leaf in found[:4])
    assert (found.residual <= 1e-3).all()
    np.testing.assert_allclose(found.log_sigma, np.log(np.linalg.svd(product, compute_uv=False)[:K]), rtol=0, atol=1e-5)
    sigma = np.exp(np.asarray(found.log_sigma))
    assert (np.abs(dense_residual(product, found) - np.asarray(found.residual)) <= 1e-5 * sigma[0] / sigma).all()
    assert_orthonormal(found, 1e-5)


def test_too_few_directions_are_not_said_to_be_enough():
    cell, params, trajectory = instance("elman")
    product = dense_product(cell, params, trajectory)
    short = run(cell, params, trajectory, oversampling=0, max_rounds=2)
    assert short.rounds == 2
    assert short.residual.max() > 1e-2
    np.testing.assert_allclose(short.residual, dense_residual(product, short), rtol=1e-9)
    expected = np.log(np.linalg.svd(product, compute_uv=False)[:K])
    known = np.isfinite(short.error)
    assert known.any()
    assert (short.log_sigma < expected)[known].all()
    assert (expected - short.log_sigma < short.error)[known].all()
    np.testing.assert_array_equal(np.isnan(short.log_sigma), ~known)


@functools.cache
def linear_run(length, module=matrix_free, **options):
    """W -> the four leading values of W^length, in the dtype of W."""

    def call(weights):
        params = cells.ElmanParams(jnp.zeros((8, 0), weights.dtype), weights, jnp.zeros(8, weights.dtype))
        trajectory = trajectories.unroll(LINEAR, params, jnp.zeros((length, 0), weights.dtype))
        options_ = {"oversampling": 2} | options
        return module.leading_singular_values(LINEAR, params, trajectory, k=4, key=KEY, **options_)

    return jax.jit(call)


ORTHOGONAL = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]


@pytest.mark.parametrize("gain", [1e-12, 1.1, 1e15])
def test_equal_values_at_any_magnitude(gain):
    found = linear_run(60)(gain * ORTHOGONAL)
    np.testing.assert_allclose(found.log_sigma, 60 * np.log(gain), rtol=1e-13)
    assert (found.residual < 1e-11).all()
    assert found.rounds == 1
    assert_orthonormal(found)


def long_residual(module):
    """Of (0.3 Q)^300 in float32, ln σ = −361: in units of eps |ln σ|, which a single float cannot do without."""
    found = linear_run(300, module, max_rounds=1)(np.float32(0.3 * ORTHOGONAL))
    return np.asarray(found.residual / (np.finfo(np.float32).eps * np.abs(found.log_sigma)))


def test_the_residual_of_a_long_chain_keeps_its_digits():
    assert long_residual(matrix_free).max() < 2
    plain_sum = ("*graded.add_compensated(log_norm, log_carry, log_length)", "log_norm + log_length, log_carry")
    assert long_residual(mutate(matrix_free, *plain_sum)).min() > 10


def test_values_that_lie_far_apart():
    """Directions are held to eps of the largest: what lies further below it is not known."""
    magnitudes = 10.0 ** -np.arange(8)
    found = linear_run(60)(ORTHOGONAL @ np.diag(magnitudes) @ ORTHOGONAL.T)
    assert abs(found.log_sigma[0]) < found.error[0] + 60 * 4 * np.finfo(float).eps  # the matrix itself is rounded
    assert found.error[0] < 1e-13
    assert found.residual[0] < 1e-12
    assert (found.residual[1:] > 1e3).all()
    assert np.isnan(found.log_sigma[1:]).all()
    assert np.isposinf(found.error[1:]).all()
    assert found.rounds == 8


def test_the_zero_chain():
    found = linear_run(60)(np.zeros((8, 8)))
    assert np.isneginf(found.log_sigma).all()
    np.testing.assert_array_equal([found.residual, found.error], 0)
    assert_orthonormal(found)


def test_rank_one():
    u, v = ORTHOGONAL[:, 0], ORTHOGONAL[:, 0] + 0.5 * ORTHOGONAL[:, 1]
    found = linear_run(60)(np.outer(u, v))
    np.testing.assert_allclose(found.log_sigma[0], 0.5 * np.log(1.25), rtol=0, atol=1e-12)
    assert found.residual[0] < 1e-12
    assert found.error[0] < 1e-13
    assert np.isnan(found.log_sigma[1:]).all(), "what rounding left of zero"
    assert_orthonormal(found)


def chain_run(chain, module=matrix_free, **options):
    """The leading values of any chain: a cell that multiplies by its input."""
    size, dtype = chain.shape[-1], chain.dtype
    cell = cells.from_step(lambda params, h, x: x @ h, lambda params: jnp.zeros(size, dtype))

    def call(chain):
        trajectory = trajectories.Trajectory(jnp.zeros(size, dtype), chain, jnp.zeros(chain.shape[:2], dtype))
        return module.leading_singular_values(cell, (), trajectory, key=KEY, **options)

    return jax.jit(call)(jnp.asarray(chain))


def diagonal_chains(count=100):
    """Directions that fall far behind and come back, and the truth, a sum of logs."""
    rng = np.random.default_rng(8)
    logs = np.repeat(rng.uniform(-13, 2, (count, 6, 4)), 5, axis=1)
    return np.exp(logs)[..., None] * np.eye(4), np.sort(logs.sum(axis=1), axis=1)[:, ::-1]


def close_values(gap, length=20):
    """Steps F_t diag(s) F_{t−1}ᵀ with three values of s so close, and four that are not."""
    rng, values = np.random.default_rng(3), np.array([1, 1 - gap, 1 - 2 * gap, 0.7, 0.5, 0.3, 0.1])
    frames = np.linalg.qr(rng.standard_normal((length + 1, 7, 7)))[0]
    steps = zip(frames[1:], frames[:-1], strict=True)
    return np.stack([after @ np.diag(values) @ before.T for after, before in steps]), length * np.log(values)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_with_gaps_of_a_millionth(dtype):
    chain, truth = close_values(1e-6)
    found = chain_run(chain.astype(dtype), k=4, oversampling=1)
    # Rounding the chain's entries is one eps a step.
    slack = 2 * np.finfo(dtype).eps * len(chain) ** 0.5
    assert (np.abs(np.asarray(found.log_sigma) - truth[:4]) <= np.asarray(found.error) + slack).all()
    assert (found.error < 2e3 * np.finfo(dtype).eps).all()


def undone():
    """A³⁰ and then A⁻³⁰."""
    matrix = np.eye(5) + 2 * np.random.default_rng(5).standard_normal((5, 5))
    return np.stack([matrix] * 30 + [np.linalg.inv(matrix)] * 30)


def row_removed():
    """A state of which one step leaves two entries: two values, the others zero."""
    chain = np.random.default_rng(6).standard_normal((9, 5, 5))
    chain[4, 2:] = 0
    return chain


def test_what_is_known_of_hard_chains():
    assert np.isnan(chain_run(undone(), k=5, oversampling=0).log_sigma).any()
    found = chain_run(row_removed(), k=4, oversampling=1)
    truth = np.log(np.linalg.svd(np.linalg.multi_dot(row_removed()[::-1]), compute_uv=False)[:2])
    assert (np.abs(found.log_sigma[:2] - truth) <= found.error[:2] + 1e-14).all()
    assert np.isneginf(found.log_sigma[2:]).all()
    np.testing.assert_array_equal(found.error[2:], 0)


def palindromes(count=100):
    """Chains that undo themselves, and the exact ln σ_1 of the rounded ones, from products of integers."""
    rng = np.random.default_rng(9)
    chains, truth = np.empty((count, 30, 4, 4)), np.empty((count, 1))
    for index in range(count):
        half = np.eye(4) + rng.uniform(0.2, 1.2) * rng.standard_normal((15, 4, 4))
        chains[index] = np.concatenate((half, np.linalg.inv(half[::-1])))
        product = np.eye(4, dtype=int).astype(object)
        for step in chains[index]:
            product = np.vectorize(lambda x: int(x * 2.0**200), otypes=[object])(step) @ product
        truth[index] = np.log(np.linalg.norm(np.vectorize(lambda x: float(x / 2 ** (30 * 200)))(product), 2))
    return chains, truth


SHARE = "share_errors(log_sigma, jnp.where(jnp.isfinite(relative), relative, jnp.inf))"


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("make", "k", "old", "new"),
    [
        (diagonal_chains, 4, "", ""),
        (palindromes, 1, "", ""),
        (diagonal_chains, 4, SHARE, "relative"),
        (palindromes, 1, "FACTOR * kappa + DRIFT * drift", "0 * kappa"),
    ],
)
def test_no_direction_that_comes_back_is_told_wrong(make, k, old, new):
    """The residual alone calls some of these values right that are off by many nats."""
    module = mutate(matrix_free, old, new) if old else matrix_free
    chains, truth = make()
    cell = cells.from_step(lambda params, h, x: x @ h, lambda params: jnp.zeros(4))

    def one(chain):
        trajectory = trajectories.Trajectory(jnp.zeros(4), chain, jnp.zeros((30, 4)))
        return module.leading_singular_values(cell, (), trajectory, k=k, key=KEY, oversampling=4)

    found = jax.jit(lambda chains: jax.lax.map(one, chains))(chains)
    known = np.isfinite(found.error)
    np.testing.assert_array_equal(np.isnan(found.log_sigma), ~known)
    assert known.mean() > 0.1
    assert (np.abs(found.log_sigma - truth) > 3 * found.error)[known].any() == (module is not matrix_free)


MUTANTS = [
    ("steps, reverse=True)", "steps, reverse=True)"),  # the control: nothing broken, nothing seen
    ("steps, reverse=True)", "steps)"),
    ("leaf[start:stop], (trajectory.previous", "leaf[start:stop], (trajectory.states"),
    ("r @ coordinates", "coordinates"),
    ("(log_norm - log_sigma)", "log_norm"),
    ("left.T @ rows", "left @ rows"),
    ("first.q @ right", "right"),
    ("lower.T @ r", "r"),
    ("lambda: twice, householder", "lambda: twice, lambda: twice"),
    ("        return basis, LeadingSVD", "        return found[2].T, LeadingSVD"),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("old", "new"), MUTANTS)
def test_a_broken_line_is_seen(old, new):
    mutant = mutate(matrix_free, old, new)
    cell, params, trajectory = instance("custom")
    flat = ravel_pytree(trajectory.initial)[0]
    if "twice" in old:
        rows = jnp.stack((flat, flat * (1 + 1e-14) + jnp.eye(len(flat))[0] * 1e-12))
        q, _ = mutant._row_qr(rows)
        assert not np.allclose(q @ q.T, np.eye(2), atol=1e-12)
        return
    # All N directions need one round; fewer need all of them to be told right.
    options = {"k": 2, "oversampling": 0, "max_rounds": 30} if "return basis" in old else {"k": 4, "max_rounds": 1}
    found = run(cell, params, trajectory, mutant, start=1, stop=4, tolerance=1e-9, **options)
    product = dense_product(cell, params, trajectory, 1, 4)
    expected = np.log(np.linalg.svd(product, compute_uv=False)[: options["k"]])
    unbroken = (
        np.allclose(found.log_sigma, expected, rtol=0, atol=1e-8)
        and (found.residual <= 1e-9).all()
        and (dense_residual(product, found) <= 1e-8).all()
    )
    assert unbroken == (old == new)


def test_bad_numbers():
    cell, params, trajectory = instance("elman")
    broken = trajectory._replace(states=trajectory.states.at[4, 1].set(jnp.nan))
    with pytest.raises(ValueError, match=r"trajectory.states: got NaN or inf, .*; first at step t = 5"):
        matrix_free.leading_singular_values(cell, params, broken, k=2, key=KEY)
    found = linear_run(60)(jnp.eye(8).at[2, 3].set(jnp.nan))
    assert all(np.isnan(leaf).all() for leaf in found[:4])


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k: got 0, expected at least 1"),
        ({"k": 13}, ValueError, "k: got 13, expected at most N = 12"),
        ({"k": 2.0}, TypeError, "k: got float, expected an int"),
        ({"oversampling": -1}, ValueError, "oversampling: got -1, expected at least 0"),
        ({"max_rounds": 0}, ValueError, "max_rounds: got 0, expected at least 1"),
        ({"tolerance": 0.0}, ValueError, "tolerance: got 0.0, expected a positive number"),
        ({"key": 0}, TypeError, "key: got int, expected a typed key"),
        ({"start": 4, "stop": 4}, ValueError, "start: got 4 = stop, expected start < stop"),
        ({"start": 4, "stop": 3}, ValueError, "start: got 4 > stop = 3"),
        ({"stop": 13}, ValueError, "stop: got 13, expected 0 … T = 12"),
    ],
)
def test_bad_arguments_get_one_line(options, error, message):
    with pytest.raises(error, match=message):
        matrix_free.leading_singular_values(*instance("elman"), **({"k": 2, "key": KEY} | options))


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match="trajectory: got a state of float16, expected float32 or float64"):
        matrix_free.leading_singular_values(*instance("elman", np.float16), k=2, key=KEY)
