"""What must hold for every chain, whatever its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbptt import spectra

log_singular_values = jax.jit(spectra.log_singular_values)
SHAPES = [(1, 1), (7, 1), (1, 3), (7, 3), (60, 4)]  # (T, N): one compilation each
chains = st.builds(
    lambda shape, seed, gain: gain * np.random.default_rng(seed).standard_normal((*shape, shape[1])),
    st.sampled_from(SHAPES),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-4, 0.3, 1.0, 1e5]),
)
examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)
TOLERANCE = 1e-9


def last(chain):
    return np.asarray(log_singular_values(jnp.asarray(chain)))[0]


def orthogonal(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


@examples
@given(chains)
def test_descending_and_multiplying_to_the_determinant(chain):
    values = last(chain)
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(values.sum(), np.linalg.slogdet(chain)[1].sum(), rtol=0, atol=TOLERANCE * len(chain))


@examples
@given(chains, st.integers(0, 2**32 - 1))
def test_orthogonal_frames_change_nothing(chain, seed):
    turned = chain.copy()
    turned[-1] = orthogonal(chain.shape[1], seed) @ turned[-1]
    turned[0] = turned[0] @ orthogonal(chain.shape[1], seed + 1)
    middle = orthogonal(chain.shape[1], seed + 2)
    if len(chain) > 3:
        turned[2], turned[3] = middle @ turned[2], turned[3] @ middle.T
    np.testing.assert_allclose(last(turned), last(chain), rtol=0, atol=TOLERANCE)


@examples
@given(chains)
def test_the_transposed_reversed_chain_has_the_same_values(chain):
    np.testing.assert_allclose(last(chain[::-1].swapaxes(1, 2)), last(chain), rtol=0, atol=TOLERANCE)


@examples
@given(chains)
def test_the_inverse_chain_has_the_inverse_values(chain):
    size = chain.shape[1]
    chain = np.eye(size) + 0.9 * chain / (size * np.abs(chain).max())  # far from singular, so that it can be inverted
    chain = chain * np.logspace(-2, 2, size)
    inverse = np.linalg.inv(chain)[::-1]
    np.testing.assert_allclose(last(inverse)[::-1], -last(chain), rtol=0, atol=TOLERANCE)


@examples
@given(chains, st.sampled_from([1e-30, 0.5, 3.0, 1e20]))
def test_a_factor_at_every_step_adds_its_log(chain, factor):
    shift = len(chain) * np.log(factor)
    np.testing.assert_allclose(last(factor * chain), last(chain) + shift, rtol=1e-13, atol=TOLERANCE)


@settings(examples, max_examples=12)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 0.2, 1e-3]))
def test_a_block_diagonal_chain_has_the_values_of_its_blocks(seed, ratio):
    first, second = np.random.default_rng(seed).standard_normal((2, 60, 2, 2))
    second = second * ratio
    zeros = np.zeros_like(first)
    whole = np.block([[first, zeros], [zeros, second]])
    pad = lambda chain: np.block([[chain, zeros], [zeros, 1e-300 * np.eye(2) + zeros]])
    parts = np.concatenate([last(pad(first))[:2], last(pad(second))[:2]])
    np.testing.assert_allclose(last(whole), np.sort(parts)[::-1], rtol=0, atol=TOLERANCE)
