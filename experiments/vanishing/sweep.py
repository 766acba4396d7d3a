"""What is swept, what a sweep finds, and the theories it is held against."""

from typing import NamedTuple

import numpy as np

from experiments.nets import SCHEMES

CELLS = {"elman": "Elman", "lstm": "LSTM", "gru": "GRU"}
GAINS = tuple(2.0 ** (k / 3) for k in range(-6, 7))  # 0.25 … 4
SHOWN = (3, 6, 9)  # of GAINS: ½, 1, 2, whose singular values are followed over time
PARTED = 0.05  # nats per step: theory and truth have parted
NAMES = tuple(f"{cell}, {scheme}" for cell in CELLS for scheme in SCHEMES)  # of the sweeps
THEORIES = {  # field of Sweep: its name in figure and words
    "powers": r"powers of W, $\ln\rho(W)$",
    "bound": r"bound, $\ln\gamma\sigma_{max}(W)$",
    "norms": r"step norms, $\ln\Vert J_t\Vert$",
    "radii": r"step eigenvalues, $\ln\rho(J_t)$",
    "mean_field": "mean field, driven",
    "carry": "the gate alone",
}


class Sweep(NamedTuple):
    """One cell under one scheme. G gains, N state entries, R records at `steps`, S sampled steps. Rates: nats per step.

    k is a quarter of N. A theory that does not speak of the cell or the scheme is NaN.
    """

    gains: np.ndarray  # [G]
    exponents: np.ndarray  # [G, k] descending
    standard_error: np.ndarray  # [G, k]
    steps: np.ndarray  # [R] t
    log_singular_values: np.ndarray  # [3, R, N] of dh_t/dh_0, for the gains SHOWN
    weight_eigenvalues: np.ndarray  # [G, H] complex, of W_hh (of its candidate block: LSTM's g, GRU's n)
    jacobian_eigenvalues: np.ndarray  # [G, S, N] complex, of J_t
    powers: np.ndarray  # [G] ln ρ(W): |λ| powers, the linear net
    bound: np.ndarray  # [G] ln γσ_max(W), γ = max φ' = 1: nothing grows faster
    mean_field: np.ndarray  # [G] λ_1 at N → ∞, driven by as much as the text drives it
    carry: np.ndarray  # [G] mean ln of the forget or update gate, the largest over units: the gate alone
    norms: np.ndarray  # [G] mean ln ‖J_t‖: the product of step norms
    radii: np.ndarray  # [G] mean ln ρ(J_t): the eigenvalues of each step


class SymmetricNorms(NamedTuple):
    """The symmetric linear net h_t = W h_{t−1}, whose spectral radius says everything."""

    radii: np.ndarray  # [3] ρ(W)
    norms: np.ndarray  # [3] ‖J^t‖
