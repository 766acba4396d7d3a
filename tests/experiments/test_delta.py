import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma

from experiments import delta
from experiments.delta import chains

from .runs import WITH_SUMMARY, run_tiny

QUARTER = [-0.121015, -0.147936, -0.185398, -0.238798]
LISTED = [
    (2, 0.5, [-0.287682, -0.405465]),
    (4, 0.5, QUARTER),
    (4, 1.5, QUARTER),
    (8, 0.9, [-0.075485, -0.088705, -0.107388, -0.135595, -0.182212, -0.269477, -0.462154, -0.981570]),
]


@pytest.mark.parametrize(("size", "beta", "expected"), LISTED)
def test_the_law_has_the_listed_values(size, beta, expected):
    np.testing.assert_allclose(chains.exact_exponents(size, beta), expected, atol=5.1e-7)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("beta", [1e-3, 0.3, 0.999, 1.0, 1.7, 2.0])
def test_the_law_in_closed_form(size, beta):
    exponents = chains.exact_exponents(size, beta)
    if beta == 1:  # E ln(1 − B) of B ~ Beta(p/2, (K − p)/2)
        sums = (digamma((size - np.arange(1, size)) / 2) - digamma(size / 2)) / 2
        np.testing.assert_allclose(np.cumsum(exponents)[:-1], sums, rtol=1e-13)
        assert exponents[-1] == -np.inf
    else:
        assert exponents.sum() == pytest.approx(np.log(abs(1 - beta)), rel=1e-13)
        np.testing.assert_allclose(exponents, chains.exact_exponents(size, 2 - beta), atol=1e-15)
    if size == 2 and beta != 1:
        assert exponents[0] == pytest.approx(np.log((1 + abs(1 - beta)) / 2), rel=1e-13, abs=1e-16)
    assert (np.diff(exponents) <= 1e-16).all()


@pytest.mark.parametrize("kind", chains.KINDS)
def test_keys_are_as_said(kind):
    keys = np.asarray(chains.draw_keys(jax.random.key(0), 4000, chains.SHOWN_SIZE, kind))
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, rtol=1e-14)
    shares = np.linalg.eigvalsh(keys.T @ keys / len(keys))[::-1]
    inside = shares[: chains.DIRECTIONS].sum()
    near = 1 / (1 + chains.NOISE**2)
    low, high = {"uniform": (0.35, 0.45), "subspace": (1 - 1e-12, 1 + 1e-12)}.get(kind, (near - 0.02, near + 0.04))
    assert low < inside < high


def test_the_chain_is_that_of_the_step():
    keys = chains.draw_keys(jax.random.key(0), 3, 4)
    assembled = chains.make_chain(keys, 1.5).assemble()
    for key, jacobian in zip(keys, assembled, strict=True):
        transition = jnp.eye(4) - 1.5 * jnp.outer(key, key)
        np.testing.assert_allclose(jacobian, jnp.kron(transition, jnp.eye(chains.COPIES)), atol=1e-15)


@pytest.mark.slow
def test_a_small_run_meets_the_law(tmp_path):
    run = run_tiny("delta", "--sizes 2,8 --length 400", tmp_path)
    assert run.code == 0
    assert run.files == WITH_SUMMARY
    assert run.summary["farthest"] < 4
    assert run.summary["sum_error"] < 1e-13
    assert run.summary["copies_error"] == 0
    assert run.summary["cell_error"] < 1e-15
    assert run.arrays["K = 8.exponents"].shape == (len(chains.BETAS), 8)
    assert "K = 4.exponents" not in run.arrays
    np.testing.assert_allclose(run.arrays["K = 8.exponents"][-1], 0, atol=1e-14)  # β = 2
    np.testing.assert_allclose(run.arrays["subspace.exponents"][: chains.SHOWN_SIZE - chains.DIRECTIONS], 0, atol=1e-3)
    np.testing.assert_allclose(run.arrays["clusters.finite"], run.arrays["clusters.exponents"], atol=0.05)


EXACT = np.array([-0.1, -0.2, -0.2001])


@pytest.mark.parametrize(
    ("exponents", "errors", "expected"),
    [
        ([-0.11, -0.2, -0.2], [0.005, 0.01, 0.01], [-2, np.nan, np.nan]),  # the last two cannot be told apart
        (EXACT, [1e-17, 0, 0], [0, 0, 0]),
        ([-0.1, -0.2, -0.21], [0, 0, 0], [0, 0, np.inf]),
    ],
)
def test_distances(exponents, errors, expected):
    exponents = np.array(exponents)
    found = delta.Keys(exponents, np.array(errors), exponents, EXACT, np.zeros(2), np.array(0.0), np.array(9))
    np.testing.assert_allclose(np.abs(delta.measure_distances(found)), np.abs(expected), atol=1e-9)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"exponents": np.array([-0.1 + 5e-3, -0.2])}, 1),
        ({"exponents": np.array([-0.1, np.nan])}, 0),
        ({"sum_error": np.full(2, 1e-9)}, 1),
        ({"cell_error": np.array(1e-9)}, 1),
    ],
)
def test_exit_code(change, code):
    exact = np.array([-0.1, -0.2])
    uniform = delta.Chains(
        np.array([0.5]), exact[None], np.full((1, 2), 1e-3), exact[None], *np.zeros((2, 1)), np.array(9)
    )
    keys = delta.Keys(exact, np.full(2, 1e-3), exact, exact, np.zeros(2), np.array(0.0), np.array(9))._replace(**change)
    assert delta.summarise({"K = 2": uniform, "uniform": keys}, delta.Config()).exit_code == code
