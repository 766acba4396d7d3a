"""The predicted horizon, by hand and against passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import spectra


def found(*exponents, standard_error=0.0, size=None):
    row, zeros = jnp.array(exponents), jnp.zeros(len(exponents))
    errors = jnp.full(len(exponents), standard_error)
    size = jnp.array(len(exponents) if size is None else size)
    return spectra.LyapunovExponents(
        row, errors, zeros + 50, zeros, zeros, zeros, row[None], jnp.array(1.0), zeros, size
    )


@pytest.mark.parametrize(
    ("exponents", "dtype", "start", "steps"),
    [
        ((-0.1, -0.4), jnp.float32, "backward", 24 * np.log(2) / 0.4),
        ((-0.1, -0.4), jnp.float64, "backward", 53 * np.log(2) / 0.4),
        ((-0.1, -0.4), jnp.float64, "warm-up", 53 * np.log(2) / 0.7),
        ((-0.3,), jnp.float32, "warm-up", 24 * np.log(2) / 0.3),
        ((0.2, 0.1), jnp.float64, "backward", np.inf),
        ((0.2, 0.1), jnp.float64, "warm-up", np.inf),
        ((0.5, 0.1), jnp.float64, "warm-up", 53 * np.log(2) / 0.3),
        ((0.2, -np.inf), jnp.float64, "warm-up", 0),
        ((-np.inf,), jnp.float64, "warm-up", 0),
        ((0.2, -np.inf), jnp.float64, "backward", 0),
        ((0.2, np.nan), jnp.float64, "backward", np.nan),
    ],
)
def test_the_formula(exponents, dtype, start, steps):
    horizon = spectra.error_horizon(found(*exponents), dtype, start=start)
    np.testing.assert_allclose(horizon.steps, steps, rtol=1e-12)
    np.testing.assert_array_equal(horizon.standard_error, np.nan if np.isnan(steps) else 0)


@pytest.mark.parametrize(("start", "slope"), [("backward", 1.0), ("warm-up", 5**0.5)])
def test_the_error_is_that_of_the_exponents(start, slope):
    horizon = spectra.error_horizon(found(-0.1, -0.4, standard_error=0.01), jnp.float64, start=start)
    rate = 0.4 if start == "backward" else 0.7
    np.testing.assert_allclose(horizon.standard_error, 53 * np.log(2) / rate**2 * slope * 0.01, rtol=1e-12)
    jitted = jax.jit(lambda given: spectra.error_horizon(given, jnp.float64, start=start))
    np.testing.assert_allclose(jitted(found(-0.1, -0.4)).steps, 53 * np.log(2) / rate, rtol=1e-12)


@pytest.mark.parametrize(
    ("exponents", "dtype", "start", "error", "message"),
    [
        (jnp.zeros(2), jnp.float32, "backward", TypeError, "exponents: got ArrayImpl"),
        (found(-0.1, size=3), jnp.float32, "backward", ValueError, "exponents: got 1 of N = 3, expected all"),
        (found(-0.1), jnp.int32, "backward", TypeError, "dtype: got int32"),
        (found(-0.1), jnp.float32, "forward", ValueError, "start: got 'forward'"),
        (jax.tree.map(lambda leaf: leaf[None], found(-0.1)), jnp.float32, "warm-up", ValueError, r"got shape \[1, 1\]"),
    ],
)
def test_bad_arguments_get_one_line(exponents, dtype, start, error, message):
    with pytest.raises(error, match=message):
        spectra.error_horizon(exponents, dtype, start=start)
