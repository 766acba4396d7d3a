"""x"""
from jaxbptt.sharded._gradients import adjoints, bptt, unroll
from jaxbptt.sharded._spectra import log_singular_values, lyapunov_exponents, stream_exponents
__all__ = ["adjoints", "bptt", "log_singular_values", "lyapunov_exponents", "stream_exponents", "unroll"]
