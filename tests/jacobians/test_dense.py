"""J_t by every method."""

import numpy as np
import pytest

from jaxbptt import jacobians
from tests import cases
from tests.jacobians.chains import chain_of


@pytest.mark.sweep
@pytest.mark.parametrize("gain", cases.GAINS)
@pytest.mark.parametrize("name", cases.CELLS)
def test_every_method_gives_the_same_jacobians(name, gain):
    *_, forward = chain_of(name, gain, "forward")
    for method in ("auto", "reverse") + (("closed",) if name in cases.BUILT_IN else ()):
        *_, other = chain_of(name, gain, method)
        np.testing.assert_allclose(other, forward, rtol=1e-13, atol=1e-13 * np.abs(forward).max())


def test_bad_methods_are_refused():
    cell, params, trajectory, _ = chain_of("custom", None)
    with pytest.raises(ValueError, match="method: got 'closed', expected 'forward' or 'reverse'"):
        jacobians.step_jacobians(cell, params, trajectory, method="closed")
    with pytest.raises(ValueError, match="method: got 'fast', expected one of"):
        jacobians.step_jacobians(cell, params, trajectory, method="fast")
