import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxbptt import jacobians, models, spectra, trajectories
from jaxbptt.spectra import exponents as module
from tests.cases import CELLS, instance
from tests.mutation import mutate

OPTIONS = ("k", "warm_up", "interval", "blocks")
exponents = jax.jit(spectra.lyapunov_exponents, static_argnames=OPTIONS)


def tanh_chain(seed, size, length, gain):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((size, size)) * gain / size**0.5
    h, chain = rng.standard_normal(size), []
    for _ in range(length):
        h = np.tanh(weights @ h + 0.5 * rng.standard_normal(size))
        chain.append((1 - h**2)[:, None] * weights)
    return np.array(chain)


CHAINS = {gain: tanh_chain(1, 6, 600, gain) for gain in (0.5, 1.0, 1.5, 4.0)}
STUDENT = 2.0395  # 97.5 % of Student's t, 31 degrees of freedom
STEP = np.array([[3.0, 1.0], [0.5, 1.0]])
A = np.array([[0.0, 2.0], [0.0, 0.0]])


def by_hand(chain, k, warm_up):
    """QR at every step, in NumPy, without a permutation anywhere."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal(chain[0].shape))[0][:, :k]
    logs = []
    for jacobian in chain:
        q, r = np.linalg.qr(jacobian @ q)
        logs.append(np.log(np.abs(np.diag(r))))
    return np.array(logs)[warm_up:]


@pytest.mark.parametrize("k", [6, 2])
@pytest.mark.parametrize("gain", CHAINS)
def test_exponents_and_blocks_against_qr_at_every_step(gain, k):
    expected = by_hand(CHAINS[gain], k, 60)
    result = exponents(CHAINS[gain], k=k, blocks=7)
    np.testing.assert_allclose(result.exponents, expected.mean(axis=0), rtol=0, atol=1e-8)
    bounds = -(-np.arange(8) * 540 // 7)
    local = [expected[start:stop].mean(axis=0) for start, stop in itertools.pairwise(bounds)]
    np.testing.assert_allclose(result.local, local, rtol=0, atol=1e-6)
    error = np.std(np.asarray(result.local), axis=0, ddof=1) / 7**0.5
    np.testing.assert_allclose(result.standard_error, error, rtol=1e-3)
    exact = exponents(CHAINS[gain], k=k, blocks=7, interval=1)
    np.testing.assert_allclose(exact.exponents, expected.mean(axis=0), rtol=0, atol=1e-12)
    assert exact.interval == 1
    assert result.interval > (2.5 if gain < 4 else 1.0)
    assert (exact.interval_error == 0).all()


def test_what_the_interval_costs_is_measured():
    result = exponents(CHAINS[1.0])
    assert 0 < result.interval_error.max() < 1e-8


def test_an_interval_that_is_too_long_is_refused():
    chain = tanh_chain(0, 6, 400, 1.0)
    assert spectra.lyapunov_exponents(chain, interval=3).interval > 2.5
    with pytest.raises(ValueError, match=r"interval: got 25, expected fewer steps .* differs by .* nats per step"):
        spectra.lyapunov_exponents(chain, interval=25)
    assert np.isnan(exponents(chain, interval=25).exponents).all()


@pytest.mark.parametrize("stretch", [1e2, 1e5])
def test_steps_that_undo_each_other_hide_nothing(stretch):
    """BA = I: ln r_ii of a block of two is zero, whatever its rounding."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    step = u @ np.diag([stretch, 1, 1 / stretch]) @ v
    chain = np.array([step, v.T @ np.diag([1 / stretch, 1, stretch]) @ u.T, 0.5 * np.eye(3)] * 100)
    result = exponents(chain, warm_up=0)
    np.testing.assert_allclose(result.exponents, np.log(0.5) / 3, atol=2e-3)


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([A, A.T] * 30, [np.log(2), -np.inf]),
        ([np.eye(4, k=-1)] * 40, [-np.inf] * 4),
        ([STEP @ np.diag([2.0, 0.0])] * 40, [np.log(6), -np.inf]),
        ([STEP] * 20 + [np.diag([1.0, 0.0])] + [STEP] * 20, None),
        ([np.zeros((1, 1))] * 5, [-np.inf]),
    ],
)
def test_what_is_lost_exactly_is_minus_infinity(chain, expected):
    result = exponents(np.array(chain), warm_up=0)
    if expected is None:
        np.testing.assert_array_equal(np.isneginf(result.exponents), [False, True])
    else:
        np.testing.assert_allclose(result.exponents, expected, atol=5e-2)
    assert not np.isnan(result.standard_error).any()


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "custom"])
def test_streaming_and_structured_jacobians_give_the_same(name):
    cell = CELLS[name]
    params, inputs, _, initial = instance(models.sequence_model(cell, 1), jax.random.key(3), length=60)
    params = params.cell
    trajectory = trajectories.unroll(cell, params, inputs, initial=initial)
    settled = jax.tree.map(lambda leaf: leaf[9], trajectory.states)
    rest = trajectories.unroll(cell, params, inputs[10:], initial=settled)
    expected = exponents(jacobians.step_jacobians(cell, params, rest), k=2, interval=1)

    def stream(params, inputs, initial):
        return spectra.stream_exponents(cell, params, inputs, initial=initial, transient=10, k=2, interval=1)

    def compare(actual):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11), actual, expected)

    compare(jax.jit(stream)(params, inputs, initial))
    if cell.derivation is not None:
        compare(exponents(jacobians.structured_jacobians(cell, params, rest), k=2, interval=1))


def test_intervals_of_time_cover_what_they_claim():
    """Student intervals from the block means: 95 % of them hold the exact exponent (i.i.d. Gaussian steps)."""
    size, length, runs = 3, 320, 300
    draws = jax.random.normal(jax.random.key(0), (runs, length, size, size)) / size**0.5
    result = jax.jit(lambda draws: jax.lax.map(lambda c: spectra.lyapunov_exponents(c, warm_up=0), draws))(draws)
    half = (size - np.arange(size)) / 2
    exact = np.asarray(0.5 * (np.log(2) + jax.scipy.special.digamma(half)) - 0.5 * np.log(size))
    inside = np.abs(np.asarray(result.exponents) - exact) < STUDENT * np.asarray(result.standard_error)
    # 900 trials of probability 0.95: standard deviation 0.0073; a standard error 15 % too small gives 0.90.
    assert abs(inside.mean() - 0.95) < 3.5 * 0.0073


def test_intervals_of_time_cover_correlated_growth():
    """ln J_t an AR(1) process of mean 0.1 with correlation 0.9: √(1/T) of single steps would be 4.4 times too small."""
    length, runs = 3200, 400
    noise = np.random.default_rng(0).standard_normal((runs, length + 100))
    logs = np.zeros(noise.shape)
    for t in range(1, noise.shape[1]):
        logs[:, t] = 0.9 * logs[:, t - 1] + noise[:, t]
    logs = 0.1 + 0.1 * logs[:, 100:]
    chains = jnp.exp(logs)[:, :, None, None]
    result = jax.jit(lambda chains: jax.lax.map(lambda c: spectra.lyapunov_exponents(c, warm_up=0), chains))(chains)
    np.testing.assert_allclose(result.exponents[:, 0], logs.mean(axis=1), atol=1e-12)
    off = np.abs(np.asarray(result.exponents)[:, 0] - 0.1)
    inside = off < STUDENT * np.asarray(result.standard_error)[:, 0]
    # Blocks of 100 steps, correlation over about 20: a slightly small error, 0.93 to 0.95. Standard deviation 0.011.
    assert 0.90 < inside.mean() < 0.985
    naive = logs.std(axis=1) / length**0.5
    assert (off < 1.96 * naive).mean() < 0.6


@pytest.mark.parametrize(
    ("spectrum", "dimension", "entropy"),
    [
        ([0.9056, 0.0, -14.5723], 2 + 0.9056 / 14.5723, 0.9056),
        ([0.41922, -1.62319], 1.25827, 0.41922),
        ([0.5, 0.1], 2, 0.6),
        ([-0.1, -2.0], 0, 0),
        ([0.2, -np.inf], 1, 0.2),
        ([-np.inf, -np.inf], 0, 0),
        ([0.3], 1, 0.3),
    ],
)
def test_dimension_and_entropy(spectrum, dimension, entropy):
    spectrum = jnp.array(spectrum)
    np.testing.assert_allclose(spectra.kaplan_yorke_dimension(spectrum), dimension, atol=1e-5)
    np.testing.assert_allclose(spectra.entropy_rate(spectrum), entropy)


def test_a_part_of_the_spectrum_says_what_it_can():
    growing = np.broadcast_to(np.diag([3.0, 2.0, 0.1]), (50, 3, 3))
    part, whole = (spectra.lyapunov_exponents(growing, k=k, warm_up=40) for k in (1, 3))
    assert np.isnan(part.kaplan_yorke_dimension())
    assert np.isnan(part.entropy_rate())
    np.testing.assert_allclose(whole.entropy_rate(), np.log(6), rtol=1e-6)
    np.testing.assert_allclose(whole.kaplan_yorke_dimension(), 2 + np.log(6) / np.log(10), rtol=1e-6)
    assert spectra.lyapunov_exponents(growing / 5, k=1).kaplan_yorke_dimension() == 0


def test_pooling_tells_alike_from_unlike():
    def pooled(shift):
        draws = (
            jax.random.normal(jax.random.key(1), (8, 400, 2, 2)) * jnp.exp(shift * jnp.arange(8.0))[:, None, None, None]
        )
        return spectra.pool_exponents(jax.lax.map(lambda c: spectra.lyapunov_exponents(c, interval=1), draws))

    alike, unlike = pooled(0.0), pooled(0.1)
    assert (alike.spread < 2 * alike.within).all()
    assert (unlike.spread > 4 * unlike.within).all()
    np.testing.assert_allclose(unlike.exponents, alike.exponents + 0.35, atol=1e-9)
    np.testing.assert_allclose(alike.standard_error, alike.spread / 8**0.5)


MUTANTS = [
    ("log_growth + log_split + log_pivots", "log_growth + log_pivots"),
    ("block.log_pending + log_pivots", "log_pivots"),
    ("columns[:, None] * m", "m"),
    ("log_pending=block.log_pending + log_split", "log_pending=block.log_pending"),
    ("difference = jnp.where(checked, difference, 0)", "difference = 0 * jnp.where(checked, difference, 0)"),
    ("wide = (spread > LIMIT * digits)", "wide = (spread < 0)"),
    ("jax.lax.fori_loop(0, block.steps, body", "jax.lax.fori_loop(1, block.steps, body"),
]


@pytest.mark.parametrize(("old", "new"), MUTANTS)
def test_a_broken_line_is_seen(old, new):
    graded_steps = CHAINS[1.0].copy()
    graded_steps[::5] *= np.array([1, 1e-5, 1, 1e3, 1, 1])
    sudden = 0.1 * np.random.default_rng(0).standard_normal((600, 6, 6)) + np.eye(6)
    sudden[50::90] -= np.linalg.eigvals(sudden[50::90]).real.min(axis=1)[:, None, None] * (1 - 1e-10) * np.eye(6)
    chains = graded_steps, sudden
    right = [exponents(chain, warm_up=0) for chain in chains]
    broken = jax.jit(lambda chain: mutate(module, old, new).lyapunov_exponents(chain, warm_up=0))
    wrong = [broken(chain) for chain in chains]
    assert any(
        not np.allclose(a.exponents, b.exponents, atol=1e-9)
        or not np.allclose(a.interval_error, b.interval_error, atol=0)
        for a, b in zip(right, wrong, strict=True)
    )


def test_log_growth_is_the_exponents_step_by_step():
    chain = CHAINS[1.0][:80]
    growth = spectra.log_growth(jnp.asarray(chain), k=2)
    np.testing.assert_allclose(growth, by_hand(chain, 2, 0), atol=1e-11)


@pytest.mark.parametrize("k", [None, 2])
def test_log_growth_has_its_derivative(k):
    chain = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3, 3)))
    check_grads(
        lambda chain: spectra.log_growth(chain, k=k), (chain,), order=1, modes=("fwd", "rev"), rtol=1e-4, atol=1e-6
    )
    total = jax.grad(lambda chain: jnp.sum(spectra.log_growth(chain)))(chain)
    np.testing.assert_allclose(total, np.linalg.inv(chain).swapaxes(1, 2), rtol=1e-9)


def test_bad_numbers():
    chain = jnp.ones((5, 3, 3)).at[3, 0, 1].set(jnp.nan)
    with pytest.raises(ValueError, match="first at step t = 4"):
        spectra.lyapunov_exponents(chain)
    assert np.isnan(exponents(chain).exponents).all()
    cell = CELLS["elman"]
    params = cell.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"inputs: got NaN or inf, .* first at step t = 3"):
        spectra.stream_exponents(cell, params, jnp.ones((6, 2)).at[2, 0].set(jnp.inf))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 3}, ValueError, "k: got 3, expected at most 2"),
        ({"k": 0}, ValueError, "k: got 0, expected at least 1"),
        ({"warm_up": 9}, ValueError, "warm_up: got 9, expected at most 8"),
        ({"interval": 0}, ValueError, "interval: got 0, expected at least 1"),
        ({"blocks": 1.5}, TypeError, "blocks: got float, expected an int"),
    ],
)
def test_bad_arguments_get_one_line(options, error, message):
    with pytest.raises(error, match=message):
        spectra.lyapunov_exponents(jnp.ones((9, 2, 2)), **options)
    with pytest.raises(error, match="jacobians"):
        spectra.lyapunov_exponents(jnp.ones((9, 2, 3)) if error is ValueError else jnp.ones((9, 2, 2), int))


def test_the_shortest_and_smallest_chain():
    result = spectra.lyapunov_exponents(jnp.full((1, 1, 1), -2.0))
    np.testing.assert_allclose(result.exponents, [np.log(2)], rtol=1e-12)
    assert np.isnan(result.standard_error).all()
