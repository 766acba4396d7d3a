"""The verdict before a run, against runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbptt import cells, spectra, trajectories

NAN = float("nan")


def found(largest, standard_error=0.0, warm_up_error=0.0):
    """Exponents of one chain, k = 1."""
    row = lambda value: jnp.array([value])
    return spectra.LyapunovExponents(
        exponents=row(largest),
        standard_error=row(standard_error),
        degrees_of_freedom=row(50.0),
        correlation_time=row(0.5),
        warm_up_error=row(warm_up_error),
        rounding_error=row(0.0),
        local=jnp.array([[largest]]),
        interval=jnp.array(1.0),
        interval_error=row(0.0),
        size=jnp.array(4),
    )


@pytest.mark.parametrize(
    ("exponents", "length", "verdict"),
    [
        (found(-0.1), 101, "pays"),
        (found(-0.1), 99, "cannot tell"),
        (found(-0.1), 9, "does not pay"),
        (found(0.1), 1000, "does not pay"),
        (found(-0.0001), 1000, "does not pay"),
        (found(-0.02, 0.006), 1000, "cannot tell"),  # −0.008 to −0.032
        (found(-0.02, 0.004), 1000, "pays"),
        (found(-0.02, 0.004, 0.004), 1000, "cannot tell"),
        (found(0.0, 0.001), 1000, "cannot tell"),
        (found(-0.02, NAN), 1000, "cannot tell"),
        (found(NAN), 1000, "cannot tell"),
        (found(-np.inf), 11, "pays"),
    ],
)
def test_verdicts(exponents, length, verdict):
    outlook = spectra.newton_outlook(exponents, length)
    assert outlook.verdict == verdict
    assert str(outlook) == f"In parallel, Newton's method {verdict}: {outlook.reason}"
    assert outlook.reason.endswith(".")
    assert "nan" not in outlook.reason
    assert np.isnan(outlook.lower) or outlook.lower <= outlook.upper


@pytest.mark.parametrize(("gain", "verdict"), [(0.5, "pays"), (3.0, "does not pay")])
def test_what_it_says_comes_true(gain, verdict):
    cell = cells.elman(1, 20, recurrent=cells.gaussian(gain))
    params = cell.init(jax.random.key(1))
    inputs = jax.random.normal(jax.random.key(2), (400, 1))
    exponents = spectra.stream_exponents(cell, params, inputs, k=1)
    assert spectra.newton_outlook(exponents, 40).verdict == verdict
    run = trajectories.unroll(cell, params, inputs[:40], method="newton")
    assert (int(run.iterations) < 10) == (verdict == "pays")


@pytest.mark.parametrize(
    ("exponents", "length", "error", "message"),
    [
        (jnp.zeros(3), 5, TypeError, "exponents: got ArrayImpl, expected LyapunovExponents"),
        (found(-1.0), 0, ValueError, "length: got 0, expected at least 1"),
        (jax.tree.map(lambda leaf: leaf[None], found(-1.0)), 5, ValueError, r"exponents: got shape \[1, 1\]"),
    ],
)
def test_bad_arguments_get_one_line(exponents, length, error, message):
    with pytest.raises(error, match=message):
        spectra.newton_outlook(exponents, length)


def test_traced_exponents_are_refused():
    with pytest.raises(TypeError, match="exponents: got traced arrays"):
        jax.jit(lambda given: spectra.newton_outlook(given, 5).lower)(found(-1.0))
