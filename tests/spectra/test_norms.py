"""Norms of the products over all spans, at any magnitude, against dense products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import spectra
from jaxbptt.spectra import norms as module
from tests.mutation import mutate
from tests.spectra.chains import gaussian_chain, log_singular_values

pair_norms = jax.jit(spectra.pair_norms, static_argnames=("spectral", "max_iterations"))


def dense_norms(chain):
    """[t, k] of ln‖·‖_F and ln‖·‖₂ of the assembled products, by numpy."""
    length, size, _ = chain.shape
    frobenius, spectral = np.full((2, length + 1, length + 1), -np.inf)
    for k in range(length + 1):
        product = np.eye(size)
        for t in range(k, length + 1):
            product = chain[t - 1] @ product if t > k else product
            with np.errstate(divide="ignore"):
                frobenius[t, k] = np.log(np.linalg.norm(product))
                spectral[t, k] = np.log(np.linalg.norm(product, 2))
    return frobenius, spectral


def assert_spectral(actual, expected, tolerance):
    """residual ≤ tolerance bounds |ln σ − ln s| for a singular value s by half of it; rounding beside."""
    np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=0, atol=tolerance / 2 * 1.01)


@pytest.mark.sweep
@pytest.mark.parametrize(("size", "length", "gain"), [(1, 9, 3.0), (5, 1, 1.0), (5, 37, 1.0), (6, 9, 1e15)])
def test_every_pair_against_dense_products(size, length, gain):
    chain = gaussian_chain(size, length, gain)
    frobenius, spectral = dense_norms(chain)
    actual = pair_norms(chain)
    np.testing.assert_allclose(actual.log_frobenius, frobenius, rtol=0, atol=1e-12)
    assert_spectral(np.asarray(actual.log_spectral), spectral, 1e-3)
    assert (actual.residual <= 1e-3).all()
    tight = pair_norms(chain, tolerance=1e-11, max_iterations=10_000)
    assert (tight.residual <= 1e-11).all()
    np.testing.assert_allclose(tight.log_spectral, spectral, rtol=0, atol=1e-11)


def test_the_diagonal_and_what_lies_above_it():
    norms = pair_norms(gaussian_chain(5, 37, 1.0))
    np.testing.assert_array_equal(np.diag(norms.log_frobenius), 0.5 * np.log(5))
    np.testing.assert_array_equal(np.diag(norms.log_spectral), 0)
    above = np.triu_indices(38, 1)
    for table, expected in zip(norms[:3], (-np.inf, -np.inf, 0), strict=True):
        np.testing.assert_array_equal(np.asarray(table)[above], expected)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("gain", [2e-7, 5e6])
def test_chains_far_outside_the_float_range(gain, dtype):
    chain = gaussian_chain(4, 300, gain).astype(dtype)
    norms = pair_norms(chain)
    values = np.asarray(log_singular_values(chain.astype(np.float64), every=50))
    assert abs(values[-1, 0]) > 1950 * np.log(10)
    assert all(table.dtype == dtype for table in norms)
    slack = 0 if dtype == np.float64 else 1e-3  # one rounding of 2,000 ln 10
    assert_spectral(np.asarray(norms.log_spectral)[50::50, 0], values[:, 0], 1e-3 + slack)
    expected = values[:, 0] + 0.5 * np.log(np.exp(2 * (values - values[:, :1])).sum(axis=1))
    rtol = 1e-12 if dtype == np.float64 else 2e-7
    np.testing.assert_allclose(norms.log_frobenius[50::50, 0], expected, rtol=rtol)


def test_growth_with_steps_of_unit_entries():
    norms = pair_norms(np.ones((300, 4, 4), np.float32))
    for table in (norms.log_frobenius, norms.log_spectral):
        np.testing.assert_allclose(table[1:, 0], np.arange(1, 301) * np.log(4), rtol=2e-7)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_one_step_may_shrink_a_product_below_the_root_of_the_float_range(dtype):
    tiny = 1e-30 if dtype == np.float32 else 1e-250
    turn, shrink = np.array([[0, 0], [1, 0.0]]), np.diag([1, tiny])
    norms = pair_norms(np.array([turn, shrink, shrink, turn.T]).astype(dtype))
    for table in (norms.log_frobenius, norms.log_spectral):
        np.testing.assert_allclose(table[4, 0], 2 * np.log(tiny), rtol=1e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("place", [0, 3, 19])
def test_a_zero_step_is_minus_infinity_for_every_pair_across_it(place):
    chain = gaussian_chain(3, 20, 1.0)
    chain[place] = 0
    norms, t = pair_norms(chain), np.arange(21)
    across = (t[:, None] > place) & (t[None, :] <= place)
    for table in (norms.log_frobenius, norms.log_spectral):
        np.testing.assert_array_equal(np.isneginf(table), across | (t[:, None] < t[None, :]))
    assert (norms.residual <= 1e-3).all()


def test_nilpotent_and_rank_one_steps():
    shift = np.eye(4, k=-1)
    norms = pair_norms(np.array([shift] * 6))
    lag = np.subtract.outer(np.arange(7), np.arange(7))
    alive = (lag >= 0) & (lag < 4)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_allclose(norms.log_frobenius, np.where(alive, 0.5 * np.log(4.0 - lag), -np.inf), atol=1e-15)
    np.testing.assert_allclose(norms.log_spectral, np.where(alive, 0, -np.inf), atol=1e-15)
    vectors = np.random.default_rng(0).standard_normal((2, 9, 5))
    rank_one = pair_norms(vectors[0][:, :, None] * vectors[1][:, None, :])
    below = np.tril_indices(10, -1)
    np.testing.assert_allclose(rank_one.log_spectral[below], rank_one.log_frobenius[below], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("late", "gain"), [(8, 4.0), (30, 4.0), (30, 1.05), (30, 1e3)])
def test_a_direction_that_overtakes_is_taken_up(late, gain):
    """Decoupled blocks: the vector that was largest stays exactly singular, with residual 0."""
    chain = np.array([np.diag([2.0, 1.0, 0.5])] * late + [np.diag([0.5, 1.0, gain])] * (70 - late))
    norms = pair_norms(chain)
    assert_spectral(np.asarray(norms.log_spectral), dense_norms(chain)[1], 1e-3)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_errors_hold_in_chains_that_undo_themselves(dtype):
    rng = np.random.default_rng(4)
    grow = [np.eye(4) + 0.7 * rng.standard_normal((4, 4)) for _ in range(12)]
    chain = np.array(grow + [np.linalg.inv(step) for step in grow[::-1]]).astype(dtype)
    exact = [
        [int(x * 2.0**200) for x in step.astype(np.float64).ravel()] for step in chain
    ]  # every entry as an integer
    norms = pair_norms(chain, max_iterations=1000)
    known = np.asarray(norms.error <= module.LIMIT)
    for k in range(0, 24, 3):
        product = np.eye(4, dtype=int).astype(object)
        for t in range(k + 1, 25):
            product = np.array(exact[t - 1], object).reshape(4, 4) @ product
            plain = np.array([float(x / 2 ** (200 * (t - k))) for x in product.ravel()])
            off = np.abs(np.log(np.linalg.norm(plain)) - float(norms.log_frobenius[t, k]))
            assert off <= 2 * float(norms.error[t, k]) if known[t, k] else np.isnan(off)
    below = np.tril_indices(25, -1)
    assert known[below].any()
    assert dtype == np.float64 or not known[below].all()
    assert np.isnan(norms.log_spectral[~known]).all()


def test_a_diagonal_chain_has_errors_of_its_logs_alone():
    """Where nothing is added, nothing cancels: what falls below the largest keeps its digits."""
    chain = np.array([np.diag([1.0, 1e-8])] * 5 + [np.diag([1e-20, 1.0])] * 5)
    norms = pair_norms(chain)
    np.testing.assert_allclose(norms.log_spectral[10, 0], -40 * np.log(10), rtol=1e-15)
    assert (norms.error <= 1e-12).all()
    lost = np.array([np.diag([1.0, 1e-30])] * 2 + [np.diag([1e-20, 1.0])] * 3, np.float32)
    kept = pair_norms(lost).log_frobenius[5, 0]
    np.testing.assert_allclose(
        kept, -60 * np.log(10) + 0.5 * np.log(2), rtol=1e-6
    )  # 1e-60 beside 1, which then shrinks
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    assert np.isnan(pair_norms(turned @ chain @ turned.T).log_frobenius[10, 0])


def test_orthogonal_chains_need_no_gap():
    orthogonal = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    norms = pair_norms(np.array([0.9 * orthogonal] * 30), max_iterations=3)
    lag = np.subtract.outer(np.arange(31), np.arange(31))
    expected = np.where(lag < 0, -np.inf, lag * np.log(0.9))
    np.testing.assert_allclose(norms.log_spectral, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(norms.log_frobenius, expected + 0.5 * np.log(5), rtol=0, atol=1e-12)


def test_the_residual_says_what_was_not_reached():
    chain = gaussian_chain(12, 6, 1.0)
    short, expected = pair_norms(chain, tolerance=1e-12, max_iterations=2), dense_norms(chain)[1]
    below = np.tril_indices(7, -1)
    assert short.residual[below].max() > 1e-2
    assert (short.log_spectral[below] <= expected[below] + 1e-12).all()  # a Rayleigh quotient never exceeds
    assert (short.log_spectral[below] < expected[below] - 1e-4).any()


def test_without_spectral_norms():
    chain = gaussian_chain(5, 37, 1.0)
    norms = pair_norms(chain, spectral=False)
    np.testing.assert_array_equal(norms.log_frobenius, pair_norms(chain).log_frobenius)
    assert norms.log_spectral is None
    assert norms.residual is None


def test_under_vmap():
    chains = np.stack([gaussian_chain(4, 7, 1.0, seed) for seed in (0, 1)])
    batched = jax.jit(jax.vmap(spectra.pair_norms))(chains)
    for index, chain in enumerate(chains):
        single = pair_norms(chain)
        np.testing.assert_allclose(batched.log_frobenius[index], single.log_frobenius, rtol=0, atol=1e-13)
        assert_spectral(np.asarray(batched.log_spectral[index]), np.asarray(single.log_spectral), 2e-3)


MUTANTS = [
    ("at(t - 1).T).reshape", "at(t - 1)).reshape"),
    ("waiting = k >= t", "waiting = k > t"),
    ("exponent + shift + scales[t - 1]", "exponent + shift"),
    ("exponent + shift + scales[t - 1]", "exponent + scales[t - 1]"),
    ("jnp.log(_square_sum(z)) / 2", "jnp.log(_square_sum(z))"),
    ("log_scale + jnp.log(square) / 2", "log_scale + jnp.log(square)"),
    ("jnp.arctan2(2 * b, a - c) / 2", "jnp.arctan2(2 * b, a - c)"),
    ("error / jnp.where(square > 0, square, 1)", "error * 0"),
    ("fori_loop(first + 1, length + 1", "fori_loop(first + 1, length"),
    ("jnp.any((residual > tolerance) & ~waiting)", "jnp.any(residual < tolerance)"),
    ("LEAST_ITERATIONS = 2", "LEAST_ITERATIONS = 1"),
    ("vectors[:, 1] + fresh[None, :]", "vectors[:, 1] * 0"),
    ("jnp.clip(jnp.frexp(magnitude)[1], ", "jnp.clip(jnp.frexp(magnitude)[1], 0 * "),
    ("lambda: _exponent(jnp.sqrt(total))", "lambda: 0 * _exponent(jnp.sqrt(total))"),
    ("jnp.any(total < safe)", "jnp.any(total < 0)"),
    ("before = after[:-1] + log_steps[:, None]", "before = after[:-1]"),
    ("cond(monomial, exactly, by_products)", "cond(~monomial, exactly, by_products)"),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("old", "new"), MUTANTS)
def test_a_broken_line_is_seen(old, new):
    tiny, flip = np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1e-250]]), np.eye(3)[[2, 0, 1]]
    turned = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]
    crossing = np.array([np.diag([2.0, 1.0, 0.5])] * 5 + [np.diag([0.5, 1.0, 4.0])] * 11)
    crossing = turned @ crossing @ turned.T
    graded = np.array([np.diag([0, 0, 1.0]), tiny, tiny, flip] * 4)
    chains = (gaussian_chain(3, 16, 1e-40), gaussian_chain(3, 16, 1.0), crossing, graded)
    ones = np.ones((200, 3, 3), np.float32)
    wrong = jax.jit(mutate(module, old, new).pair_norms)

    def differ(chain):
        tables = zip(pair_norms(chain), wrong(chain), (1e-9, 1e-3, 1e-6, 1e-13), strict=True)
        return any(
            not np.allclose(right, broken, rtol=0, atol=tolerance, equal_nan=True)
            for right, broken, tolerance in tables
        )

    assert any(map(differ, (*chains, ones)))


def test_bad_numbers():
    chain = jnp.ones((5, 3, 3)).at[3, 0, 1].set(jnp.nan)
    with pytest.raises(ValueError, match="jacobians: got NaN or inf, expected finite numbers; first at step t = 4"):
        spectra.pair_norms(chain)
    for table in pair_norms(chain):
        assert np.isnan(table).all()


@pytest.mark.parametrize(
    ("chain", "options", "error", "message"),
    [
        (jnp.ones((3, 2)), {}, ValueError, r"jacobians: got shape \[3, 2\]"),
        (jnp.ones((3, 2, 2), int), {}, TypeError, "jacobians: got int64, expected a real float dtype"),
        (jnp.ones((3, 2, 2), jnp.bfloat16), {}, TypeError, "jacobians: got bfloat16, expected float32 or float64"),
        (jnp.ones((3, 2, 2)), {"tolerance": 0.0}, ValueError, "tolerance: got 0.0, expected a positive number"),
        (jnp.ones((3, 2, 2)), {"tolerance": jnp.nan}, ValueError, "tolerance: got nan, expected a positive number"),
        (jnp.ones((3, 2, 2)), {"max_iterations": 0}, ValueError, "max_iterations: got 0, expected at least 1"),
        (jnp.ones((3, 2, 2)), {"max_iterations": 1.5}, TypeError, "max_iterations: got float, expected an int"),
    ],
)
def test_bad_arguments_get_one_line(chain, options, error, message):
    with pytest.raises(error, match=message):
        spectra.pair_norms(chain, **options)
