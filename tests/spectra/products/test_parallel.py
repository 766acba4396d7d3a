"""Factors joined in blocks are those of one pass."""

import numpy as np
import pytest

from tests.spectra.chains import CHAINS, METHODS, log_singular_values


@pytest.mark.parametrize("kind", ["rows", "columns", "growing", "duplicates"])
def test_the_parallel_factors_are_the_same(kind):
    chain = CHAINS[kind]
    sequential, parallel = (log_singular_values(chain, every=130, method=method) for method in METHODS)
    np.testing.assert_allclose(parallel, sequential, rtol=0, atol=1e-9)
