"""J_t = ∂⁺h_t/∂⁺h_{t−1} for every step, and their ordered products dh_t/dh_k = J_t … J_{k+1}."""

from jaxbptt.jacobians.batch import batch_jacobians
from jaxbptt.jacobians.blocks import BlockJacobians, BorderedJacobians
from jaxbptt.jacobians.dense import step_jacobians
from jaxbptt.jacobians.products import prefix_products, product
from jaxbptt.jacobians.structured import StructuredJacobians, structured_jacobians

__all__ = [
    "BlockJacobians",
    "BorderedJacobians",
    "StructuredJacobians",
    "batch_jacobians",
    "prefix_products",
    "product",
    "step_jacobians",
    "structured_jacobians",
]
