"""Slow and right: singular values of a chain in arbitrary precision."""

import mpmath
import numpy as np


def log_singular_values(chain, digits):
    """ln σ_i of the exactly multiplied product, descending; −inf below 10^−(digits − 30) of the largest."""
    with mpmath.workdps(digits):
        product = mpmath.eye(chain.shape[1])
        for jacobian in np.asarray(chain, np.float64):
            product = mpmath.matrix(jacobian.tolist()) * product
        values = sorted(mpmath.svd_r(product, compute_uv=False), reverse=True)
        floor = values[0] * mpmath.mpf(10) ** (30 - digits)
        return np.array([float(mpmath.log(value)) if value > floor else -np.inf for value in values])
