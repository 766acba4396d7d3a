"""dC/dθ by five exact routes, each a different algorithm: (model, params, inputs, targets) -> (loss, grads).

autodiff             reverse mode through the scan
bptt                 λ_t by a reverse scan, then (∂⁺h_t/∂⁺θ)ᵀ λ_t over all steps at once; uses the hand derivation
                     or, where there is none, the products with weights that it finds in the step's program
forward_sensitivity  A_t = dh_t/dθ carried forward
double_sum           every term (∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂L_t/∂h_t formed by itself, then added
forward_adjoint      dC/dh_t carried forward by J_t⁻ᵀ: exact until rounding wins, NaN from then on
"""

from jaxbptt.gradients.backpropagation import adjoints, bptt
from jaxbptt.gradients.exact import autodiff, double_sum, forward_sensitivity
from jaxbptt.gradients.forward_propagation import PropagatedErrors, forward_adjoint, propagate_errors

__all__ = [
    "PropagatedErrors",
    "adjoints",
    "autodiff",
    "bptt",
    "double_sum",
    "forward_adjoint",
    "forward_sensitivity",
    "propagate_errors",
]
