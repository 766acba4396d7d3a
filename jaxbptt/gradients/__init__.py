"""dC/dθ by four exact routes, each its own algorithm, all (model, params, inputs, targets) -> (loss, grads).

autodiff             reverse mode through the scan
bptt                 λ_t by a reverse scan, then (∂⁺h_t/∂⁺θ)ᵀ λ_t over all steps at once; uses the hand derivation,
                     or, where there is none, the products with weights found in the step's program
forward_sensitivity  A_t = dh_t/dθ carried forward
double_sum           every term (∂⁺h_k/∂⁺θ)ᵀ (dh_t/dh_k)ᵀ ∂L_t/∂h_t on its own
"""

from jaxbptt.gradients.backpropagation import adjoints, bptt
from jaxbptt.gradients.exact import autodiff, double_sum, forward_sensitivity
from jaxbptt.gradients.forward import flatten_steps, run_forward

__all__ = ["adjoints", "autodiff", "bptt", "double_sum", "flatten_steps", "forward_sensitivity", "run_forward"]
