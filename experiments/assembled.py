"""What people do: assemble the product of Jacobians in plain floats and decompose it."""

from typing import Any

import jax
import numpy as np

from jaxbptt.jacobians import prefix_products


def log_singular_values(jacobians: jax.Array, dtype: Any = None) -> np.ndarray:
    """ln σ of dh_t/dh_0 by an SVD of each assembled product; NaN where a product is not finite.

    Args:
      jacobians: [T, N, N]; their dtype is that of the products.
      dtype: of the decomposition; by default that of the products.

    Returns:
      [T, N] float64, descending; −inf where a value came out as 0.
    """
    return decompose(np.asarray(jax.jit(prefix_products)(jacobians)), dtype)


def decompose(products: np.ndarray, dtype: Any = None) -> np.ndarray:
    """The same of products [R, N, N] that are assembled already."""
    products = products.astype(dtype or products.dtype)
    finite = np.isfinite(products).all(axis=(1, 2))
    values = np.linalg.svd(np.where(finite[:, None, None], products, 0), compute_uv=False)
    with np.errstate(divide="ignore"):
        return np.where(finite[:, None], np.log(values.astype(float)), np.nan)
