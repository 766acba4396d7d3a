"""Where the gradient goes: singular values, exponents, norms and bounds of Jacobian chains of any length."""

from jaxbptt.spectra.bounds import Bounds, bounds
from jaxbptt.spectra.exponents import lyapunov_exponents, stream_exponents
from jaxbptt.spectra.growth import log_growth
from jaxbptt.spectra.leading import Leading, leading_singular_values
from jaxbptt.spectra.pairs import PairNorms, pair_norms
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
    "Leading",
    "LogSVD",
    "LyapunovExponents",
    "PairNorms",
    "PooledExponents",
    "bounds",
    "entropy_rate",
    "kaplan_yorke_dimension",
    "leading_singular_values",
    "log_growth",
    "log_singular_values",
    "lyapunov_exponents",
    "pair_norms",
    "pool_exponents",
    "singular_decomposition",
    "stream_exponents",
]
