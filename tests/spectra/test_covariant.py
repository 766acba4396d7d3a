"""Covariant Lyapunov vectors: against eigenvectors, against their own definition, against clvlib, with their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, jacobians, models, spectra, trajectories
from tests.cases import CELLS, instance
from tests.mutation import mutate_package
from tests.spectra.chains import TANH, A

OPTIONS = ("k", "warm_up", "cool_down", "every")
vectors_of = jax.jit(spectra.covariant_vectors, static_argnames=OPTIONS)
CHAIN = TANH[1.5]
FRAME = np.random.default_rng(0).standard_normal((4, 4))
TURN = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
PAIR = (
    FRAME @ np.block([[1.2 * TURN, np.zeros((2, 2))], [np.zeros((2, 2)), np.diag([0.8, 0.4])]]) @ np.linalg.inv(FRAME)
)


def sines(one, other):
    """[..., k] of the angles between columns of length 1."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return np.linalg.norm(one - other * np.sum(one * other, axis=-2, keepdims=True), axis=-2)


def eigenvectors(matrix):
    values, vectors = np.linalg.eig(matrix)
    order = np.argsort(-np.abs(values))
    assert np.isreal(values).all()
    return values[order].real, vectors[:, order].real


def periodic(period):
    """Different matrices in turn, and at each phase the eigenvectors of their product from there once around."""
    rng = np.random.default_rng(3)
    factors = np.array([np.eye(3) + 0.4 * rng.standard_normal((3, 3)) for _ in range(period)])
    factors = factors @ np.diag([1.5, 0.8, 0.3])
    monodromy = np.linalg.multi_dot([*factors[::-1], np.eye(3)])
    values, vectors = eigenvectors(monodromy)
    carried = [vectors]
    for factor in factors[:-1]:
        new = factor @ carried[-1]
        carried.append(new / np.linalg.norm(new, axis=0))
    return np.tile(factors, (240 // period, 1, 1)), np.log(np.abs(values)) / period, np.array(carried)


@pytest.mark.parametrize("period", [1, 3, 4])
def test_of_a_periodic_chain_they_are_the_eigenvectors_of_the_product(period):
    chain, exponents, expected = periodic(period)
    found = vectors_of(jnp.asarray(chain), warm_up=60, cool_down=60)
    off = sines(found.vectors, expected[np.asarray(found.times) % period])
    middle = slice(40, 80)
    assert off[middle].max() < 1e-12
    assert found.error[middle].max() < 1e-12
    assert (off <= found.error + 1e-14).all(), "with the rounding of the eigenvectors themselves"
    np.testing.assert_allclose(found.growth[:60].mean(axis=0), exponents, rtol=0, atol=1e-12)


def residual(found, chain):
    """Largest |J_t v_i(t−1) − e^g v_i(t)| over ‖J_t‖."""
    start, stop = int(found.times[0]), int(found.times[-1])
    before, after = np.asarray(found.vectors)[:-1], np.asarray(found.vectors)[1:]
    left = np.asarray(chain)[start:stop] @ before - after * np.exp(np.asarray(found.growth))[:, None, :]
    return np.max(np.linalg.norm(left, axis=1) / np.linalg.norm(chain[start:stop], axis=(1, 2))[:, None])


@pytest.mark.sweep
@pytest.mark.parametrize("gain", TANH)
def test_each_step_takes_them_to_the_next_ones(gain):
    found = vectors_of(jnp.asarray(TANH[gain]))
    assert residual(found, TANH[gain]) < 1e-12
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-13)
    qr = spectra.lyapunov_exponents(jnp.asarray(TANH[gain]))
    assert (np.abs(found.exponents - qr.exponents) < 2 * np.hypot(found.standard_error, qr.standard_error)).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("gain", TANH)
def test_what_they_are_off_by_is_within_their_error(gain, dtype):
    """The truth: the same steps with many more before and after."""
    whole = vectors_of(jnp.asarray(TANH[gain]), warm_up=10, cool_down=10)
    part = vectors_of(jnp.asarray(TANH[gain][100:500], dtype), warm_up=0, cool_down=0)
    truth, unsure = np.asarray(whole.vectors)[90:491], np.asarray(whole.error)[90:491]
    off, error = sines(part.vectors, truth), np.asarray(part.error, np.float64)
    assert part.vectors.dtype == part.error.dtype == dtype
    assert (off <= error + unsure + 1e-15).all()
    known = unsure < 1e-10
    assert np.median(error[150:250][known[150:250]]) < (1e-11 if dtype == np.float64 else 1e-2), "it says something"
    assert error[0].max() > 0.1, "before the forward pass has turned"
    assert error[-1].max() > 0.1, "before the backward pass has"


def near_tangencies(seed, cond=1e4, length=120):
    """(chain, [T + 1, 3, 3] its planted vectors): at each time another pair of them is 2/cond from parallel."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((length + 1, 3, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for v in vectors:
        i, j = rng.choice(3, 2, replace=False)
        v[:, j] = v[:, i] + v[:, j] * 2 / cond
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gap = (0.3, 1.0)[seed % 2]
    growth = np.exp(gap * (rng.standard_normal((length, 3)) - np.arange(3)))
    return vectors[1:] * growth[:, None, :] @ np.linalg.inv(vectors[:-1]), vectors


@pytest.mark.parametrize("seed", range(6))
def test_what_they_are_off_by_near_tangencies_is_within_their_error(seed):
    chain, planted = near_tangencies(seed)
    found = vectors_of(jnp.asarray(chain))
    off = sines(found.vectors, planted[np.asarray(found.times)])
    assert (off <= found.error + 1e-11).all(), "with the rounding of the chain itself"
    assert seed % 2 == 0 or found.error[20:40].min() < 1e-3, "it says something"


def test_fewer_are_the_leading_of_all():
    whole, part = vectors_of(jnp.asarray(CHAIN)), vectors_of(jnp.asarray(CHAIN), k=3)
    np.testing.assert_allclose(part.vectors, whole.vectors[:, :, :3], rtol=0, atol=1e-11)
    np.testing.assert_allclose(part.exponents, whole.exponents[:3], rtol=0, atol=1e-12)
    np.testing.assert_allclose(part.angles, whole.angles[:, :2], rtol=0, atol=1e-11)
    assert part.mixing.shape[2] == 4
    assert (part.error <= whole.error[:, :3] * (1 + 1e-6)).all()


def test_every_few_steps_they_are_the_same():
    whole, few = vectors_of(jnp.asarray(CHAIN)), vectors_of(jnp.asarray(CHAIN), every=7)
    at = np.asarray(few.times)
    assert at[0] == 61
    assert 600 - at[-1] >= 60
    assert at[1] - at[0] == 7
    np.testing.assert_allclose(few.vectors, whole.vectors[at[at <= 540] - 60], rtol=0, atol=1e-11)
    sums = np.asarray(whole.growth)[1:][: 7 * len(few.growth)].reshape(-1, 7, 6).mean(axis=1)
    np.testing.assert_allclose(few.growth, sums, rtol=0, atol=1e-11)


def test_of_equal_exponents_the_span_alone_is_known():
    found = vectors_of(jnp.asarray(np.tile(PAIR, (200, 1, 1))))
    at = 80
    np.testing.assert_array_equal(found.error[at, :2], 1)
    assert found.error[at, 2:].max() < 1e-11
    assert found.mixing[at, :2, 2:].max() < 1e-11
    between = spectra.subspace_angles(found, split=2)
    p, q = np.linalg.qr(FRAME[:, :2])[0], np.linalg.qr(FRAME[:, 2:])[0]
    expected = np.sort(np.arccos(np.linalg.svd(p.T @ q, compute_uv=False)))
    np.testing.assert_allclose(between.angles[at], expected, rtol=0, atol=1e-12)
    assert between.error[at] < 1e-11
    assert spectra.subspace_angles(found, split=1).error[at] > 1


def test_a_step_that_removes_a_direction():
    chain = np.array([np.diag([2.0, 1.0, 0.5])] * 40)
    chain[20, :, 2] = 0
    found = vectors_of(jnp.asarray(chain))
    np.testing.assert_array_equal(np.isneginf(found.exponents), [False, False, True])
    np.testing.assert_allclose(np.abs(found.vectors[10, :, 2]), [0, 0, 1], atol=1e-12)
    alternating = vectors_of(jnp.asarray([A, A.T] * 20))
    np.testing.assert_allclose(alternating.exponents, [np.log(2), -np.inf], atol=1e-12)
    np.testing.assert_allclose(np.abs(alternating.vectors[:2]), [np.eye(2)[::-1], np.eye(2)], atol=1e-12)
    gone = CHAIN.copy()
    gone[300] = gone[300] @ np.diag([1.0, 1, 1, 1, 1, 0])  # rank 5 in any frame: by how much is left to rounding
    np.testing.assert_array_equal(np.isnan(vectors_of(jnp.asarray(gone)).exponents), [False] * 5 + [True])


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["elman", "lstm", "custom"])
def test_streaming_gives_the_same(name):
    cell = CELLS[name]
    params, inputs, _, initial = instance(models.sequence_model(cell, 1), jax.random.key(3), length=200)
    params, flat = params.cell, trajectories.flatten_steps
    unrolled = trajectories.unroll(cell, params, inputs, initial=initial)
    after = trajectories.Trajectory(
        jax.tree.map(lambda leaf: leaf[19], unrolled.states),
        *jax.tree.map(lambda leaf: leaf[20:], (unrolled.inputs, unrolled.states)),
    )
    assert len(flat(after.states)) == 180
    chain = jacobians.step_jacobians(cell, params, after)
    expected = vectors_of(chain, k=2, every=13)
    stream = lambda *at: spectra.stream_covariant_vectors(cell, *at, initial=initial, transient=20, k=2)
    found = jax.jit(stream)(params, inputs)
    np.testing.assert_array_equal(found.times, expected.times)
    assert sines(found.vectors, expected.vectors).max() < 1e-9
    np.testing.assert_allclose(found.error, expected.error, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(found.growth, expected.growth, rtol=0, atol=1e-10)
    structured = jacobians.structured_jacobians(cell, params, after) if name == "lstm" else chain
    np.testing.assert_allclose(vectors_of(structured, k=2, every=13).growth, expected.growth, rtol=0, atol=1e-10)


def test_streaming_takes_the_memory_it_says():
    cell = cells.elman(1, 16)
    params = cell.init(jax.random.key(0))

    def memory(length):
        find = jax.jit(lambda params, inputs: spectra.stream_covariant_vectors(cell, params, inputs))
        return find.lower(params, jnp.zeros((length, 1))).compile().memory_analysis().temp_size_in_bytes

    assert memory(6400) < 3 * memory(1600), "a square root of T, and T·k for the sequence of growths"
    assert memory(6400) < 6400 * 16 * 16 * 8 / 5, "less than what all Q_t take"


def test_a_batch_by_vmap():
    chains = jnp.asarray([TANH[0.5][:60], TANH[1.5][:60]])
    both = jax.jit(jax.vmap(lambda chain: spectra.covariant_vectors(chain, k=2)))(chains)
    np.testing.assert_allclose(both.growth[1], vectors_of(chains[1], k=2).growth, rtol=0, atol=1e-11)


def test_participation_and_angles():
    found = vectors_of(jnp.asarray(CHAIN))
    v = np.asarray(found.vectors[200])
    np.testing.assert_allclose(found.participation[200], 1 / np.sum(v**4, axis=0), rtol=1e-12)
    spans = [np.linalg.qr(v[:, :i])[0] for i in range(1, 6)]
    out = [np.linalg.norm(v[:, i] - q @ (q.T @ v[:, i])) for i, q in zip(range(1, 6), spans, strict=True)]
    np.testing.assert_allclose(np.sin(found.angles[200]), out, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        spectra.subspace_angles(found, split=3, stop=4).angles[:, 0], found.angles[:, 2], atol=1e-9
    )


def test_small_and_large_angles_are_exact():
    chain, _, _ = periodic(1)
    found = vectors_of(jnp.asarray(chain))
    angle = np.array([1e-9, 0.3, 1.5])
    columns = np.stack((np.stack((np.ones(3), np.zeros(3)), 1), np.stack((np.cos(angle), np.sin(angle)), 1)), axis=2)
    planes = found._replace(vectors=jnp.asarray(columns), mixing=jnp.zeros((3, 2, 2)))
    np.testing.assert_allclose(spectra.subspace_angles(planes, split=1).angles[:, 0], angle, rtol=1e-14)


def test_nan_in_is_nan_out_under_jit():
    for t in (5, 300, 590):
        found = vectors_of(jnp.asarray(CHAIN).at[t, 0, 0].set(jnp.nan))
        assert np.isnan(found.vectors[200]).all()
        assert np.isnan(found.exponents).all()
        assert np.isnan(found.error).all()


def henon():
    step = lambda t, x: np.array([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])
    tangent = lambda t, x: np.array([[-2.8 * x[0], 1], [0.3, 0.0]])
    states = [np.array([0.1, 0.1])]
    for _ in range(500):
        states.append(step(0, states[-1]))
    return step, tangent, np.array(states[100:]), np.arange(401.0), "discrete"


def lorenz(dt=0.02, steps=1500):
    flow = lambda t, x: np.array([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])
    tangent = lambda t, x: np.array([[-10, 10, 0], [28 - x[2], -1, -x[0]], [x[1], x[0], -8 / 3]])
    states = [np.array([1.0, 1.0, 20.0])]
    for _ in range(steps):
        x = states[-1]
        a = flow(0, x)
        b = flow(0, x + dt / 2 * a)
        c = flow(0, x + dt / 2 * b)
        states.append(x + dt / 6 * (a + 2 * b + 2 * c + flow(0, x + dt * c)))
    return flow, tangent, np.array(states), dt * np.arange(steps + 1), "rk4"


@pytest.mark.parametrize("system", [henon, lorenz])
def test_clvlib_finds_the_same(system):
    """Its backward pass solves with the R of the step before, in 0.1.5: with R moved by one step it agrees."""
    clvlib = pytest.importorskip("clvlib")
    from clvlib.numpy import clv, steppers

    *functions, states, times, stepper = system()
    _, _, q, r, theirs, _ = clvlib.lyap_analysis(*functions, states, times, stepper=stepper)
    step, size, dt = steppers.resolve_stepper(stepper), states.shape[1], times[1] - times[0]
    chain = np.array([step(*functions, 0.0, x, np.eye(size), dt)[1] for x in states[:-1]])
    found = vectors_of(jnp.asarray(chain), warm_up=len(chain) // 4, cool_down=len(chain) // 4)
    span = slice(int(found.times[0]), int(found.times[-1]) + 1)
    assert residual(found, chain) < 1e-12
    aligned = clv._clvs(q, np.concatenate((r[1:], r[-1:])))[0]
    off = sines(found.vectors, aligned[span])
    assert (off <= 2 * found.error + 1e-13).all()
    # Forgetting Q_0 takes the time that the gap of the exponents says: of Lorenz's first two, 0.9 a unit of time.
    assert off[-1].max() < (1e-13 if system is henon else 1e-8)
    as_given = np.asarray(chain)[span][:-1] @ theirs[span][:-1]
    as_given /= np.linalg.norm(as_given, axis=1, keepdims=True)
    assert sines(as_given, theirs[span][1:]).max() > 1e-2, "clvlib's own are covariant now: drop the shift"


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vectors=found.q @ c", "vectors=found.q[:, :, :k] + 0 * found.q @ c"),
        ("solve_triangular(upper, edge.c)", "solve_triangular(upper, edge.c, trans=1)"),
        ("d = 1 / lengths", "d = lengths"),
    ],
)
def test_a_broken_pass_is_seen(old, new):
    mutant = jax.jit(mutate_package(spectra, old, new).covariant_vectors, static_argnames=OPTIONS)
    assert not residual(mutant(jnp.asarray(CHAIN[:100])), CHAIN[:100]) < 1e-9


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("shares * jnp.exp(log_d[:, None] - log_d[None, :])", "0 * shares"),
        ("lambda shares: shares * d[None, :] / d[:, None]", "lambda shares: shares * (d[None, :] / d[:, None]) ** 2"),
        ("START, BEYOND * first.leans)", "1e-9, 0 * first.leans)"),
    ],
)
def test_an_error_that_says_too_little_is_seen(old, new):
    mutant = jax.jit(mutate_package(spectra, old, new).covariant_vectors, static_argnames=OPTIONS)
    whole = vectors_of(jnp.asarray(CHAIN), warm_up=10, cool_down=10)
    part = mutant(jnp.asarray(CHAIN[100:500]), warm_up=0, cool_down=0)
    off = sines(part.vectors, np.asarray(whole.vectors)[90:491])
    assert not (off <= part.error + np.asarray(whole.error)[90:491] + 1e-15).all()


GOOD = jnp.asarray(CHAIN[:20])


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spectra.covariant_vectors(GOOD[0]), ValueError, r"jacobians: got shape \[6, 6\]"),
        (lambda: spectra.covariant_vectors(GOOD, k=7), ValueError, "k: got 7, expected at most 6"),
        (lambda: spectra.covariant_vectors(GOOD, every=0), ValueError, "every: got 0, expected at least 1"),
        (lambda: spectra.covariant_vectors(GOOD, warm_up=20), ValueError, "warm_up: got 20, expected at most 19"),
        (lambda: spectra.covariant_vectors(GOOD, cool_down=18), ValueError, "cool_down: got 18, expected at most 17"),
        (lambda: spectra.covariant_vectors(GOOD, cool_down=1.0), TypeError, "cool_down: got float, expected an int"),
        (lambda: spectra.covariant_vectors(GOOD.at[3].set(jnp.nan)), ValueError, "jacobians: got NaN.*step t = 4"),
        (lambda: spectra.covariant_vectors(GOOD.astype(jnp.float16)), TypeError, "jacobians: got float16"),
        (lambda: spectra.subspace_angles(GOOD, split=1), TypeError, "found: got ArrayImpl, expected CovariantVectors"),
        (
            lambda: spectra.subspace_angles(spectra.covariant_vectors(GOOD), split=6),
            ValueError,
            "split: got 6, expected at most 5",
        ),
    ],
)
def test_bad_arguments_get_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
