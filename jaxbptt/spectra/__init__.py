"""Where the gradient goes: singular values, exponents, norms and bounds of Jacobian chains of any length."""

from jaxbptt.spectra.singular_values import log_singular_values

__all__ = ["log_singular_values"]
