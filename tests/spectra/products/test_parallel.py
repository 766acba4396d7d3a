"""Factors joined in blocks are those of one pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import spectra
from jaxbptt.spectra.products import records
from tests.spectra.chains import CHAINS, METHODS, log_singular_values


@pytest.mark.sweep
@pytest.mark.parametrize("kind", ["rows", "columns", "growing", "duplicates"])
def test_the_parallel_factors_are_the_same(kind):
    chain = CHAINS[kind]
    sequential, parallel = (log_singular_values(chain, every=130, method=method) for method in METHODS)
    np.testing.assert_allclose(parallel, sequential, rtol=0, atol=1e-9)


@pytest.fixture
def alternating():
    """period -> chain, truth: two blocks e^x Q, Q orthogonal, x 1.5 and −2 in turns, opposite in the other."""

    def make(period):
        turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
        x = np.where(np.arange(200) // period % 2 == 0, 1.5, -2.0)
        chain = np.zeros((200, 6, 6))
        chain[:, :3, :3], chain[:, 3:, 3:] = (np.exp(each)[:, None, None] * turn for each in (x, -0.5 - x))
        return chain, np.sort(np.repeat([x.sum(), -100 - x.sum()], 3))[::-1]

    return make


def wrong(find, chain, truth):
    found = np.asarray(find(jnp.asarray(chain)))[-1]
    return np.abs(np.where(np.isnan(found), truth, found) - truth).max()


@pytest.mark.parametrize("period", [5, 20, 50])
def test_blocks_that_grow_in_turns_are_right_or_not_known(alternating, period):
    assert wrong(functools.partial(log_singular_values, method="parallel"), *alternating(period)) < 0.01


def test_without_a_look_at_the_errors_they_would_be_wrong(alternating, monkeypatch):
    monkeypatch.setattr(records, "_find_suspicious", lambda factors: jnp.zeros_like(factors.log_scale, bool))
    find = jax.jit(lambda chain: spectra.log_singular_values(chain, method="parallel"))
    assert max(wrong(find, *alternating(period)) for period in (20, 50)) > 0.01
