"""Where the gradient goes: singular values, exponents, norms and bounds of Jacobian chains of any length."""

from jaxbptt.spectra.bounds import Bounds, bounds
from jaxbptt.spectra.exponents import lyapunov_exponents, stream_exponents
from jaxbptt.spectra.growth import log_growth
from jaxbptt.spectra.singular_values import LogSVD, log_singular_values, singular_decomposition
from jaxbptt.spectra.statistics import (
    LyapunovExponents,
    PooledExponents,
    entropy_rate,
    kaplan_yorke_dimension,
    pool_exponents,
)

__all__ = [
    "Bounds",
    "LogSVD",
    "LyapunovExponents",
    "PooledExponents",
    "bounds",
    "entropy_rate",
    "kaplan_yorke_dimension",
    "log_growth",
    "log_singular_values",
    "lyapunov_exponents",
    "pool_exponents",
    "singular_decomposition",
    "stream_exponents",
]
